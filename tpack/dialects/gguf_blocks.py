"""GGUF's ternary blocks: bytes to layout t2 and scales, and back, without computing values.

Every format cuts a row into blocks of consecutive columns, each with one float16 scale (I2_S:
none). They differ in where a code lies within its block, and in where the scale lies.

Source: the formulas are those of ggml's reference quantizers (TQ1_0, TQ2_0, Q2_0), of bitnet.cpp
(I2_S, in its three orders) and of PrismML's llama.cpp (PQ2_0, PTQ1_0).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from tpack.codec import t2
from tpack.errors import InputError

Bytes = npt.NDArray[np.uint8]
Codec = Callable[[Bytes], Bytes]

#: The low two bits of each byte of a word.
_FIELDS = np.uint32(0x03030303)


@dataclass(frozen=True)
class BlockFormat:
    """How a block of weights lies in bytes.

    Attributes:
        name: what GGUF calls it.
        weights: columns a block.
        nbytes: bytes a block, the scale included.
        scale_at: first byte of the float16 scale; None where blocks have none.
        to_t2: codes as stored ``(n, nbytes - 2)`` → layout t2 ``(n, weights / 4)``, code 3 where
            they are illegal.
        from_t2: the inverse, for legal codes.
    """

    name: str
    weights: int
    nbytes: int
    scale_at: int | None
    to_t2: Codec
    from_t2: Codec

    @property
    def body(self) -> slice:
        """The bytes of a block that hold codes."""
        if self.scale_at is None:
            return slice(0, self.nbytes)
        return slice(2, self.nbytes) if self.scale_at == 0 else slice(0, self.scale_at)

    def row_bytes(self, columns: int) -> int:
        """Return the bytes of a row of ``columns``, a multiple of a block."""
        return columns // self.weights * self.nbytes


def unpack_blocks(kind: BlockFormat, stored: Bytes, first_row: int = 0) -> Bytes:
    """Convert rows of blocks to rows in layout t2.

    Args:
        stored: ``(rows, blocks * kind.nbytes)``.
        first_row: number of the first row, for the message.

    Returns:
        ``(rows, blocks * kind.weights / 4)``.

    Raises:
        InputError: a byte that stands for no trits, with its row and block.
    """
    rows = stored.shape[0]
    blocks = stored.reshape(-1, kind.nbytes)
    packed = kind.to_t2(blocks[:, kind.body])
    bad = ~t2.VALID[packed]
    if bad.any():
        row, block = divmod(int(bad.any(axis=1).argmax()), blocks.shape[0] // rows)
        raise InputError(
            f"holds an illegal code in block {block} of row {first_row + row}, expected the trits "
            f"-1, 0 and 1 in {kind.name}. The weight is not ternary, or the file is damaged."
        )
    return packed.reshape(rows, -1)


def scales_of(kind: BlockFormat, stored: Bytes, first_row: int = 0) -> npt.NDArray[np.float16]:
    """Read the scales of rows of blocks.

    Args:
        stored: ``(rows, blocks * kind.nbytes)``.
        first_row: number of the first row, for the message.

    Returns:
        float16 ``(rows, blocks)``.

    Raises:
        InputError: a scale that is infinite or no number, with its row and block.
    """
    assert kind.scale_at is not None
    blocks = stored.reshape(stored.shape[0], -1, kind.nbytes)
    place = blocks[..., kind.scale_at : kind.scale_at + 2]
    scales = np.ascontiguousarray(place).view("<f2")[..., 0].astype(np.float16)
    bad = ~np.isfinite(scales)
    if bad.any():
        row, block = np.unravel_index(int(bad.argmax()), bad.shape)
        raise InputError(
            f"has the scale {scales[row, block]} in block {block} of row {first_row + int(row)}, "
            "expected a finite number. The file is damaged."
        )
    return scales


def pack_blocks(kind: BlockFormat, packed: Bytes, scales: npt.NDArray[np.float16]) -> Bytes:
    """Join rows in layout t2 and their scales to rows of blocks.

    The inverse of ``unpack_blocks`` and ``scales_of``.

    Args:
        packed: ``(rows, blocks * kind.weights / 4)``, legal codes only.
        scales: float16 ``(rows, blocks)``.

    Returns:
        ``(rows, blocks * kind.nbytes)``.
    """
    rows, count = scales.shape
    blocks = np.empty((rows * count, kind.nbytes), dtype=np.uint8)
    blocks[:, kind.body] = kind.from_t2(packed.reshape(rows * count, kind.weights // 4))
    if kind.scale_at is not None:
        stored = np.ascontiguousarray(scales, dtype="<f2").reshape(-1, 1).view(np.uint8)
        blocks[:, kind.scale_at : kind.scale_at + 2] = stored
    return blocks.reshape(rows, count * kind.nbytes)


# ---- planes: a byte holds four columns that lie 32 (``width`` words of four bytes) apart


def _planes_to_t2(shifts: tuple[int, ...], width: int, body: Bytes) -> Bytes:
    words = np.ascontiguousarray(body).view("<u4").reshape(len(body), -1, 1, width)
    packed = np.empty((*words.shape[:2], 4, width), dtype=np.uint8)
    for plane, shift in enumerate(shifts):
        fields = words[:, :, 0] >> np.uint32(shift) & _FIELDS
        packed[:, :, plane] = fields | fields >> 6 | fields >> 12 | fields >> 18
    return packed.reshape(len(body), -1)


def _planes_from_t2(shifts: tuple[int, ...], width: int, packed: Bytes) -> Bytes:
    planes = packed.reshape(len(packed), -1, 4, width).astype("<u4")
    words = np.zeros((len(packed), planes.shape[1], width), dtype="<u4")
    for plane, shift in enumerate(shifts):
        field = planes[:, :, plane]
        words |= ((field | field << 6 | field << 12 | field << 18) & _FIELDS) << np.uint32(shift)
    return words.view(np.uint8).reshape(len(packed), -1)


# ---- base 3: a byte holds up to five digits, whose columns lie as far apart as their run is long


def _base3_tables(digits: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Return the codes of each byte ``(digits, 256)``, 3 if it has none; and each value's byte.

    A byte is the fraction value / 243 in 256ths, rounded up; values of fewer than five digits
    count as if zeros followed.
    """
    values = np.arange(3**digits)
    stored = -(-256 * values * 3 ** (5 - digits) // 243)
    codes = np.full((digits, 256), 3, dtype=np.uint8)
    for digit in range(digits):
        codes[digit, stored] = values // 3 ** (digits - 1 - digit) % 3
    return codes, stored.astype(np.uint8)


_TABLES = {digits: _base3_tables(digits) for digits in (4, 5)}

#: Runs of bytes of a block, each with the digits that its bytes hold.
Runs = tuple[tuple[int, int], ...]


def _base3_to_t2(runs: Runs, body: Bytes) -> Bytes:
    codes = np.empty((len(body), sum(width * digits for width, digits in runs)), dtype=np.uint8)
    byte = column = 0
    for width, digits in runs:
        for table in _TABLES[digits][0]:
            codes[:, column : column + width] = table[body[:, byte : byte + width]]
            column += width
        byte += width
    return t2.encode(codes)


def _base3_from_t2(runs: Runs, packed: Bytes) -> Bytes:
    codes = t2.decode(packed)
    parts, column = [], 0
    for width, digits in runs:
        value = np.zeros((len(packed), width), dtype=np.uint8)
        for _ in range(digits):
            value = value * np.uint8(3) + codes[:, column : column + width]
            column += width
        parts.append(_TABLES[digits][1][value])
    return np.concatenate(parts, axis=1)


def _same(body: Bytes) -> Bytes:
    return np.ascontiguousarray(body)


def _planes(shifts: tuple[int, ...], width: int = 8) -> tuple[Codec, Codec]:
    return partial(_planes_to_t2, shifts, width), partial(_planes_from_t2, shifts, width)


def _base3(runs: Runs) -> tuple[Codec, Codec]:
    return partial(_base3_to_t2, runs), partial(_base3_from_t2, runs)


TQ1_0 = BlockFormat("TQ1_0", 256, 54, 52, *_base3(((32, 5), (16, 5), (4, 4))))
TQ2_0 = BlockFormat("TQ2_0", 256, 66, 64, *_planes((0, 2, 4, 6)))
Q2_0 = BlockFormat("Q2_0", 64, 18, 0, _same, _same)
PQ2_0 = BlockFormat("PQ2_0", 128, 34, 0, _same, _same)
PTQ1_0 = BlockFormat("PTQ1_0", 128, 28, 26, *_base3(((16, 5), (8, 5), (2, 4))))
I2_S = BlockFormat("I2_S", 128, 32, None, *_planes((6, 4, 2, 0)))
I2_S_ARM = BlockFormat("I2_S", 64, 16, None, *_planes((6, 4, 2, 0), 4))
#: As ``rows_of_four`` gives it: t2, where the file has a column of four rows in a byte.
I2_S_ROWS = BlockFormat("I2_S", 4, 1, None, _same, _same)

#: The orders that I2_S has, by the value of ``i2s_order``.
I2_S_ORDERS = {"x86": I2_S, "arm": I2_S_ARM, "rows": I2_S_ROWS}


def rows_of_four(stored: Bytes) -> Bytes:
    """Convert bytes that hold a column of four rows each, the first row on top, to layout t2.

    Args:
        stored: ``(rows / 4, columns)``.

    Returns:
        ``(rows, columns / 4)``, code 3 where it is in the file.
    """
    shifts = np.array([6, 4, 2, 0], dtype=np.uint8).reshape(4, 1)
    return t2.encode(((stored[:, None] >> shifts) & np.uint8(3)).reshape(-1, stored.shape[1]))
