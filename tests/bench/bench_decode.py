"""Time a token of a packed Llama of 2 B weights: `python tests/bench/bench_decode.py [LAYERS]`.

The model is traced without memory for its weights, and its checkpoint made of packed bytes
directly. What is timed, in turns: `tpack.load`, a token through the loaded
model, and for comparison its `bit_linear` layers and its output head alone.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

import tpack
from tpack.capturing import export, trace
from tpack.container import Document, Piece, TernaryEntry, digest, write_checkpoint
from tpack.container.document import NO_DIGEST
from tpack.layerdef import slots
from tpack.nn import BitLinear

ROUNDS = 15


class TrainedLinear(nn.Linear):
    """BitNet b1.58 as it is trained: input and weight are rounded on the way."""

    def forward(self, x: Tensor) -> Tensor:
        gain = 127.0 / x.abs().max(dim=-1, keepdim=True).values.clamp_(min=1e-5)
        rounded = (x * gain).round().clamp_(-128, 127) / gain
        scale = 1.0 / self.weight.abs().mean().clamp_(min=1e-5)
        trits = (self.weight * scale).round().clamp_(-1, 1) / scale
        x = x + (rounded - x).detach()
        return F.linear(x, self.weight + (trits - self.weight).detach(), self.bias)


def make_model(layers: int) -> nn.Module:
    """The float model; its weights take no memory: each repeats one number."""
    config = transformers.LlamaConfig(
        vocab_size=32000,
        hidden_size=2560,
        intermediate_size=6912,
        num_hidden_layers=layers,
        num_attention_heads=20,
        num_key_value_heads=5,
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=None,
    )
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config).eval()
    for module in model.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(torch.ones(1).expand(weight.shape)))
        for name, child in module.named_children():
            if name.endswith("_proj"):
                child.__class__ = TrainedLinear
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    return model


def make(path: Path, layers: int) -> int:
    """Write a checkpoint with random trits; returns its number of ternary weights."""
    model = make_model(layers)
    inputs = {"input_ids": torch.ones(2, 8, dtype=torch.int64), "use_cache": False}
    packed = [name for name in model.state_dict() if name.endswith("_proj.weight")]
    program = trace(export(model, (), inputs, None)).program(packed)
    generator = np.random.default_rng(0)
    tensors, kept, pieces, weights = {}, {}, [], 0
    for slot in slots(program):
        name, shape = slot.name, tuple(slot.param.shape)
        if name in packed:
            codes = generator.integers(0, 3, (shape[0] * shape[1] // 4, 4), dtype=np.uint8)
            data = codes[:, 0] | codes[:, 1] << 2 | codes[:, 2] << 4 | codes[:, 3] << 6
            entry = TernaryEntry(
                shape, 1, "t2", "tensor", "absmean", "float32", 0.5, digest([data]), "0" * 64
            )
            scale = np.full(1, 1 / 40, np.float32)
            tensors[name] = replace(entry, scale_sha256=digest([scale]))
            pieces.append(Piece.of(f"{name}_packed", "uint8", entry.packed_shape, data))
            pieces.append(Piece.of(f"{name}_scale", "float32", (1,), scale))
            weights += shape[0] * shape[1]
        else:
            kept[name] = NO_DIGEST
            data = generator.standard_normal(shape, dtype=np.float32) / shape[-1] ** 0.5
            pieces.append(Piece.of(name, "float32", shape, data))
    write_checkpoint(path, Document(program, tensors, kept), pieces)
    return weights


def seconds(run: Callable[[], object]) -> float:
    """How long one call takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main() -> None:
    """Make, load, time in turns, print."""
    layers = int(sys.argv[1]) if len(sys.argv) > 1 else 30
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "llama.tpack.safetensors"
        weights = make(path, layers)
        tpack.load(path)  # imports what it needs
        loads = [seconds(lambda: tpack.load(path)) for _ in range(5)]
        model = tpack.load(path)
        print(f"{weights / 1e9:.2f} B ternary weights, {path.stat().st_size / 1e9:.2f} GB")
        print(f"load {statistics.median(loads):.3f} s")
        linears = [m for m in model.modules() if isinstance(m, BitLinear)]
        inputs = [torch.randn(1, 1, m.in_features) for m in linears]
        token = torch.ones(1, 1, dtype=torch.int64)
        hidden = torch.randn(1, 1, 2560)
        sides = {
            "a token": lambda: model(token),
            "its bit_linear layers": lambda: [m(x) for m, x in zip(linears, inputs, strict=True)],
            "its output head (float32)": lambda: model.lm_head(hidden),
        }
        times: dict[str, list[float]] = {name: [] for name in sides}
        with torch.no_grad():
            for _ in range(ROUNDS):
                for name, run in sides.items():
                    times[name].append(seconds(run))
        middle = {name: statistics.median(found) for name, found in times.items()}
        for name, found in middle.items():
            print(f"{name}: {1e3 * found:.1f} ms")
        whole, kernels, head = middle.values()
        print(f"token / kernels {whole / kernels:.2f}, without head {(whole - head) / kernels:.2f}")


if __name__ == "__main__":
    main()
