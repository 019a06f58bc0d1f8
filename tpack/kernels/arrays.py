"""Checks on arrays before their addresses go to the extension.

bfloat16, which numpy lacks, comes and goes as uint16 bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tpack.kernels import reference
from tpack.kernels.reference import COLUMN, ROW, TENSOR, Array, Floats
from tpack.kernels.selection import default_threads

F32, F16, BF16, I8 = 0, 1, 2, 3  # tp_dtype in kernels.h
CODES: dict[np.dtype[Any], int] = {
    np.dtype(np.float32): F32,
    np.dtype(np.float16): F16,
    np.dtype(np.uint16): BF16,
    np.dtype(np.int8): I8,
}
DTYPES: dict[int, np.dtype[Any]] = {code: dtype for dtype, code in CODES.items()}
NAMES = ("float32", "float16", "uint16 (bfloat16 bits)", "int8")


def dtype_code(dtype: npt.DTypeLike, what: str, allowed: tuple[int, ...] = (F32, F16, BF16)) -> int:
    """Give the extension's number for a dtype."""
    code = CODES.get(np.dtype(dtype))
    if code not in allowed:
        expected = ", ".join(NAMES[each] for each in allowed)
        raise ValueError(f"{what}: dtype {np.dtype(dtype)}, expected one of {expected}.")
    return code


def check_floats(array: Array, what: str) -> Array:
    """Give the array C-contiguous; its dtype must be one of the three float kinds."""
    dtype_code(array.dtype, what)
    return np.ascontiguousarray(array)


def check_packed(packed: Array, columns: int) -> npt.NDArray[np.uint8]:
    """Give packed rows as ``(rows, ceil(columns / 4))``, C-contiguous."""
    if packed.dtype != np.uint8:
        raise ValueError(f"packed: dtype {packed.dtype}, expected uint8.")
    if columns < 0:
        raise ValueError(f"columns: got {columns}, expected 0 or more.")
    if packed.ndim != 2 or packed.shape[1] != -(-columns // 4):
        raise ValueError(
            f"packed: shape {packed.shape}, expected (rows, {-(-columns // 4)}) "
            f"for {columns} columns."
        )
    return np.ascontiguousarray(packed)


def check_group(group: int) -> int:
    """Check what a scale belongs to: the tensor, a row, a column, or a multiple of 4 columns."""
    if group < 0 or (group > COLUMN and group % 4):
        raise ValueError(
            f"group: got {group}, expected 0 (tensor), 1 (row), 2 (column) or a multiple of 4."
        )
    return group


def scale_shape(rows: int, columns: int, group: int) -> tuple[int, ...]:
    """Give the shape of scales: ``(1,)``, ``(rows, 1)``, ``(1, columns)`` or ``(rows, groups)``."""
    check_group(group)
    fixed = {TENSOR: (1,), ROW: (rows, 1), COLUMN: (1, columns)}
    return fixed[group] if group in fixed else (rows, -(-columns // group))


def check_scale(scale: Array, rows: int, columns: int, group: int) -> Array:
    """Give the scales C-contiguous, of the shape that ``group`` calls for."""
    expected = scale_shape(rows, columns, group)
    if scale.shape != expected:
        raise ValueError(f"scale: shape {scale.shape}, expected {expected} for group {group}.")
    return check_floats(scale, "scale")


def check_threads(threads: int | None) -> int:
    """Give the number of threads, torch's by default."""
    if threads is None:
        return default_threads()
    if not 1 <= threads <= 4096:
        raise ValueError(f"threads: got {threads}, expected 1 to 4096.")
    return threads


def infer_group(shape: tuple[int, ...], rows: int, columns: int) -> int:
    """Tell from a scale's shape what a scale belongs to.

    ``(1,)`` is the tensor, ``(rows, 1)`` a row and ``(1, columns)`` a column. For
    ``(rows, groups)`` the group is the one of 256, 128, 64 and 32 that gives so many
    groups, else the smallest multiple of 4 that does.

    >>> infer_group((8, 32), 8, 4096)
    128
    """
    if shape == (1,):
        return TENSOR
    if shape == (rows, 1):
        return ROW
    if shape == (1, columns):
        return COLUMN
    if len(shape) == 2 and shape[0] == rows and 1 < shape[1] <= -(-columns // 4):
        smallest = -(-columns // shape[1])
        for group in (256, 128, 64, 32, smallest + -smallest % 4):
            if -(-columns // group) == shape[1]:
                return group
    raise ValueError(f"scale: shape {shape} does not fit a weight of shape ({rows}, {columns}).")


def as_float32(array: Array) -> Floats:
    """Widen any of the three float kinds."""
    if array.dtype == np.uint16:
        return reference.bfloat16_to_float32(array.view(np.uint16))
    return array.astype(np.float32)


def from_float32(values: Array, dtype: npt.DTypeLike) -> Array:
    """Round to any of the three float kinds, half to even."""
    if np.dtype(dtype) == np.uint16:
        return reference.float32_to_bfloat16(values.astype(np.float32))
    with np.errstate(over="ignore"):
        return values.astype(dtype)
