"""Work on a weight piece by piece, on several threads, with the results in order."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from tpack.codec import Scale
from tpack.kernels import selection
from tpack.kernels.reference import RANGE_GROUP, SUM_CHUNK
from tpack.quantize.weight import BLOCK, Weight, numbers

Array = npt.NDArray[Any]
Result = TypeVar("Result")

#: More would need more memory, and memory is as fast as it gets.
MOST_THREADS = 8


@dataclass(frozen=True)
class Place:
    """Where a piece lies in the matrix of a weight, and its shape."""

    row: int
    column: int
    rows: int
    columns: int

    @property
    def here(self) -> tuple[slice, slice]:
        """The rows and the columns of the matrix."""
        return (
            slice(self.row, self.row + self.rows),
            slice(self.column, self.column + self.columns),
        )

    def part(self, sets: Array, granularity: Scale) -> Array:
        """Return the part of an array, one value for each set, that belongs to this piece.

        Args:
            sets: in the shape of a scale, or ``(rows, sets in a row)``.

        Returns:
            A view: ``(1,)`` for the tensor, ``(1, columns)`` for columns, else
            ``(rows, sets in a row)``.
        """
        if granularity.kind == "tensor":
            return sets.reshape(1)
        if granularity.kind == "column":
            return sets.reshape(1, -1)[:, self.column : self.column + self.columns]
        own = sets.reshape(-1, sets.shape[-1])[self.row : self.row + self.rows]
        if granularity.kind == "row":
            return own
        first = self.column // granularity.group_size
        return own[:, first : first - (-self.columns // granularity.group_size)]


@dataclass(frozen=True)
class Piece(Place):
    """Some rows of a weight, or some columns of one row.

    Attributes:
        stored: ``(rows, columns)`` float64, float32, float16, or uint16 for the bits of bfloat16.
        threads: how many the kernels may use; None for all.
    """

    stored: Array
    threads: int | None = None

    @property
    def values(self) -> Array:
        """The numbers: float64 or float32."""
        return numbers(self.stored)


def for_kernels(weight: Weight, granularity: Scale) -> bool:
    """Return whether the kernels take a weight at this granularity; if not, numpy serves."""
    if weight.dtype == "float64" or granularity.kind == "column":
        return False
    return granularity.group_size % RANGE_GROUP == 0


def in_pieces(
    weight: Weight,
    granularity: Scale,
    work: Callable[[Piece], Result],
    *,
    whole_rows: bool = False,
) -> Iterator[Result]:
    """Yield what ``work`` makes of each piece of a weight, from top to bottom.

    Where the kernels serve, several threads read and work on a piece each, and at most one
    result more than there are threads waits to be taken. A row is cut only where it is longer
    than a piece should be, and only at columns where no set of the granularity, no chunk of a
    sum and no byte of a layout is cut. The pieces of such rows come one after the other: what
    they add up is added in order.
    """
    spans = list(_spans(weight, granularity, whole_rows=whole_rows))
    threads = min(selection.default_threads(), MOST_THREADS, len(spans))
    if len(spans) > weight.rows or not for_kernels(weight, granularity) or not selection.native:
        threads = 1
    read = partial(_read, weight, threads=1 if threads > 1 else None)
    waiting = iter(spans)
    # alone: what a source makes ready for the first it then has for the others
    first = [read(span) for span in islice(waiting, 1)]
    if threads < 2:
        yield from map(work, first)
        yield from (work(read(span)) for span in waiting)
        return
    with ThreadPoolExecutor(threads) as pool:
        coming = deque(pool.submit(work, piece) for piece in first)
        first.clear()
        while coming:
            for span in islice(waiting, threads + 1 - len(coming)):
                coming.append(pool.submit(lambda span: work(read(span)), span))
            yield coming.popleft().result()


_Span = tuple[int, int, int, int]


def _spans(weight: Weight, granularity: Scale, *, whole_rows: bool) -> Iterator[_Span]:
    """Yield the first row and column of each piece, and how many of both it has."""
    rows, columns = weight.rows, weight.columns
    # a byte holds 4 trits in one layout, 5 in the other; a chunk is a multiple of 4
    step = math.lcm(SUM_CHUNK * 5, granularity.group_size or 1)
    step *= max(1, BLOCK // step)
    if whole_rows or columns <= max(step, BLOCK):
        most = max(1, BLOCK // max(columns, 1))
        for row in range(0, rows if columns else 0, most):
            yield row, 0, min(most, rows - row), columns
    else:
        for row in range(rows):
            for column in range(0, columns, step):
                yield row, column, 1, min(step, columns - column)


def _read(weight: Weight, span: _Span, *, threads: int | None) -> Piece:
    row, column, rows, columns = span
    start = row * weight.columns + column
    stored = weight.load(start, start + rows * columns).reshape(rows, columns)
    if stored.dtype == np.int8:
        stored = stored.astype(np.float32)
    return Piece(row, column, rows, columns, stored, threads)
