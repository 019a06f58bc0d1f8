"""Trits to packed rows and back."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tpack.kernels import reference, selection
from tpack.kernels.arrays import (
    BF16,
    CODES,
    DTYPES,
    F16,
    F32,
    I8,
    as_float32,
    check_packed,
    check_scale,
    check_threads,
    dtype_code,
    from_float32,
)
from tpack.kernels.reference import COLUMN, TENSOR, Array

Bytes = npt.NDArray[np.uint8]


def pack(values: Array, *, threads: int | None = None) -> Bytes:
    """Pack trits four to a byte, each row padded to whole bytes with code 1.

    Args:
        values: ``(rows, columns)`` int8, float32, float16 or uint16 (bfloat16 bits): -1, 0 or 1.

    Returns:
        ``(rows, ceil(columns / 4))``.

    Raises:
        ValueError: A value is not a trit; the message names the first and its index.

    >>> pack(np.array([[1, 0, -1, 1, -1]], np.int8)).tolist()
    [[134, 84]]
    """
    code = dtype_code(values.dtype, "values", (F32, F16, BF16, I8))
    if values.ndim != 2:
        raise ValueError(f"values: shape {values.shape}, expected two dimensions.")
    threads = check_threads(threads)
    values = np.ascontiguousarray(values)
    rows, columns = values.shape
    if native := selection.native:
        packed = np.empty((rows, -(-columns // 4)), np.uint8)
        bad = native.pack(values.ctypes.data, code, rows, columns, packed.ctypes.data, threads)
    else:
        packed, bad = reference.pack(values if code == I8 else as_float32(values))
    if bad >= 0:
        index = divmod(bad, columns)
        found = (
            values[index]
            if code == I8
            else as_float32(values[index[0], index[1] : index[1] + 1])[0]
        )
        raise ValueError(f"values: {found} at index {index}, expected -1, 0 or 1.")
    return packed


def unpack(
    packed: Bytes, columns: int, dtype: npt.DTypeLike = np.int8, *, threads: int | None = None
) -> Array:
    """Unpack ``(rows, ceil(columns / 4))`` to trits ``(rows, columns)``, in a dtype of ``pack``.

    Raises:
        ValueError: A code is 3; the message says where.

    >>> unpack(np.array([[134, 84]], np.uint8), 5).tolist()
    [[1, 0, -1, 1, -1]]
    """
    code = dtype_code(dtype, "dtype", (F32, F16, BF16, I8))
    packed, threads = check_packed(packed, columns), check_threads(threads)
    rows = len(packed)
    out: Array
    if native := selection.native:
        out = np.empty((rows, columns), DTYPES[code])
        bad = native.unpack(packed.ctypes.data, rows, columns, out.ctypes.data, code, threads)
    else:
        out, bad = reference.unpack(packed, columns)
        out = out if code == I8 else from_float32(out, dtype)
    if bad >= 0:
        raise ValueError(f"packed: code 3 at index {divmod(bad, columns)}, expected 0, 1 or 2.")
    return out


def dequantize(
    packed: Bytes,
    columns: int,
    scale: Array,
    group: int = 0,
    dtype: npt.DTypeLike = np.float32,
    *,
    threads: int | None = None,
) -> Array:
    """Unpack and multiply by the scales.

    Args:
        scale: ``(1,)`` for group 0, ``(rows, 1)`` for group 1, ``(1, columns)`` for group 2, else
            ``(rows, ceil(columns / group))``.
        dtype: float32, float16 or uint16 (bfloat16 bits); a scale is rounded to it.

    Raises:
        ValueError: A code is 3; the message says where.
    """
    code = dtype_code(dtype, "dtype")
    packed, threads = check_packed(packed, columns), check_threads(threads)
    rows = len(packed)
    scale = check_scale(scale, rows, columns, group)
    if native := selection.native:
        out: Array = np.empty((rows, columns), DTYPES[code])
        bad = native.dequantize(
            packed.ctypes.data, rows, columns,
            scale.ctypes.data, CODES[scale.dtype], group,
            out.ctypes.data, code, threads,
        )  # fmt: skip
    else:
        floats, bad = reference.dequantize(packed, columns, as_float32(scale), group)
        out = from_float32(floats, dtype)
    if bad >= 0:
        raise ValueError(f"packed: code 3 at index {divmod(bad, columns)}, expected 0, 1 or 2.")
    return out


def embedding(
    indices: npt.NDArray[np.int64],
    packed: Bytes,
    columns: int,
    scale: Array,
    group: int = 0,
    dtype: npt.DTypeLike = np.float32,
    *,
    threads: int | None = None,
) -> Array:
    """Dequantize the rows that ``indices`` name: ``(*indices.shape, columns)``.

    Raises:
        ValueError: An index is not in 0..rows-1; the message names the first and its position.
            Or a row that an index names holds code 3.
    """
    code = dtype_code(dtype, "dtype")
    packed, threads = check_packed(packed, columns), check_threads(threads)
    rows = len(packed)
    scale = check_scale(scale, rows, columns, group)
    if indices.dtype != np.int64:
        raise ValueError(f"indices: dtype {indices.dtype}, expected int64.")
    flat = np.ascontiguousarray(indices).ravel()
    if native := selection.native:
        out: Array = np.empty((len(flat), columns), DTYPES[code])
        bad = native.embedding(
            flat.ctypes.data, len(flat),
            packed.ctypes.data, rows, columns,
            scale.ctypes.data, CODES[scale.dtype], group,
            out.ctypes.data, code, threads,
        )  # fmt: skip
    else:
        outside = (flat < 0) | (flat >= rows)
        bad = int(np.argmax(outside)) if outside.any() else -1
        if bad < 0:
            chosen = as_float32(scale if group in (TENSOR, COLUMN) else scale[flat])
            floats, wrong = reference.dequantize(packed[flat], columns, chosen, group)
            if wrong >= 0:
                raise ValueError("packed: a row holds code 3, expected 0, 1 or 2.")
            out = from_float32(floats, dtype)
    if bad >= 0:
        raise ValueError(f"indices: {flat[bad]} at position {bad}, expected 0 to {rows - 1}.")
    return out.reshape(*indices.shape, columns)
