"""Layout t2: four trits a byte, two bits each, least significant first.

Column j of a row sits in byte j // 4 at bits 2 * (j % 4). Code 3 is invalid.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]


def encode(codes: Bytes) -> Bytes:
    """Codes ``(..., 4n)`` in 0..2 → bytes ``(..., n)``."""
    quads = codes.reshape(*codes.shape[:-1], codes.shape[-1] // 4, 4)
    shifted = [quads[..., place] << np.uint8(2 * place) for place in range(4)]
    packed: Bytes = shifted[0] | shifted[1] | shifted[2] | shifted[3]
    return packed


def decode(packed: Bytes) -> Bytes:
    """Bytes ``(..., n)`` → codes ``(..., 4n)``, where 3 is invalid."""
    codes = np.empty((*packed.shape, 4), dtype=np.uint8)
    for place in range(4):
        codes[..., place] = packed >> 2 * place & 3
    return codes.reshape(*packed.shape[:-1], packed.shape[-1] * 4)


VALID: npt.NDArray[np.bool_] = (decode(np.arange(256, dtype=np.uint8)[:, None]) != 3).all(axis=1)
