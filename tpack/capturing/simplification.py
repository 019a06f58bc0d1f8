"""Rules that spell values the way a person would: no identities, no sizes where none are needed.

Each rule takes a value with arguments that are simple already, and returns another or None.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import sympy
import torch

from tpack.capturing.cells import gru_cell, lstm_cell, rnn_cell
from tpack.capturing.graph import CONSTANT, ITEM, Graph, Value, same_size, same_sizes
from tpack.capturing.shapes import reshaped
from tpack.capturing.spellings import index_along, item, spelled
from tpack.capturing.views import copied, scattered
from tpack.layerdef.ops import BINARY

#: Ends of slices beyond any size mean the end.
_END = 1 << 62


def simplify(graph: Graph) -> None:
    """Apply the rules to a graph until nothing changes."""
    while graph.rewrite(_simpler):
        pass


def _simpler(value: Value) -> Value | None:
    simple = _with_numbers(value)
    rule = _RULES.get(value.op)
    made = rule(simple) if rule is not None else spelled(simple)
    return simple if made is None else made


def _with_numbers(value: Value) -> Value:
    """Put numbers in the place of operands that always are the same number."""
    numbers = {
        name: number
        for name, arg in value.args.items()
        if isinstance(arg, Value)
        and (number := scalar(arg)) is not None
        and _takes_number(value, name)
    }
    return value.like(value.op, value.args | numbers) if numbers else value


def scalar(value: Value) -> float | None:
    """Return the number that a value without dims always is; None if it is not constant."""
    if value.shape:
        return None
    if value.op == CONSTANT and value.data is not None:
        number: Any = value.data.item()
        return number if isinstance(number, bool | int | float) else None
    if value.op in ("zeros", "ones"):
        return (
            float(value.op == "ones") if value.dtype.is_floating_point else int(value.op == "ones")
        )
    number = value.args.get("value") if value.op == "full" else None
    return number if isinstance(number, int | float) else None


def _takes_number(value: Value, name: str) -> bool:
    """Return whether an argument may be a number without a change of dtype."""
    if value.dtype == torch.bool and value.op not in BINARY:
        return False
    if value.op in BINARY:
        other = value.args["y" if name == "x" else "x"]
        return isinstance(other, Value) and other.shape != () and other.dtype == value.dtype
    if value.op == "where":
        return name != "condition" and value.dtype in (torch.float32, torch.int64)
    return value.op == "masked_fill" and name == "value"


def _same(value: Value) -> Value:
    result: Value = value.args["x"]
    return result


def _to(value: Value) -> Value | None:
    x = value.args["x"]
    if x.dtype == value.dtype:
        return _same(value)
    if x.op == "to" and _widens(x):  # the first of two casts loses nothing if it widens
        x = x.args["x"]
    if x is value.args["x"] and value.args.get("dtype") == value.dtype and len(value.args) == 2:
        return None
    return value.like("to", {"x": x, "dtype": value.dtype}) if x.dtype != value.dtype else x


def _widens(value: Value) -> bool:
    before = value.args["x"].dtype
    both = before.is_floating_point and value.dtype.is_floating_point
    return both and torch.promote_types(before, value.dtype) == value.dtype


def _slice(value: Value) -> Value | None:
    x, args = value.args["x"], value.args
    dim = args.get("dim", 0)
    size = x.shape[dim]
    start, end, step = args.get("start") or 0, args.get("end"), args.get("step", 1)
    if isinstance(end, int) and (end >= _END or (isinstance(size, int) and end >= size)):
        end = None
    if end is not None and same_size(end, size):
        end = None
    if start == 0 and end is None and step == 1:
        return _same(value)
    simple = {"x": x, "dim": dim, "start": start, "end": end, "step": step}
    return None if simple == args else value.like("slice", simple)


def _expand(value: Value) -> Value | None:
    x = value.args["x"]
    if same_sizes(x.shape, value.shape):
        return _same(value)
    if x.op == "expand":
        x = x.args["x"]
    more = len(value.shape) - len(x.shape)
    shape = tuple(
        -1 if i >= more and same_size(size, x.shape[i - more]) else size
        for i, size in enumerate(value.shape)
    )
    if x is value.args["x"] and shape == value.args.get("shape"):
        return None
    return value.like("expand", {"x": x, "shape": shape})


def _reshape(value: Value) -> Value | None:
    x = value.args["x"]
    if x.op in ("reshape", "flatten", "unflatten"):
        inner = x.args["x"]
        if same_sizes(inner.shape, value.shape):
            return inner  # type: ignore[no-any-return]
        x = inner if x.op == "reshape" else x
    if (product := _batched_product(value, x)) is not None:
        return product
    made = reshaped(value, x)
    return None if made.op == value.op and made.args == value.args else made


def _batched_product(value: Value, x: Value) -> Value | None:
    """Write ``reshape(bias + flatten(x) @ weight)`` without the two reshapes."""
    if x.op != "+" or not isinstance(x.args["x"], Value) or not isinstance(x.args["y"], Value):
        return None
    product, bias = x.args["x"], x.args["y"]
    if product.op != "matmul" or len(bias.shape) != 1:
        return None
    flat, weight = product.args["x"], product.args["y"]
    if flat.op not in ("flatten", "reshape") or len(weight.shape) != 2:
        return None
    inner = flat.args["x"]
    if not same_sizes((*inner.shape[:-1], weight.shape[-1]), value.shape):
        return None
    if not same_size(inner.shape[-1], weight.shape[0]):
        return None
    whole = value.like("matmul", {"x": inner, "y": weight}, asked={})
    return value.like("+", {"x": whole, "y": bias})


def _flatten(value: Value) -> Value | None:
    x = value.args["x"]
    if same_sizes(x.shape, value.shape):
        return _same(value)
    start, end = value.args.get("start_dim", 0), value.args.get("end_dim", -1)
    if x.op == "expand" and x.args["x"].op == "unsqueeze":
        inner = x.args["x"]
        dim = inner.args["dim"] % len(inner.shape)
        grown = [i for i, size in enumerate(x.args["shape"]) if size != -1]
        whole = inner.args["x"]
        if (
            grown == [dim]
            and len(inner.shape) == len(x.shape)
            and start % len(x.shape) == dim - 1
            and end % len(x.shape) == dim
        ):
            repeats = x.shape[dim]
            return value.like("repeat_interleave", {"x": whole, "repeats": repeats, "dim": dim - 1})
    return None


def _t(value: Value) -> Value:
    x = value.args["x"]
    return value.like("transpose", {"x": x, "dim0": -2, "dim1": -1}) if len(x.shape) > 1 else x


def _as(value: Value) -> Value:
    x = value.args["x"]
    count = [math.prod(map(sympy.sympify, shape)) for shape in (x.shape, value.shape)]
    op = "reshape" if same_size(*count) else "expand"
    return value.like(op, {"x": x, "shape": value.shape})


def _plus(value: Value) -> Value | None:
    return _neutral(value, 0)


def _times(value: Value) -> Value | None:
    return _neutral(value, 1)


def _neutral(value: Value, number: int) -> Value | None:
    """Return the other operand if one is the number that changes nothing."""
    x, y = value.args["x"], value.args["y"]
    sides = [(x, y)] if value.op in ("-", "/", "**") else [(x, y), (y, x)]
    for kept, other in sides:
        if not isinstance(kept, Value) or kept.dtype != value.dtype:
            continue
        if _all(other) == number and same_sizes(kept.shape, value.shape):
            return kept
    return None


def _all(arg: Any) -> Any:
    """Return the number that all elements of an operand are; None if there is none."""
    if not isinstance(arg, Value):
        return arg
    if arg.op in ("zeros", "ones"):
        return int(arg.op == "ones")
    return arg.args["value"] if arg.op == "full" else None


def _both(value: Value) -> Value | None:
    return _neutral(value, 1) if value.dtype == torch.bool else None


def _item(value: Value) -> Value | None:
    whole, index = value.args["x"], value.args["index"]
    if whole.op == "lstm_cell":
        return lstm_cell(whole, value)[index]
    if whole.op not in ("max", "min"):
        return item(value)
    dim, keepdim = whole.args["dim"], whole.args.get("keepdim", False)
    if index == 0:
        args = {"x": whole.args["x"], "dim": dim, "keepdim": keepdim}
        return value.like(f"a{whole.op}", args)
    found = value.like(f"arg{whole.op}", {"x": whole.args["x"], "dim": dim})
    return value.like("unsqueeze", {"x": found, "dim": dim}) if keepdim else found


def _extreme(value: Value) -> Value | None:
    """Give the largest or smallest of all elements every dim to reduce."""
    if value.args.get("dim"):
        return None
    dims = tuple(range(len(value.args["x"].shape)))
    return value.like(value.op, value.args | {"dim": dims})


def _reciprocal(value: Value) -> Value:
    return value.like("/", {"x": 1.0, "y": value.args["x"]})


def _arange(value: Value) -> Value | None:
    start, step = value.args.get("start", 0), value.args.get("step", 1)
    args = {"end": value.shape[0]}
    if value.dtype != torch.int64:
        args["dtype"] = value.dtype
    if not start and step == 1:
        return None if args == value.args else value.like("arange", args)
    made = value.like("arange", args)
    if step != 1:
        made = value.like("*", {"x": made, "y": step})
    return value.like("+", {"x": made, "y": start}) if start else made


def _filled(value: Value) -> Value | None:
    """Reduce ``zeros``, ``ones`` and ``full`` to shape, value and a dtype other than float32."""
    args: dict[str, Any] = {"shape": value.shape}
    if value.op == "full":
        args["value"] = value.args["value"]
    if value.dtype != torch.float32:
        args["dtype"] = value.dtype
    return None if args == value.args else value.like(value.op, args)


def _attention(value: Value) -> Value | None:
    args = dict(value.args)
    width = args["query"].shape[-1]
    if isinstance(width, int) and args.get("scale") == 1 / math.sqrt(width):
        del args["scale"]
    key, other = args["key"], args["value"]
    both = [one.args for one in (key, other) if one.op == "repeat_interleave"]
    shared = [(one["dim"], one["repeats"]) for one in both]
    if len(both) == 2 and shared[0] == shared[1] and shared[0][0] == len(key.shape) - 3:
        args |= {"key": both[0]["x"], "value": both[1]["x"], "enable_gqa": True}
    return None if args == value.args else value.like(value.op, args)


def _softmax(value: Value) -> Value | None:
    if value.args.get("dtype") is None or value.args["dtype"] != value.args["x"].dtype:
        return None
    return value.like(value.op, {k: v for k, v in value.args.items() if k != "dtype"})


def _where(value: Value) -> Value | None:
    condition = value.args["condition"]
    if condition.op != "ones":
        return None
    x = value.args["x"]
    if not isinstance(x, Value):
        return value.like("full", {"shape": value.shape, "value": x})
    return x if same_sizes(x.shape, value.shape) else None


def _index(value: Value) -> Value | None:
    indices = value.args["indices"]
    given = [i for i, one in enumerate(indices) if one is not None]
    if len(given) == len(indices):
        return None
    if len(given) == 1 and (picked := index_along(value, given[0], indices[given[0]])):
        return picked
    while indices and indices[-1] is None:
        indices = indices[:-1]
    if None in indices:
        return None  # expressions refuses it later
    return value.like("index", {"x": value.args["x"], "indices": indices})


def _var(value: Value) -> Value | None:
    correction = value.args.get("correction", 1)
    return (
        None
        if type(correction) is int
        else value.like(value.op, value.args | {"correction": int(correction)})
    )


_RULES: dict[str, Callable[[Value], Value | None]] = {
    "same": _same,
    "copy": copied,
    "slice_scatter": scattered,
    "to": _to,
    "slice": _slice,
    "expand": _expand,
    "reshape": _reshape,
    "flatten": _flatten,
    "t": _t,
    "as": _as,
    "+": _plus,
    "-": _plus,
    "&": _both,
    "*": _times,
    "/": _times,
    "**": _times,
    ITEM: _item,
    "amax": _extreme,
    "amin": _extreme,
    "gru_cell": gru_cell,
    "rnn_tanh_cell": rnn_cell,
    "rnn_relu_cell": rnn_cell,
    "reciprocal": _reciprocal,
    "arange": _arange,
    "zeros": _filled,
    "ones": _filled,
    "full": _filled,
    "scaled_dot_product_attention": _attention,
    "softmax": _softmax,
    "log_softmax": _softmax,
    "where": _where,
    "index": _index,
    "var": _var,
    "std": _var,
}
