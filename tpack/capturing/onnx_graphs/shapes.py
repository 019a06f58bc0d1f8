"""Rows of the table for ops that move numbers, and make new tensors."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from onnx import numpy_helper
from torch import Tensor
from torch.nn import functional as F

from tpack.capturing.onnx_graphs.arguments import Arguments, Array, Stored, plain

Row = Callable[[Arguments], Any]


def _sizes(args: Arguments, place: int, name: str) -> list[Any]:
    found = args.numbers(place, name)
    if found is None:
        raise args.outside(f"lacks its {name}")
    return found


# ---- forms


def _reshape(args: Arguments) -> Tensor:
    x, shape = args.tensor(), _sizes(args, 1, "shape")
    if not args.attribute("allowzero", 0):
        shape = [
            x.shape[i] if isinstance(size, int) and size == 0 else size
            for i, size in enumerate(shape)
        ]
    return x.reshape(shape)


def _flatten(args: Arguments) -> Tensor:
    x, axis = args.tensor(), args.attribute("axis", 1)
    axis = axis + x.dim() if axis < 0 else axis
    if axis == 1 and x.dim() > 1:
        return x if x.dim() == 2 else x.flatten(1)
    return x.reshape([math.prod(x.shape[:axis]), -1])


def _transpose(args: Arguments) -> Tensor:
    x = args.tensor()
    order = args.attribute("perm", None) or list(range(x.dim()))[::-1]
    moved = [i for i, dim in enumerate(order) if i != dim]
    if not moved:
        return x
    return x.transpose(*moved) if len(moved) == 2 else x.permute(order)


def _squeeze(args: Arguments) -> Tensor:
    x, axes = args.tensor(), args.numbers(1, "axes")
    if axes is None:
        axes = [i for i, size in enumerate(x.shape) if isinstance(size, int) and size == 1]
    for axis in sorted((axis % x.dim() for axis in axes), reverse=True):
        x = x.squeeze(axis)
    return x


def _unsqueeze(args: Arguments) -> Tensor:
    x, axes = args.tensor(), _sizes(args, 1, "axes")
    rank = x.dim() + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


def _expand(args: Arguments) -> Tensor:
    x, shape, known = args.tensor(), _sizes(args, 1, "shape"), args.values[0]
    if isinstance(known, np.ndarray) and known.size == 1 and known.ndim <= len(shape):
        return torch.full(shape, plain(known.reshape(-1)[0]), dtype=x.dtype)
    rank = max(len(shape), x.dim())
    held = [1] * (rank - x.dim()) + list(x.shape)
    shape = [1] * (rank - len(shape)) + shape
    wanted = [
        own if isinstance(size, int) and size == 1 else size
        for own, size in zip(held, shape, strict=True)
    ]
    return x.expand(wanted)


# ---- parts


def _split(args: Arguments) -> tuple[Tensor, ...]:
    x, sizes, axis = args.tensor(), args.numbers(1, "split"), args.attribute("axis", 0)
    count = len(args.node.outputs)
    if sizes is not None and len(set(map(str, sizes))) > 1:
        return torch.split(x, sizes, axis)
    whole = x.shape[axis]
    each = sizes[0] if sizes else -(-whole // count)
    if isinstance(whole, int) and each * count == whole:
        return torch.chunk(x, count, axis)
    return torch.split(x, each, axis)


def _slice(args: Arguments) -> Tensor:
    x = args.tensor()
    starts, ends = _sizes(args, 1, "starts"), _sizes(args, 2, "ends")
    axes = args.numbers(3, "axes") or list(range(len(starts)))
    steps = args.numbers(4, "") or [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if isinstance(step, int) and step < 0:
            whole = isinstance(end, int) and end <= -(1 << 31) + 1 and start in (-1, (1 << 63) - 1)
            if step != -1 or not whole:
                raise args.outside("goes backwards over a part")
            x = torch.flip(x, [axis])
            continue
        far = isinstance(end, int) and end >= (1 << 31) - 1
        x = torch.ops.aten.slice.Tensor(x, axis, start, None if far else end, step)
    return x


def _gather(args: Arguments) -> Tensor:
    axis, value = args.attribute("axis", 0), args.values[1]
    x = args.tensor()
    known = value.read() if isinstance(value, Stored) else value
    backwards = isinstance(known, np.ndarray) and known.dtype != object and bool((known < 0).any())
    if isinstance(known, np.ndarray) and (known is value or (backwards and known.ndim == 0)):
        value = known
        if value.ndim == 0:
            return x.select(axis, plain(value.item()))
        if value.dtype != object and value.ndim == 1 and value.size:
            first, last = int(value[0]), int(value[-1])
            if first >= 0 and np.array_equal(value, np.arange(first, last + 1)):
                return x.narrow(axis, first, last + 1 - first)
    index = args.tensor(1)
    if backwards:  # torch counts from the end only where it selects one
        index = torch.where(index < 0, index + x.shape[axis], index)
    stored = isinstance(args.values[0], Stored) and x.dtype.is_floating_point
    if stored and axis == 0 and x.dim() == 2:
        return F.embedding(index, x)
    if axis % x.dim() == 0:
        return x[index]
    if index.dim() == 1:
        return x.index_select(axis, index)
    axis %= x.dim()
    taken = x.index_select(axis, index.reshape(-1))
    return taken.reshape([*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]])


def _gather_elements(args: Arguments) -> Tensor:
    return torch.gather(args.tensor(), args.attribute("axis", 0), args.tensor(1))


def _gather_nd(args: Arguments) -> Tensor:
    x, index = args.tensor(), args.tensor(1)
    if args.attribute("batch_dims", 0):
        raise args.outside("has dims of a batch")
    return x[tuple(index.unbind(-1))]


# ---- copies


def _concat(args: Arguments) -> Tensor:
    return torch.cat(args.tensors(), args.attribute("axis", 0))


def _pad(args: Arguments) -> Tensor:
    x, pads = args.tensor(), _sizes(args, 1, "pads")
    if args.attribute("mode", "constant") != "constant":
        raise args.outside(f"has mode {args.attribute('mode', '')}")
    value = args.number(2, "value", 0.0)
    axes = args.numbers(3, "") or list(range(len(pads) // 2))
    both = {axis % x.dim(): (pads[i], pads[i + len(axes)]) for i, axis in enumerate(axes)}
    first = (
        min(axis for axis, pair in both.items() if pair != (0, 0))
        if any(pair != (0, 0) for pair in both.values())
        else x.dim()
    )
    flat = [size for axis in range(x.dim() - 1, first - 1, -1) for size in both.get(axis, (0, 0))]
    return F.pad(x, flat, value=value) if flat else x


def _resize(args: Arguments) -> Tensor:
    """Repeat rows and columns: the nearest neighbour, at whole scales."""
    x = args.tensor()
    scales = args.numbers((len(args.values) > 2 and 2) or 1, "scales") or None
    sizes = args.numbers(3, "") if args.has(3) else None
    if sizes is not None and all(isinstance(size, int) for size in (*sizes, *x.shape[2:])):
        scales = [1, 1, *(new / old for new, old in zip(sizes[2:], x.shape[2:], strict=True))]
    mode = args.attribute("mode", "nearest")
    way = args.attribute("coordinate_transformation_mode", "half_pixel")
    rounding = args.attribute("nearest_mode", "round_prefer_floor")
    for name in ("antialias", "exclude_outside", "extrapolation_value"):  # of other modes
        args.attribute(name, None)
    simple = args.node.op == "Upsample" or (way, rounding) == ("asymmetric", "floor")
    simple = simple or (way in ("half_pixel", "pytorch_half_pixel") and "round" in rounding)
    simple = args.attribute("keep_aspect_ratio_policy", "stretch") == "stretch" and simple
    if (
        mode != "nearest"
        or not simple
        or not scales
        or any(scale != int(scale) for scale in scales)
    ):
        raise args.outside(f"has mode {mode}, or scales that are not whole")
    for axis, scale in enumerate(scales):
        if scale != 1:
            x = x.repeat_interleave(int(scale), dim=axis)
    return x


def _depth_to_space(args: Arguments) -> Tensor:
    x, size = args.tensor(), args.attribute("blocksize", 1)
    batch, channels, height, width = x.shape
    if args.attribute("mode", "DCR") == "DCR":
        parts = x.reshape([batch, size, size, channels // size**2, height, width])
        parts = parts.permute([0, 3, 4, 1, 5, 2])
    else:
        parts = x.reshape([batch, channels // size**2, size, size, height, width])
        parts = parts.permute([0, 1, 4, 2, 5, 3])
    return parts.reshape([batch, channels // size**2, height * size, width * size])


def _space_to_depth(args: Arguments) -> Tensor:
    x, size = args.tensor(), args.attribute("blocksize", 1)
    batch, channels, height, width = x.shape
    parts = x.reshape([batch, channels, height // size, size, width // size, size])
    parts = parts.permute([0, 3, 5, 1, 2, 4])
    return parts.reshape([batch, channels * size**2, height // size, width // size])


# ---- new tensors


def _shape(args: Arguments) -> Array:
    sizes = list(args.tensor().shape)[args.attribute("start", 0) : args.attribute("end", None)]
    whole = all(isinstance(size, int) for size in sizes)
    return np.array(sizes, dtype=np.int64 if whole else object)


def _size(args: Arguments) -> Array:
    found = math.prod(args.tensor().shape)
    return np.array(found, dtype=np.int64 if isinstance(found, int) else object)


def _constant_of_shape(args: Arguments) -> Tensor:
    value = np.zeros(1, np.float32)
    for one in args.node.proto.attribute:
        if one.name == "value":
            value = numpy_helper.to_array(one.t)
    dtype: torch.dtype = getattr(torch, str(value.dtype))
    return torch.full(_sizes(args, 0, "shape"), plain(value.reshape(-1)[0]), dtype=dtype)


def _range(args: Arguments) -> Tensor:
    start, limit, delta = (_sizes(args, place, "limits")[0] for place in range(3))
    value = args.values[1]
    whole = value.dtype == object or value.dtype.kind == "i"  # type: ignore[union-attr]
    if not whole:
        raise args.outside("is of floats")
    if (isinstance(start, int) and start == 0) and (isinstance(delta, int) and delta == 1):
        return torch.arange(limit)
    return torch.arange(start, limit, delta)


def _one_hot(args: Arguments) -> Tensor:
    index, depth = args.tensor(), args.number(1, "depth", None)
    if args.numbers(2) not in ([0, 1], [0.0, 1.0]) or args.attribute("axis", -1) != -1:
        raise args.outside("has other values than 0 and 1, or another axis than the last")
    found = F.one_hot(index, depth)
    dtype: torch.dtype = getattr(torch, str(args.values[2].dtype))  # type: ignore[union-attr]
    return found if dtype == torch.int64 else found.to(dtype)


def _trilu(args: Arguments) -> Tensor:
    compute = torch.triu if args.attribute("upper", 1) else torch.tril
    return compute(args.tensor(), args.number(1, "", 0))


SHAPES: dict[str, Row] = {
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Transpose": _transpose,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Expand": _expand,
    "Split": _split,
    "Slice": _slice,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "Concat": _concat,
    "Tile": lambda args: args.tensor().repeat(_sizes(args, 1, "repeats")),
    "Pad": _pad,
    "Resize": _resize,
    "Upsample": _resize,
    "DepthToSpace": _depth_to_space,
    "SpaceToDepth": _space_to_depth,
    "Shape": _shape,
    "Size": _size,
    "ConstantOfShape": _constant_of_shape,
    "Range": _range,
    "OneHot": _one_hot,
    "Trilu": _trilu,
}
