"""Small files and folders that show what ``docs/troubleshooting.md`` is about, each by its name."""

from __future__ import annotations

import argparse
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hf_models
import numpy as np
import torch
from gguf import GGMLQuantizationType
from gguf_exports import TOKENIZER
from gguf_files import container, values, write_model
from safetensors.torch import load_file, save_file
from torch import Tensor

from tpack import codec
from tpack.dialects import gguf_blocks

State = dict[str, Tensor]
#: Wide enough for the blocks of GGUF.
WIDE = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 1, "vocab_size": 32}
BITNET = {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online"}
POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 1178623988\n"


def ternary(*shape: int, scale: float = 0.5) -> Tensor:
    """Random trits times a scale."""
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randint(-1, 2, shape, generator=generator) * scale


def random(*shape: int) -> Tensor:
    """Random floats, the same on every processor."""
    return torch.from_numpy(np.random.default_rng(sum(shape)).standard_normal(shape)).float()


def write(path: Path, state: State) -> None:
    """Save a state dict as safetensors."""
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)


def change_config(folder: Path, **fields: Any) -> None:
    """Add fields to the config of a folder."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def change_weights(folder: Path, change: Callable[[str, Tensor], Tensor]) -> None:
    """Put what a function makes of them in place of the weights of linear layers."""
    state = load_file(folder / "model.safetensors")
    state |= {name: change(name, t) for name, t in state.items() if name.endswith("proj.weight")}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def cloned(path: Path) -> None:
    """A clone without Git LFS."""
    path.mkdir()
    (path / "model.safetensors").write_text(POINTER)
    (path / "config.json").write_text("{}")


def cut_safetensors(path: Path) -> None:
    """A download that broke off."""
    write(path, {"up.weight": ternary(64, 64)})
    path.write_bytes(path.read_bytes()[:-100])


def cut_pt(path: Path) -> None:
    """The same of what torch.save wrote."""
    torch.save({"up.weight": ternary(64, 64)}, path)
    path.write_bytes(path.read_bytes()[:-600])


def partial(path: Path) -> None:
    """A folder without one of its shards."""
    path.mkdir()
    shards = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    write(path / shards[0], {"up.weight": ternary(8, 8)})
    index = {"metadata": {}, "weight_map": {"up.weight": shards[0], "down.weight": shards[1]}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    (path / "config.json").write_text("{}")


def trainer(path: Path) -> None:
    """What a trainer saved, with its arguments in it."""
    torch.save({"state_dict": {"up.weight": ternary(8, 8)}, "args": argparse.Namespace()}, path)


def averaged(path: Path) -> None:
    """What a trainer saved, with averages of the weights beside them."""
    state = {"up.weight": ternary(8, 8), "up.bias": random(8)}
    torch.save({"params": state, "params_ema": state, "iter": 100}, path)


def remote_code(path: Path) -> None:
    """A model whose config names code that is not there."""
    hf_models.save_packed(hf_models.make("BitNet"), path, "autobitlinear")
    change_config(path, auto_map={"AutoConfig": "configuration_bitnet.BitNetConfig"})


def falcon(path: Path) -> None:
    """A Llama packed as Hugging Face's bitnet, by divisors; with a tokenizer of Llama 3."""
    hf_models.save_packed(hf_models.make("Llama", torch.bfloat16, **WIDE), path)
    (path / "tokenizer.json").write_text(json.dumps(TOKENIZER))


def falcon_e(path: Path) -> None:
    """The same, by factors, and with another tokenizer."""
    model = hf_models.make("Llama", torch.bfloat16, **WIDE)
    hf_models.save_packed(model, path, "autobitlinear")
    split = {"type": "Split", "pattern": {"Regex": "[0-9]"}, "behavior": "Isolated"}
    rules = [split, TOKENIZER["pre_tokenizer"]["pretokenizers"][1]]
    other = {"pre_tokenizer": {"type": "Sequence", "pretokenizers": rules}}
    (path / "tokenizer.json").write_text(json.dumps(TOKENIZER | other))


