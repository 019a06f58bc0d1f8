"""Models in shards, for the tests of folders."""

import json

import torch
from safetensors.torch import save_file
from tensors import trits

CONFIG = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "_name_or_path": "org/base"}


def model(layers=4):
    """A state dict with weights ternary in every way, one Gaussian, and what is kept."""
    torch.manual_seed(1)
    state = {"model.embed_tokens.weight": torch.randn(20, 64)}
    for i in range(layers):
        name = f"model.layers.{i}"
        state[f"{name}.mlp.up_proj.weight"] = trits(96, 64, seed=i) * 0.5
        state[f"{name}.mlp.down_proj.weight"] = trits(64, 96, seed=9 + i) * torch.rand(64, 1)
        state[f"{name}.norm.weight"] = torch.ones(64)
    state["model.mixed.weight"] = torch.randn(8, 64)
    return state


def write_shards(folder, state, count=3, suffix="safetensors"):
    """A folder as libraries write it, in shards of neighbouring tensors."""
    folder.mkdir()
    names = list(state)
    size = -(-len(names) // count)
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    weight_map = {}
    for number in range(count):
        file = f"{stem}-{number + 1:05}-of-{count:05}.{suffix}"
        part = {name: state[name] for name in names[number * size : (number + 1) * size]}
        if suffix == "safetensors":
            save_file(part, folder / file)
        else:
            torch.save(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "LICENSE").write_text("free")
    (folder / "modeling.py").write_text("raise SystemExit")
    (folder / "README.md").write_text("---\nlicense: mit\n---\nA model.")
    return folder


def contents(folder):
    """Every file of a folder."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
