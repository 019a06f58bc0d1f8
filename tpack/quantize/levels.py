"""Find weights of few different values, in the whole tensor or in each row or group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tpack.codec import Scale
from tpack.kernels.reference import by_group
from tpack.quantize.pieces import in_pieces
from tpack.quantize.weight import Weight

Array = npt.NDArray[Any]

#: Codes of 4 bits have so many values.
MOST = 16
#: A weight of fewer values says nothing; nor one whose levels have fewer values each.
LEAST, LEAST_EACH = 64, 16
#: Values of a set for each level in it: of each row, there are many that must agree.
LEAST_IN_SET = 4
#: Levels are evenly spaced if the steps differ by no more than this, relative to the largest.
ROUNDING = {"bfloat16": 2.0**-7, "float16": 2.0**-10}
# fmt: off
NUMBERS = (
    "no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven",
    "twelve", "thirteen", "fourteen", "fifteen", "sixteen",
)
# fmt: on

_SETS = tuple(Scale.parse(text) for text in ("row", "group:128", "group:64", "group:32"))


@dataclass(frozen=True)
class Levels:
    """The different values of a weight.

    Attributes:
        values: in order: of the weight, or of its first set with the most of them.
        sets: what has no more than so many different values each; None for the whole tensor.
        place: row and first column of that set.
    """

    values: Array
    sets: Scale | None = None
    place: tuple[int, int] = (0, 0)


def find_levels(weight: Weight, probe: Weight) -> Levels | None:
    """Find the levels of a weight with at most 16; None for an ordinary float weight.

    Args:
        probe: the first rows of it, read first: an ordinary float weight shows there.
    """
    if weight.rows * weight.columns < LEAST or _of_tensor(probe) is None:
        values = None
    else:
        values = _of_tensor(weight)
    if values is not None:
        levels, counts = values
        enough = weight.rows * weight.columns >= LEAST_EACH * len(levels)
        return Levels(levels) if enough and counts.min() > 1 else None
    best: Levels | None = None
    for granularity in _SETS:
        if granularity.group_size < weight.columns and _of_sets(probe, granularity):
            found = _of_sets(weight, granularity)
            # smaller sets have fewer levels by chance, but not half as many
            if found and (best is None or 2 * len(found.values) <= len(best.values)):
                best = found
    return best


def _of_tensor(weight: Weight) -> tuple[Array, Array] | None:
    """Sort the different values of a weight, and count each; None if there are many."""
    levels = np.zeros(0, weight.real)
    counts = np.zeros(0, np.int64)
    for piece in in_pieces(weight, _SETS[0], lambda piece: piece):
        values = piece.values.reshape(-1)
        if len(np.unique(values[: 1 << 12])) > MOST:
            return None
        while True:
            at = np.searchsorted(levels, values).clip(max=max(len(levels) - 1, 0))
            known = levels[at] == values if len(levels) else np.zeros(len(values), bool)
            if known.all():
                break
            new = np.unique(values[~known][: 1 << 16])
            if len(levels) + len(new) > MOST:
                return None
            order = np.argsort(np.concatenate([levels, new]))
            levels = np.concatenate([levels, new])[order]
            counts = np.concatenate([counts, np.zeros(len(new), np.int64)])[order]
        counts += np.bincount(at, minlength=len(levels))
    return levels, counts


def _of_sets(weight: Weight, granularity: Scale) -> Levels | None:
    """Return the levels of the first set with the most; None if a set has many, or each its own."""
    width = granularity.group_size or weight.columns
    nonzero = different = most = 0
    found: Levels | None = None
    for piece in in_pieces(weight, granularity, lambda piece: piece, whole_rows=True):
        values = by_group(piece.values, width)
        ordered = np.sort(values, axis=1)
        begins = np.ones(ordered.shape, bool)
        begins[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
        each = begins.sum(axis=1)
        if each.max() > MOST:
            return None
        nonzero += int((ordered != 0).sum())
        different += int((begins & (ordered != 0)).sum())
        if each.max() > most:
            at, most = int(each.argmax()), int(each.max())
            row, group = divmod(at, len(values) // piece.rows)
            place = (piece.row + row, group * width)
            found = Levels(ordered[at][begins[at]], granularity, place)
    return found if nonzero >= max(LEAST, LEAST_IN_SET * different) else None


def is_even(levels: Array, dtype: str) -> bool:
    """Return whether levels are evenly spaced, up to the rounding of their dtype."""
    steps = np.diff(levels.astype(np.float64))
    least = float(np.abs(levels).max()) * ROUNDING.get(dtype, 2.0**-22)
    return bool(np.ptp(steps) <= least)


def offset(levels: Array, dtype: str) -> tuple[float, float] | None:
    """Return c and s of levels ``{c-s, c, c+s}``, c not 0; None for other levels."""
    if len(levels) != 3 or levels[1] == 0 or not is_even(levels, dtype):
        return None
    return float(levels[1]), float(levels[2].astype(np.float64) - levels[0]) / 2