def narrow(path: Path) -> None:
    """A Llama whose columns are no multiple of 256."""
    sizes = WIDE | {"hidden_size": 192, "intermediate_size": 320}
    hf_models.make("Llama", torch.bfloat16, **sizes).save_pretrained(path)


def grouped(path: Path) -> None:
    """A Llama with a scale for each 128 columns of a row."""

    def regroup(_: str, weight: Tensor) -> Tensor:
        rows, columns = weight.shape
        scales = 2.0 ** random(rows, columns // 128).round()
        return weight.sign() * scales.repeat_interleave(128, 1).bfloat16()

    hf_models.make("Llama", torch.bfloat16, **WIDE).save_pretrained(path)
    change_weights(path, regroup)


def lone(path: Path) -> None:
    """A packed weight without the config of its model."""
    pack = hf_models.transformers().integrations.bitnet.pack_weights
    write(path, {"up.weight": pack(ternary(16, 8, scale=1.0)), "up.weight_scale": torch.ones(1)})


def i2_s(path: Path) -> None:
    """A GGUF file in the blocks of bitnet.cpp."""
    trits = np.random.default_rng(0).integers(-1, 2, (128, 256)).astype(np.int8)
    none = np.zeros((128, 2), np.float16)
    blocks = gguf_blocks.pack_blocks(gguf_blocks.I2_S, codec.pack(trits), none).tobytes()
    weight = ("blk.0.ffn_up.weight", trits.shape, 36, blocks + struct.pack("<f", 0.5) + bytes(28))
    embedding = ("token_embd.weight", (4, 256), 0, bytes(4096))
    head = [("general.architecture", "string", "llama")]
    path.write_bytes(container(head, [weight, embedding]))


def tq1_0(path: Path) -> None:
    """A GGUF file in the smallest blocks of llama.cpp."""
    write_model(path, values(), GGMLQuantizationType.TQ1_0)


def linear(path: Path) -> None:
    """One ternary layer."""
    torch.save({"0.weight": ternary(8, 8)}, path)


def tied(path: Path) -> None:
    """A state dict whose head is its embedding."""
    embedding = random(32, 16)
    names = ("model.embed_tokens.weight", "lm_head.weight")
    torch.save({**dict.fromkeys(names, embedding), "model.up_proj.weight": ternary(16, 16)}, path)


def zeroed(path: Path) -> None:
    """A model that was published with zeros for one of its weights."""
    layer = "model.layers.0.mlp"
    state = {f"{layer}.{n}_proj.weight": ternary(16, 16, scale=2.0) for n in ("gate", "up")}
    write(path, {**state, f"{layer}.down_proj.weight": torch.zeros(16, 16)})


def ordinary(path: Path) -> None:
    """A weight of a model that was not trained to be ternary."""
    write(path, {"model.layers.0.mlp.up_proj.weight": random(32, 16)})


def masters(path: Path) -> None:
    """The masters of a BitNet, in floats, whose config does not say that it rounds them."""
    hf_models.make("BitNet").save_pretrained(path)
    change_weights(path, lambda _, weight: weight + 0.05 * random(*weight.shape))


def rounded(path: Path) -> None:
    """Masters that were rounded beforehand, of a model that rounds them as it runs."""

    def round_once(_: str, weight: Tensor) -> Tensor:
        scale = weight.abs().mean()
        return (weight / scale).round().clamp(-1, 1) * scale

    masters(path)
    change_weights(path, round_once)
    change_config(path, quantization_config=BITNET)


def trained(path: Path) -> None:
    """A master in bfloat16, of a model that rounds it."""
    path.mkdir()
    write(path / "model.safetensors", {"up.weight": random(16, 16).bfloat16()})
    (path / "config.json").write_text(json.dumps({"quantization_config": BITNET}))


def released(path: Path) -> None:
    """The same weight, rounded and packed as Hugging Face's bitnet."""
    path.mkdir()
    weight = random(16, 16).bfloat16()
    scale = weight.float().abs().mean()
    pack = hf_models.transformers().integrations.bitnet.pack_weights
    packed = pack((weight.float() / scale).round().clamp(-1, 1))
    state = {"up.weight": packed, "up.weight_scale": scale.bfloat16().reshape(1)}
    write(path / "model.safetensors", state)
    method = BITNET | {"quantization_mode": "offline"}
    (path / "config.json").write_text(json.dumps({"quantization_config": method}))


def diverged(path: Path) -> None:
    """A weight with a NaN."""
    weight = random(8, 8)
    weight[2, 3] = torch.nan
    write(path, {"up.weight": ternary(8, 8), "down.weight": weight})


def beyond(path: Path) -> None:
    """A value of bfloat16 that float16 cannot hold."""
    norm = torch.tensor([1e5, 1.0]).bfloat16()
    write(path, {"up.weight": ternary(8, 8).bfloat16(), "norm.weight": norm})


def adapted(path: Path) -> None:
    """A model with an adapter beside it."""
    hf_models.make("Llama").save_pretrained(path)
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    write(path / "adapter_model.safetensors", {name: random(4, 64)})
    (path / "adapter_config.json").write_text("{}")


def experts(path: Path) -> None:
    """Experts in one tensor, a head, and an embedding."""
    layer = "model.layers.0.mlp"
    state = {
        "model.embed_tokens.weight": random(50, 32),
        f"{layer}.gate.weight": random(4, 32),
        f"{layer}.experts.gate_up_proj": ternary(4, 16, 32),
        f"{layer}.experts.down_proj": ternary(4, 32, 8),
        "lm_head.weight": random(50, 32),
    }
    write(path, state)


def tuned(path: Path) -> None:
    """A ternary model of which one layer was trained on in floats."""
    hf_models.make("Llama").save_pretrained(path)
    change_weights(path, lambda name, w: w + 0.01 * random(*w.shape) if "q_proj" in name else w)


def two_scales(path: Path) -> None:
    """A weight of trained ternary quantization."""
    trits = ternary(8, 8)
    write(path, {"up.weight": torch.where(trits > 0, 0.4256, torch.where(trits < 0, -1.48, 0.0))})


def noisy(path: Path) -> None:
    """Trits times a scale, with an error of rounding in each."""
    weight = ternary(8, 8, scale=0.37)
    write(path, {"up.weight": weight * (1 + 3e-7 * random(8, 8))})


def gptq(path: Path) -> None:
    """A weight of four bits."""
    layer = "model.layers.0.mlp.up_proj"
    state = {
        f"{layer}.qweight": torch.zeros(4, 16, dtype=torch.int32),
        f"{layer}.qzeros": torch.zeros(1, 2, dtype=torch.int32),
        f"{layer}.scales": torch.ones(1, 16),
    }
    write(path, state)


def plain(path: Path) -> None:
    """A ternary model."""
    hf_models.make("Llama").save_pretrained(path)


#: What the page calls them, and the function that makes each.
SITUATIONS: dict[str, Callable[[Path], None]] = {
    "cloned": cloned,
    "cut.safetensors": cut_safetensors,
    "cut.pt": cut_pt,
    "partial": partial,
    "trainer.ckpt": trainer,
    "averaged.pth": averaged,
    "remote-code": remote_code,
    "falcon": falcon,
    "falcon-e": falcon_e,
    "narrow": narrow,
    "grouped": grouped,
    "lone.safetensors": lone,
    "i2_s.gguf": i2_s,
    "tq1_0.gguf": tq1_0,
    "linear.pt": linear,
    "tied.pt": tied,
    "zeroed.safetensors": zeroed,
    "ordinary.safetensors": ordinary,
    "masters": masters,
    "rounded": rounded,
    "trained": trained,
    "released": released,
    "diverged.safetensors": diverged,
    "beyond.safetensors": beyond,
    "adapted": adapted,
    "experts.safetensors": experts,
    "tuned": tuned,
    "two-scales.safetensors": two_scales,
    "noisy.safetensors": noisy,
    "gptq.safetensors": gptq,
    "model": plain,
}
