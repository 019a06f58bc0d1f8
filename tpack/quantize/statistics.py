"""What one pass over a weight tells: which sets are ternary, and the sums of |w|."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tpack.codec import Scale
from tpack.errors import InputError
from tpack.quantize.sets import RANGES, new_sums, survey
from tpack.quantize.weight import Piece, Weight

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Statistics:
    """What is known of the sets of a weight.

    Attributes:
        ranges: what ``largest`` and ``smallest`` belong to: groups.
        largest: |w|, ``(rows, groups)``.
        smallest: nonzero |w|, ``(rows, groups)``; inf where all are zero.
        sums: of |w| at the granularity of the scale, ``(1,)`` or ``(rows, sets in a row)``.
    """

    ranges: Scale
    largest: Array
    smallest: Array
    sums: npt.NDArray[np.float64]

    def at(self, granularity: Scale) -> tuple[Array, Array]:
        """Largest and smallest of coarser sets: ``(1, 1)`` or ``(rows, sets in a row)``."""
        if granularity.kind == "tensor":
            largest = self.largest.max(initial=0).reshape(1, 1)
            return largest, self.smallest.min(initial=np.inf).reshape(1, 1)
        if granularity.kind == "row":
            largest = self.largest.max(axis=1, initial=0, keepdims=True)
            return largest, self.smallest.min(axis=1, initial=np.inf, keepdims=True)
        factor = granularity.group_size // self.ranges.group_size
        return _join(self.largest, factor, np.maximum), _join(self.smallest, factor, np.minimum)


def _join(values: Array, factor: int, of: np.ufunc) -> Array:
    """Reduce every ``factor`` columns to one; by halves, which numpy does much faster."""
    while factor % 2 == 0 and factor:
        joined = values[:, ::2].copy()
        odd = values[:, 1::2]
        of(joined[:, : odd.shape[1]], odd, out=joined[:, : odd.shape[1]])
        values, factor = joined, factor // 2
    if factor == 1 or not values.shape[1]:
        return values
    result: Array = of.reduceat(values, range(0, values.shape[1], factor), axis=1)
    return result


def measure(weight: Weight, granularity: Scale) -> Statistics:
    """Take the statistics of a weight in one pass.

    Args:
        granularity: what a sum of |w| is taken of.

    Raises:
        InputError: NaN or infinity, with the index of the first.
    """
    ranges = granularity if granularity.group_size % RANGES.group_size else RANGES
    sums = new_sums(weight, granularity)
    shape = ranges.shape((weight.rows, weight.columns), 1)
    largest, smallest = np.empty(shape, weight.real), np.empty(shape, weight.real)
    for piece in weight.pieces(granularity):
        own, high = piece.part(sums, granularity), piece.part(largest, ranges)
        high[...], piece.part(smallest, ranges)[...] = survey(
            piece.stored, granularity, own, ranges
        )
        if not np.isfinite(high).all():
            raise _not_finite(weight, piece)
    return Statistics(ranges, largest, smallest, sums)


def _not_finite(weight: Weight, piece: Piece) -> InputError:
    values = piece.values
    row, column = np.unravel_index(int(np.isfinite(values).argmin()), values.shape)
    index = weight.index((piece.row + int(row)) * weight.columns + piece.column + int(column))
    return InputError(
        f"holds {values[row, column]} at index {index}, expected finite values. Training may "
        "have diverged: repair it or keep it with --exclude."
    )
