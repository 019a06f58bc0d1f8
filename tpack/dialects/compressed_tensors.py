"""compressed-tensors' 2-bit integers: layout t2 with every code one higher, in 32-bit words.

Column k sits in word k // 16 at bits 2 · (k % 16); a value of -2..1 is stored as value + 2. In
little-endian bytes that is layout t2 except that -1, 0 and 1 are the codes 1, 2 and 3, and
code 0 (the value -2) is no trit. Rows are padded to whole words.

Source: the layout of ``pack_to_int32`` in the compressed-tensors library.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tpack.codec import t2
from tpack.dialects.codes import check_codes, pad

Bytes = npt.NDArray[np.uint8]

#: Weights in a word.
PER_WORD = 16

#: One less in each of the four places of a byte; 0 becomes 3, which no trit is.
_CODES = t2.decode(np.arange(256, dtype=np.uint8)[:, None])
_LOWERED: Bytes = t2.encode(_CODES + np.uint8(3) & np.uint8(3))[:, 0]


def to_t2(words: npt.NDArray[np.int32], columns: int, first: int = 0) -> Bytes:
    """Convert rows of words to rows in layout t2.

    Args:
        words: ``(n, ceil(columns / 16))`` int32.
        columns: weights a row.
        first: number of the first row, for the message.

    Returns:
        ``(n, ceil(columns / 4))``.

    Raises:
        InputError: the value -2, with its place.
    """
    stored = words.astype("<i4", copy=False).view(np.uint8)
    rows = pad(_LOWERED[stored[:, : -(-columns // 4)]], columns)
    check_codes(rows, first, "the value -2", "-1, 0 or 1")
    return rows
