"""Detect weights that already are ternary, and at which granularity.

A set of weights is ``{-s, 0, +s}`` exactly if the largest |w| equals the smallest nonzero
|w|. Both are taken per group of 32 columns; groups of 64 to 256, rows and the tensor follow
from them, since 32 divides them all.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from tpack.codec import GROUP_SIZES, Scale
from tpack.errors import NotTernaryError
from tpack.kernels.reference import by_group
from tpack.quantize.fit import Fit, make_fit
from tpack.quantize.pieces import in_pieces
from tpack.quantize.statistics import Statistics, join
from tpack.quantize.weight import Weight, changed, narrow, widen

Array = npt.NDArray[Any]

#: What detection tries, finest first.
GRANULARITIES = tuple(
    Scale.parse(text) for text in (*(f"group:{n}" for n in GROUP_SIZES[::-1]), "row", "tensor")
)


def fit_exact(weight: Weight, statistics: Statistics, wanted: Scale | None) -> Fit | None:
    """Fit a weight that is ternary at ``wanted``, or at the coarsest granularity that is.

    Returns:
        The fit, or None where the weight is not ternary. Where it is, but its scale must be
        rounded (float64), the method is ``mse``: no other trits are nearer.
    """
    found: tuple[Scale, Array] | None = None
    at, scales = statistics.group, statistics.scales
    for granularity in GRANULARITIES if wanted is None else (wanted,):
        scales = None if scales is None else join(scales, at, granularity)
        if scales is None:
            break  # and no coarser sets are ternary, which hold these
        at, found = granularity, (granularity, scales)
    if found is None:
        return None
    granularity, scale = found
    scale = np.where(scale == 0, scale.dtype.type(1), scale)
    held = widen(narrow(scale, weight.scale_dtype), weight.scale_dtype)
    if np.array_equal(held, scale):
        return replace(make_fit(weight, "exact", granularity, scale), packed=statistics.packed)
    if np.isfinite(held).all() and held.all():
        return make_fit(weight, "mse", granularity, scale)
    return None


def refuse(weight: Weight, statistics: Statistics, wanted: Scale | None) -> NotTernaryError:
    """The error that names the first weight which no scale explains."""
    scope = wanted or statistics.group
    scales = statistics.scales
    scales = None if scales is None else join(scales, statistics.group, scope)
    if scales is not None:
        value = float(scales.max())
        return NotTernaryError(
            f"has the scale {value!r}, which {weight.scale_dtype} cannot hold exactly. "
            "Convert without --exact to accept the rounding.",
            value=value,
        )
    index, value, scale = _first_other(weight, scope)
    return NotTernaryError(
        f"is not ternary: value {value!r} at index {index}, expected 0 or ±{scale!r} "
        f"as before it in the same {scope.kind}. Convert without --exact to quantize it.",
        index=index,
        value=value,
    )


def _first_other(weight: Weight, scope: Scale) -> tuple[tuple[int, ...], float, float]:
    """Index and value of the first weight unlike one before it in its set, and that one's |w|."""
    before = 0.0  # |w| in a set that began in another piece
    for piece in in_pieces(weight, scope, lambda piece: piece):
        values = piece.values
        rows, columns = values.shape
        width = scope.group_size or columns
        sizes = np.abs(values)
        sets = sizes.reshape(1, -1) if scope.kind == "tensor" else by_group(sizes, width)
        scale = np.take_along_axis(sets, (sets != 0).argmax(axis=1, keepdims=True), axis=1)
        if scope.kind == "tensor" or (scope.kind == "row" and piece.column):
            scale[0, 0] = before or scale[0, 0]
        other = (sets != 0) & (sets != scale)
        if other.any():
            found, place = divmod(int(other.argmax()), sets.shape[1])
            row, column = divmod(place, columns)
            if scope.kind != "tensor":
                row, column = divmod(found, sets.shape[0] // rows)
                column = column * width + place
            index = weight.index((piece.row + row) * weight.columns + piece.column + column)
            return index, float(values[row, column]), float(scale[found, 0])
        before = float(scale[-1, 0])
    raise changed()
