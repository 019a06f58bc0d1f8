"""Hugging Face's ``bitnet`` packing: four rows of the weight in one row of bytes.

A weight of N = 4·R rows is stored as R rows: byte (r, k) holds the codes of rows r, R + r,
2·R + r and 3·R + r at column k, two bits each, least significant first. So the rows that share
a place (a *stripe*) lie together, and a range of rows is a range of one to four stripes.

Source: the layout of ``pack_weights`` in the transformers library.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from tpack.codec import t2
from tpack.dialects.codes import check_codes

Bytes = npt.NDArray[np.uint8]

#: Rows of the weight that share a row of bytes.
STRIPES = 4


def stripes(first: int, last: int, stored_rows: int) -> Iterator[tuple[int, int, int]]:
    """Yield where rows ``first`` to ``last`` lie: ``(stripe, start, stop)`` of stored rows.

    Example:
        >>> list(stripes(3, 9, 4))
        [(0, 3, 4), (1, 0, 4), (2, 0, 1)]
    """
    while first < last:
        stripe, start = divmod(first, stored_rows)
        stop = min(stored_rows, start + last - first)
        yield stripe, start, stop
        first += stop - start


def to_t2(stored: Bytes, stripe: int, first: int = 0) -> Bytes:
    """Convert rows of one stripe to layout t2.

    Args:
        stored: ``(n, columns)``, consecutive rows of the packed tensor.
        stripe: which of the four codes of a byte.
        first: row of the weight that comes first, for the message.

    Returns:
        ``(n, ceil(columns / 4))``.

    Raises:
        InputError: code 3, with its place.
    """
    count, columns = stored.shape
    codes = np.ones((count, columns + -columns % 4), dtype=np.uint8)
    np.bitwise_and(stored >> np.uint8(2 * stripe), 3, out=codes[:, :columns])
    rows = t2.encode(codes)
    check_codes(rows, first)
    return rows


def from_codes(parts: Sequence[Bytes]) -> Bytes:
    """Pack rows of the packed tensor from the same rows of its four stripes.

    Args:
        parts: four arrays ``(n, columns)`` of codes in 0..2.

    Returns:
        ``(n, columns)``.
    """
    stored = parts[0].copy()
    for stripe in range(1, STRIPES):
        stored |= parts[stripe] << np.uint8(2 * stripe)
    return stored
