"""GGUF's block formats of more than two bits: the values that their codes stand for.

Blocks lie along the columns. The formulas are computed in float32, in the order in which
llama.cpp computes them, so that the values are its own, bit for bit.

Source: the block structures of ggml-common.h; tests compare with the gguf package.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

_IQ4 = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], dtype=np.float32
)


@dataclass(frozen=True)
class Quant:
    """A block format.

    Attributes:
        name: as llama.cpp has it.
        weights, nbytes: columns and bytes of a block.
        values: computes the values ``(n, weights)`` of blocks ``(n, nbytes)``.
    """

    name: str
    weights: int
    nbytes: int
    values: Callable[[Bytes], Floats]

    def row_bytes(self, columns: int) -> int:
        """Return the bytes of a row, or of several together."""
        return columns // self.weights * self.nbytes

    def columns(self, nbytes: int) -> int:
        """Return how many columns the bytes of a row hold."""
        return nbytes // self.nbytes * self.weights

    def dequantize(self, rows: Bytes) -> Floats:
        """Compute the values of rows ``(n, bytes per row)``, flat."""
        return self.values(rows.reshape(-1, self.nbytes)).reshape(-1)


def _half(blocks: Bytes, at: int) -> Floats:
    """Read the float16 at a byte of each block, ``(n, 1)``."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2").astype(np.float32)


def _nibbles(stored: Bytes, run: int) -> Bytes:
    """Return the low halves of ``run`` bytes, then their high halves, and so on."""
    parts = stored.reshape(len(stored), -1, 1, run)
    return np.concatenate((parts & 15, parts >> 4), axis=2).reshape(len(stored), -1)


def _bits(stored: Bytes, count: int) -> Bytes:
    """Split little-endian words into ``count`` bits, 0 or 1 each."""
    return np.unpackbits(stored, axis=1, count=count, bitorder="little")


def _pairs(stored: Bytes) -> Bytes:
    """Return two bits of each of 32 bytes, then the next two of the same bytes, and so on."""
    parts = stored.reshape(len(stored), -1, 1, 32)
    shifts = np.array([0, 2, 4, 6], dtype=np.uint8).reshape(4, 1)
    found: Bytes = ((parts >> shifts) & np.uint8(3)).reshape(len(stored), -1)
    return found


def _each(scales: npt.NDArray[np.generic], codes: npt.NDArray[np.generic]) -> Floats:
    """Multiply scales ``(n, m)`` with codes ``(n, weights)``; each of m runs shares a scale."""
    runs = codes.reshape(len(codes), scales.shape[1], -1).astype(np.float32)
    found: Floats = scales.astype(np.float32)[:, :, None] * runs
    return found.reshape(codes.shape)


