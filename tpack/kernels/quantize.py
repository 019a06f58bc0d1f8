"""Float weights to packed rows: what it takes to find scales, and the packing given thresholds."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tpack.kernels import reference, selection
from tpack.kernels.arrays import (
    CODES,
    as_float32,
    check_floats,
    check_group,
    check_scale,
    check_threads,
    scale_shape,
)
from tpack.kernels.reference import Array, Floats


def check_weights(weights: Array) -> Array:
    """Give weights `(rows, columns)` C-contiguous."""
    if weights.ndim != 2:
        raise ValueError(f"weights: shape {weights.shape}, expected two dimensions.")
    return check_floats(weights, "weights")


def abs_sums(
    weights: Array, group: int = 0, *, threads: int | None = None
) -> npt.NDArray[np.float64]:
    """Sum |w| in double per tensor `(1,)`, row `(rows, 1)` or group `(rows, groups)`.

    The order of the additions is fixed, so the result depends on neither threads nor processor.

    Args:
        weights: `(rows, columns)` float32, float16 or uint16 (bfloat16 bits).

    Raises:
        ValueError: A weight is infinite or NaN; the message names the first and its index.
    """
    weights, group, threads = check_weights(weights), check_group(group), check_threads(threads)
    rows, columns = weights.shape
    sums: npt.NDArray[np.float64]
    if native := selection.native:
        sums = np.zeros(scale_shape(rows, columns, group), np.float64)
        bad = native.abs_sums(
            weights.ctypes.data,
            CODES[weights.dtype],
            rows,
            columns,
            group,
            sums.ctypes.data,
            threads,
        )
    else:
        floats = as_float32(weights)
        finite = np.isfinite(floats).ravel()
        bad = -1 if finite.all() else int(np.argmin(finite))
        sums = reference.abs_sums(floats, group) if bad < 0 else np.zeros(0)
    if bad >= 0:
        row, column = divmod(bad, columns)
        found = as_float32(weights[row, column : column + 1])[0]
        raise ValueError(f"weights: {found} at index {(row, column)}, expected a finite number.")
    return sums


def ranges(weights: Array, *, threads: int | None = None) -> tuple[Floats, Floats]:
    """Give the largest |w| and the smallest nonzero |w| of each 32 columns, both `(rows, groups)`.

    A group is `{-s, 0, s}` exactly when the two are equal or the largest is zero. A group of zeros
    has smallest inf; an infinity or NaN shows in the largest.
    """
    weights, threads = check_weights(weights), check_threads(threads)
    rows, columns = weights.shape
    if not (native := selection.native):
        return reference.ranges(as_float32(weights))
    maxima = np.empty((rows, -(-columns // reference.RANGE_GROUP)), np.float32)
    minima = np.empty_like(maxima)
    native.ranges(
        weights.ctypes.data,
        CODES[weights.dtype],
        rows,
        columns,
        maxima.ctypes.data,
        minima.ctypes.data,
        threads,
    )
    return maxima, minima


def quantize(
    weights: Array, thresholds: Floats, group: int = 0, *, threads: int | None = None
) -> npt.NDArray[np.uint8]:
    """Pack code 2 where a weight is above its threshold, 0 where it is below the negative, else 1.

    A threshold of zero packs signs: what an exactly ternary weight needs.

    Args:
        thresholds: float32, 0 or more, shaped as scales are: `(1,)`, `(rows, 1)` or
            `(rows, groups)`.
    """
    weights, threads = check_weights(weights), check_threads(threads)
    rows, columns = weights.shape
    if thresholds.dtype != np.float32 or not (thresholds >= 0).all():
        raise ValueError("thresholds: expected float32, each 0 or more.")
    thresholds = check_scale(thresholds, rows, columns, group).view(np.float32)
    if not (native := selection.native):
        return reference.quantize(as_float32(weights), thresholds, group)
    packed = np.empty((rows, -(-columns // 4)), np.uint8)
    native.quantize(
        weights.ctypes.data, CODES[weights.dtype], rows, columns,
        thresholds.ctypes.data, group, packed.ctypes.data, threads,
    )  # fmt: skip
    return packed


def quantize_absmean(
    weights: Array, group: int = 0, *, threads: int | None = None
) -> tuple[npt.NDArray[np.uint8], Floats]:
    """Quantize to the nearest multiple of the mean magnitude: packed rows and float32 scales.

    scale = mean |w|; trit = clamp(round_half_even(w / scale), -1, 1).

    Source: Ma et al. 2024, "The Era of 1-bit LLMs", equations 1 to 3.

    >>> packed, scale = quantize_absmean(np.array([[0.5, -1.5, 0.1, 1.9]], np.float32))
    >>> scale.tolist(), packed.tolist()
    ([1.0], [[145]])
    """
    rows, columns = weights.shape if weights.ndim == 2 else (0, 0)
    sums = abs_sums(weights, group, threads=threads)
    if group <= 1:
        counts: Array = np.array(columns if group else rows * columns)
    else:
        counts = np.minimum(group, columns - group * np.arange(sums.shape[1]))
    scale = (sums / np.maximum(counts, 1)).astype(np.float32)
    return quantize(weights, reference.absmean_threshold(scale), group, threads=threads), scale
