"""The form that every dialect gives: rows in layout t2, legal codes only, padded with code 1."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tpack.codec import t2
from tpack.errors import InputError

Bytes = npt.NDArray[np.uint8]

#: Code 1 in each of the four places of a byte.
ONES = 0x55


def pad(rows: Bytes, columns: int) -> Bytes:
    """Return rows with code 1 in the places from ``columns`` on, whatever was there.

    Args:
        rows: ``(n, at least ceil(columns / 4))`` in layout t2.
        columns: trits a row.

    Returns:
        ``(n, ceil(columns / 4))``.
    """
    width = -(-columns // 4)
    spare = 4 * width - columns
    padded = np.ascontiguousarray(rows[:, :width])
    if spare:
        used = np.uint8(0xFF >> 2 * spare)
        padded = padded.copy() if padded.base is not None else padded
        padded[:, -1] = padded[:, -1] & used | ONES & ~used
    return padded


def check_codes(rows: Bytes, first: int, found: str = "code 3", legal: str = "0, 1 or 2") -> None:
    """Make sure that no code of rows in layout t2 is 3.

    Args:
        rows: ``(n, width)``, padded.
        first: number of the first of them.
        found: what the dialect calls the illegal code.
        legal: what the dialect calls the legal ones.

    Raises:
        InputError: naming the first such place.
    """
    # both bits of a place are set only in code 3
    if not (rows & rows >> 1 & ONES).any():
        return
    codes = t2.decode(rows)
    row, column = np.unravel_index(int((codes == 3).argmax()), codes.shape)
    raise InputError(
        f"holds {found} at row {first + int(row)}, column {int(column)}, expected {legal}. The "
        "data is damaged, or it is not a ternary weight."
    )
