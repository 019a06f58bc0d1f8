"""Recognise an ordinary float weight by a few of its values, before costlier searches.

Nearly all weights that are not ternary are ordinary ones, and models have thousands of them: what
is done for each of them has to take less time than its conversion.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tpack.quantize.exact import SMALLEST
from tpack.quantize.weight import Weight

Array = npt.NDArray[Any]

#: The sample: so many rows from all over a weight, and so many of their columns.
ROWS, COLUMNS = 32, 128
#: Values to read in one go rather than row by row.
AT_ONCE = 1 << 16
#: Neighbours in order are as good as equal if they differ by this part of the largest.
CLOSE = 2e-3
#: The part of close neighbours, and that of different values, that ordinary weights stay below
#: and above.
MOST_CLOSE, LEAST_DIFFERENT = 0.6, 0.5
#: Weights of so few steps of their dtype have no levels of their own.
FEW_STEPS = 256


def is_ordinary(weight: Weight) -> bool:
    """Whether a look at a few values shows that a weight has no levels and no rule for its zeros.

    A weight that is nearly ternary has a few values in each row or column, but for rounding and
    exceptions; one of few levels has them in each row or in groups of it; one with zeros by a rule
    has some in any four columns. Where all is next to the smallest number of its dtype, the levels
    are those of the dtype.
    """
    values = _sample(weight)
    if 0 < np.abs(values).max() <= FEW_STEPS * SMALLEST.get(weight.dtype, 0):
        return True
    if min(values.shape) < 2:
        return False
    ordered = np.sort(values, axis=1)
    different = 1 + (ordered[:, 1:] != ordered[:, :-1]).sum(axis=1)
    if different.max() <= max(LEAST_DIFFERENT * values.shape[1], 1):
        return False
    fours = values[:, : values.shape[1] // 4 * 4].reshape(-1, 4)
    if len(fours) and (fours == 0).any(axis=1).all():
        return False
    sizes = np.abs(values)
    return _close(sizes) < MOST_CLOSE and _close(sizes.T) < MOST_CLOSE


def _close(sizes: Array) -> float:
    """Return the share of neighbours, sorted by size in sets of 32, that are practically equal."""
    sets = sizes[:, : len(sizes[0]) // 32 * 32 or None]
    ordered = np.sort(sets.reshape(-1, min(32, sets.shape[1])), axis=1)
    gaps = np.diff(ordered, axis=1)
    return float((gaps <= CLOSE * ordered[:, -1:]).mean())


def _sample(weight: Weight) -> Array:
    rows, columns = min(weight.rows, ROWS), min(weight.columns, COLUMNS)
    if rows * weight.columns <= AT_ONCE:
        first = (weight.rows - rows) // 2 * weight.columns
        some = weight.read(first, first + rows * weight.columns)
        return some.reshape(rows, weight.columns)[:, :columns]
    starts = (row * weight.rows // rows * weight.columns for row in range(rows))
    return np.stack([weight.read(start, start + columns) for start in starts])
