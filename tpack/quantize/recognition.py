"""Recognise a weight that is not ternary: name what it is, with its numbers.

An ordinary float weight shows in its first rows that it is none of these, and no more of it is
read. What the first rows allow is then looked for in the whole weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tpack.codec import Scale
from tpack.quantize.detection import Detected
from tpack.quantize.levels import NUMBERS, Levels, find_levels, offset
from tpack.quantize.near import Near, find_near
from tpack.quantize.ordinary import is_ordinary
from tpack.quantize.pieces import in_pieces
from tpack.quantize.weight import Weight
from tpack.wording import spell

#: Weights to look at first.
PROBE = 1 << 16
#: Levels to list.
MOST_LISTED = 6
#: Sets of four columns that must be there, and the share with exactly as many zeros as all have.
FOURS, IN_MOST = 64, 0.9


@dataclass(frozen=True)
class Recognised:
    """A weight that is neither ternary nor an ordinary float weight, and what it is.

    Attributes:
        kind: a short phrase, the same for all weights of the kind: ``nearly ternary``.
        text: completes "tensor X ...", with the numbers.
        advice: what to do about it, one sentence.
    """

    kind: str
    text: str
    advice: str


def recognise(weight: Weight, detected: Detected) -> Recognised | None:
    """Name what a weight is that is not ternary; None for an ordinary float weight.

    Args:
        detected: of this weight.

    Example:
        >>> values = np.float32([[-1.5, 0, 0.5, 0.5], [0, 0.5, -1.5, 0]] * 16)
        >>> weight = Weight.of(values)
        >>> from tpack.quantize import detect
        >>> recognise(weight, detect(weight)).text
        'has two scales: -1.5 and 0.5'
    """
    if detected.found is not None or not weight.rows * weight.columns or is_ordinary(weight):
        return None
    rows = min(weight.rows, max(1, PROBE // weight.columns))
    probe = Weight((rows, weight.columns), 1, weight.dtype, weight.load)
    if near := find_near(weight, probe):
        # ternary at another granularity than was asked for, or one that makes nothing smaller
        return _near(near, weight) if near.exact.count else None
    if levels := find_levels(weight, probe):
        return _levels(levels, weight.dtype)
    return _sparse(weight, probe)


def _near(near: Near, weight: Weight) -> Recognised:
    """Name a weight that nearly is ternary."""
    of = f"of {weight.rows * weight.columns} values"
    scope = {
        "tensor": "",
        "row": " with a scale for each row,",
        "column": " with a scale for each column,",
    }.get(near.granularity.kind, f" with a scale for each group of {near.granularity.group_size},")
    if near.is_few(near.exact):
        deviants = near.exact
        text = f"is ternary{scope} but for {deviants.count} {of}"
    elif near.loose.count:
        deviants = near.loose
        text = f"is ternary{scope} but for rounding and for {deviants.count} {of}"
    else:
        deviants = near.exact
        text = (
            f"is ternary{scope} but for rounding: {deviants.count} {of} differ by up to "
            f"{near.rounding:.2g} times the scale"
        )
    assert deviants.first is not None
    index, value, scale = deviants.first
    where = ", ".join(map(str, index))
    where = f"({where},)" if len(index) == 1 else f"({where})"
    return Recognised(
        "nearly ternary",
        f"{text}: at index {where} {number(value)} is found, expected ±{number(scale)} or 0",
        "Set these values to the nearest level; or, if every weight that is not ternary may be "
        f"rounded, do it with {spell(quantize='mse', scale=str(near.granularity))}, which hardly "
        "changes this one.",
    )


def _levels(levels: Levels, dtype: str) -> Recognised | None:
    """Name a weight of few different values."""
    values = levels.values
    kind, text, advice = _name(values, dtype)
    if levels.sets is None:
        return Recognised(kind, text, advice)
    row, column = levels.place
    if levels.sets.kind == "row":
        sets, place = "row", f"row {row}"
    else:
        sets = f"group of {levels.sets.group_size} columns"
        place = f"the group of row {row} that begins at column {column}"
    return Recognised(
        f"{kind} in each {levels.sets.kind}",
        f"has no more than {NUMBERS[len(values)]} different values in each {sets}; {place} {text}",
        advice,
    )


def _name(values: Any, dtype: str) -> tuple[str, str, str]:
    """Return kind, text and advice for the sorted different values of a weight."""
    count = len(values)
    listed = ", ".join(map(number, values[:MOST_LISTED]))
    if count > MOST_LISTED:
        listed += f", … {number(values[-1])}"
    bits = max(1, (count - 1).bit_length())
    keep = f"These are codes of {bits} bit{'s' * (bits > 1)}: trits do not hold them."
    if count == 3 and values[1] == 0:
        text = f"has two scales: {number(values[0])} and {number(values[2])}"
        advice = "One scale for both signs does not hold them: rounding changes most values."
        return "two scales", text, advice
    if found := offset(values, dtype):
        text = f"has an offset: its values are {found[0]:.6g} - s, {found[0]:.6g} and "
        text += f"{found[0]:.6g} + s, where s is {found[1]:.6g}"
        advice = "Subtract the offset, and add it in the layer: what is left is ternary."
        return "an offset", text, advice
    kind = f"{NUMBERS[count]} levels"
    zero = "" if (values == 0).any() else " and no zero"
    text = f"has {NUMBERS[count]} levels{zero}: {listed}"
    if count == 2:
        middle, half = float(values[0] / 2 + values[1] / 2), float(values[1] / 2 - values[0] / 2)
        text += f" (binary: {middle:.6g} ± {half:.6g})"
    elif count == 4 and np.allclose(values / values[3], (-1, -1 / 3, 1 / 3, 1), rtol=1e-3):
        text += " (2-bit SEQ)"
    elif (values == np.rint(values)).all():
        text += " (whole numbers)"
    return kind, text, keep


def _sparse(weight: Weight, probe: Weight) -> Recognised | None:
    """Name a weight with as many zeros in every four columns, as hardware wants it."""
    least = _least_zeros(probe, 0)
    if not least or not (least := _least_zeros(weight, least)):
        return None
    kind = f"{4 - least}:4 sparse"
    text = f"is {kind}: no four columns have more than {4 - least} values that are not 0, "
    text += "and the values are not ternary"
    return Recognised(kind, text, "Rounding to trits changes all values, and where the zeros are.")


def _least_zeros(weight: Weight, expected: int) -> int:
    """Return how many zeros every set of four columns has at least, if most have just so many."""
    if weight.columns % 4:
        return 0
    counts = np.zeros(5, np.int64)
    zeros = np.zeros(weight.columns, np.int64)
    for piece in in_pieces(weight, Scale.parse("row"), lambda piece: piece, whole_rows=True):
        zero = piece.values.reshape(-1, 4) == 0
        counts += np.bincount(zero.sum(axis=1), minlength=5)
        zeros += (piece.values == 0).sum(axis=0)
        if counts[0] or counts[:expected].any():
            return 0
    least, fours = int((counts > 0).argmax()), int(counts.sum())
    # columns of zeros are no pattern: padding, or pruned
    pruned = zeros[zeros > IN_MOST * weight.rows].sum()
    if least > 3 or fours < FOURS or 2 * pruned > zeros.sum():
        return 0
    return least if counts[least] >= IN_MOST * fours else 0


def number(value: Any) -> str:
    """Return the shortest text that gives back a number in its dtype."""
    return str(value).removesuffix(".0")
