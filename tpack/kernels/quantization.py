"""Float weights to packed rows: what it takes to find scales, the packing, and what it loses."""

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
from tpack.kernels.reference import COLUMN, RANGE_GROUP, Array, Bytes, Floats

Doubles = npt.NDArray[np.float64]


def check_weights(weights: Array) -> Array:
    """Give weights ``(rows, columns)`` C-contiguous."""
    if weights.ndim != 2:
        raise ValueError(f"weights: shape {weights.shape}, expected two dimensions.")
    return check_floats(weights, "weights")


def check_sets(group: int) -> int:
    """Check what is summed or quantized together: as ``check_group``, but for columns."""
    if check_group(group) == COLUMN:
        raise ValueError("group: got 2 (column), expected 0 (tensor), 1 (row) or a multiple of 4.")
    return group


def check_doubles(array: Doubles, shape: tuple[int, ...], what: str) -> None:
    """Make sure that results can be added to an array where it is."""
    if array.dtype != np.float64 or array.shape != shape or not array.flags.carray:
        raise ValueError(
            f"{what}: {array.dtype} {array.shape}, expected contiguous float64 {shape}."
        )


def survey(
    weights: Array, group: int = 0, sums: Doubles | None = None, *, threads: int | None = None
) -> tuple[Floats, Floats]:
    """Give the largest and the smallest nonzero |w| of each 32 columns, both ``(rows, groups)``.

    A group is ``{-s, 0, s}`` exactly when the two are equal or the largest is zero. A group of
    zeros has smallest inf; an infinity or NaN shows in the largest.

    Args:
        weights: ``(rows, columns)`` float32, float16 or uint16 (bfloat16 bits).
        group: of the sums: 0, 1 or a multiple of 32.
        sums: float64, shaped as scales are; |w| is added in the same pass, as by ``abs_sums``.
    """
    weights, threads = check_weights(weights), check_threads(threads)
    rows, columns = weights.shape
    if group > 1 and group % RANGE_GROUP:
        raise ValueError(f"group: got {group}, expected 0, 1 or a multiple of {RANGE_GROUP}.")
    if sums is not None:
        check_doubles(sums, scale_shape(rows, columns, group), "sums")
    if not (native := selection.native):
        floats = as_float32(weights)
        if sums is not None:
            reference.abs_sums(floats, group, sums)
        return reference.ranges(floats)
    maxima = np.empty((rows, -(-columns // RANGE_GROUP)), np.float32)
    minima = np.empty_like(maxima)
    native.survey(
        weights.ctypes.data, CODES[weights.dtype], rows, columns,
        group, 0 if sums is None else sums.ctypes.data,
        maxima.ctypes.data, minima.ctypes.data, threads,
    )  # fmt: skip
    return maxima, minima


def column_sizes(
    weights: Array, sizes: Floats | None = None, *, threads: int | None = None
) -> Floats | None:
    """Give the |w| of each column, ``(columns,)``, and 0 where all are zero.

    Args:
        weights: ``(rows, columns)`` float32, float16 or uint16 (bfloat16 bits), none NaN.
        sizes: those of rows before, by default none; updated in place.

    Returns:
        None where a column has values of two magnitudes besides zero; ``sizes`` is then useless.
    """
    weights, threads = check_weights(weights), check_threads(threads)
    rows, columns = weights.shape
    if sizes is None:
        sizes = np.zeros(columns, np.float32)
    elif sizes.dtype != np.float32 or sizes.shape != (columns,) or not sizes.flags.carray:
        raise ValueError(
            f"sizes: {sizes.dtype} {sizes.shape}, expected contiguous float32 {(columns,)}."
        )
    if native := selection.native:
        fits = native.column_sizes(
            weights.ctypes.data, CODES[weights.dtype], rows, columns, sizes.ctypes.data, threads
        )
        return sizes if fits < 0 else None
    return sizes if reference.column_sizes(as_float32(weights), sizes) else None


def abs_sums(
    weights: Array, group: int = 0, sums: Doubles | None = None, *, threads: int | None = None
) -> Doubles:
    """Sum |w| in double per tensor ``(1,)``, row ``(rows, 1)`` or group ``(rows, groups)``.

    The order of the additions is fixed, so the result depends on neither threads nor processor:
    chunks of at most 4096 columns of a row or group are added one after the other, and the sums
    of a tensor's rows so, too. A weight may come in parts, cut between rows; for sums of rows and
    groups also between groups, at a multiple of 4096 columns.

    Args:
        weights: ``(rows, columns)`` float32, float16 or uint16 (bfloat16 bits).
        sums: what to add to, in place; zeros by default.

    Raises:
        ValueError: A weight is infinite or NaN; the message names the first and its index.
    """
    weights, group, threads = check_weights(weights), check_sets(group), check_threads(threads)
    rows, columns = weights.shape
    if sums is None:
        sums = np.zeros(scale_shape(rows, columns, group))
    check_doubles(sums, scale_shape(rows, columns, group), "sums")
    if native := selection.native:
        native.survey(
            weights.ctypes.data, CODES[weights.dtype], rows, columns,
            group, sums.ctypes.data, 0, 0, threads,
        )  # fmt: skip
    else:
        reference.abs_sums(as_float32(weights), group, sums)
    # a sum of finite floats cannot overflow a double, so the sums tell whether to look
    if not np.isfinite(sums).all():
        floats = as_float32(weights)
        index = divmod(int(np.argmin(np.isfinite(floats).ravel())), columns)
        raise ValueError(f"weights: {floats[index]} at index {index}, expected a finite number.")
    return sums


def quantize(
    weights: Array, thresholds: Floats, group: int = 0, *, threads: int | None = None
) -> Bytes:
    """Pack code 2 where a weight is above its threshold, 0 where it is below the negative, else 1.

    Args:
        thresholds: float32, 0 or more, shaped as scales are: ``(1,)``, ``(rows, 1)`` or
            ``(rows, groups)``.
    """
    return _quantize(weights, thresholds, None, None, group, threads)[0]


def quantize_measured(
    weights: Array,
    thresholds: Floats,
    scale: Floats,
    group: int,
    squares: Doubles,
    *,
    threads: int | None = None,
) -> Bytes:
    """Pack as ``quantize`` does, and measure what that loses.

    Args:
        scale: float32, shaped as the thresholds.
        squares: float64 ``(rows, 2)``, to which Σ (w - scale · trit)² and Σ w² of each row are
            added in place, in an order that is fixed as that of ``abs_sums`` is. The difference is
            rounded to float32.
    """
    check_doubles(squares, (len(weights), 2), "squares")
    return _quantize(weights, thresholds, scale, squares, group, threads)[0]


def quantize_exact(
    weights: Array, scale: Floats, group: int = 0, *, threads: int | None = None
) -> tuple[Bytes, int]:
    """Pack the signs of weights, unpack them again, and compare ``scale * trit`` with the weights.

    Returns:
        The packed rows, and the flat index of the first weight that differs in any bit, but for
        the sign of a zero; -1 where there is none: the proof that packing is lossless.
    """
    return _quantize(weights, np.zeros_like(scale), scale, None, group, threads)


def _quantize(
    weights: Array,
    thresholds: Floats,
    scale: Floats | None,
    squares: Doubles | None,
    group: int,
    threads: int | None,
) -> tuple[Bytes, int]:
    weights, group, threads = check_weights(weights), check_sets(group), check_threads(threads)
    rows, columns = weights.shape
    if thresholds.dtype != np.float32 or not (thresholds >= 0).all():
        raise ValueError("thresholds: expected float32, each 0 or more.")
    thresholds = check_scale(thresholds, rows, columns, group).view(np.float32)
    if scale is not None:
        if scale.dtype != np.float32:
            raise ValueError(f"scale: dtype {scale.dtype}, expected float32.")
        scale = check_scale(scale, rows, columns, group).view(np.float32)
    if native := selection.native:
        packed = np.empty((rows, -(-columns // 4)), np.uint8)
        different = native.quantize(
            weights.ctypes.data, CODES[weights.dtype], rows, columns,
            thresholds.ctypes.data, 0 if scale is None else scale.ctypes.data, group,
            packed.ctypes.data, 0 if squares is None else squares.ctypes.data, threads,
        )  # fmt: skip
        return packed, different
    floats = as_float32(weights)
    packed = reference.quantize(floats, thresholds, group)
    if scale is None:
        return packed, -1
    restored = reference.dequantize(packed, columns, scale, group)[0]
    if squares is None:
        return packed, reference.first_different(floats, restored)
    reference.square_sums(floats, restored, squares)
    return packed, -1


def quantize_absmean(
    weights: Array, group: int = 0, *, threads: int | None = None
) -> tuple[Bytes, Floats]:
    """Quantize to the nearest multiple of the mean magnitude: packed rows and float32 scales.

    scale = max(mean |w|, 1e-5); trit = clamp(round_half_even(w · (1 / scale)), -1, 1).

    Source: Ma et al. 2024, "The Era of 1-bit LLMs", equations 1 to 3; the floor and the product
    with the reciprocal are those of the reference training code.

    >>> packed, scale = quantize_absmean(np.array([[0.5, -1.5, 0.1, 1.9]], np.float32))
    >>> scale.tolist(), packed.tolist()
    ([1.0], [[145]])
    """
    sums = abs_sums(weights, group, threads=threads)
    rows, columns = weights.shape
    counts: Array = np.array(columns if group else rows * columns)
    if group > 1:
        counts = np.minimum(group, columns - group * np.arange(sums.shape[1]))
    scale = reference.absmean_scale(sums, counts)
    return quantize(weights, reference.absmean_threshold(scale), group, threads=threads), scale
