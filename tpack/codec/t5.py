"""Layout t5: five trits a byte, base 3, in fixed point; 1.6 bits per weight.

The codes c0…c4 of five columns form v = 81·c0 + 27·c1 + 9·c2 + 3·c3 + c4 in 0..242, and the
byte is ceil(256 · v / 243): v/243 as an eight-bit fraction. Multiplying by 3 moves the next
digit above the point: digit n = (((byte · 3^n) mod 256) · 3) >> 8. Thirteen of the 256 bytes
are no such fraction and invalid.

Source: the decomposition is that of GGML's TQ1_0 (there in another order of elements).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]

_PLACES = np.array([81, 27, 9, 3, 1], dtype=np.uint8)


def encode(codes: Bytes) -> Bytes:
    """Codes ``(..., 5n)`` in 0..2 → bytes ``(..., n)``."""
    digits = codes.reshape(*codes.shape[:-1], codes.shape[-1] // 5, 5)
    packed: Bytes = _FRACTION[digits @ _PLACES]  # at most 242: no overflow
    return packed


def decode(packed: Bytes) -> Bytes:
    """Bytes ``(..., n)`` → codes ``(..., 5n)`` in 0..2."""
    codes = np.empty((*packed.shape, 5), dtype=np.uint8)
    rest = packed.astype(np.uint16)
    for place in range(5):
        rest *= 3
        codes[..., place] = rest >> 8
        rest &= 0xFF
    return codes.reshape(*packed.shape[:-1], packed.shape[-1] * 5)


_FRACTION: Bytes = np.array([-(-256 * value // 243) for value in range(243)], dtype=np.uint8)
VALID: npt.NDArray[np.bool_] = np.isin(np.arange(256), _FRACTION)
