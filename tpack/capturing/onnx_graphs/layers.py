"""Rows of the table for ops with weights, normalization, pooling and reductions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tpack.capturing.onnx_graphs.arguments import Arguments

Row = Callable[[Arguments], Any]


# ---- products


def _gemm(args: Arguments) -> Tensor:
    x, y = args.tensor(0), args.tensor(1)
    alpha, beta = args.attribute("alpha", 1.0), args.attribute("beta", 1.0)
    bias = args.optional(2)
    x = x.transpose(0, 1) if args.attribute("transA", 0) else x
    if args.attribute("transB", 0):
        plain = alpha == beta == 1 and (bias is None or bias.dim() == 1)
        if plain and (bias is None or bias.shape[0] == y.shape[0]):
            return F.linear(x, y, bias)
        product = F.linear(x, y)
    else:
        product = torch.matmul(x, y)
    product = product if alpha == 1 else product * alpha
    if bias is None or beta == 0:
        return product
    return product + (bias if beta == 1 else bias * beta)


def _einsum(args: Arguments) -> Tensor:
    equation = str(args.attribute("equation", "")).replace(" ", "")
    return torch.einsum(equation, *args.tensors())


def _window(args: Arguments, name: str, count: int) -> list[int]:
    found = args.attribute(name, None)
    return list(found) if found else [1] * count


def _pads(args: Arguments, x: Tensor, kernel: list[int]) -> tuple[list[int], list[int]]:
    """Return the padding before and after each of the last dims."""
    count, auto = len(kernel), args.attribute("auto_pad", "NOTSET")
    if auto == "VALID":
        return [0] * count, [0] * count
    if auto == "NOTSET":
        pads = args.attribute("pads", None) or [0] * 2 * count
        return pads[:count], pads[count:]
    strides, dilations = _window(args, "strides", count), _window(args, "dilations", count)
    before, after = [], []
    for size, k, stride, dilation in zip(x.shape[2:], kernel, strides, dilations, strict=True):
        span = (k - 1) * dilation + 1
        if stride == 1:
            total = span - 1
        elif isinstance(size, int):
            total = max((math.ceil(size / stride) - 1) * stride + span - size, 0)
        else:
            raise args.outside(f"is padded by {auto} at strides, for a size that is free")
        small, large = total // 2, total - total // 2
        before.append(small if auto == "SAME_UPPER" else large)
        after.append(large if auto == "SAME_UPPER" else small)
    return before, after


def _padded(x: Tensor, before: list[int], after: list[int], value: float = 0.0) -> Tensor:
    """Grow the last dims."""
    pairs = [size for pair in zip(before[::-1], after[::-1], strict=True) for size in pair]
    return F.pad(x, pairs, value=value) if any(pairs) else x


def _conv(args: Arguments) -> Tensor:
    x, weight, bias = args.tensor(0), args.tensor(1), args.optional(2)
    kernel = list(weight.shape[2:])
    if len(kernel) not in (1, 2):
        raise args.outside(f"has a kernel of {len(kernel)} dims")
    before, after = _pads(args, x, kernel)
    if before != after:
        x, before = _padded(x, before, after), [0] * len(kernel)
    compute: Any = F.conv1d if len(kernel) == 1 else F.conv2d
    options = {"stride": _window(args, "strides", len(kernel)), "padding": before}
    options["dilation"] = _window(args, "dilations", len(kernel))
    made: Tensor = compute(x, weight, bias, groups=args.attribute("group", 1), **options)
    return made


# ---- pooling


def _max_pool(args: Arguments) -> Tensor:
    x, kernel = args.tensor(), args.attribute("kernel_shape", [])
    if len(kernel) not in (1, 2) or len([name for name in args.node.outputs if name]) > 1:
        raise args.outside("has a window of 3 dims, or gives indices")
    before, after = _pads(args, x, kernel)
    if before != after or any(2 * pad > size for pad, size in zip(before, kernel, strict=True)):
        x, before = _padded(x, before, after, -math.inf), [0] * len(kernel)
    compute: Any = F.max_pool1d if len(kernel) == 1 else F.max_pool2d
    made: Tensor = compute(
        x,
        kernel,
        stride=_window(args, "strides", len(kernel)),
        padding=before,
        dilation=_window(args, "dilations", len(kernel)),
        ceil_mode=bool(args.attribute("ceil_mode", 0)),
    )
    return made


def _average_pool(args: Arguments) -> Tensor:
    x, kernel = args.tensor(), args.attribute("kernel_shape", [])
    if len(kernel) not in (1, 2) or set(_window(args, "dilations", len(kernel))) != {1}:
        raise args.outside("has a window of 3 dims, or dilated")
    before, after = _pads(args, x, kernel)
    counted = bool(args.attribute("count_include_pad", 0))
    if before != after:
        if not counted or args.attribute("ceil_mode", 0):
            raise args.outside("is padded unevenly by what does not count")
        x, before = _padded(x, before, after), [0] * len(kernel)
    compute: Any = F.avg_pool1d if len(kernel) == 1 else F.avg_pool2d
    made: Tensor = compute(
        x,
        kernel,
        stride=_window(args, "strides", len(kernel)),
        padding=before,
        ceil_mode=bool(args.attribute("ceil_mode", 0)),
        count_include_pad=counted or not any(before),
    )
    return made


def _global_average(args: Arguments) -> Tensor:
    x = args.tensor()
    if x.dim() == 4:
        return F.adaptive_avg_pool2d(x, 1)
    return F.adaptive_avg_pool1d(x, 1) if x.dim() == 3 else x.mean(_inner(x), keepdim=True)


def _inner(x: Tensor) -> list[int]:
    return list(range(2, x.dim()))


# ---- normalization


def _batch_norm(args: Arguments) -> Tensor:
    if args.attribute("training_mode", 0) or any(args.node.outputs[1:]):
        raise args.outside("normalizes as in training")
    x, weight, bias, mean, var = (args.tensor(place) for place in range(5))
    return F.batch_norm(x, mean, var, weight, bias, eps=args.attribute("epsilon", 1e-5))


def _one_result(args: Arguments) -> None:
    if any(args.node.outputs[1:]):
        raise args.outside("gives its mean too")


def _layer_norm(args: Arguments) -> Tensor:
    _one_result(args)
    x, weight, bias = args.tensor(), args.tensor(1), args.optional(2)
    axis = args.attribute("axis", -1) % x.dim()
    shape, eps = x.shape[axis:], args.attribute("epsilon", 1e-5)
    if weight.shape == shape and (bias is None or bias.shape == shape):
        return F.layer_norm(x, list(shape), weight, bias, eps)
    made = F.layer_norm(x, list(shape), eps=eps) * weight
    return made if bias is None else made + bias


def _rms_norm(args: Arguments) -> Tensor:
    _one_result(args)
    x, weight = args.tensor(), args.tensor(1)
    axis = args.attribute("axis", -1) % x.dim()
    shape, eps = x.shape[axis:], args.attribute("epsilon", 1e-5)
    if weight.shape == shape:
        return F.rms_norm(x, list(shape), weight, eps)
    return F.rms_norm(x, list(shape), eps=eps) * weight


def _group_norm(args: Arguments) -> Tensor:
    x, weight, bias = args.tensor(), args.tensor(1), args.tensor(2)
    groups, eps = args.attribute("num_groups", 1), args.attribute("epsilon", 1e-5)
    if weight.shape[0] != x.shape[1]:  # until opset 20: one number for each group
        each = x.shape[1] // groups
        weight, bias = weight.repeat_interleave(each, 0), bias.repeat_interleave(each, 0)
    return F.group_norm(x, groups, weight, bias, eps)


def _instance_norm(args: Arguments) -> Tensor:
    x, weight, bias = args.tensor(), args.tensor(1), args.tensor(2)
    return F.group_norm(x, weight.shape[0], weight, bias, args.attribute("epsilon", 1e-5))


# ---- reductions


def _reduce(compute: Callable[..., Tensor]) -> Row:
    def row(args: Arguments) -> Tensor:
        x, axes = args.tensor(), args.numbers(1, "axes")
        keepdim, none = args.attribute("keepdims", 1), args.attribute("noop_with_empty_axes", 0)
        if not axes and none:
            raise args.outside("reduces no axis")
        return compute(x, axes or list(range(x.dim())), keepdim=bool(keepdim))

    return row


def _norm2(x: Tensor, axes: list[int], *, keepdim: bool) -> Tensor:
    return torch.sqrt(torch.sum(torch.square(x), axes, keepdim=keepdim))


def _sum_square(x: Tensor, axes: list[int], *, keepdim: bool) -> Tensor:
    return torch.sum(torch.square(x), axes, keepdim=keepdim)


def _sum_abs(x: Tensor, axes: list[int], *, keepdim: bool) -> Tensor:
    return torch.sum(torch.abs(x), axes, keepdim=keepdim)


def _argmax(sign: int) -> Row:
    def row(args: Arguments) -> Tensor:
        if args.attribute("select_last_index", 0):
            raise args.outside("gives the last index of several")
        x, axis = args.tensor(), args.attribute("axis", 0)
        found = torch.argmax(x if sign > 0 else -x, axis)
        return found.unsqueeze(axis) if args.attribute("keepdims", 1) else found

    return row


def _top_k(args: Arguments) -> tuple[Tensor, Tensor]:
    k, axis = args.number(1, "k", 1), args.attribute("axis", -1)
    if not args.attribute("largest", 1):
        raise args.outside("takes the smallest")
    values, indices = torch.topk(args.tensor(), k, axis)
    return values, indices


def _cumsum(args: Arguments) -> Tensor:
    if args.attribute("exclusive", 0) or args.attribute("reverse", 0):
        raise args.outside("is exclusive or in reverse")
    x = args.tensor()
    found = torch.cumsum(x, args.number(1, "axis", 0))
    return found if found.dtype == x.dtype else found.to(x.dtype)


# ---- attention


def _attention(args: Arguments) -> Tensor:
    """Attention of opset 23; (batch, heads, length, size) or (batch, length, heads · size)."""
    if any(args.has(place) for place in (4, 5, 6)) or any(args.node.outputs[1:]):
        raise args.outside("has a cache of keys and values")
    if args.attribute("softcap", 0.0) or args.attribute("softmax_precision", 0) not in (0, 1):
        raise args.outside("has a soft cap, or another precision")
    query, key, value = (args.tensor(place) for place in range(3))
    heads, shared = args.attribute("q_num_heads", 0), args.attribute("kv_num_heads", 0)
    flat = query.dim() == 3
    if flat:
        query = query.unflatten(-1, [heads, -1]).transpose(1, 2)
        key, value = (one.unflatten(-1, [shared, -1]).transpose(1, 2) for one in (key, value))
    made = F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=args.optional(3),
        is_causal=bool(args.attribute("is_causal", 0)),
        scale=args.attribute("scale", None),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return made.transpose(1, 2).flatten(2) if flat else made


LAYERS: dict[str, Row] = {
    "Gemm": _gemm,
    "MatMul": lambda args: torch.matmul(args.tensor(0), args.tensor(1)),
    "Einsum": _einsum,
    "Conv": _conv,
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "GlobalAveragePool": _global_average,
    "GlobalMaxPool": lambda args: args.tensor().amax(_inner(args.tensor()), keepdim=True),
    "BatchNormalization": _batch_norm,
    "LayerNormalization": _layer_norm,
    "RMSNormalization": _rms_norm,
    "GroupNormalization": _group_norm,
    "InstanceNormalization": _instance_norm,
    "ReduceMean": _reduce(torch.mean),
    "ReduceSum": _reduce(torch.sum),
    "ReduceMax": _reduce(torch.amax),
    "ReduceMin": _reduce(torch.amin),
    "ReduceL1": _reduce(_sum_abs),
    "ReduceL2": _reduce(_norm2),
    "ReduceSumSquare": _reduce(_sum_square),
    "ReduceLogSumExp": _reduce(torch.logsumexp),
    "ArgMax": _argmax(1),
    "ArgMin": _argmax(-1),
    "TopK": _top_k,
    "CumSum": _cumsum,
    "Attention": _attention,
}
