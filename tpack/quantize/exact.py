"""Choose the granularity at which a weight already is ternary.

A set of weights is ``{-s, 0, +s}`` exactly if the largest |w| equals the smallest nonzero
|w|. Both are taken per group of 32 columns, and per column; groups of 64 to 256, rows and the
tensor follow from those of 32, since 32 divides them all. Groups of 16, from which those of 48
follow, are tried where none of these is.

Of all granularities that are exact, the one with the fewest scales is taken, and the first of
``GRANULARITIES`` of those with as many. One does not count where it says nothing or helps
nothing: where hardly any set has two values to compare, as the rows of a weight ``(N, 1)`` or
the columns of one with few rows, and where the scales need more room than the weights have now.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from tpack.codec import GROUP_SIZES, Scale
from tpack.dtypes import BY_NAME
from tpack.quantize.fitting import Fit, make_fit
from tpack.quantize.pieces import Piece, in_pieces
from tpack.quantize.statistics import FINE, Statistics, join
from tpack.quantize.weight import Weight, narrow, widen

Array = npt.NDArray[Any]

#: Sizes of groups that are tried after the usual ones, and the most bits a weight may take then.
SMALL, MOST_BITS = (48, 16), 4
#: What detection tries, coarsest first.
GRANULARITIES = tuple(
    Scale.parse(text)
    for text in ("tensor", "row", "column", *(f"group:{n}" for n in (*GROUP_SIZES, *SMALL)))
)
#: Values that must agree with one before them in the same set, for each set; for each column.
AGREEING, AGREEING_COLUMN = 1 / 8, 2
#: The smallest number above zero of each dtype. Tiny values are rounded to few times that.
SMALLEST, TINY = {"float32": 2.0**-149, "float16": 2.0**-24, "bfloat16": 2.0**-133}, 16
#: Fewer values that agree with one before them under the same scale may be a coincidence.
EVIDENCE = 8

_TENSOR, _, _COLUMN = GRANULARITIES[:3]


@dataclass(frozen=True)
class Found:
    """A granularity at which a weight is ternary.

    Attributes:
        scales: the s of each set, 0 where all are zero.
        agreeing: how many values had one before them in the same set to agree with, as far as
            that was counted.
        signs: how many signs its values have, 0 to 2, as far as was looked.
        underflow: all values are zero, or about the smallest number of their dtype.
    """

    granularity: Scale
    scales: Array
    agreeing: int
    signs: int
    underflow: bool

    @property
    def by_chance(self) -> bool:
        """Whether weights of float models are often ternary in the same way, by chance."""
        return self.signs < 2 or self.agreeing < EVIDENCE or self.underflow


def find(weight: Weight, statistics: Statistics, wanted: Scale | None) -> Found | None:
    """Find the granularity of a weight that is ternary: ``wanted``, or the cheapest."""
    for granularity, scales in _cheapest_first(statistics, wanted):
        sets = int((scales != 0).sum())
        each = AGREEING_COLUMN if granularity == _COLUMN else AGREEING
        least = 0 if wanted or granularity == _TENSOR else math.ceil(each * sets)
        if not least or _is_worth_it(weight, granularity, scales.size):
            values, signs = _signs(weight, statistics, sets + max(EVIDENCE, least))
            if values - sets >= least:
                tiny = scales.max(initial=0) <= TINY * SMALLEST.get(weight.dtype, 0)
                return Found(granularity, scales, values - sets, signs, bool(tiny))
    return None


def fit_exact(weight: Weight, statistics: Statistics, found: Found) -> Fit | None:
    """Fit a weight that is ternary; None if no file can hold its scale.

    Where the scale must be rounded (float64), the method is ``mse``: no other trits are nearer.
    """
    scale = np.where(found.scales == 0, found.scales.dtype.type(1), found.scales)
    held = widen(narrow(scale, weight.scale_dtype), weight.scale_dtype)
    if np.array_equal(held, scale):
        fit = make_fit(weight, "exact", found.granularity, scale)
        return replace(fit, packed=statistics.packed)
    if np.isfinite(held).all() and held.all():
        return make_fit(weight, "mse", found.granularity, scale)
    return None


def _cheapest_first(statistics: Statistics, wanted: Scale | None) -> list[tuple[Scale, Array]]:
    """List all granularities that are exact, cheapest first, with the s of their sets."""
    found = [] if statistics.columns is None else [(_COLUMN, statistics.columns)]
    scales, of = statistics.scales, statistics.group
    if wanted is None:
        chain = [each for each in GRANULARITIES[::-1] if each != _COLUMN and _holds(each, of)]
    else:
        chain = [wanted] if wanted != _COLUMN else []
    for granularity in chain:
        scales = None if scales is None else join(scales, of, granularity)
        if scales is None:
            break  # and no coarser sets are ternary, which hold these
        of = granularity
        found.append((granularity, scales))
    places = GRANULARITIES if wanted is None else (wanted,)
    return sorted(found, key=lambda each: (each[1].size, places.index(each[0])))


def _holds(granularity: Scale, group: Scale) -> bool:
    """Return whether coarser sets may be joined from these groups, the largest of their kind."""
    if group == FINE:
        return granularity.group_size in SMALL
    return granularity.group_size not in SMALL


def _is_worth_it(weight: Weight, granularity: Scale, sets: int) -> bool:
    """Return whether packing makes a weight smaller; in small groups, small enough."""
    size = BY_NAME[weight.scale_dtype].bits
    if granularity.group_size in SMALL and 2 + size / granularity.group_size > MOST_BITS:
        return False
    bits = 8 * weight.rows * -(-weight.columns // 4) + size * sets
    return bits < BY_NAME[weight.dtype].bits * weight.rows * weight.columns


#: How many of the four codes of a byte are 0, and how many are 2.
_NEGATIVE, _POSITIVE = (
    (((np.arange(256)[:, None] >> np.arange(0, 8, 2)) & 3) == code).sum(axis=1) for code in (0, 2)
)


def _signs(weight: Weight, statistics: Statistics, enough: int) -> tuple[int, int]:
    """Count the values that are not zero, and their signs, reading no further than needed."""
    negative = positive = 0
    packed = statistics.packed
    for below, above in (
        map(_packed_signs, packed) if packed else in_pieces(weight, _TENSOR, _piece_signs)
    ):
        negative, positive = negative + below, positive + above
        if negative and positive and negative + positive >= enough:
            break
    return negative + positive, int(negative > 0) + int(positive > 0)


def _packed_signs(part: tuple[npt.NDArray[np.uint8], int]) -> tuple[int, int]:
    counts = np.bincount(part[0].reshape(-1), minlength=256)
    return int(counts @ _NEGATIVE), int(counts @ _POSITIVE)


def _piece_signs(piece: Piece) -> tuple[int, int]:
    return int((piece.values < 0).sum()), int((piece.values > 0).sum())
