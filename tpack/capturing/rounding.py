"""Rounding in a forward: the weights of BitNet layers to trits, their inputs to int8.

A layer in training rounds its float weight each time it is called. Such a weight is a master:
packed by the same rule, it gives the same results. ``rounded_weights`` finds the
masters whose rule tpack has, ``measured_weights`` those of another rule, which stay floats and
are rounded by the captured forward. ``with_packed`` puts packed weights in the place of masters.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from tpack.capturing.graph import CONSTANT, STORED, Arg, Graph, Value, map_values, values_in
from tpack.layerdef.ops import ORDER, has_trait
from tpack.quantize import Rounding

#: The floor of the scale in tpack's absmean.
FLOOR = 1e-5


@dataclass(frozen=True)
class _Scale:
    """A scale that is computed from a weight: ``max(mean |w|, lowest) + more``.

    Attributes:
        of: the name of the weight.
        granularity: ``tensor`` or ``row``.
    """

    of: str
    granularity: str
    lowest: float
    more: float


def rounded_weights(graph: Graph) -> dict[str, Rounding]:
    """Find the weights that the model rounds to trits in every use, each with the rule.

    Only rules that give the trits and the scale of a method of tpack, to float rounding, count.
    """
    rules: dict[str, set[str]] = {}
    ends: dict[str, set[Value]] = {}
    for value in graph.values:
        if value.op in ("linear", "conv2d") and (found := _master(value.args["weight"], graph)):
            weight, scale = found
            rules.setdefault(weight.name, set()).add(scale.granularity)
            ends.setdefault(weight.name, set()).add(value)
    users = graph.users()
    return {
        name: Rounding("absmean", next(iter(rule)))
        for name, rule in rules.items()
        if len(rule) == 1 and _is_used_rounded_only(name, ends[name], graph, users)
    }


def measured_weights(graph: Graph) -> frozenset[str]:
    """Find the weights that the model rounds or measures by a rule that tpack does not have.

    The model would round the packed weight again, and find another scale.
    """
    measured: set[str] = set()
    origins: dict[Value, frozenset[str]] = {}  # of values computed from weights alone

    def origin(value: Value) -> frozenset[str] | None:
        if value.op == STORED:
            return frozenset({value.name} if len(value.shape) > 1 else ())
        return frozenset() if value.op == CONSTANT else origins.get(value)

    for value in graph.values:
        parts = [origin(part) for part in values_in(tuple(value.args.values()))]
        if None not in parts:
            origins[value] = frozenset().union(*(part for part in parts if part is not None))
            if value.op in ORDER or has_trait(value.op, "measures"):
                measured |= origins[value]
    return frozenset(measured) - rounded_weights(graph).keys()


def with_packed(graph: Graph, packed: Collection[str]) -> Graph:
    """Return the graph with packed weights: not rounded again, ``bit_linear`` where it fits."""
    copied, rounded = _copy(graph), rounded_weights(graph)

    def change(value: Value) -> Value | None:
        if value.op not in ("linear", "conv2d"):
            return None
        args, found = value.args, _master(value.args["weight"], graph)
        if found and found[0].name in rounded and found[0].name in packed:
            args = args | {"weight": found[0]}
        weight = args["weight"]
        if value.op == "linear" and weight.op == STORED and weight.name in packed:
            x = _rounded(_straight(args["x"]), args["x"].dtype)
            if x is not None and len(weight.shape) == 2:
                return value.like("bit_linear", args | {"x": x})
        return None if args is value.args else value.like(value.op, args)

    copied.rewrite(change)
    return copied


def _copy(graph: Graph) -> Graph:
    """Copy a graph and its values; leaves are shared."""
    known: dict[Value, Value] = {}

    def copied(arg: Arg) -> Arg:
        return map_values(arg, lambda value: known.get(value, value))

    for value in graph.values:
        args = {name: copied(arg) for name, arg in value.args.items()}
        known[value] = replace(value, args=args, asked=dict(value.asked))
    return replace(graph, values=list(known.values()), result=copied(graph.result))


def _is_used_rounded_only(
    name: str, ends: set[Value], graph: Graph, users: dict[Value, list[Value]]
) -> bool:
    """Return whether a weight is used only to make the rounded weights of layers."""
    roots = {value.args["weight"] for value in ends}
    before: set[Value] = set()
    at = list(roots)
    while at:
        value = at.pop()
        if value not in before:
            before.add(value)
            at += values_in(tuple(value.args.values()))
    leaves = {value for value in before if value.op == STORED and value.name == name}
    at, seen = list(leaves), set(leaves)
    while at:
        value = at.pop()
        for user in users.get(value, ()):
            if user in ends and value in roots and value is not user.args["x"]:
                continue
            if user not in before:
                return False
            if user not in seen:
                seen.add(user)
                at.append(user)
    return seen.isdisjoint(values_in(graph.result))


# ---- weights


def _master(weight: Arg, graph: Graph) -> tuple[Value, _Scale] | None:
    """Match ``clamp(round(w / s), -1, 1) * s``; return the stored weight and the scale s."""
    found = _straight(_narrowed(_straight(weight)))
    if not (isinstance(weight, Value) and isinstance(found, Value) and found.op in ("*", "/")):
        return None
    for clamped, factor in _sides(found):
        scaled = _rounded_between(clamped, -1, 1)
        post = _scale(factor)
        if scaled is None or post is None or scaled.op not in ("*", "/"):
            continue
        for part, other in _sides(scaled):
            stored, pre = _stored(part), _scale(other)
            if stored is None or pre is None or pre[0] != post[0]:
                continue
            divides = (scaled.op == "/") != pre[1], (found.op == "/") != post[1]
            if divides == (True, False) and _is_absmean(stored, weight, found, pre[0], graph):
                return stored, pre[0]
    return None


def _is_absmean(stored: Value, weight: Value, found: Value, scale: _Scale, graph: Graph) -> bool:
    """Return whether a rule gives the trits and scales of absmean for this very weight."""
    if scale.of != stored.name or weight.dtype != stored.dtype:
        return False
    wanted = torch.float64 if stored.dtype == torch.float64 else torch.float32
    if found.dtype != wanted or (scale.granularity == "row" and len(stored.shape) != 2):
        return False
    if (scale.lowest, scale.more) == (FLOOR, 0):
        return True
    data = graph.stored[stored.name]
    if data.is_meta or type(data) not in (torch.Tensor, torch.nn.Parameter):
        return False
    own: tuple[int, ...] = () if scale.granularity == "tensor" else (-1,)
    mean = data.detach().to(wanted).abs().mean(own).double().numpy(force=True)
    theirs, ours = np.maximum(mean, scale.lowest) + scale.more, np.maximum(mean, FLOOR)
    return bool((np.abs(theirs - ours) <= ours * np.finfo(np.float32).eps).all())


def _scale(value: Arg) -> tuple[_Scale, bool] | None:
    """Match a mean of |w|, or 1 over it; return the scale and whether it is inverted."""
    inverted = _is(value, "/") and _number(value.args["x"]) == 1.0
    value = value.args["y"] if inverted else value
    more = lowest = 0.0
    for part, number in _with_number(value, "+"):
        value, more = part, number
    if _is(value, "clamp") and value.args.get("max") is None:
        lowest = _number(value.args.get("min")) or 0.0
        value = value.args["x"]
    if not (_is(value, "mean") and _is(value.args["x"], "abs")):
        return None
    stored, dim = _stored(value.args["x"].args["x"]), value.args.get("dim")
    dim = dim[0] if isinstance(dim, tuple) and len(dim) == 1 else dim
    if stored is None or value.args["x"].dtype not in (torch.float32, torch.float64):
        return None
    last = dim in (-1, len(stored.shape) - 1) and bool(value.args.get("keepdim"))
    if dim is not None and not last:
        return None
    return _Scale(stored.name, "tensor" if dim is None else "row", lowest, more), inverted


def _stored(value: Arg) -> Value | None:
    """Return the stored tensor that a value is, in this or another dtype."""
    while isinstance(value, Value) and value.op == "to":
        value = value.args["x"]
    return value if _is(value, STORED) else None


def _narrowed(value: Arg) -> Arg:
    """Return the operand of a cast from float32 or float64; another value as it is."""
    if _is(value, "to") and value.args["x"].dtype in (torch.float32, torch.float64):
        return value.args["x"]
    return value


# ---- inputs


def _straight(value: Arg) -> Arg:
    """Return q of ``x + (q - x)``, a straight-through estimator; another value as it is."""
    if not _is(value, "+"):
        return value
    for x, change in _sides(value):
        if _is(change, "-") and change.args["y"] is x:
            return change.args["x"]
    return value


def _rounded(value: Arg, dtype: torch.dtype) -> Value | None:
    """Match ``clamp(round(x * a), -128, 127) / a``, ``a = 127 / max|x|`` per token; return x."""
    value = _straight(_narrowed(value))
    if not _is(value, "/"):
        return None
    part = _between_levels(value.args["x"], value.args["y"])
    if part is None:
        return None
    widened = part.op == "to" and part.dtype == torch.float32
    x: Value = part.args["x"] if widened else part
    return x if x.dtype == dtype else None


def divided_product(value: Value) -> tuple[Value, Value] | None:
    """Match ``linear(clamp(round(x * a), -128, 127), w) / a``; return the linear op and x."""
    product = value.args["x"]
    if not _is(product, "linear") or product.args.get("bias") is not None:
        return None
    x = _between_levels(_straight(product.args["x"]), value.args["y"])
    return None if x is None else (product, x)


def _between_levels(value: Arg, gain: Arg) -> Value | None:
    """Match ``clamp(round(x * gain), -128, 127)``, ``gain = 127 / max|x|`` per token; return x."""
    inner = _rounded_between(value, -128, 127)
    if inner is None or inner.op != "*":
        return None
    for part, other in _sides(inner):
        if other is gain and isinstance(part, Value) and _largest(gain, 127.0) is part:
            return part
    return None


def _largest(gain: Arg, levels: float) -> Arg:
    """Match ``levels / clamp(max|x|, tiny)`` along the last dim; return x."""
    if _is(gain, "*"):  # torch splits 127 / y into a product
        found = [part for part, number in _with_number(gain, "*") if number == levels]
        gain = found[0] if found else None
        if not (_is(gain, "/") and _number(gain.args["x"]) == 1.0):
            return None
    elif not (_is(gain, "/") and _number(gain.args["x"]) == levels):
        return None
    clamped = gain.args["y"]
    if _is(clamped, "clamp") and (_number(clamped.args.get("min")) or 0) <= FLOOR:
        clamped = clamped.args["x"]
    if not _is(clamped, "amax") or not clamped.args.get("keepdim"):
        return None
    inside, dim = clamped.args["x"], clamped.args["dim"]
    dim = dim[0] if isinstance(dim, tuple) and len(dim) == 1 else dim
    if dim not in (-1, len(inside.shape) - 1):
        return None
    return inside.args["x"] if _is(inside, "abs") else None


# ---- parts


def _rounded_between(value: Arg, low: int, high: int) -> Value | None:
    """Match ``clamp(round(y), low, high)``, in either order; return y."""
    for outer, inner in (("clamp", "round"), ("round", "clamp")):
        if _is(value, outer) and _is(value.args["x"], inner):
            clamp = value if outer == "clamp" else value.args["x"]
            if (clamp.args.get("min"), clamp.args.get("max")) == (low, high):
                found = value.args["x"].args["x"]
                return found if isinstance(found, Value) else None
    return None


def _is(arg: Arg, op: str) -> bool:
    return isinstance(arg, Value) and arg.op == op


def _number(arg: Arg) -> float | None:
    return float(arg) if isinstance(arg, int | float) and not isinstance(arg, bool) else None


def _sides(value: Value) -> tuple[tuple[Arg, Arg], ...]:
    """Return the operands, in both orders if the op commutes."""
    x, y = value.args["x"], value.args["y"]
    return ((x, y), (y, x)) if value.op in ("+", "*") else ((x, y),)


def _with_number(value: Arg, op: str) -> Iterator[tuple[Value, float]]:
    """Match ``value op number``, in either order if op commutes."""
    for part, other in _sides(value) if _is(value, op) else ():
        number = _number(other)
        if isinstance(part, Value) and number is not None:
            yield part, number
