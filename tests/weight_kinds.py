"""Every kind of weight, and what becomes of it: makes the table in docs/checkpoints.md.

Usage: python tests/weight_kinds.py docs/checkpoints.md
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import tpack
from tpack.errors import TpackError

BEGIN, END = "<!-- kinds of weights: begin -->", "<!-- kinds of weights: end -->"
State = dict[str, Tensor]

_generator = torch.Generator()


def _trits(*shape: int) -> Tensor:
    return torch.randint(-1, 2, shape, generator=_generator).float()


def _scales(*shape: int) -> Tensor:
    return torch.rand(shape, generator=_generator) + 0.5


def _pick(values: list[float], *shape: int) -> Tensor:
    return torch.tensor(values)[torch.randint(0, len(values), shape, generator=_generator)]


def _near() -> Tensor:
    weight = _trits(64, 96) * 0.0213
    weight[3, 5] += 1e-8
    return weight


def _noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=_generator) * 0.1


def _codes() -> State:
    return {
        "up.qweight": torch.full((8, 64), 0x55555555, dtype=torch.int32),
        "up.qzeros": torch.full((1, 8), 7, dtype=torch.int32),
        "up.scales": _noise(1, 64).half(),
    }


#: What a weight is → the tensors of a layer ``up`` that holds one.
KINDS: dict[str, Callable[[], State]] = {
    "ternary, one scale": lambda: {"up.weight": _trits(64, 96) * 0.05},
    "ternary, a scale for each row": lambda: {"up.weight": _trits(64, 96) * _scales(64, 1)},
    "ternary, a scale for each column": lambda: {"up.weight": _trits(64, 96) * _scales(1, 96)},
    "ternary, groups of 32 columns": lambda: {
        "up.weight": _trits(64, 96) * _scales(64, 3).repeat_interleave(32, dim=1)
    },
    "ternary, groups of 48 columns": lambda: {
        "up.weight": _trits(64, 96) * _scales(64, 2).repeat_interleave(48, dim=1)
    },
    "a stack of experts, a scale for each row of each": lambda: {
        "experts.up_proj": _trits(4, 16, 100) * _scales(4, 16, 1)
    },
    "int8 trits": lambda: {"up.weight": _trits(64, 96).to(torch.int8)},
    "int8 trits with a scale": lambda: {
        "up.weight": _trits(64, 96).to(torch.int8),
        "up.weight_scale": torch.tensor([0.05]),
    },
    "all zero": lambda: {"up.weight": torch.zeros(64, 96)},
    "float masters": lambda: {"up.weight": _noise(64, 96)},
    "ternary but for one value": lambda: {"up.weight": _near()},
    "two scales (TTQ)": lambda: {"up.weight": _pick([-1.48, 0.0, 0.43], 64, 96)},
    "four levels without zero (SEQ)": lambda: {
        "up.weight": _pick([-1.0, -1 / 3, 1 / 3, 1.0], 64, 96)
    },
    "ternary with an offset": lambda: {"up.weight": _trits(64, 96) * 0.05 + 0.01},
    "other int8": lambda: {
        "up.weight": torch.randint(-8, 8, (64, 96), generator=_generator, dtype=torch.int8)
    },
    "packed by another system (GPTQ)": _codes,
    "an embedding, by its name": lambda: {"tok.weight": _noise(200, 64)},
    "an output head, by its name": lambda: {"to_logits.weight": _noise(200, 64)},
    "a norm or a bias": lambda: {"norm.weight": _noise(64), "up.bias": _noise(64)},
}
#: How it is converted → the options of it, and whether a ternary weight lies beside it.
WAYS: dict[str, tuple[dict[str, object], bool]] = {
    "by default, beside a ternary weight": ({}, True),
    "by default, beside none": ({}, False),
    "`--exact`": ({"exact": True}, True),
    "`--quantize absmean`": ({"quantize": "absmean"}, True),
}


def outcome(state: State, options: dict[str, object], beside: bool, target: Path) -> str:
    """What becomes of the first tensor of a layer, in a few words."""
    others: State = {"q.weight": (_trits if beside else _noise)(64, 64) * 0.5}
    try:
        report = tpack.convert(state | others, target, force=True, **options)  # type: ignore[arg-type]
    except TpackError as error:
        return f"refused ({error.code})"
    row = next(tensor for tensor in report.tensors if tensor.name == next(iter(state)))
    told = any(row.name in warning for warning in report.warnings)
    if row.action == "packed":
        return f"packed, {row.scale}" + ", with a warning" * told
    if row.action == "kept":
        return "kept" + ", with a warning" * told
    unasked = "quantize" not in options
    return f"rounded, error {row.relative_error:.1g}" + ", with a warning" * unasked


def table() -> str:
    """The table as Markdown."""
    lines = [f"| a weight that is | {' | '.join(WAYS)} |", "|---" * (len(WAYS) + 1) + "|"]
    with tempfile.TemporaryDirectory() as folder:
        for kind, make in KINDS.items():
            _generator.manual_seed(0)
            state = make()
            found = [outcome(state, *way, Path(folder) / "out") for way in WAYS.values()]
            lines.append(f"| {kind} | {' | '.join(found)} |")
    return "\n".join(lines) + "\n"


def main(page: Path) -> None:
    """Write the table anew."""
    text = page.read_text()
    before, _, rest = text.partition(BEGIN)
    page.write_text(f"{before}{BEGIN}\n{table()}{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
