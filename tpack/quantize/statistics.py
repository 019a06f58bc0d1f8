"""What one pass over a weight tells: whether it is ternary, and the sums of |w|."""

from __future__ import annotations

from dataclasses import dataclass
from threading import Event
from typing import Any

import numpy as np
import numpy.typing as npt

from tpack.codec import Scale
from tpack.errors import InputError
from tpack.kernels import reference
from tpack.quantize.pieces import Piece, in_pieces
from tpack.quantize.sets import Sums
from tpack.quantize.weight import Weight

Array = npt.NDArray[Any]

#: The groups in which the kernels look for a single |w|.
GROUP = Scale.parse(f"group:{reference.RANGE_GROUP}")


@dataclass(frozen=True)
class Statistics:
    """What is known of a weight.

    Attributes:
        sums: of |w| at the granularity of the scale, ``(1,)`` or ``(rows, sets in a row)``.
        group: what ``scales`` belong to.
        scales: where every such group is ``{-s, 0, +s}``, its s, ``(rows, groups)``, and 0 where
            all are zero; None where a group is not.
    """

    sums: npt.NDArray[np.float64]
    group: Scale
    scales: Array | None

    def at(self, granularity: Scale) -> Array | None:
        """The s of coarser sets, ``(1, 1)`` or ``(rows, sets in a row)``; None if some have two."""
        if self.scales is None:
            return None
        largest = _join(self.scales, granularity, self.group, np.maximum)
        # an s as large as can be, where there is none, is never the smallest
        smallest = np.where(self.scales == 0, self.scales.dtype.type(np.inf), self.scales)
        smallest = _join(smallest, granularity, self.group, np.minimum)
        return None if ((largest != smallest) & (largest != 0)).any() else largest


def _join(values: Array, to: Scale, group: Scale, of: np.ufunc) -> Array:
    """Reduce the values of groups to those of coarser sets."""
    if not values.size:
        return np.zeros((1, 1), values.dtype) if to.kind == "tensor" else values
    if to.kind == "tensor":
        return np.array(of.reduce(values, axis=None)).reshape(1, 1)
    if to.kind == "row":
        row: Array = of.reduce(values, axis=1, keepdims=True)
        return row
    factor = to.group_size // group.group_size
    while factor % 2 == 0:  # by halves, which numpy does much faster
        joined, odd = values[:, ::2].copy(), values[:, 1::2]
        of(joined[:, : odd.shape[1]], odd, out=joined[:, : odd.shape[1]])
        values, factor = joined, factor // 2
    if factor > 1:
        values = of.reduceat(values, range(0, values.shape[1], factor), axis=1)
    return values


def measure(weight: Weight, granularity: Scale) -> Statistics:
    """Take the statistics of a weight in one pass.

    Args:
        granularity: what a sum of |w| is taken of.

    Raises:
        InputError: NaN or infinity, with the index of the first.
    """
    group = granularity if granularity.group_size % GROUP.group_size else GROUP
    scales = np.empty(group.shape((weight.rows, weight.columns), 1), weight.real)
    sums = Sums(weight, granularity)
    mixed = Event()

    def survey(piece: Piece) -> None:
        largest, smallest = sums.survey(piece, group)
        if not np.isfinite(largest).all():
            raise _not_finite(weight, piece)
        if ((largest != smallest) & (largest != 0)).any():
            mixed.set()
        if not mixed.is_set():
            piece.part(scales, group)[...] = largest

    for _ in in_pieces(weight, granularity, survey):
        pass
    return Statistics(sums.values, group, None if mixed.is_set() else scales)


def _not_finite(weight: Weight, piece: Piece) -> InputError:
    values = piece.values
    row, column = np.unravel_index(int(np.isfinite(values).argmin()), values.shape)
    index = weight.index((piece.row + int(row)) * weight.columns + piece.column + int(column))
    return InputError(
        f"holds {values[row, column]} at index {index}, expected finite values. Training may "
        "have diverged: repair it or keep it with --exclude."
    )
