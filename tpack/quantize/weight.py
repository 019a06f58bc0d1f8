"""A weight as rows and columns of real numbers, and how they are stored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from tpack.codec import rows_and_columns
from tpack.codec.shapes import default_split
from tpack.errors import InputError

Array = npt.NDArray[Any]

#: Elements to read at a time: 8 MiB of float32, which the caches of a processor can hold.
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


def numbers(stored: Array) -> Array:
    """Widen stored elements by their dtype alone, uint16 being the bits of bfloat16."""
    return widen(stored, "bfloat16" if stored.dtype == np.uint16 else str(stored.dtype))


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
        """What the scale is stored in, the dtype of the values where a file allows it."""
        return self.dtype if self.dtype in ("float16", "bfloat16") else "float32"

    def read(self, start: int, stop: int) -> Array:
        """Read elements ``start`` to ``stop`` as numbers: float64 or float32."""
        return numbers(self.load(start, stop))

    def index(self, flat: int) -> tuple[int, ...]:
        """The index in the logical shape of a flat position."""
        return tuple(int(i) for i in np.unravel_index(flat, self.shape))


def changed() -> InputError:
    """Return the error for a weight that changed between two readings."""
    return InputError(
        "holds other values than when it was read before. Convert it again while nothing writes "
        "to it."
    )
