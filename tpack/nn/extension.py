"""Direct calls of the extension on tensors: when it serves, and what it needs."""

from __future__ import annotations

import torch
from torch import Tensor

from tpack.kernels import selection
from tpack.kernels.matmul import MOST_COLUMNS
from tpack.kernels.reference import COLUMN, ROW, TENSOR
from tpack.nn import reference

#: The extension's numbers for dtypes it computes in.
CODES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}

_functorch_active = torch._C._are_functorch_transforms_active  # noqa: SLF001
_modes = torch._C._len_torch_dispatch_stack  # noqa: SLF001
_tracing = torch._C._get_tracing_state  # noqa: SLF001


def serves(x: Tensor, packed: Tensor, scale: Tensor, layout: str) -> bool:
    """Return whether the operators of ``torch.ops.tpack`` compute this in C."""
    fits = (
        layout == "t2"
        and packed.dtype == torch.uint8
        and x.is_cpu
        and x.dtype in CODES
        and scale.dtype in CODES
        and packed.dim() == 2
    )
    if fits and selection.native is None and not torch.compiler.is_compiling():
        selection.warn_if_missing()
    return fits and selection.native is not None


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
