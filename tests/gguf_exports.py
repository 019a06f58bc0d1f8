"""Small models for the export to GGUF, and how its files are read back."""

import json

import gguf
import numpy as np
import torch
from gguf_files import HEADS, KEYS, SHAPES, container
from safetensors.torch import save_file

import tpack
from tpack.container import Checkpoint
from tpack.dialects.gguf_architectures import ARCHITECTURES
from tpack.quantize import widen

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KEYS,
    "num_hidden_layers": 1,
    "vocab_size": 32,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "bos_token_id": 1,
    "eos_token_id": [2, 3],
}


def hf_weights(seed=0, dtype=torch.bfloat16):
    """A tiny Llama as Hugging Face has it."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, shape in SHAPES.items():
        hf = ARCHITECTURES["llama"].to_hf(name)
        if name.startswith("blk") and len(shape) == 2:
            trits = torch.randint(-1, 2, shape, generator=generator)
            found[hf] = (trits * torch.rand((), generator=generator).to(dtype)).to(dtype)
        else:
            found[hf] = torch.randn(shape, generator=generator).to(dtype)
    return found


def folder(tmp_path, weights=None, config=CONFIG, name="model", **files):
    """A packed folder of a model."""
    source = tmp_path / name
    source.mkdir()
    save_file(hf_weights() if weights is None else weights, source / "model.safetensors")
    (source / "config.json").write_text(json.dumps(config))
    for file, content in files.items():
        (source / file.replace("__", ".")).write_text(json.dumps(content))
    packed = tmp_path / f"{name}.tpack"
    tpack.convert(source, packed, capture=False)
    return packed


def packed(tmp_path, weight, name="blk.0.ffn_up.weight", architecture="bitnet", **options):
    """A checkpoint of one weight with the metadata of a GGUF file."""
    head = [("general.architecture", "string", architecture)]
    other = ("token_embd.weight", (2, 4), 0, bytes(32))
    number = {np.float32: 0, np.float16: 1}[weight.dtype.type]
    data = container(head, [(name, weight.shape, number, weight.tobytes()), other])
    (tmp_path / "one.gguf").write_bytes(data)
    path = tmp_path / "one.tpack.safetensors"
    tpack.convert(tmp_path / "one.gguf", path, force=True, **options)
    return path


def ternary(shape, scale, dtype=np.float32, seed=0):
    trits = np.random.default_rng(seed).integers(-1, 2, shape)
    trits[:, ::32] = 1
    return (trits * np.asarray(scale)).astype(dtype)


def read(path):
    """Tensors of a GGUF file as the gguf package reads them, Q2_0 by hand."""
    reader = gguf.GGUFReader(path)
    return {
        t.name: gguf.quants.dequantize(t.data, t.tensor_type).reshape(t.shape[::-1])
        for t in reader.tensors
    }


def contents(path):
    """Packed bytes, scales and kept tensors of a checkpoint."""
    with Checkpoint(path) as file:
        found = {name: file.array(name).tobytes() for name in file.document.kept}
        for name, entry in file.ternary():
            assert entry.method == "exact"
            stored, dtype, granularity = file.scale(name)
            scale = widen(stored, dtype)
            blocks = b"".join(block.tobytes() for _, block in file.packed_blocks(name))
            found[name] = (blocks, str(granularity), tuple(scale.astype(np.float64).ravel()))
        return found


RULE = (
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+"
    "[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
)


TOKENIZER = {
    "normalizer": None,
    "pre_tokenizer": {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": RULE}, "behavior": "Isolated"},
            {"type": "ByteLevel", "add_prefix_space": False},
        ],
    },
    "model": {
        "type": "BPE",
        "vocab": {"a": 0, "b": 1, "ab": 2, "Ġ": 3},
        "merges": [["a", "b"], ["Ġ", "a"]],
    },
    "added_tokens": [
        {"id": 4, "content": "<|begin|>", "special": True},
        {"id": 6, "content": "<|user|>", "special": False},
    ],
}


def export(path, destination, **options):
    """A checkpoint as a GGUF file."""
    return tpack.export(path, "gguf", destination, **options)
