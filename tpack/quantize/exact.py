"""Detect weights that already are ternary, and at which granularity.

A set of weights is ``{-s, 0, +s}`` exactly if the largest |w| equals the smallest nonzero
|w|. Both are taken per group of 32 columns in one pass; groups of 64 to 256, rows and the
tensor follow from them, since 32 divides them all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tpack.codec import GROUP_SIZES, Scale
from tpack.errors import NotTernaryError
from tpack.quantize.fit import Fit, make_fit
from tpack.quantize.weight import Weight, group_starts, narrow, widen

Array = npt.NDArray[Any]

#: What detection tries, coarsest first.
GRANULARITIES = tuple(
    Scale.parse(text) for text in ("tensor", "row", *(f"group:{size}" for size in GROUP_SIZES))
)


@dataclass(frozen=True)
class Statistics:
    """Largest and smallest nonzero |w| per group: ``(rows, groups)``; inf if all are zero."""

    group_size: int
    largest: Array
    smallest: Array

    def at(self, granularity: Scale) -> tuple[Array, Array]:
        """Both figures for coarser sets, a multiple of the group size."""
        if granularity.kind == "tensor":
            return self.largest.max(initial=0).reshape(1, 1), self.smallest.min(
                initial=np.inf
            ).reshape(1, 1)
        if self.largest.shape[1] == 0:
            return self.largest, self.smallest
        size = granularity.group_size // self.group_size or self.largest.shape[1]
        starts = group_starts(self.largest.shape[1], size)
        return (
            np.maximum.reduceat(self.largest, starts, axis=1),
            np.minimum.reduceat(self.smallest, starts, axis=1),
        )


def measure(weight: Weight, group_size: int) -> Statistics:
    """Take the statistics of a weight in one pass."""
    groups = -(-weight.columns // group_size)
    largest = np.zeros((weight.rows, groups), dtype=weight.real)
    smallest = np.full((weight.rows, groups), np.inf, dtype=weight.real)
    starts = group_starts(weight.columns, group_size)
    for first, values in weight.finite_blocks():
        size = np.abs(values)
        rows = slice(first, first + len(values))
        largest[rows] = np.maximum.reduceat(size, starts, axis=1)
        size[size == 0] = np.inf
        smallest[rows] = np.minimum.reduceat(size, starts, axis=1)
    return Statistics(group_size, largest, smallest)


def fit_exact(weight: Weight, wanted: Scale | None) -> tuple[Fit | None, Statistics]:
    """Fit a weight that is ternary at ``wanted``, or at the coarsest granularity that is.

    Returns:
        The fit, or None where the weight is not ternary, and the statistics taken. Where the
        weight is ternary, but its scale must be rounded (float64), the method is ``mse``: no
        other trits are nearer.
    """
    size = wanted.group_size if wanted is not None and wanted.kind == "group" else GROUP_SIZES[-1]
    statistics = measure(weight, size)
    rounded: Fit | None = None
    for granularity in GRANULARITIES if wanted is None else (wanted,):
        largest, smallest = statistics.at(granularity)
        zero = largest == 0
        if not (zero | (largest == smallest)).all():
            continue
        scale = np.where(zero, largest.dtype.type(1), largest)
        held = widen(narrow(scale, weight.scale_dtype), weight.scale_dtype)
        if np.array_equal(held, scale):
            return make_fit(weight, "exact", granularity, scale), statistics
        if rounded is None and np.isfinite(held).all() and held.all():
            rounded = make_fit(weight, "mse", granularity, scale)
    return rounded, statistics


def refuse(weight: Weight, statistics: Statistics, wanted: Scale | None) -> NotTernaryError:
    """The error that names the first weight which no scale explains."""
    if wanted is not None and wanted.kind != "group":
        largest, smallest = statistics.at(wanted)
        size = weight.columns if wanted.kind == "row" else weight.rows * weight.columns
    else:
        largest, smallest = statistics.largest, statistics.smallest
        size = statistics.group_size
    mixed = (largest != 0) & (largest != smallest)
    scope = str(wanted or Scale.parse(f"group:{statistics.group_size}"))
    if not mixed.any():
        value = float(largest.max())
        return NotTernaryError(
            f"has the scale {value!r}, which {weight.scale_dtype} cannot hold exactly. "
            "Convert without --exact to accept the rounding.",
            value=value,
        )
    row, group = (int(i) for i in np.unravel_index(int(mixed.argmax()), mixed.shape))
    start = row * weight.columns + group * size
    stop = min(start + size, (row + 1) * weight.columns) if row or scope != "tensor" else size
    values = weight.read(start, stop)
    scale = np.abs(values[values != 0][0])
    offset = int(((values != 0) & (np.abs(values) != scale)).argmax())
    index = weight.index(start + offset)
    value = float(values[offset])
    return NotTernaryError(
        f"is not ternary: value {value:g} at index {index}, expected 0 or ±{float(scale):g} "
        f"as before it in the same {scope.partition(':')[0]}. Convert without --exact to "
        "quantize it.",
        index=index,
        value=value,
    )
