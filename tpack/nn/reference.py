"""Ternary ops in plain torch: the definition, for any device, dtype and transformation.

Standalone generated source contains the functions it needs from this file word for
word, so they use torch, each other, and nothing else.

Shapes: a weight of logical shape ``(d0, …, dn)`` is stored as ``packed`` uint8
``(rows…, bytes)``: the rows are its leading dims, the bytes hold its remaining dims,
flattened to columns. ``scale`` is ``(1,)``, ``(rows…, 1)``, ``(rows…, groups)``, or
``(1…, columns)`` where each column has its own.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def unpack_trits(packed: Tensor, columns: int, layout: str = "t2") -> Tensor:
    """Unpack rows of ``columns`` trits: int8 ``(..., columns)``.

    Args:
        packed: uint8 ``(..., ceil(columns / 4))`` in layout t2, four trits a byte of
            two bits each; ``(..., ceil(columns / 5))`` in layout t5, five in base 3.
            Floats ``(..., columns)``, which a weight in training is, stay as they are.
    """
    if packed.is_floating_point():
        return packed
    width = -(-columns // (4 if layout == "t2" else 5))
    if packed.shape[-1] != width or packed.dtype != torch.uint8:
        raise ValueError(
            f"packed is {packed.dtype} {tuple(packed.shape)}, expected torch.uint8 "
            f"(..., {width}) for {columns} columns in layout {layout}."
        )
    if layout == "t2":
        places = torch.arange(0, 8, 2, dtype=torch.uint8, device=packed.device)
        codes = (packed.unsqueeze(-1) >> places) & 3
    else:
        places = torch.tensor(
            [1, 3, 9, 27, 81], dtype=torch.int32, device=packed.device
        )
        codes = ((packed.unsqueeze(-1).int() * places) % 256 * 3) >> 8
    return codes.flatten(-2)[..., :columns].to(torch.int8) - 1


def pack_trits(trits: Tensor, layout: str = "t2") -> Tensor:
    """Pack rows of trits: uint8 ``(..., ceil(columns / 4))``, or 5 in layout t5.

    Args:
        trits: ``(..., columns)``, values in {-1, 0, 1}; not checked.
    """
    columns = trits.shape[-1]
    places = [1, 4, 16, 64] if layout == "t2" else [81, 27, 9, 3, 1]
    width = -(-columns // len(places))
    codes = torch.ones(
        (*trits.shape[:-1], width * len(places)),
        dtype=torch.int32,
        device=trits.device,
    )
    codes[..., :columns] = trits.to(torch.int32) + 1
    weights = torch.tensor(places, dtype=torch.int32, device=trits.device)
    values: Tensor = (codes.unflatten(-1, (width, len(places))) * weights).sum(-1)
    if layout != "t2":  # the fraction value / 243 in eight bits, rounded up
        values = (256 * values + 242) // 243
    return values.to(torch.uint8)


def infer_group_size(columns: int, groups: int) -> int:
    """The group size that gives so many groups: a usual one, or else an even share."""
    usual = [size for size in (32, 64, 128, 256) if -(-columns // size) == groups]
    return usual[0] if usual else max(columns // groups, 1)


def spread_scale(scale: Tensor, columns: int, group_size: int = 0) -> Tensor:
    """Bring a scale to a shape that broadcasts over ``(rows…, columns)``.

    Args:
        group_size: columns that share a scale; 0 infers it from the shapes.

    Raises:
        ValueError: no group size explains the shape of the scale.
    """
    groups = scale.shape[-1]
    if groups == 1 or (groups == columns and group_size <= 1):
        return scale
    group_size = group_size or infer_group_size(columns, groups)
    if -(-columns // group_size) != groups:
        raise ValueError(
            f"scale has {groups} groups a row, expected {-(-columns // group_size)} "
            f"for {columns} columns in groups of {group_size}."
        )
    return scale.repeat_interleave(group_size, dim=-1)[..., :columns]


def dequantize(
    packed: Tensor,
    scale: Tensor,
    shape: tuple[int, ...],
    like: Tensor | None = None,
    *,
    layout: str = "t2",
    group_size: int = 0,
) -> Tensor:
    """``scale * trit`` in the logical shape, in the dtype of ``like`` or the scale."""
    columns = math.prod(shape[packed.dim() - 1 :])
    trits = unpack_trits(packed, columns, layout)
    weight = (spread_scale(scale, columns, group_size) * trits).reshape(shape)
    return (
        weight.to(like.dtype)
        if like is not None and like.is_floating_point()
        else weight
    )


def ternary_linear(
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    layout: str = "t2",
    group_size: int = 0,
) -> Tensor:
    """``x @ weight.T + bias``: weight (out, in), in the dtype of x (..., in)."""
    shape = (packed.shape[0], x.shape[-1])
    weight = dequantize(packed, scale, shape, x, layout=layout, group_size=group_size)
    return F.linear(x, weight, None if bias is None else bias.to(x.dtype))


def activation_gain(x: Tensor) -> Tensor:
    """127 / max(max |x|, 1e-5) over the last dim: float32 (..., 1), no gradient."""
    return 127 / x.detach().float().abs().amax(dim=-1, keepdim=True).clamp(min=1e-5)


def ternary_bit_linear(
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    layout: str = "t2",
    group_size: int = 0,
) -> Tensor:
    """Like ``ternary_linear``, with x rounded to int8 per token first.

    a = 127 / max(max |x|, 1e-5) over the last dim; x becomes
    clamp(round(x · a), -128, 127) / a, half to even. The gradient passes the rounding
    unchanged (straight-through).

    Source: Ma et al. 2024, "The Era of 1-bit LLMs"; the floor is that of its code.
    """
    wide = x.float()
    gain = activation_gain(x)
    scaled = wide * gain
    rounded = scaled + (scaled.round().clamp(-128, 127) - scaled).detach()
    y = (
        ternary_linear(rounded, packed, scale, layout=layout, group_size=group_size)
        / gain
    )
    return (y if bias is None else y + bias).to(x.dtype)


def ternary_matmul(
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    shape: tuple[int, ...],
    *,
    layout: str = "t2",
    group_size: int = 0,
) -> Tensor:
    """``x @ weight`` for a weight of ``shape`` (in, out)."""
    return x @ dequantize(packed, scale, shape, x, layout=layout, group_size=group_size)


def ternary_embedding(
    ids: Tensor,
    packed: Tensor,
    scale: Tensor,
    shape: tuple[int, ...],
    *,
    layout: str = "t2",
    group_size: int = 0,
) -> Tensor:
    """Rows ``ids`` of a weight (count, width), in the dtype of the scale."""
    # unlike indexing, index_select refuses negative ids
    flat = ids.reshape(-1)
    rows = packed.index_select(0, flat).reshape(*ids.shape, packed.shape[1])
    trits = unpack_trits(rows, shape[1], layout)
    if scale.dim() > 1 and scale.shape[0] == packed.shape[0]:
        scale = scale.index_select(0, flat).reshape(*ids.shape, scale.shape[1])
    else:
        scale = scale.flatten()
    return spread_scale(scale, shape[1], group_size) * trits


def ternary_conv1d(
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    shape: tuple[int, ...],
    bias: Tensor | None = None,
    *,
    stride: int | tuple[int, ...] = 1,
    padding: int | tuple[int, ...] = 0,
    dilation: int | tuple[int, ...] = 1,
    groups: int = 1,
    layout: str = "t2",
    group_size: int = 0,
) -> Tensor:
    """Convolution: weight (out, in / groups, width), x (batch, in, length)."""
    weight = dequantize(packed, scale, shape, x, layout=layout, group_size=group_size)
    bias = None if bias is None else bias.to(x.dtype)
    return F.conv1d(x, weight, bias, stride, padding, dilation, groups)


def ternary_conv2d(
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    shape: tuple[int, ...],
    bias: Tensor | None = None,
    *,
    stride: int | tuple[int, ...] = 1,
    padding: int | tuple[int, ...] = 0,
    dilation: int | tuple[int, ...] = 1,
    groups: int = 1,
    layout: str = "t2",
    group_size: int = 0,
) -> Tensor:
    """Convolution: weight (out, in / groups, h, w), x (batch, in, height, width)."""
    weight = dequantize(packed, scale, shape, x, layout=layout, group_size=group_size)
    bias = None if bias is None else bias.to(x.dtype)
    return F.conv2d(x, weight, bias, stride, padding, dilation, groups)


def routed(x: Tensor, ids: Tensor, count: int, product: Any) -> Tensor:
    """Give each expert the rows of x that chose it; put the results in their order.

    Args:
        x: ``(..., in)``.
        ids: ``(...)``, integers from 0 to count - 1, or negative ones from the end, as
            in ``weight[ids]``; experts that none of them names are not computed.
        count: of experts.
        product: from an expert and rows ``(n, in)`` to ``(n, out)``.

    Raises:
        IndexError: an id is outside.
    """
    rows, flat = x.reshape(-1, x.shape[-1]), ids.reshape(-1)
    chosen = flat.tolist()
    for expert in (min(chosen, default=0), max(chosen, default=0)):
        if not -count <= expert < count:
            raise IndexError(f"{expert} is out of range for {count} experts.")
    if min(chosen, default=0) < 0:
        flat = flat % count
        chosen = flat.tolist()
    if len({*chosen}) == len(chosen) > 0:  # as those of one token are
        found = torch.cat(
            [product(i, row) for i, row in zip(chosen, rows.split(1), strict=True)]
        )
    else:
        order = flat.argsort()
        parts = rows[order].split(flat.bincount(minlength=count).tolist())
        each = sorted({*chosen}) or [0]
        found = torch.cat([product(i, parts[i]) for i in each])[order.argsort()]
    return found.reshape(*ids.shape, found.shape[-1])


def by_expert(layers: Any, x: Tensor, ids: Tensor) -> Tensor:
    """Give each x (..., in) to the layer of a list that its id (...) names.

    Only the layers that are chosen are computed; under torch.compile and torch.export
    each takes every x.

    Args:
        layers: an ``nn.ModuleList``, or any sequence; each maps (n, in) to (n, out).
        ids: integers from 0 to the number of layers - 1.

    Raises:
        IndexError: an id is outside.
    """
    if torch.compiler.is_compiling():
        rows, flat = x.reshape(-1, x.shape[-1]), ids.reshape(-1)
        every = torch.stack([layer(rows) for layer in layers])
        found = every[flat, torch.arange(flat.shape[0], device=flat.device)]
        return found.reshape(*ids.shape, found.shape[-1])
    return routed(x, ids, len(layers), lambda i, rows: layers[i](rows))


def expert_linear(x: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
    """``x @ weight[id].T`` for each x (..., in) and its id (...).

    The weight is a stack of matrices (experts, out, in). Only those that are chosen are
    computed; under torch.compile and torch.export they are copied out, one for each x.
    """
    if torch.compiler.is_compiling():
        return (weight[ids] @ x.unsqueeze(-1)).squeeze(-1)
    return routed(x, ids, len(weight), lambda i, rows: F.linear(rows, weight[i]))


def expert_matmul(x: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
    """``x @ weight[id]`` for each x (..., in) and its id (...).

    Like ``expert_linear``, with a stack of matrices (experts, in, out).
    """
    if torch.compiler.is_compiling():
        return (x.unsqueeze(-2) @ weight[ids]).squeeze(-2)
    return routed(x, ids, len(weight), lambda i, rows: rows @ weight[i])


def expert_scale(scale: Tensor, ids: int | Tensor) -> Tensor:
    """The scale of some matrices of a stack: their own, or that of all."""
    if scale.dim() == 1:
        return scale
    return scale[ids] if len(scale) > 1 else scale[0]


def ternary_expert_linear(
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    ids: Tensor,
    *,
    layout: str = "t2",
    group_size: int = 0,
) -> Tensor:
    """Like ``expert_linear``: packed (experts, out, bytes), in the dtype of x."""
    if torch.compiler.is_compiling():
        own, shape = (
            expert_scale(scale, ids),
            (*ids.shape, packed.shape[1], x.shape[-1]),
        )
        weight = dequantize(
            packed[ids], own, shape, x, layout=layout, group_size=group_size
        )
        return (weight @ x.unsqueeze(-1)).squeeze(-1)

    def product(i: int, rows: Tensor) -> Tensor:
        own = expert_scale(scale, i)
        return ternary_linear(
            rows, packed[i], own, layout=layout, group_size=group_size
        )

    return routed(x, ids, len(packed), product)


def ternary_expert_matmul(
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    ids: Tensor,
    shape: tuple[int, ...],
    *,
    layout: str = "t2",
    group_size: int = 0,
) -> Tensor:
    """Like ``expert_matmul``: packed (experts, in, bytes), in the dtype of x."""
    if torch.compiler.is_compiling():
        own, whole = expert_scale(scale, ids), (*ids.shape, *shape[1:])
        weight = dequantize(
            packed[ids], own, whole, x, layout=layout, group_size=group_size
        )
        return (x.unsqueeze(-2) @ weight).squeeze(-2)

    def product(i: int, rows: Tensor) -> Tensor:
        own = expert_scale(scale, i)
        return ternary_matmul(
            rows, packed[i], own, shape[1:], layout=layout, group_size=group_size
        )

    return routed(x, ids, len(packed), product)


def rotate_half(x: Tensor) -> Tensor:
    """Swap the halves of the last dim and negate the first of the result.

    With the angles of a rotary embedding, ``x * cos + rotate_half(x) * sin`` turns each
    pair ``(x[i], x[i + d / 2])`` in its plane.

    Source: Su et al. 2021, RoFormer, section 3.4.2.
    """
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def rotary_frequencies(dim: int, base: float) -> Tensor:
    """The angles per position of a rotary embedding: ``1 / base ** (2i / dim)``.

    Returns:
        float32 ``(dim / 2,)``, the same bits as transformers computes.

    Source: Su et al. 2021, RoFormer, section 3.2.2.
    """
    exponents = torch.arange(0, dim, 2, dtype=torch.int64).float() / dim
    return 1.0 / base**exponents
