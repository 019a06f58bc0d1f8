"""The ops that modules call: the kernels where they serve, else the reference.

On a CPU, in plain eager inference, an op is one direct call of the extension. Under
autograd, torch.compile or torch.export it is the operator of the same name in
``torch.ops.tpack``. On other devices, in layout t5, in float64, or without the
extension it is the reference. Packed bytes are checked when they are first used.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tpack.kernels import selection
from tpack.nn import reference
from tpack.nn.code_check import accept, check_legal
from tpack.nn.extension import CODES, call, check_stored, group_of, is_plain, serves

Op = Callable[..., Tensor]


def ternary_linear(
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    layout: str = "t2",
    group_size: int = 0,
) -> Tensor:
    """Multiply by a packed weight (out, in): ``x @ weight.T + bias``.

    Args:
        x: ``(..., in)``, any float dtype; the result has it too.
        packed: uint8 ``(out, ceil(in / 4))``; in layout t5 ``(out, ceil(in / 5))``.
        scale: ``(1,)``, ``(out, 1)``, ``(1, in)`` or ``(out, groups)``, float.
        bias: ``(out,)``, float.
        group_size: columns that share a scale; 0 infers it from the shapes.

    Raises:
        ValueError: the shapes of x, packed, scale and bias do not belong together.
        FormatError: a byte of ``packed`` holds no codes of the layout.
    """
    return _rows("linear", x, packed, scale, bias, layout, group_size)


def ternary_bit_linear(
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    layout: str = "t2",
    group_size: int = 0,
) -> Tensor:
    """Multiply as ``ternary_linear`` does, with x rounded to int8 per token first.

    The arguments and errors are those of ``ternary_linear``; the formula and its source
    stand in ``tpack.nn.reference.ternary_bit_linear``.
    """
    return _rows("bit_linear", x, packed, scale, bias, layout, group_size)


def _rows(
    name: str,
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    layout: str,
    group_size: int,
) -> Tensor:
    check_legal(packed, layout)
    if serves(x, packed, scale, layout):
        if is_plain(x, scale, bias):
            found = call(
                name, x, packed, scale, bias, x.shape[-1], packed.shape[0], group_size
            )
            if found is not None:
                return found
        else:
            op: Op = getattr(torch.ops.tpack, name)
            return op(x, packed, scale, bias, group_size=group_size)
    define: Op = getattr(reference, f"ternary_{name}")
    return define(x, packed, scale, bias, layout=layout, group_size=group_size)


def ternary_matmul(
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    shape: tuple[int, ...],
    *,
    layout: str = "t2",
    group_size: int = 0,
) -> Tensor:
    """Multiply by a packed weight (in, out): ``x @ weight``.

    Args:
        x: ``(..., in)``, any float dtype; the result has it too.
        packed: uint8 ``(in, ceil(out / 4))``; in layout t5 ``(in, ceil(out / 5))``.
        scale: ``(1,)``, ``(in, 1)``, ``(1, out)`` or ``(in, groups)``, float.
        shape: ``(in, out)``.
        group_size: columns that share a scale; 0 infers it from the shapes.

    Raises:
        ValueError: the shapes of packed and scale do not belong to ``shape``.
        FormatError: a byte of ``packed`` holds no codes of the layout.
    """
    check_legal(packed, layout)
    if serves(x, packed, scale, layout):
        if is_plain(x, scale, None):
            found = call(
                "linear_columns", x, packed, scale, None, shape[1], shape[1], group_size
            )
            if found is not None:
                return found
        else:
            op: Op = torch.ops.tpack.matmul
            return op(x, packed, scale, shape[1], group_size=group_size)
    return reference.ternary_matmul(
        x, packed, scale, shape, layout=layout, group_size=group_size
    )


def dequantize(
    packed: Tensor,
    scale: Tensor,
    shape: tuple[int, ...],
    like: Tensor | None = None,
    *,
    layout: str = "t2",
    group_size: int = 0,
) -> Tensor:
    """Unpack a weight and multiply by its scale.

    Args:
        packed: uint8 ``(*rows, bytes)``.
        scale: float ``(1,)``, ``(*rows, 1)``, ``(1…, columns)`` or ``(*rows, groups)``.
        shape: logical shape of the weight, which the result has.
        like: the result has the dtype of this float tensor, else that of the scale.
        group_size: columns that share a scale; 0 infers it from the shapes.

    Raises:
        ValueError: the shapes of packed and scale do not belong to ``shape``.
        FormatError: a byte of ``packed`` holds no codes of the layout.
    """
    check_legal(packed, layout)
    dtype = like.dtype if like is not None and like.is_floating_point() else scale.dtype
    columns = math.prod(shape[packed.dim() - 1 :])
    native = selection.native
    if (
        dtype in CODES
        and serves(scale, packed, scale, layout)
        and is_plain(packed, scale, None)
    ):
        rows = packed.shape[0]
        group = group_of(scale, rows, columns, group_size)
        check_stored(packed, scale, rows, columns)
        if native is not None and group is not None:
            packed, scale = packed.contiguous(), scale.contiguous()
            out = packed.new_empty(shape, dtype=dtype)
            native.dequantize(
                packed.data_ptr(),
                rows,
                columns,
                scale.data_ptr(),
                CODES[scale.dtype],
                group,
                out.data_ptr(),
                CODES[dtype],
                torch.get_num_threads(),
            )
            return out
    return reference.dequantize(
        packed, scale, shape, like, layout=layout, group_size=group_size
    )


def ternary_embedding(
    ids: Tensor,
    packed: Tensor,
    scale: Tensor,
    shape: tuple[int, ...],
    *,
    layout: str = "t2",
    group_size: int = 0,
) -> Tensor:
    """Look rows of a packed table (count, width) up.

    Args:
        ids: ``(...)``, integers from 0 to count - 1; the result is ``(..., width)``, in
            the dtype of the scale.
        shape: ``(count, width)``.

    Raises:
        IndexError: an id is outside the table.
        ValueError: the shapes of packed and scale do not belong to ``shape``.
        FormatError: a byte of ``packed`` holds no codes of the layout.
    """
    check_legal(packed, layout)
    native = selection.native
    rows, columns = shape
    if ids.dtype == torch.int64 and serves(scale, packed, scale, layout) and ids.is_cpu:
        group = group_of(scale, rows, columns, group_size)
        if native is not None and is_plain(ids, scale, None) and group is not None:
            check_stored(packed, scale, rows, columns)
            ids, packed, scale = (
                ids.contiguous(),
                packed.contiguous(),
                scale.contiguous(),
            )
            out = scale.new_empty((*ids.shape, columns))
            bad = native.embedding(
                ids.data_ptr(),
                ids.numel(),
                packed.data_ptr(),
                rows,
                columns,
                scale.data_ptr(),
                CODES[scale.dtype],
                group,
                out.data_ptr(),
                CODES[scale.dtype],
                torch.get_num_threads(),
            )
            if bad >= 0:
                found = int(ids.reshape(-1)[bad])
                raise IndexError(f"index {found} is out of range for {rows} rows.")
            return out
    return reference.ternary_embedding(
        ids, packed, scale, shape, layout=layout, group_size=group_size
    )


def ternary_expert_linear(
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    ids: Tensor,
    *,
    layout: str = "t2",
    group_size: int = 0,
) -> Tensor:
    """Multiply each x by one matrix of a packed stack (experts, out, in).

    Args:
        x: ``(..., in)``, any float dtype; the result ``(..., out)`` has it too.
        packed: uint8 ``(experts, out, bytes)``.
        scale: ``(1,)``, ``(experts, out, 1)``, ``(experts, out, groups)``, or
            ``(1, 1, in)``, float.
        ids: ``(...)``, the matrix for each x; those that no id names are not read,
            except when the bytes are first checked.
        group_size: columns that share a scale; 0 infers it from the shapes.

    Raises:
        IndexError: an id is outside the stack.
        ValueError: the shapes of x, packed and scale do not belong together.
        FormatError: a byte of ``packed`` holds no codes of the layout.
    """
    check_legal(packed, layout)
    options: dict[str, Any] = {"layout": layout, "group_size": group_size}
    if torch.compiler.is_compiling():
        return reference.ternary_expert_linear(x, packed, scale, ids, **options)

    def product(i: int, rows: Tensor) -> Tensor:
        matrix = packed[i]
        accept(matrix)  # a part of what was checked
        return ternary_linear(rows, matrix, reference.expert_scale(scale, i), **options)

    return reference.routed(x, ids, len(packed), product)


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
    """Multiply each x by one matrix of a packed stack (experts, in, out).

    Args:
        x: ``(..., in)``, any float dtype; the result ``(..., out)`` has it too.
        packed: uint8 ``(experts, in, bytes)``.
        scale: ``(1,)``, ``(experts, in, 1)``, ``(experts, in, groups)``, or
            ``(1, 1, out)``, float.
        ids: as for ``ternary_expert_linear``.
        shape: ``(experts, in, out)``.

    Raises:
        IndexError: an id is outside the stack.
        ValueError: the shapes of packed and scale do not belong to ``shape``.
        FormatError: a byte of ``packed`` holds no codes of the layout.
    """
    check_legal(packed, layout)
    options: dict[str, Any] = {"layout": layout, "group_size": group_size}
    if torch.compiler.is_compiling():
        return reference.ternary_expert_matmul(x, packed, scale, ids, shape, **options)

    def product(i: int, rows: Tensor) -> Tensor:
        matrix = packed[i]
        accept(matrix)  # a part of what was checked
        own = reference.expert_scale(scale, i)
        return ternary_matmul(rows, matrix, own, shape[1:], **options)

    return reference.routed(x, ids, len(packed), product)


def ternary_conv2d(
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    shape: tuple[int, ...],
    bias: Tensor | None = None,
    *,
    stride: int | tuple[int, ...] = 1,
    padding: int | tuple[int, ...] | str = 0,
    dilation: int | tuple[int, ...] = 1,
    groups: int = 1,
    layout: str = "t2",
    group_size: int = 0,
) -> Tensor:
    """Convolve with a packed weight (out, in / groups, h, w).

    Args:
        x: ``(batch, in, height, width)`` or ``(in, height, width)``, any float dtype;
            the result has it too.
        shape: ``(out, in / groups, h, w)``.

    Raises:
        ValueError: the shapes of packed and scale do not belong to ``shape``.
        FormatError: a byte of ``packed`` holds no codes of the layout.

    The weight is unpacked once per call, and torch convolves. Where x has few positions
    and the weight is large, unpacking costs more than the products, and the unfolded
    input meets the packed rows.
    """
    if (
        x.dim() == 4
        and x.shape[1] == shape[1]
        and groups == 1
        and not isinstance(padding, str)
        and math.prod(shape) >= LARGE
        and serves(x, packed, scale, layout)
        and is_plain(x, scale, bias)
    ):
        kernel, window = shape[2:], (_two(dilation), _two(padding), _two(stride))
        sizes = [
            (size + 2 * p - d * (k - 1) - 1) // s + 1
            for size, k, d, p, s in zip(x.shape[2:], kernel, *window, strict=True)
        ]
        if 0 < x.shape[0] * math.prod(sizes) <= FEW:
            unfolded = F.unfold(x, kernel, *window).transpose(1, 2)
            y = ternary_linear(unfolded, packed, scale, bias, group_size=group_size)
            return y.transpose(1, 2).reshape(*y.shape[::2], *sizes).contiguous()
    # torch convolves float16 on a CPU 10 to 40 times slower than float32
    wide = x.float() if x.is_cpu and x.dtype == torch.float16 else x
    weight = dequantize(
        packed, scale, shape, wide, layout=layout, group_size=group_size
    )
    bias = None if bias is None else bias.to(wide.dtype)
    y = F.conv2d(wide, weight, bias, stride, padding, dilation, groups)
    return y.to(x.dtype)


#: Output positions up to which, and weights from which on, unfolding the input is
#: faster than unpacking the weight. Measured on a Zen 4 with kernels 1x1 and 3x3, 16 to
#: 512 channels, 1 to 25,088 positions: 1.1 to 12 times within these bounds, 0.1 to 1.3
#: times outside, where oneDNN neither unfolds nor multiplies as often (Winograd).
FEW, LARGE = 16, 1 << 16


def ternary_conv1d(
    x: Tensor, packed: Tensor, scale: Tensor, *args: Any, **options: Any
) -> Tensor:
    """Convolve with a packed weight (out, in / groups, width); see ``reference``.

    Raises:
        ValueError: the shapes of packed and scale do not belong to the weight.
        FormatError: a byte of ``packed`` holds no codes of the layout.
    """
    check_legal(packed, options.get("layout", "t2"))
    return reference.ternary_conv1d(x, packed, scale, *args, **options)


def _two(value: int | tuple[int, ...]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])
