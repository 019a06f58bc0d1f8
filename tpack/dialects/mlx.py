"""MLX's 2-bit integers: layout t2 in 32-bit words.

Column k sits in word k // 16 at bits 2 · (k % 16), so little-endian words are the bytes of
layout t2 as they are. A weight is ``scale · code + bias``; it is ternary where bias = -scale
and no code is 3.

Source: the layout of ``mlx.core.quantize`` with two bits.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tpack.dialects.codes import check_codes

Bytes = npt.NDArray[np.uint8]

#: Weights in a word.
PER_WORD = 16


def to_t2(words: npt.NDArray[np.uint32], first: int = 0) -> Bytes:
    """Convert rows of words ``(n, columns / 16)`` uint32 to ``(n, columns / 4)`` in layout t2.

    Args:
        first: number of the first row, for the message.

    Raises:
        InputError: code 3, with its place.
    """
    rows = np.ascontiguousarray(words.astype("<u4", copy=False)).view(np.uint8)
    check_codes(rows, first)
    return rows
