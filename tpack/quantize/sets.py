"""Sums over the sets of weights that share a scale.

The kernels take float32, float16 and bfloat16, and groups of a multiple of 32 columns. For
float64 and for odd groups their definition serves, ``tpack.kernels.reference``. All add up in
the same order, row after row, so that no result depends on how a weight was cut in pieces.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tpack import kernels
from tpack.codec import Scale
from tpack.kernels import reference
from tpack.quantize.pieces import Piece, for_kernels
from tpack.quantize.weight import Weight, numbers

Array = npt.NDArray[Any]
Doubles = npt.NDArray[np.float64]

_ROW = Scale.parse("row")


def kernel_group(granularity: Scale) -> int:
    """Return the number by which the kernels know a granularity."""
    return granularity.group_size or ("tensor", "row").index(granularity.kind)


class Sums:
    """Σ |w| of every set of a weight.

    Those of rows and groups are added to where they are, by any thread, those of columns row after
    row, by one; the sum of a tensor is that of its rows.
    """

    def __init__(self, weight: Weight, granularity: Scale) -> None:
        self.granularity = _ROW if granularity.kind == "tensor" else granularity
        self.whole = granularity.kind == "tensor"
        self.kernels = for_kernels(weight, granularity)
        self.parts = np.zeros(self.granularity.shape((weight.rows, weight.columns), 1))

    def add(self, piece: Piece, values: Array) -> None:
        """Add |w| of values ``(rows, columns)``, stored as the piece is, in the place of it."""
        own = piece.part(self.parts, self.granularity)
        if self.kernels:
            kernels.abs_sums(values, kernel_group(self.granularity), own, threads=piece.threads)
        elif self.granularity.kind == "column":
            terms = np.abs(numbers(values)).astype(np.float64)
            own[...] = np.add.accumulate(np.vstack([own, terms]), axis=0)[-1]
        elif self.granularity.kind == "row":
            reference.abs_sums(numbers(values), 1, own)
        else:
            by_group = reference.by_group(numbers(values), self.granularity.group_size)
            reference.abs_sums(by_group, 1, own.reshape(-1, 1))

    def survey(self, piece: Piece, groups: Scale) -> tuple[Array, Array]:
        """Add |w| of a piece, and give the largest and smallest nonzero |w| of its ``groups``.

        Returns:
            Both ``(rows, groups)``; the smallest is inf where all are zero. Where the largest is
            not finite, the sums are of no use.
        """
        if self.kernels:
            own = piece.part(self.parts, self.granularity)
            group = kernel_group(self.granularity)
            return kernels.survey(piece.stored, group, own, threads=piece.threads)
        self.add(piece, piece.stored)
        return reference.ranges(piece.values, groups.group_size)

    @property
    def values(self) -> Doubles:
        """``(1,)`` for the tensor, ``(1, columns)`` for columns, else ``(rows, sets in a row)``."""
        return np.array([reference.add_in_order(self.parts)]) if self.whole else self.parts


def counts(weight: Weight, granularity: Scale) -> Doubles:
    """Count the weights of each set, in a shape that broadcasts to that of the sums."""
    if granularity.kind == "tensor":
        return np.array([float(weight.rows * weight.columns)])
    if granularity.kind == "column":
        return np.array([float(weight.rows)])
    width = granularity.group_size or max(weight.columns, 1)
    starts = np.arange(0, weight.columns, width)
    return np.minimum(width, weight.columns - starts).astype(np.float64)
