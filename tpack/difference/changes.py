"""Count how trits changed while they stream by: what turned into what, and where."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Trits = npt.NDArray[np.int8]
#: Counts of trits by what they were and what they are, ``[was + 1][is + 1]``.
Table = tuple[tuple[int, int, int], ...]
#: A matrix is cut into at most so many blocks each way.
BLOCKS = 32
#: Trits that are looked at in one go.
_PIECE = 1 << 20


@dataclass(frozen=True, eq=False)
class Blocks:
    """How many trits changed in each block of a matrix.

    Attributes:
        rows: of the matrix.
        columns: of the matrix.
        height: rows of a block; the last block may have fewer.
        width: columns of a block, likewise.
        changed: counts, ``(blocks down, blocks across)``.
    """

    rows: int
    columns: int
    height: int
    width: int
    changed: npt.NDArray[np.int64]

    @property
    def sizes(self) -> npt.NDArray[np.int64]:
        """Trits in each block."""
        return _lengths(self.rows, self.height)[:, None] * _lengths(self.columns, self.width)

    def merged(self) -> Blocks:
        """Return the same counts with two blocks made one each way."""
        counts = self.changed
        for axis in (0, 1):
            counts = np.add.reduceat(counts, np.arange(0, counts.shape[axis], 2), axis=axis)
        return Blocks(self.rows, self.columns, self.height * 2, self.width * 2, counts)


def _lengths(whole: int, part: int) -> npt.NDArray[np.int64]:
    """Return the lengths of the parts that a whole is cut into."""
    starts = np.arange(0, whole, part)
    return np.minimum(part, whole - starts)


class Changes:
    """Counts the changes of one matrix, piece by piece."""

    def __init__(self, rows: int, columns: int) -> None:
        height, width = -(-rows // BLOCKS), -(-columns // BLOCKS)
        shape = (-(-rows // height), -(-columns // width))
        self.blocks = Blocks(rows, columns, height, width, np.zeros(shape, np.int64))
        self._pairs = np.zeros(9, np.int64)

    def add(self, first: int, was: Trits, now: Trits) -> None:
        """Count the changes of a piece: flat trits, from index ``first`` of the matrix on."""
        blocks = self.blocks
        for start in range(0, was.size, _PIECE):
            one, two = was[start : start + _PIECE], now[start : start + _PIECE]
            at = np.flatnonzero(one != two)
            if not at.size:
                continue
            self._pairs += np.bincount((one[at] + 1) * 3 + two[at] + 1, minlength=9)
            row, column = np.divmod(at + (first + start), blocks.columns)
            block = row // blocks.height * blocks.changed.shape[1] + column // blocks.width
            counts = np.bincount(block, minlength=blocks.changed.size)
            blocks.changed[...] += counts.reshape(blocks.changed.shape)

    @property
    def count(self) -> int:
        """How many trits changed."""
        return int(self._pairs.sum())

    def table(self, before: tuple[int, int, int]) -> Table:
        """Return what turned into what; ``before`` counts the trits of the first matrix."""
        pairs = self._pairs.reshape(3, 3)
        whole = pairs + np.diag(np.array(before) - pairs.sum(axis=1))
        return tuple((int(a), int(b), int(c)) for a, b, c in whole)
