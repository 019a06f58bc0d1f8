"""Rules for ops of ATen that say in other words, or in one, what LayerDef says.

Each rule takes a value with arguments that are simple already, and returns another or None.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from tpack.capturing.graph import CONSTANT, Size, Value, same_size, same_sizes
from tpack.errors import LayerDefError

#: The words of ``grid_sample`` for the numbers of torch's op.
_MODES = ("bilinear", "nearest", "bicubic")
#: Ops of torch with two results, of which LayerDef has the first.
_ADAPTIVE = ("adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d")
_BORDERS = ("zeros", "border", "reflection")


def spelled(value: Value) -> Value | None:
    """Spell a value by the rule of its op; None if it stays."""
    rule = RULES.get(value.op)
    return None if rule is None else rule(value)


def item(value: Value) -> Value | None:
    """Return one of several results as an op of its own; None if it stays a result."""
    whole, index = value.args["x"], value.args["index"]
    args = {name: arg for name, arg in whole.args.items() if name != "count"}
    if whole.op == "chunk" and args["x"].op == "cat":
        return _joined(args, args["x"].args, index)
    if whole.op in ("var_mean", "std_mean"):
        if index == 0:
            return value.like(whole.op[:3], args)
        args.pop("correction", None)
        return value.like("mean", args)
    if whole.op == "aminmax":
        return value.like(("amin", "amax")[index], args)
    return value.like(whole.op, args) if whole.op in _ADAPTIVE and index == 0 else None


def _joined(args: dict[str, Any], cat: dict[str, Any], index: int) -> Value | None:
    """Return the part that was joined to others, if a chunk is just that part."""
    parts: tuple[Value, ...] = cat["tensors"]
    rank = len(parts[0].shape)
    dim = cat.get("dim", 0) % rank
    sizes = {part.shape[dim] for part in parts}
    same = args.get("dim", 0) % rank == dim and args["chunks"] == len(parts) and len(sizes) == 1
    return parts[index] if same else None


def _movedim(value: Value) -> Value:
    rank = len(value.shape)
    source, destination = (
        [dim % rank for dim in (dims if isinstance(dims, tuple) else (dims,))]
        for dims in (value.args["source"], value.args["destination"])
    )
    places = dict(zip(destination, source, strict=True))
    others = iter(dim for dim in range(rank) if dim not in source)
    dims = tuple(places[i] if i in places else next(others) for i in range(rank))
    return value.like("permute", {"x": value.args["x"], "dims": dims})


def _hstack(value: Value) -> Value:
    tensors = value.args["tensors"]
    return value.like("cat", {"tensors": tensors, "dim": min(1, len(value.shape) - 1)})


def _vstack(value: Value) -> Value:
    tensors = tuple(
        one
        if len(one.shape) > 1
        else value.like(
            "unsqueeze", {"x": one, "dim": 0}, shape=(1, *one.shape), dtype=one.dtype, asked={}
        )
        for one in value.args["tensors"]
    )
    return value.like("cat", {"tensors": tensors, "dim": 0})


def _added(value: Value) -> Value:
    """Write ``addcmul`` and ``addcdiv``: x plus a multiple of a product or ratio."""
    args = value.args
    y, z, times = args["y"], args["z"], args.get("value", 1)
    shape = _broadcast(y.shape, z.shape)
    dtype = torch.promote_types(y.dtype, z.dtype)
    op = "*" if value.op == "addcmul" else "/"
    part = value.like(op, {"x": y, "y": z}, shape=shape, dtype=dtype, asked={})
    if times != 1:
        part = part.like("*", {"x": part, "y": times}, asked={})
    return value.like("+", {"x": args["x"], "y": part})


def _broadcast(first: tuple[Size, ...], second: tuple[Size, ...]) -> tuple[Size, ...]:
    rank = max(len(first), len(second))
    both = zip(*((*(1,) * (rank - len(one)), *one) for one in (first, second)), strict=True)
    return tuple(second if first == 1 else first for first, second in both)


def _addmm(value: Value) -> Value:
    """Write ``beta · bias + alpha · (x @ y)``."""
    args = value.args
    product = value.like("matmul", {"x": args["x"], "y": args["y"]}, asked={})
    bias = args["bias"]
    if (alpha := args.get("alpha", 1)) != 1:
        product = product.like("*", {"x": product, "y": alpha})
    if (beta := args.get("beta", 1)) == 0:  # whatever the bias is, NaN too
        return product
    if beta != 1:
        given = {"shape": bias.shape, "dtype": bias.dtype, "asked": {}}
        bias = value.like("*", {"x": bias, "y": beta}, **given)
    return value.like("+", {"x": product, "y": bias})


def _conv(value: Value) -> Value | None:
    """Write padding by name as numbers."""
    args = value.args
    if not isinstance(args.get("padding"), str):
        return None
    x, kernel = args["x"], args["weight"].shape[2:]
    if args["padding"] == "valid":
        return value.like(value.op, {name: arg for name, arg in args.items() if name != "padding"})
    dilation = args.get("dilation", (1,) * len(kernel))
    dilation = dilation * len(kernel) if len(dilation) == 1 else dilation
    total = [step * (size - 1) for step, size in zip(dilation, kernel, strict=True)]
    left = tuple(one // 2 for one in total)
    if any(one % 2 for one in total):
        sides = [side for one in reversed(total) for side in (0, one % 2)]
        count = len(x.shape) - len(total)
        grown = (size + one % 2 for size, one in zip(x.shape[count:], total, strict=True))
        shape = (*x.shape[:count], *grown)
        x = value.like("pad", {"x": x, "pad": tuple(sides)}, shape=shape, asked={})
    return value.like(value.op, args | {"x": x, "padding": left})


def _interpolate(value: Value) -> Value | None:
    args = value.args
    if args.get("align_corners") is not False:
        return None
    return value.like(value.op, {k: arg for k, arg in args.items() if k != "align_corners"})


def _grid_sample(value: Value) -> Value | None:
    mode, border = value.args["mode"], value.args["padding_mode"]
    if isinstance(mode, str):
        return None
    return value.like(
        value.op, value.args | {"mode": _MODES[mode], "padding_mode": _BORDERS[border]}
    )


def _squeeze(value: Value) -> Value | None:
    """Drop dims of size 1 one by one, the last first; those of other sizes stay."""
    x, dims = value.args["x"], value.args.get("dim")
    if same_sizes(x.shape, value.shape):
        return x  # type: ignore[no-any-return]
    if isinstance(dims, int):
        return None
    rank = len(x.shape)
    asked = range(rank) if dims is None else [dim % rank for dim in dims]
    made = x
    for dim in sorted(asked, reverse=True):
        if same_size(made.shape[dim], 1):
            shape = (*made.shape[:dim], *made.shape[dim + 1 :])
            made = value.like("squeeze", {"x": made, "dim": dim}, shape=shape)
    return made  # type: ignore[no-any-return]


def _repeat(value: Value) -> Value | None:
    """Give each dim a count: ``tile`` may leave out the first ones."""
    sizes = value.args["sizes"]
    missing = len(value.shape) - len(sizes)
    return (
        None
        if not missing
        else value.like("repeat", value.args | {"sizes": (1,) * missing + sizes})
    )


#: Bounds that change nothing.
_NO_BOUND = {"min": -math.inf, "max": math.inf}


def _clamp(value: Value) -> Value | None:
    """Write bounds that are tensors as ``maximum`` and ``minimum``; leave out infinite ones."""
    made, args = value.args["x"], value.args
    bounds = {"min": "maximum", "max": "minimum"}
    kept = {key: arg for key, arg in args.items() if arg != _NO_BOUND.get(key)}
    if len(kept) < len(args):
        return value.like("clamp", kept) if len(kept) > 1 else made
    if not any(isinstance(args.get(name), Value) for name in bounds):
        return None
    for name, op in bounds.items():
        if (bound := args.get(name)) is not None:
            made = value.like(op, {"x": made, "y": bound})
    return made  # type: ignore[no-any-return]


def _made(value: Value) -> Value | None:
    """Give ``eye`` and ``linspace`` their sizes, and a dtype other than float32."""
    args: dict[str, Any] = {k: value.args[k] for k in ("start", "end") if k in value.args}
    args |= dict(zip(("n", "m") if value.op == "eye" else ("steps",), value.shape, strict=True))
    if value.dtype != torch.float32:
        args["dtype"] = value.dtype
    return None if args == value.args else value.like(value.op, args)


def _dtype(value: Value) -> Value | None:
    """Leave out the dtype of a sum if it has that anyway."""
    args = value.args
    if args.get("dtype") != args["x"].dtype:
        return None
    return value.like(value.op, {name: arg for name, arg in args.items() if name != "dtype"})


def _from_start(index: Value, size: Size) -> Value:
    """Count a constant index from the start, as ``index_select`` takes it."""
    data = index.data
    if index.op != CONSTANT or data is None or data.is_meta or not isinstance(size, int):
        return index
    if data.dtype == torch.bool or not bool((data < 0).any()):
        return index
    return replace(index, data=torch.where(data < 0, data + size, data))


def index_along(value: Value, dim: int, index: Value) -> Value | None:
    """Write ``x[:, index]`` for an index of several dims as ``index_select``, then unflattened."""
    if index.dtype not in (torch.int64, torch.int32) or not index.shape:
        return None
    x, rank = value.args["x"], len(index.shape)
    index = _from_start(index, x.shape[dim])
    args = {"x": x, "dim": dim, "index": index}
    if rank == 1:
        return value.like("index_select", args)
    sizes = index.shape
    if any(not isinstance(size, int) for size in sizes):
        return None
    count = 1
    for size in sizes:
        count *= size
    flat = value.like("flatten", {"x": index}, shape=(count,), dtype=index.dtype, asked={})
    shape = (*x.shape[:dim], count, *x.shape[dim + 1 :])
    picked = value.like("index_select", args | {"index": flat}, shape=shape, asked={})
    return value.like("unflatten", {"x": picked, "dim": dim, "sizes": sizes})


def _recurrent(value: Value) -> Value | None:
    """Say that nothing is dropped, as in eval mode."""
    args = value.args
    if args["train"] and args["dropout"] and args["num_layers"] > 1:
        raise LayerDefError(
            f"runs {value.op} with dropout in training mode. Call module.eval() first.",
            node=value.calls[-1].path,
        )
    if not args["train"] and args["dropout"] == 0:
        return None
    return value.like(value.op, args | {"train": False, "dropout": 0.0})


#: Op → rule.
RULES: dict[str, Callable[[Value], Value | None]] = {
    "movedim": _movedim,
    "hstack": _hstack,
    "vstack": _vstack,
    "addcmul": _added,
    "addcdiv": _added,
    "addmm": _addmm,
    "conv1d": _conv,
    "conv2d": _conv,
    "conv3d": _conv,
    "interpolate": _interpolate,
    "grid_sample": _grid_sample,
    "squeeze": _squeeze,
    "repeat": _repeat,
    "clamp": _clamp,
    "eye": _made,
    "linspace": _made,
    "sum": _dtype,
    "mean": _dtype,
    "lstm": _recurrent,
    "gru": _recurrent,
    "rnn_tanh": _recurrent,
    "rnn_relu": _recurrent,
    "cumsum": _dtype,
    "cumprod": _dtype,
    "prod": _dtype,
}
