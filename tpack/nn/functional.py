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
from tpack.kernels.matmul import MOST_COLUMNS
from tpack.kernels.reference import COLUMN, ROW, TENSOR
from tpack.nn import reference
from tpack.nn.code_check import check_legal

Op = Callable[..., Tensor]

#: The extension's numbers for dtypes it computes in.
CODES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}

_functorch_active = torch._C._are_functorch_transforms_active  # noqa: SLF001
_modes = torch._C._len_torch_dispatch_stack  # noqa: SLF001
_tracing = torch._C._get_tracing_state  # noqa: SLF001


def serves(x: Tensor, packed: Tensor, scale: Tensor, layout: str) -> bool:
    """Return whether the operators of ``torch.ops.tpack`` compute this in C."""
    return (
        layout == "t2"
        and packed.dtype == torch.uint8
        and x.is_cpu
        and x.dtype in CODES
        and scale.dtype in CODES
        and packed.dim() == 2
        and selection.native is not None
    )


def is_plain(x: Tensor, scale: Tensor, bias: Tensor | None) -> bool:
    """Return whether only the result is wanted: no gradient, no tracing, no mode."""
    if torch.is_grad_enabled() and (
        x.requires_grad
        or scale.requires_grad
        or (bias is not None and bias.requires_grad)
    ):
        return False
    return (
        type(x) is Tensor
        and not torch.compiler.is_compiling()
        and not _functorch_active()
        and not _modes()
        and _tracing() is None
    )


def group_of(scale: Tensor, rows: int, columns: int, group_size: int) -> int | None:
    """Return the kernels' number for a granularity; None if they do not take it.

    Raises:
        ValueError: no scale of a weight (rows, columns) has this shape.
    """
    shape = scale.shape
    if shape == (1,):
        return TENSOR
    if shape == (1, columns) and group_size <= 1:
        return COLUMN
    if scale.dim() != 2 or shape[0] != rows:
        raise ValueError(f"scale has shape {tuple(shape)}, expected {rows} rows.")
    if shape[1] == 1:
        return ROW
    size = group_size or reference.infer_group_size(columns, shape[1])
    if -(-columns // size) != shape[1]:
        reference.spread_scale(scale, columns, size)  # raises, naming the sizes
    return None if size % 4 else size  # whole bytes share one


def check_stored(packed: Tensor, scale: Tensor, rows: int, columns: int) -> None:
    """Check shape, dtype and device of the packed bytes of a weight (rows, columns).

    Raises:
        ValueError: one of them is another; the extension does not check.
    """
    width = (columns + 3) // 4
    if packed.shape != (rows, width) or packed.dtype != torch.uint8:
        raise ValueError(
            f"packed is {packed.dtype} {tuple(packed.shape)}, expected torch.uint8 "
            f"{(rows, width)} for a weight of {rows} rows and {columns} columns."
        )
    for name, tensor in (("packed", packed), ("scale", scale)):
        if not tensor.is_cpu:
            raise ValueError(f"{name} is on {tensor.device}, expected cpu, where x is.")


def call(
    name: str,
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    width: int,
    outputs: int,
    group_size: int,
) -> Tensor | None:
    """Call the extension, or return None where it does not take these arguments.

    Args:
        name: of the kernel.
        x: ``(..., inputs)``.
        width: columns of a packed row.
        outputs: size of the last dim of the result.

    Raises:
        ValueError: shapes that do not fit.
    """
    native = selection.native
    rows = packed.shape[0]
    inputs = x.shape[-1]
    if name == "linear_columns" and inputs != rows:
        raise ValueError(f"x has shape {tuple(x.shape)}, expected (..., {rows}).")
    group = group_of(scale, rows, width, group_size)
    if native is None or not inputs or group is None:
        return None
    if name == "bit_linear" and inputs > MOST_COLUMNS:
        return None
    check_stored(packed, scale, rows, width)
    if bias is not None:
        if bias.shape != (outputs,):
            raise ValueError(
                f"bias has shape {tuple(bias.shape)}, expected {(outputs,)}."
            )
        if bias.dtype not in CODES:
            return None
        if not bias.is_cpu:
            raise ValueError(f"bias is on {bias.device}, expected cpu, where x is.")
        bias = bias.contiguous()
    x, packed, scale = x.contiguous(), packed.contiguous(), scale.contiguous()
    out = x.new_empty((*x.shape[:-1], outputs))
    getattr(native, name)(
        x.data_ptr(),
        CODES[x.dtype],
        x.numel() // inputs,
        packed.data_ptr(),
        rows,
        width,
        scale.data_ptr(),
        CODES[scale.dtype],
        group,
        0 if bias is None else bias.data_ptr(),
        0 if bias is None else CODES[bias.dtype],
        out.data_ptr(),
        torch.get_num_threads(),
    )
    return out


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
