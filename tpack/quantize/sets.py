"""Work on the sets of weights that share a scale: on the kernels where they can, else in numpy.

The kernels take float32, float16 and bfloat16, and groups of a multiple of 32 columns. For
float64 and for odd groups their definition serves, ``tpack.kernels.reference``. All add up in
the same order, so that no result depends on how a weight was cut in pieces.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tpack import kernels
from tpack.codec import Scale
from tpack.kernels import reference
from tpack.quantize.weight import Piece, Weight

Array = npt.NDArray[Any]
Doubles = npt.NDArray[np.float64]

#: The finest groups of which the kernels give ranges.
RANGES = Scale.parse(f"group:{reference.RANGE_GROUP}")


def for_kernels(values: Array, granularity: Scale) -> bool:
    """Whether the kernels take these values (as stored) and a granularity."""
    return values.dtype != np.float64 and granularity.group_size % RANGES.group_size == 0


def kernel_group(granularity: Scale) -> int:
    """What the kernels call a granularity."""
    return granularity.group_size or ("tensor", "row").index(granularity.kind)


def new_sums(weight: Weight, granularity: Scale) -> Doubles:
    """Zeros, one for each set: ``(1,)`` or ``(rows, sets in a row)``."""
    return np.zeros(granularity.shape((weight.rows, weight.columns), 1))


def counts(weight: Weight, granularity: Scale) -> Doubles:
    """How many weights each set has, in a shape that broadcasts to that of the sums."""
    if granularity.kind == "tensor":
        return np.array([float(weight.rows * weight.columns)])
    width = granularity.group_size or max(weight.columns, 1)
    starts = np.arange(0, weight.columns, width)
    return np.minimum(width, weight.columns - starts).astype(np.float64)


def add_abs_sums(stored: Array, granularity: Scale, sums: Doubles) -> None:
    """Add |w| of a piece ``(rows, columns)`` to the sums of its sets, in place."""
    if for_kernels(stored, granularity):
        kernels.abs_sums(stored, kernel_group(granularity), sums)
        return
    values = Piece(0, 0, stored).values
    if granularity.kind == "group":
        by_group = reference.by_group(values, granularity.group_size)
        reference.abs_sums(by_group, 1, sums.reshape(-1, 1))
    else:
        reference.abs_sums(values, kernel_group(granularity), sums)


def survey(stored: Array, granularity: Scale, sums: Doubles, ranges: Scale) -> tuple[Array, Array]:
    """Add |w| to the sums, and give the largest and smallest nonzero |w| per group of ``ranges``.

    Returns:
        Both ``(rows, groups)``; the smallest is inf where all are zero.
    """
    if for_kernels(stored, granularity) and ranges == RANGES:
        return kernels.survey(stored, kernel_group(granularity), sums)
    values = Piece(0, 0, stored).values
    if np.isfinite(values).all():
        add_abs_sums(stored, granularity, sums)
    return reference.ranges(values, ranges.group_size)
