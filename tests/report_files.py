"""Checkpoints whose reports are looked at: a stack of layers, hostile names, hardly anything."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from tpack.checkpoint import load, save, unpack
from tpack.container import Document, Piece, write_checkpoint
from tpack.container.document import NO_DIGEST
from tpack.conversion import convert
from tpack.grouping import Place
from tpack.inspection import inspect

#: A name that tries each way out of an element, an attribute, a script and a comment.
HOSTILE = "</script><img src=x onerror=alert(1)><!--\"'&\u2028\u202e\x00\x1b]]>{{}}</title>.weight"


def stack(path: Path, layers: int = 4) -> Path:
    """Nine tensors a layer: attention exact by rows, the rest quantized, two norms kept."""
    generator = torch.Generator().manual_seed(0)
    state = {"model.embed_tokens.weight": torch.randn(24, 32, generator=generator).bfloat16()}
    for depth in range(layers):
        at = f"model.layers.{depth}."
        for number, name in enumerate(("q_proj", "k_proj", "v_proj", "o_proj")):
            trits = (
                (torch.randn(16, 32, generator=generator) * (1 + number / 4)).round().clamp(-1, 1)
            )
            scale = (1 + torch.arange(16.0)[:, None]) * 0.01 * (1 + depth)
            state[f"{at}self_attn.{name}.weight"] = (trits * scale).bfloat16()
        for name in ("gate_proj", "up_proj", "down_proj"):
            weight = torch.randn(32, 32, generator=generator) * 0.02 * (1 + depth)
            state[f"{at}mlp.{name}.weight"] = weight.bfloat16()
        for name in ("input_layernorm", "post_attention_layernorm"):
            state[f"{at}{name}.weight"] = torch.ones(32).bfloat16()
    convert(state, path, quantize="absmean", scale="row")
    return path


def transformer(path: Path, *, source: Path | None = None) -> Path:
    """Thirty layers as trained models have them, small: heavier tails further down.

    With ``source``, each weight was rounded with one scale before, so that it is ternary already,
    and the floats are saved there.
    """
    generator = torch.Generator().manual_seed(0)
    sizes = {
        "self_attn.q_proj": (160, 160, 14),
        "self_attn.k_proj": (40, 160, 12),
        "self_attn.v_proj": (40, 160, 30),
        "self_attn.o_proj": (160, 160, 8),
        "mlp.gate_proj": (432, 160, 18),
        "mlp.up_proj": (432, 160, 26),
        "mlp.down_proj": (160, 432, 6),
    }
    state = {"model.embed_tokens.weight": torch.randn(2000, 160, generator=generator) * 0.02}
    for depth in range(30):
        for number, (name, (rows, columns, tail)) in enumerate(sizes.items()):
            # Student's t: normal / sqrt(chi² / n), with fewer degrees in the last layers
            degrees = max(3, tail - depth * tail // 40 - (6 if depth < 2 else 0))
            chi = torch.randn(rows, columns, degrees, generator=generator).square().mean(-1)
            weight = torch.randn(rows, columns, generator=generator) / chi.sqrt()
            spread = 1 + 0.2 * torch.randn(rows, 1, generator=generator)
            scale = 0.012 * (1 + number / 8) * (0.7 + (depth / 20 - 0.6) ** 2) * spread.abs()
            weight *= scale
            if source:
                scale = weight.abs().mean().bfloat16()
                weight = (weight / scale).round().clamp(-1, 1) * scale
            state[f"model.layers.{depth}.{name}.weight"] = weight
        for name in ("input_layernorm", "post_attention_layernorm"):
            state[f"model.layers.{depth}.{name}.weight"] = torch.ones(160)
    state["model.norm.weight"] = torch.ones(160)
    state = {name: tensor.bfloat16() for name, tensor in state.items()}
    # an export tied to the embedding, as most models of this size
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    if source:
        torch.save(state, source)
    convert(state, path, scale="auto" if source else "row")
    return path


def hostile(path: Path) -> Path:
    """Names that must stay text."""
    generator = torch.Generator().manual_seed(0)
    names = ("fc.weight", HOSTILE, f"layers.0.{HOSTILE}")
    convert({name: torch.randn(8, 8, generator=generator) for name in names}, path)
    return path


def one(path: Path) -> Path:
    """A single weight."""
    convert({"fc.weight": torch.arange(32.0).reshape(4, 8) - 9}, path)
    return path


def kept_only(path: Path) -> Path:
    """Nothing ternary, and no LayerDefs."""
    piece = Piece.of("bias", "float32", (2,), np.ones(2, "f4").data)
    write_checkpoint(path, Document(None, {}, {"bias": NO_DIGEST}), [piece])
    return path


def exact(path: Path) -> Path:
    """Layers without any error, and a tied name."""
    trits = (torch.arange(64) % 3 - 1).reshape(8, 8).float()
    state = {f"{i}.weight": trits * (i + 1) for i in range(3)}
    convert(state | {"head.weight": trits, "tied.weight": trits}, path, include=["*"])
    return path


def partly_kept(path: Path) -> Path:
    """Two layers of two weights, of which one was kept as floats."""
    trits = (torch.arange(64) % 3 - 1).reshape(8, 8).float()
    state = {
        f"layers.{i}.{name}.weight": trits * (i + 1) for i in (0, 1) for name in ("up", "down")
    }
    convert(state | {"layers.1.up.weight": trits + 0.5}, path, exclude=["*.1.up.*"])
    return path


def trained(path: Path) -> Path:
    """Two exact layers, of which none is what it was."""
    trits = (torch.arange(64) % 3 - 1).reshape(8, 8).float()
    return _trained({f"{i}.weight": trits * (i + 1) for i in range(2)}, path, 2)


def partly_trained(path: Path) -> Path:
    """A layer that was trained, one that is quantized, one that is exact."""
    trits = (torch.arange(64) % 3 - 1).reshape(8, 8).float()
    state = {"0.weight": trits, "1.weight": trits * 2}
    return _trained(state | {"2.weight": torch.arange(64.0).reshape(8, 8)}, path, 1)


def _trained(state: dict[str, torch.Tensor], path: Path, count: int) -> Path:
    convert(state, path, quantize="absmean")
    module = load(path)
    with torch.no_grad():
        for i in range(count):
            module.state_dict()[f"{i}.weight_scale"].mul_(3)
    save(module, path, force=True)
    return path


def tuned(source: Path, path: Path) -> Path:
    """What training on makes of a checkpoint: later layers change more, some heads most of all."""
    generator = torch.Generator().manual_seed(1)
    state = unpack(source)
    for name, weight in state.items():
        depth = Place.of(name).depth
        if weight.ndim < 2 or depth is None or depth < 2:
            continue
        rate = torch.full(weight.shape, min(0.02, 0.0004 * 1.15**depth))
        if "o_proj" in name:
            rate[: len(rate) // 4] *= 15
        if "q_proj" in name:
            rate[:, rate.shape[1] // 2 :] *= 8
        scale = weight.abs().amax(dim=1, keepdim=True)
        step = torch.randint(1, 3, weight.shape, generator=generator)
        changes = torch.rand(weight.shape, generator=generator) < rate
        changed = torch.where(changes, (weight.sign() + 1 + step) % 3 - 1, weight.sign())
        state[name] = (changed * scale * (1 + 0.01 * depth)).to(weight.dtype)
    state["adapter.weight"] = torch.ones(3)
    if "model.norm.weight" in state:
        state["model.norm.weight"] *= 1.01
    state |= {alias: state[name] for alias, name in inspect(source).aliases.items()}
    convert(state, path, scale="auto")
    return path


def trained_stack(folder: Path) -> tuple[Path, Path]:
    """Two checkpoints of a stack of layers, the second trained on from the first."""
    return stack(folder / "before"), tuned(folder / "before", folder / "after")


def hostile_pair(folder: Path) -> tuple[Path, Path]:
    """Names that must stay text: changed, in one only, shared, of LayerDefs and of the files."""
    generator = torch.Generator().manual_seed(0)
    trits = torch.randint(-1, 2, (8, 8), generator=generator).float()
    paths = folder / "<b>a.safetensors", folder / "&quot;'.safetensors"
    layers = {f"layers.{i}.{HOSTILE}": trits for i in range(2)}
    convert({HOSTILE: trits, f"only.{HOSTILE}": trits.clone(), "x": trits[0]} | layers, paths[0])
    layers = {name: trits.roll(1, 0) * 2 for name in layers}
    convert({HOSTILE: -trits, "x": trits[1], f"tied.{HOSTILE}": trits} | layers, paths[1])
    return paths


def other_forms(folder: Path) -> tuple[Path, Path]:
    """Tensors whose shape, layout, dtype or kind is another, with no trit to compare or none."""
    trits = (torch.arange(64) % 3 - 1).reshape(8, 8).float()
    state = {"0.weight": trits, "1.weight": trits, "norm.weight": torch.ones(8)}
    convert(state, folder / "one")
    state = {"0.weight": trits[:4], "1.weight": trits.half(), "norm.weight": torch.ones(8).half()}
    convert(state | {"2.weight": trits}, folder / "two", layout="t5")
    return folder / "one", folder / "two"


def kept_pair(folder: Path) -> tuple[Path, Path]:
    """Only kept tensors, of which one differs."""
    paths = folder / "one", folder / "two"
    for path, last in zip(paths, (1, 2), strict=True):
        piece = Piece.of("bias", "float32", (2,), np.array([1, last], "f4").data)
        write_checkpoint(path, Document(None, {}, {"bias": NO_DIGEST}), [piece])
    return paths


def same(folder: Path) -> tuple[Path, Path]:
    """A checkpoint and itself."""
    return (exact(folder / "same"),) * 2


PAIRS = {f.__name__: f for f in (trained_stack, hostile_pair, other_forms, kept_pair, same)}
CHECKPOINTS = {
    f.__name__: f
    for f in (stack, hostile, one, kept_only, exact, partly_kept, trained, partly_trained)
}


#: Chromium without a window, a network or a first run.
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1240,1000",
)
