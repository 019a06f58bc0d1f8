"""The kernels in numpy: the readable definition, and the fallback where no extension was built.

Everything here works on whole arrays: packed weights ``(rows, ceil(columns / 4))`` uint8, floats as
float32. ``group`` says what a scale belongs to: 0 the tensor, 1 a row, 2 a column, else that many
columns of a row. The integer results of the extension equal these exactly; so do its floats where
a docstring fixes the order of operations.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

TENSOR, ROW, COLUMN = 0, 1, 2  # what a scale belongs to; any other number is a group's columns
LANE, LANES, SUM_CHUNK, RANGE_GROUP = 16, 16, 4096, 32


def bfloat16_to_float32(bits: npt.NDArray[np.uint16]) -> Floats:
    """Widen bfloat16 bits."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def float32_to_bfloat16(values: Floats) -> npt.NDArray[np.uint16]:
    """Round to bfloat16 bits, half to even; a NaN stays one."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1)).astype(np.uint32)) >> 16
    return np.where(np.isnan(values), (bits >> 16) | 0x40, rounded).astype(np.uint16)


def pack(values: Array) -> tuple[Bytes, int]:
    """Pack ``(rows, columns)`` of -1, 0, 1; the second result is the first bad index, or -1."""
    good = (values == -1) | (values == 0) | (values == 1)
    if not good.all():
        return np.zeros((len(values), 0), np.uint8), int(np.argmin(good.ravel()))
    return pack_codes(values.astype(np.int8) + 1), -1


def pack_codes(codes: npt.NDArray[np.int8]) -> Bytes:
    """Put four codes in a byte, the first in the lowest bits; rows are padded with code 1."""
    padding = -codes.shape[1] % 4
    four = np.pad(codes.astype(np.uint8), ((0, 0), (0, padding)), constant_values=1)
    four = four.reshape(len(codes), four.shape[1] // 4, 4)
    packed: Bytes = np.bitwise_or.reduce(four << np.array([0, 2, 4, 6], np.uint8), axis=2)
    return packed


def unpack(packed: Bytes, columns: int) -> tuple[npt.NDArray[np.int8], int]:
    """Unpack to int8 trits; the second result is the flat index of the first code 3, or -1."""
    codes = (packed[:, :, None] >> np.array([0, 2, 4, 6], np.uint8)) & 3
    codes = codes.reshape(len(packed), packed.shape[1] * 4)[:, :columns]
    bad = codes == 3
    return codes.astype(np.int8) - 1, int(np.argmax(bad.ravel())) if bad.any() else -1


def spread_scale(scale: Floats, shape: tuple[int, ...], group: int) -> Floats:
    """Give each weight its scale: ``(rows, columns)``, or something that broadcasts to it."""
    rows, columns = shape
    if group == TENSOR:
        return scale.reshape(1, 1)
    if group == ROW:
        return scale.reshape(rows, 1)
    if group == COLUMN:
        return scale.reshape(1, columns)
    return np.repeat(scale, group, axis=1)[:, :columns]


def dequantize(packed: Bytes, columns: int, scale: Floats, group: int) -> tuple[Floats, int]:
    """Multiply trits by their scales; the second result is that of ``unpack``."""
    trits, bad = unpack(packed, columns)
    # adding zero turns the -0.0 of a zero trit under a negative scale into 0.0
    return trits * spread_scale(scale, trits.shape, group) + np.float32(0), bad


def fold(lanes: Array) -> Array:
    """Add the last axis of 16 up in halves: i with i + 8, then 4, 2, 1."""
    for half in (8, 4, 2, 1):
        lanes = lanes[..., :half] + lanes[..., half : 2 * half]
    return lanes[..., 0]


def chunk_sums(terms: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Sum each row in chunks of 4096 columns: ``(rows, chunks)``, in a fixed order.

    Within a chunk column i is added to partial sum i % 16; the 16 are then folded in halves.
    """
    rows, columns = terms.shape
    width = min(SUM_CHUNK, columns + -columns % LANES)
    chunks = -(-columns // width) if width else 0
    padded = np.pad(terms, ((0, 0), (0, chunks * width - columns)))
    padded = padded.reshape(rows, chunks, width // LANES, LANES)
    partial = np.zeros((rows, chunks, LANES))
    for step in range(width // LANES):
        partial += padded[:, :, step]
    sums: npt.NDArray[np.float64] = fold(partial)
    return sums


def add_up(terms: npt.NDArray[np.float64], sums: npt.NDArray[np.float64]) -> None:
    """Add the columns of ``(rows, terms)`` to the sums ``(rows,)``, one after the other."""
    for step in range(terms.shape[1]):
        sums += terms[:, step]


def add_in_order(terms: npt.NDArray[np.float64], total: float = 0.0) -> float:
    """Add all terms to a total, one after the other."""
    return float(np.add.accumulate(np.append(total, terms))[-1])


def by_group(values: Array, group: int) -> Array:
    """Give each group of columns a row of its own, the last of each row filled up with zeros."""
    rows, columns = values.shape
    groups = -(-columns // group)
    padded = np.pad(values, ((0, 0), (0, groups * group - columns)))
    return padded.reshape(rows * groups, group)


def abs_sums(values: Array, group: int, sums: npt.NDArray[np.float64]) -> None:
    """Add |w| of the tensor, of each row or of each group to ``sums``.

    Chunks of a row or group are added one after the other, and the rows of a tensor so, too.
    """
    parts = values if group <= 1 else by_group(values, group)
    chunks = chunk_sums(np.abs(parts.astype(np.float64)))
    if group == 0:
        rows = np.zeros(len(values))
        add_up(chunks, rows)
        sums[0] = add_in_order(rows, sums[0])
    else:
        add_up(chunks, sums.reshape(-1))


def ranges(values: Array, group: int = RANGE_GROUP) -> tuple[Array, Array]:
    """Give the largest |w| and the smallest nonzero |w| (inf: none) of each group of a row."""
    shape = len(values), -(-values.shape[1] // group)
    magnitudes = by_group(np.abs(values), group)
    nonzero = np.where(
        (magnitudes > 0) & ~np.isnan(magnitudes), magnitudes, values.dtype.type(np.inf)
    )
    largest, smallest = magnitudes.max(axis=1, initial=0), nonzero.min(axis=1, initial=np.inf)
    return largest.reshape(shape), smallest.reshape(shape)


def column_sizes(values: Array, sizes: Array) -> bool:
    """Join the |w| of each column to ``sizes`` ``(columns,)``; False where a column has two."""
    magnitudes = np.vstack([sizes, np.abs(values)])
    sizes[...] = magnitudes.max(axis=0)
    return bool(((magnitudes == 0) | (magnitudes == sizes)).all())


def ternarize(values: Array, limit: Array) -> npt.NDArray[np.int8]:
    """Give 1 above the limit, -1 below its negative, else 0."""
    trits: npt.NDArray[np.int8] = (values > limit).astype(np.int8) - (values < -limit)
    return trits


def quantize(values: Array, thresholds: Array, group: int) -> Bytes:
    """Pack code 2 above the threshold, 0 below its negative, else 1."""
    trits = ternarize(values, spread_scale(thresholds, values.shape, group))
    return pack_codes(trits + np.int8(1))


def square_sums(values: Array, restored: Array, squares: npt.NDArray[np.float64]) -> None:
    """Add (w - restored)^2 and w^2 of each row to ``squares`` ``(rows, 2)``, chunk after chunk.

    The difference is rounded to the dtype of the values; a square of float32 is exact.
    """
    for i, terms in enumerate((values - restored, values)):
        add_up(chunk_sums(np.square(terms, dtype=np.float64)), squares[:, i])


def first_different(values: Array, restored: Array) -> int:
    """Give the flat index of the first weight that is not what was restored, or -1."""
    different = (values != restored).ravel()
    return int(np.argmax(different)) if different.any() else -1


def absmean_scale(sums: Array, counts: Array, dtype: npt.DTypeLike = np.float32) -> Array:
    """Give mean |w|, at least 1e-5 as in the reference training code."""
    mean = (sums / np.maximum(counts, 1)).astype(dtype)
    scale: Array = np.maximum(mean, np.array(1e-5, dtype))
    return scale


def absmean_threshold(scale: Array) -> Array:
    """Give the largest |w| that ``round_half_even(w * (1 / scale))`` takes to zero.

    With it, quantizing needs a comparison instead of a product, and the same trits come out. All
    in the dtype of the scale.
    """
    real = scale.dtype.type
    factor = real(1) / scale
    limit: Array = scale * real(0.5)
    while (high := limit * factor > 0.5).any():
        limit = np.where(high, np.nextafter(limit, real(0)), limit)
    while (low := (above := np.nextafter(limit, real(np.inf))) * factor <= 0.5).any():
        limit = np.where(low, above, limit)
    return limit


def quantize_activations(x: Floats) -> tuple[npt.NDArray[np.int8], Floats]:
    """Quantize ``(tokens, columns)`` to int8 per token; also gives the factors ``(tokens, 1)``.

    factor = 127 / max(|x|, 1e-5); a token that is not finite throughout has factor NaN and zeros.

    Source: Wang et al., "BitNet b1.58", section 2; Ma et al. 2024.
    """
    largest = np.abs(x).max(axis=1, keepdims=True, initial=0)
    finite = np.isfinite(largest)
    factor = np.float32(127) / np.maximum(largest, np.float32(1e-5))
    scaled = np.where(finite, x, np.float32(0)) * np.where(finite, factor, np.float32(1))
    quantized = np.clip(np.rint(scaled), -128, 127).astype(np.int8)
    return quantized, np.where(finite, factor, np.float32(np.nan))


def linear(
    x: Floats, trits: npt.NDArray[np.int8], scale: Floats, group: int, bias: Floats | None
) -> Floats:
    """Multiply ``(tokens, columns)`` by weights ``(rows, columns)``, rounding once at the end."""
    weight = trits.astype(np.float64) * spread_scale(scale, trits.shape, group)
    y = x.astype(np.float64) @ weight.T
    return (y if bias is None else y + bias).astype(np.float32)


def bit_linear(
    x: Floats, trits: npt.NDArray[np.int8], scale: Floats, group: int, bias: Floats | None
) -> Floats:
    """Multiply activations quantized to int8 per token; every float operation is in float32.

    Scales per tensor or row: ``((float)sum * scale) / factor + bias``, in this order.
    Groups that are a multiple of 16: the 16 lanes (lane l of block b is columns 256 b + 16 l on)
    accumulate ``(float)sum * scale`` block after block, then are folded in halves. Other groups are
    accumulated one after the other. Then ``/ factor + bias``.
    Scales per column: ``linear`` of the quantized activations, rounded once, ``/ factor + bias``.
    """
    quantized, factor = quantize_activations(x)
    rows, columns = trits.shape
    if group == COLUMN:
        y = linear(quantized.astype(np.float32), trits, scale, group, None)
    elif group <= ROW:
        sums = integer_product(quantized, trits)
        y = sums.astype(np.float32) * scale.reshape(1, -1)
    else:
        span = LANE if group % LANE == 0 else group
        spans = -(-columns // span)
        y = np.zeros((len(x), rows, LANES if span == LANE else 1), np.float32)
        for i in range(spans):
            part = slice(i * span, (i + 1) * span)
            sums = integer_product(quantized[:, part], trits[:, part])
            y[:, :, i % y.shape[2]] += sums.astype(np.float32) * scale[:, i * span // group]
        y = (fold(y) if span == LANE else y[..., 0]).astype(np.float32)
    y = y / factor
    return y if bias is None else y + bias


def integer_product(
    quantized: npt.NDArray[np.int8], trits: npt.NDArray[np.int8]
) -> npt.NDArray[np.float64]:
    """Give the exact integer sums: doubles hold them, and numpy multiplies those faster."""
    return quantized.astype(np.float64) @ trits.T.astype(np.float64)


def linear_columns(
    x: Floats, trits: npt.NDArray[np.int8], scale: Floats, group: int, bias: Floats | None
) -> Floats:
    """Multiply ``(tokens, rows)`` by weights ``(rows, columns)``: ``x @ W``, rounding once."""
    weight = trits.astype(np.float64) * spread_scale(scale, trits.shape, group)
    y = x.astype(np.float64) @ weight
    return (y if bias is None else y + bias).astype(np.float32)


def bit_linear_columns(
    x: Floats, trits: npt.NDArray[np.int8], scale: Floats, bias: Floats | None
) -> Floats:
    """Multiply as ``bit_linear`` does by weights ``(rows, columns)``; scale 1 or 1 x columns."""
    return bit_linear(x, np.ascontiguousarray(trits.T), scale.T, min(scale.ndim - 1, ROW), bias)
