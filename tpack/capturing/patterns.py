"""Patterns of several ops that LayerDef has one op for, such as RMS norm and gelu.

A pattern is replaced only if the op computes the same: to rounding, in the same dtype.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from tpack.capturing.graph import ITEM, STORED, Arg, Graph, Value, same_size, same_sizes


def find_patterns(graph: Graph) -> None:
    """Replace the known patterns in a graph."""
    graph.rewrite(_pattern)


def _pattern(value: Value) -> Value | None:
    for rule in _RULES.get(value.op, ()):
        if (made := rule(value)) is not None:
            return made
    return None


def _is(arg: Arg, op: str) -> bool:
    return isinstance(arg, Value) and arg.op == op


def _number(arg: Arg) -> float | None:
    return float(arg) if isinstance(arg, int | float) and not isinstance(arg, bool) else None


def _sides(value: Value) -> tuple[tuple[Arg, Arg], tuple[Arg, Arg]]:
    """Return the operands in both orders."""
    x, y = value.args["x"], value.args["y"]
    return (x, y), (y, x)


def _with_number(value: Arg, op: str, number: float | None = None) -> tuple[Value, float] | None:
    """Match ``value op number``, in either order if op commutes."""
    if not _is(value, op):
        return None
    for part, other in _sides(value) if op in ("+", "*") else _sides(value)[:1]:
        found = _number(other)
        if isinstance(part, Value) and found is not None and number in (None, found):
            return part, found
    return None


# ---- normalization and activations


def _rms_norm(value: Value) -> Value | None:
    """Match ``weight * (x * rsqrt(mean(x²) + eps))``, weight optional, in float32 and wider."""
    if value.dtype not in (torch.float32, torch.float64):
        return None
    for weight, inner in _sides(value):
        width = value.shape[-1] if value.shape else 0
        bare = _is(inner, "rms_norm") and "weight" not in inner.args and _is(weight, STORED)
        if bare and weight.shape == inner.args["shape"]:
            return value.like("rms_norm", inner.args | {"weight": weight})
        if isinstance(width, int) and (found := _root(inner, weight)) is not None:
            return value.like("rms_norm", {"x": found[0], "shape": (width,), "eps": found[1]})
    return None


def _root(root: Arg, x: Arg) -> tuple[Value, float] | None:
    """Match ``rsqrt(mean(x²) + eps)``; return x and eps."""
    if not _is(root, "rsqrt") or not isinstance(x, Value):
        return None
    shifted = _with_number(root.args["x"], "+")
    if shifted is None or not _is(shifted[0], "mean"):
        return None
    mean, eps = shifted
    if mean.args.get("dim") not in ((-1,), (len(x.shape) - 1,)) or not mean.args.get("keepdim"):
        return None
    squared = mean.args["x"]
    if _is(squared, "square"):
        return (x, eps) if squared.args["x"] is x else None
    power = _with_number(squared, "**", 2.0)
    product = _is(squared, "*") and squared.args["x"] is squared.args["y"] is x
    return (x, eps) if product or (power is not None and power[0] is x) else None


def _gelu(value: Value) -> Value | None:
    """Match ``0.5 * x * (1 + tanh(√(2/π) * (x + 0.044715 * x³)))``: gelu, by a tanh."""
    for half, shifted in _sides(value):
        scaled, plus = _with_number(half, "*", 0.5), _with_number(shifted, "+", 1.0)
        if scaled is None or plus is None or not _is(plus[0], "tanh"):
            continue
        x = scaled[0]
        inner = _with_number(plus[0].args["x"], "*", math.sqrt(2 / math.pi))
        if inner is None or not _is(inner[0], "+"):
            continue
        for first, cubed in _sides(inner[0]):
            part = _with_number(cubed, "*", 0.044715)
            power = None if part is None else _with_number(part[0], "**", 3.0)
            if first is x and power is not None and power[0] is x:
                return value.like("gelu", {"x": x, "approximate": "tanh"})
    return None


def _relu_squared(value: Value) -> Value | None:
    x = value.args["x"]
    squared = value.op == "square" or value.args.get("y") == 2
    return value.like("relu_squared", {"x": x.args["x"]}) if squared and _is(x, "relu") else None


def _silu(value: Value) -> Value | None:
    for x, gate in _sides(value):
        if _is(gate, "sigmoid") and gate.args["x"] is x:
            return value.like("silu", {"x": x})
    return None


def _rotate_half(value: Value) -> Value | None:
    """Match ``cat((-second, first), dim=-1)`` of the halves of x."""
    parts = value.args["tensors"]
    if len(parts) != 2 or value.args.get("dim", 0) not in (-1, len(value.shape) - 1):
        return None
    if not _is(parts[0], "neg"):
        return None
    second, first = parts[0].args["x"], parts[1]
    if not (_is(first, second.op) and isinstance(second, Value)) or first.op not in ("slice", ITEM):
        return None
    x = first.args["x"]
    if second.args["x"] is not x:
        return None
    if first.op == ITEM:
        halves = x.op == "chunk" and x.args["chunks"] == 2
        ordered = (first.args["index"], second.args["index"]) == (0, 1)
        x = x.args["x"]
        good = halves and ordered and same_sizes(x.shape, value.shape)
    else:
        half = value.shape[-1] // 2
        dims = {one.args["dim"] % len(value.shape) for one in (first, second)}
        starts = (first.args["start"], second.args["start"])
        good = starts == (0, half) and same_size(first.args["end"] or -1, half)
        good = good and second.args["end"] is None and dims == {len(value.shape) - 1}
    return value.like("rotate_half", {"x": x}) if good else None


def _of_experts(value: Value) -> Value | None:
    """Match ``(weight[ids] @ x.unsqueeze(-1)).squeeze(-1)``, or its like of ``x @ weight[ids]``."""
    product, dims = value.args["x"], value.args.get("dim")
    if not _is(product, "matmul") or dims is None:
        return None
    rank = len(product.shape)
    dim = dims % rank if isinstance(dims, int) else -1
    for op, last, picked, column in (
        ("expert_linear", rank - 1, product.args["x"], product.args["y"]),
        ("expert_matmul", rank - 2, product.args["y"], product.args["x"]),
    ):
        if dim != last or not _is(column, "unsqueeze"):
            continue
        x, at = column.args["x"], column.args["dim"] % rank
        found = _picked(picked)
        if found is None or at != last or x.dtype != picked.dtype:
            continue
        weight, ids = found
        if same_sizes(x.shape[:-1], ids.shape):
            return value.like(op, {"x": x, "weight": weight, "ids": ids})
    return None


def _picked(value: Arg) -> tuple[Value, Value] | None:
    """Match ``weight[ids]`` of a stack of matrices; return weight and ids."""
    if not _is(value, "index"):
        return None
    indices, weight = value.args["indices"], value.args["x"]
    if len(indices) != 1 or len(weight.shape) != 3:
        return None
    return (weight, indices[0]) if indices[0].dtype in (torch.int64, torch.int32) else None


_RULES: dict[str, tuple[Callable[[Value], Value | None], ...]] = {
    "*": (_rms_norm, _gelu, _silu),
    "**": (_relu_squared,),
    "square": (_relu_squared,),
    "cat": (_rotate_half,),
    "squeeze": (_of_experts,),
}
