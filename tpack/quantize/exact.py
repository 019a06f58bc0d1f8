"""Detect weights that already are ternary, and at which granularity.

A set of weights is ``{-s, 0, +s}`` exactly if the largest |w| equals the smallest nonzero
|w|. Both are known per group of 32 columns; groups of 64 to 256, rows and the tensor follow
from them, since 32 divides them all.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tpack.codec import GROUP_SIZES, Scale
from tpack.errors import NotTernaryError
from tpack.quantize.fit import Fit, make_fit
from tpack.quantize.statistics import Statistics
from tpack.quantize.weight import BLOCK, Weight, changed, narrow, widen

Array = npt.NDArray[Any]

#: What detection tries, coarsest first.
GRANULARITIES = tuple(
    Scale.parse(text) for text in ("tensor", "row", *(f"group:{size}" for size in GROUP_SIZES))
)


def fit_exact(weight: Weight, statistics: Statistics, wanted: Scale | None) -> Fit | None:
    """Fit a weight that is ternary at ``wanted``, or at the coarsest granularity that is.

    Returns:
        The fit, or None where the weight is not ternary. Where it is, but its scale must be
        rounded (float64), the method is ``mse``: no other trits are nearer.
    """
    if _mixed(statistics.largest, statistics.smallest).any():
        return None  # and no coarser sets are, which hold these
    rounded: Fit | None = None
    for granularity in GRANULARITIES if wanted is None else (wanted,):
        largest, smallest = statistics.at(granularity)
        if _mixed(largest, smallest).any():
            continue
        scale = np.where(largest == 0, largest.dtype.type(1), largest)
        held = widen(narrow(scale, weight.scale_dtype), weight.scale_dtype)
        if np.array_equal(held, scale):
            return make_fit(weight, "exact", granularity, scale)
        if rounded is None and np.isfinite(held).all() and held.all():
            rounded = make_fit(weight, "mse", granularity, scale)
    return rounded


def _mixed(largest: Array, smallest: Array) -> npt.NDArray[np.bool_]:
    """Which sets hold two magnitudes beside zero."""
    mixed: npt.NDArray[np.bool_] = (largest != smallest) & (largest != 0)
    return mixed


def refuse(weight: Weight, statistics: Statistics, wanted: Scale | None) -> NotTernaryError:
    """The error that names the first weight which no scale explains."""
    scope = wanted or statistics.ranges
    largest, smallest = statistics.at(scope)
    mixed = _mixed(largest, smallest)
    if not mixed.any():
        value = float(largest.max())
        return NotTernaryError(
            f"has the scale {value!r}, which {weight.scale_dtype} cannot hold exactly. "
            "Convert without --exact to accept the rounding.",
            value=value,
        )
    index, value, scale = _first_other(weight, scope, mixed)
    return NotTernaryError(
        f"is not ternary: value {value:g} at index {index}, expected 0 or ±{scale:g} "
        f"as before it in the same {scope.kind}. Convert without --exact to quantize it.",
        index=index,
        value=value,
    )


def _first_other(
    weight: Weight, scope: Scale, mixed: npt.NDArray[np.bool_]
) -> tuple[tuple[int, ...], float, float]:
    """Index and value of the first weight unlike those before it in its set, and their |w|."""
    row, group = (int(i) for i in np.unravel_index(int(mixed.argmax()), mixed.shape))
    size = scope.group_size or weight.columns
    first = row * weight.columns + group * size
    last = weight.rows * weight.columns
    if scope.kind != "tensor":
        last = min(first + size, (row + 1) * weight.columns)
    scale = 0.0
    for start in range(first, last, BLOCK):
        values = weight.read(start, min(start + BLOCK, last))
        kept = values[values != 0]
        if not scale and kept.size:
            scale = float(abs(kept[0]))
        other = (values != 0) & (np.abs(values) != scale)
        if other.any():
            at = int(other.argmax())
            return weight.index(start + at), float(values[at]), scale
    raise changed()
