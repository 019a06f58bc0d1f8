"""A weight as rows and columns of real numbers, read in pieces."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from tpack.codec import Scale, rows_and_columns
from tpack.codec.shapes import default_split
from tpack.errors import InputError
from tpack.kernels.reference import SUM_CHUNK

Array = npt.NDArray[Any]

#: Elements a piece aims at: 8 MiB of float32, which the caches of a processor can hold.
BLOCK = 1 << 21


def widen(raw: Array, dtype: str) -> Array:
    """Turn stored elements into numbers, exactly.

    Args:
        raw: elements as stored; bfloat16 as its bits in uint16.
        dtype: float64, float32, float16, bfloat16 or int8.

    Returns:
        float64 for float64, float32 for everything else.
    """
    if dtype == "bfloat16":
        return (raw.astype(np.uint32) << 16).view(np.float32)
    return raw if dtype in ("float64", "float32") else raw.astype(np.float32)


def narrow(values: Array, dtype: str) -> Array:
    """Round numbers to a dtype as stored, to nearest, ties to even; the inverse of widen.

    Example:
        >>> hex(narrow(np.float32([1.0]), "bfloat16")[0])
        '0x3f80'
    """
    if dtype == "bfloat16":
        bits = values.astype(np.float32).view(np.uint32)
        rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
        return np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16)
    with np.errstate(over="ignore"):  # an overflow becomes inf, which callers check for
        return values.astype(dtype)


@dataclass(frozen=True)
class Piece:
    """Some rows of a weight, or some columns of one row.

    Attributes:
        row: first row.
        column: first column.
        stored: ``(rows, columns)`` as ``Weight.load`` gives them, but int8 as float32.
    """

    row: int
    column: int
    stored: Array

    @property
    def values(self) -> Array:
        """The numbers: float64 or float32."""
        bits = self.stored.dtype == np.uint16
        return widen(self.stored, "bfloat16" if bits else str(self.stored.dtype))

    def part(self, sets: Array, granularity: Scale) -> Array:
        """What belongs to the sets of this piece, of an array with one value for each set.

        Args:
            sets: in the shape of a scale, or ``(rows, sets in a row)``.

        Returns:
            A view: ``(1,)`` for the tensor, else ``(rows, sets in a row)``.
        """
        if granularity.kind == "tensor":
            return sets.reshape(1)
        rows, columns = self.stored.shape
        own = sets.reshape(-1, sets.shape[-1])[self.row : self.row + rows]
        if granularity.kind == "row":
            return own
        first = self.column // granularity.group_size
        return own[:, first : first - (-columns // granularity.group_size)]


@dataclass(frozen=True)
class Weight:
    """A weight to be packed.

    Attributes:
        shape: logical shape.
        split: leading dimensions that index rows.
        dtype: what the values come in, one of ``dtypes.WEIGHT_DTYPES``.
        load: reads elements ``start`` to ``stop`` (flat, row-major) as stored: float64,
            float32, float16, int8, or uint16 for the bits of bfloat16.
    """

    shape: tuple[int, ...]
    split: int
    dtype: str
    load: Callable[[int, int], Array]

    @classmethod
    def of(cls, values: Array, dtype: str | None = None, split: int | None = None) -> Self:
        """Make a weight of an array in memory; ``dtype`` names bfloat16 bits in uint16."""
        flat = np.ascontiguousarray(values).reshape(-1)
        return cls(
            values.shape,
            default_split(values.ndim) if split is None else split,
            dtype or str(values.dtype),
            lambda start, stop: flat[start:stop],
        )

    @property
    def rows(self) -> int:
        """Rows of the matrix view."""
        return rows_and_columns(self.shape, self.split)[0]

    @property
    def columns(self) -> int:
        """Columns of the matrix view."""
        return rows_and_columns(self.shape, self.split)[1]

    @property
    def real(self) -> type[np.floating[Any]]:
        """What the values are computed in."""
        return np.float64 if self.dtype == "float64" else np.float32

    @property
    def scale_dtype(self) -> str:
        """What the scale is stored in: the dtype of the values where a file allows it."""
        return self.dtype if self.dtype in ("float16", "bfloat16") else "float32"

    def read(self, start: int, stop: int) -> Array:
        """Read elements ``start`` to ``stop`` as numbers: float64 or float32."""
        return Piece(0, 0, self.load(start, stop)).values

    def pieces(self, granularity: Scale, *, whole_rows: bool = False) -> Iterator[Piece]:
        """Read the weight from top to bottom, each piece while the one before is worked on.

        A row is cut only where it is longer than a piece should be, and only at columns where
        no set of the granularity, no chunk of a sum and no byte of a layout is cut.
        """
        spans = list(self._spans(granularity, whole_rows=whole_rows))
        if len(spans) < 2:
            yield from (self._piece(*span) for span in spans)
            return
        with ThreadPoolExecutor(1) as reader:
            coming = reader.submit(self._piece, *spans[0])
            for span in spans[1:]:
                piece = coming.result()
                coming = reader.submit(self._piece, *span)
                yield piece
            yield coming.result()

    def _spans(
        self, granularity: Scale, *, whole_rows: bool
    ) -> Iterator[tuple[int, int, int, int]]:
        """Yield the first row and column of each piece, and how many of both it has."""
        rows, columns = self.rows, self.columns
        # a byte holds 4 trits in one layout, 5 in the other; a chunk is a multiple of 4
        step = math.lcm(SUM_CHUNK * 5, granularity.group_size or 1)
        step *= max(1, BLOCK // step)
        if whole_rows or columns <= max(step, BLOCK):
            most = max(1, BLOCK // max(columns, 1))
            for row in range(0, rows, most):
                yield row, 0, min(most, rows - row), columns
        else:
            for row in range(rows):
                for column in range(0, columns, step):
                    yield row, column, 1, min(step, columns - column)

    def _piece(self, row: int, column: int, rows: int, columns: int) -> Piece:
        start = row * self.columns + column
        stored = self.load(start, start + rows * columns).reshape(rows, columns)
        if stored.dtype == np.int8:
            stored = stored.astype(np.float32)
        return Piece(row, column, stored)

    def index(self, flat: int) -> tuple[int, ...]:
        """The index in the logical shape of a flat position."""
        return tuple(int(i) for i in np.unravel_index(flat, self.shape))


def changed() -> InputError:
    """The error for a weight that is not what it was when it was read before."""
    return InputError(
        "holds other values than when it was read before. Convert it again while nothing writes "
        "to it."
    )
