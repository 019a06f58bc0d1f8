"""A weight as rows and columns of real numbers, read in blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from tpack.codec import rows_and_columns
from tpack.codec.shapes import default_split
from tpack.errors import InputError

Array = npt.NDArray[Any]

#: Elements a block aims at: 8 MiB of float32, so that a dozen temporaries stay small.
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
class Weight:
    """A weight to be packed.

    Attributes:
        shape: logical shape.
        split: leading dimensions that index rows.
        dtype: what the values come in, one of ``dtypes.WEIGHT_DTYPES``.
        read: reads elements ``start`` to ``stop`` (flat, row-major) as numbers.
    """

    shape: tuple[int, ...]
    split: int
    dtype: str
    read: Callable[[int, int], Array]

    @classmethod
    def of(cls, values: Array, dtype: str | None = None, split: int | None = None) -> Self:
        """Make a weight of an array in memory; ``dtype`` names bfloat16 bits in uint16."""
        dtype = dtype or str(values.dtype)
        flat = np.ascontiguousarray(values).reshape(-1)
        return cls(
            values.shape,
            default_split(values.ndim) if split is None else split,
            dtype,
            lambda start, stop: widen(flat[start:stop], dtype),
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

    def blocks(self) -> Iterator[tuple[int, Array]]:
        """Yield ``(first row, values (rows, columns))`` from top to bottom."""
        step = max(1, BLOCK // max(self.columns, 1))
        for start in range(0, self.rows, step):
            stop = min(start + step, self.rows)
            values = self.read(start * self.columns, stop * self.columns)
            yield start, values.reshape(stop - start, self.columns)

    def finite_blocks(self) -> Iterator[tuple[int, Array]]:
        """Like ``blocks``, refusing NaN and infinity.

        Raises:
            InputError: naming the first such value and its index.
        """
        for start, values in self.blocks():
            finite = np.isfinite(values)
            if not finite.all():
                row, column = np.unravel_index(int((~finite).argmax()), finite.shape)
                flat = (start + int(row)) * self.columns + int(column)
                raise InputError(
                    f"holds {values[row, column]} at index {self.index(flat)}, expected finite "
                    "values. Training may have diverged: repair it or keep it with --exclude."
                )
            yield start, values

    def index(self, flat: int) -> tuple[int, ...]:
        """The index in the logical shape of a flat position."""
        return tuple(int(i) for i in np.unravel_index(flat, self.shape))


def group_starts(columns: int, size: int) -> Sequence[int]:
    """First column of each group of ``size`` columns, for ``np.ufunc.reduceat``."""
    return range(0, columns, size)