def _spread(values: Floats, weights: int) -> Floats:
    return np.repeat(values, weights // values.shape[1], axis=1)


def _q4_0(blocks: Bytes) -> Floats:
    return _half(blocks, 0) * (_nibbles(blocks[:, 2:], 16).astype(np.float32) - 8)


def _q4_1(blocks: Bytes) -> Floats:
    return _half(blocks, 0) * _nibbles(blocks[:, 4:], 16) + _half(blocks, 2)


def _q5_0(blocks: Bytes) -> Floats:
    codes = _nibbles(blocks[:, 6:], 16) | _bits(blocks[:, 2:6], 32) << 4
    return _half(blocks, 0) * (codes.astype(np.float32) - 16)


def _q5_1(blocks: Bytes) -> Floats:
    codes = _nibbles(blocks[:, 8:], 16) | _bits(blocks[:, 4:8], 32) << 4
    return _half(blocks, 0) * codes + _half(blocks, 2)


def _q8_0(blocks: Bytes) -> Floats:
    return _half(blocks, 0) * np.ascontiguousarray(blocks[:, 2:]).view(np.int8)


def _q2_k(blocks: Bytes) -> Floats:
    scales, codes = blocks[:, :16], _pairs(blocks[:, 16:80])
    lows = _half(blocks, 82) * (scales >> 4)
    return _each(_half(blocks, 80) * (scales & 15), codes) - _spread(lows, 256)


def _q3_k(blocks: Bytes) -> Floats:
    packed = blocks[:, 96:108]
    low = np.concatenate((packed[:, :8] & 15, packed[:, :8] >> 4), axis=1)
    shifts = np.array([0, 2, 4, 6], dtype=np.uint8).reshape(4, 1)
    high = ((packed[:, None, 8:] >> shifts) & 3).reshape(-1, 16)
    scales = (low | high << 4).astype(np.float32) - 32
    places = np.arange(8, dtype=np.uint8).reshape(8, 1)
    mask = ((blocks[:, None, :32] >> places) & 1).reshape(-1, 256)
    codes = _pairs(blocks[:, 32:96]).astype(np.int8) - ((1 - mask) << 2).astype(np.int8)
    return _each(_half(blocks, 108) * scales, codes)


def _six_bits(packed: Bytes) -> tuple[Bytes, Bytes]:
    """Unpack eight scales and eight minima of six bits from twelve bytes."""
    first, second, third = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.concatenate((first & 63, (third & 15) | (first >> 6) << 4), axis=1)
    lows = np.concatenate((second & 63, (third >> 4) | (second >> 6) << 4), axis=1)
    return scales, lows


def _k_with_lows(blocks: Bytes, codes: Bytes) -> Floats:
    scales, lows = _six_bits(blocks[:, 4:16])
    found = _each(_half(blocks, 0) * scales, codes)
    return found - _spread(_half(blocks, 2) * lows, 256)


def _q4_k(blocks: Bytes) -> Floats:
    return _k_with_lows(blocks, _nibbles(blocks[:, 16:], 32))


def _q5_k(blocks: Bytes) -> Floats:
    places = np.arange(8, dtype=np.uint8).reshape(8, 1)
    fifth = ((blocks[:, None, 16:48] >> places) & np.uint8(1)).reshape(-1, 256)
    codes: Bytes = _nibbles(blocks[:, 48:], 32) | fifth << np.uint8(4)
    return _k_with_lows(blocks, codes)


def _q6_k(blocks: Bytes) -> Floats:
    low, high = _nibbles(blocks[:, :128], 64), _pairs(blocks[:, 128:192])
    codes = (low | high << 4).astype(np.int8) - np.int8(32)
    scales = np.ascontiguousarray(blocks[:, 192:208]).view(np.int8)
    return _each(_half(blocks, 208) * scales, codes)


def _iq4_nl(blocks: Bytes) -> Floats:
    return _half(blocks, 0) * _IQ4[_nibbles(blocks[:, 2:], 16)]


def _iq4_xs(blocks: Bytes) -> Floats:
    shifts = np.array([0, 4], dtype=np.uint8)
    low = ((blocks[:, 4:8, None] >> shifts) & 15).reshape(-1, 8)
    pairs = np.array([0, 2, 4, 6], dtype=np.uint8)
    high = ((blocks[:, 2:4, None] >> pairs) & 3).reshape(-1, 8)
    scales = (low | high << 4).astype(np.float32) - 32
    return _each(_half(blocks, 0) * scales, _IQ4[_nibbles(blocks[:, 8:], 16)])


#: By the number of their type.
QUANTS = {
    2: Quant("Q4_0", 32, 18, _q4_0),
    3: Quant("Q4_1", 32, 20, _q4_1),
    6: Quant("Q5_0", 32, 22, _q5_0),
    7: Quant("Q5_1", 32, 24, _q5_1),
    8: Quant("Q8_0", 32, 34, _q8_0),
    10: Quant("Q2_K", 256, 84, _q2_k),
    11: Quant("Q3_K", 256, 110, _q3_k),
    12: Quant("Q4_K", 256, 144, _q4_k),
    13: Quant("Q5_K", 256, 176, _q5_k),
    14: Quant("Q6_K", 256, 210, _q6_k),
    20: Quant("IQ4_NL", 32, 18, _iq4_nl),
    23: Quant("IQ4_XS", 256, 136, _iq4_xs),
}
QUANT_IDS = {quant.name: number for number, quant in QUANTS.items()}
