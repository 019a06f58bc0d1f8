"""Tell what a weight is that is not ternary: by name, with its numbers.

Published models hold weights that are almost ternary, or have few levels of another kind. Each is
read once more, and no further than it takes to see that it is an ordinary float weight.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from tpack.codec import Scale
from tpack.quantize.detect import Detected
from tpack.quantize.pieces import Piece, in_pieces
from tpack.quantize.weight import Weight

Array = npt.NDArray[Any]

#: More values than this are those of an ordinary float weight.
MOST_LEVELS = 16
#: The part of all values that may be off in a weight that is nearly ternary.
FEW = 0.01
#: Values that are not zero that each level or set must have: with fewer it may be chance.
EVIDENCE = 16
#: How far from its level, as a part of it, a value is that only was rounded.
ROUNDED = 1e-3
#: Where levels are looked for, coarsest first.
GRANULARITIES = tuple(Scale.parse(text) for text in ("tensor", "row", "column", "group:128"))

_GROUP = Scale.parse("group:128")


@dataclass(frozen=True)
class Recognised:
    """What a weight is that is not ternary, and no ordinary float weight either.

    Attributes:
        kind: a short phrase, the same for all weights of the kind: ``nearly ternary``.
        text: completes "tensor X ...", with the numbers.
        advice: what to do about it, one sentence.
    """

    kind: str
    text: str
    advice: str


def recognise(weight: Weight, detected: Detected) -> Recognised | None:
    """Tell what a weight is that is not ternary; None for an ordinary float weight.

    Args:
        weight: its values, which are read again, from the beginning as far as needed.
        detected: of this weight; without a fit.
    """
    if detected.fit is not None or weight.rows * weight.columns < MOST_LEVELS:
        return None
    looks: list[_Look] = [_Near(weight, scale) for scale in GRANULARITIES]
    looks += [_Levels(weight), _Signs(weight, 0), _Signs(weight, _GROUP.group_size)]
    looks += [_Sparse(weight, zeros) for zeros in (2, 1)]
    for piece in in_pieces(weight, _GROUP, lambda piece: piece):
        for look in looks:
            if look.alive:
                look.at(piece)
        if not any(look.alive for look in looks):
            return None
    return next((found for look in looks if look.alive and (found := look.found())), None)


@dataclass
class _Look:
    """One thing that a weight may be; no longer ``alive`` once a piece has spoken against it."""

    weight: Weight
    alive: bool = field(default=True, init=False)

    def at(self, piece: Piece) -> None:
        raise NotImplementedError

    def found(self) -> Recognised | None:
        raise NotImplementedError


@dataclass
class _Near(_Look):
    """Ternary but for a few values, or but for the rounding of all of them."""

    scale: Scale
    level: Array | None = None
    seen: int = 0
    other: int = 0
    far: int = 0
    nonzero: int = 0
    sets: int = 0
    first: tuple[tuple[int, ...], str, str] | None = None

    def at(self, piece: Piece) -> None:
        values = piece.values
        size = np.abs(values)
        level = self._levels(size)
        exact = (size == level) | (size == 0)
        near = exact | (np.abs(size - level) <= ROUNDED * level) | (size <= ROUNDED * level)
        self.seen += size.size
        self.other += int((~exact).sum())
        self.far += int((~near).sum())
        self.nonzero += int((exact & (size != 0)).sum())
        if self.first is None and not exact.all():
            row, column = np.unravel_index(int(exact.argmin()), exact.shape)
            place = (piece.row + int(row)) * self.weight.columns + piece.column + int(column)
            expected = np.broadcast_to(level, size.shape)[row, column]
            index = self.weight.index(place)
            self.first = index, str(values[row, column]), str(expected)
        few = self.other <= FEW * self.seen + 1 and self.nonzero >= 10 * self.other
        self.alive = bool(few or not self.far)

    def _levels(self, size: Array) -> Array:
        """The level of each value: the middle one of what is not zero in its set."""
        if self.scale.kind in ("tensor", "column"):
            if self.level is None:
                whole = self.scale.kind == "tensor"
                self.level = _middle(size.reshape(1, -1) if whole else size.T)
                self.level = self.level.reshape(1, -1)
                self.sets = int(np.count_nonzero(self.level))
            return self.level
        width = self.scale.group_size or size.shape[1]
        parts = []
        for start in range(0, size.shape[1], width):
            part = size[:, start : start + width]
            level = _middle(part)
            self.sets += int(np.count_nonzero(level))
            parts.append(np.broadcast_to(level, part.shape))
        return np.concatenate(parts, axis=1)

    def found(self) -> Recognised | None:
        if self.first is None or self.nonzero + self.other < EVIDENCE * self.sets:
            return None
        index, value, expected = self.first
        where = "" if self.scale.kind == "tensor" else f" per {self.scale}"
        what = f"but for {self.other} of {self.seen} values"
        if not self.far and self.other > FEW * self.seen:
            what = f"but for rounding, which moves {self.other} of {self.seen} values"
        return Recognised(
            "nearly ternary",
            f"is ternary{where} {what}: at index {index} it holds {value}, expected 0 or "
            f"±{expected}",
            "Set such values to their level before converting, or round with --quantize mse, "
            "which keeps the level as the scale.",
        )


def _middle(size: Array) -> Array:
    """The median of what is not zero in each row of |w|, or 0; values of the row, not between."""
    ordered = np.sort(size, axis=1)
    zeros = (ordered <= ROUNDED * ordered[:, -1:]).sum(axis=1)
    at = np.minimum(zeros + (size.shape[1] - zeros) // 2, size.shape[1] - 1)
    return np.take_along_axis(ordered, at[:, None], axis=1)


@dataclass
class _Levels(_Look):
    """A few values in the whole weight, each used again and again."""

    levels: Array | None = None
    nonzero: int = 0

    def at(self, piece: Piece) -> None:
        values = piece.values + 0  # without -0.0
        own = np.unique(values)
        self.levels = own if self.levels is None else np.union1d(self.levels, own)
        self.nonzero += int(np.count_nonzero(values))
        self.alive = len(self.levels) <= MOST_LEVELS

    def found(self) -> Recognised | None:
        assert self.levels is not None
        levels = [float(level) for level in self.levels]
        if len(levels) < 2 or self.nonzero < EVIDENCE * len(levels):
            return None
        shown = ", ".join(f"{level:.6g}" for level in levels[:6]) + ", …" * (len(levels) > 6)
        low, high = levels[0], levels[-1]
        if len(levels) == 3 and levels[1] == 0:
            return Recognised(
                "two scales",
                f"has two scales, {low:.6g} for -1 and {high:.6g} for +1, as trained ternary "
                "quantization (TTQ) gives it",
                "A ternary weight has one: keep it.",
            )
        if len(levels) in (2, 3) and math.isclose(levels[1] - low, high - levels[-2], rel_tol=1e-5):
            centre, step = (low + high) / 2, (high - low) / 2
            return Recognised(
                "an offset",
                f"is {'ternary' if len(levels) == 3 else 'binary'} around an offset: "
                f"{centre:.6g} ± {step:.6g}",
                "Subtract the offset from the weight and add it in the forward, or keep it.",
            )
        even = _evenly_spaced(levels)
        seq = len(levels) == 4 and 0 not in levels and even and math.isclose(low, -high)
        known = " (2-bit SEQ)" if seq else ", evenly spaced" if even else ""
        word = {2: "two", 3: "three", 4: "four"}.get(len(levels), str(len(levels)))
        zero = "" if 0 in levels else ", no zero"
        return Recognised(
            f"{word} levels",
            f"has {word} levels{zero}: {shown}{known}",
            f"It holds codes of {max(1, math.ceil(math.log2(len(levels))))} bits: keep it.",
        )


def _evenly_spaced(levels: list[float]) -> bool:
    steps = np.diff(levels)
    return bool(np.allclose(steps, steps[0], rtol=1e-4, atol=0))


@dataclass
class _Signs(_Look):
    """One level for the positive and one for the negative values of each set, or two sizes."""

    width: int
    one_each: bool = True
    two_sizes: bool = True
    example: tuple[float, ...] = ()
    nonzero: int = 0
    sets: int = 0

    def at(self, piece: Piece) -> None:
        values = piece.values
        width = self.width or values.shape[1]
        if values.shape[1] % width or width < EVIDENCE:
            self.alive = False
            return
        sets = values.reshape(-1, width) + 0  # without -0.0
        self.nonzero += int(np.count_nonzero(sets))
        self.sets += int(sets.any(axis=1).sum())
        size = np.abs(sets)
        for sign in (1, -1):
            part = np.where(sets * sign > 0, size, np.nan)
            with np.errstate(all="ignore"):
                low, high = np.fmin.reduce(part, axis=1), np.fmax.reduce(part, axis=1)
            self.one_each &= bool(((low == high) | np.isnan(low)).all())
        low, high = size.min(axis=1, keepdims=True), size.max(axis=1, keepdims=True)
        self.two_sizes &= bool(((size == low) | (size == high)).all() and (low > 0).all())
        self.alive = self.one_each or self.two_sizes
        if not self.example:
            self.example = tuple(float(v) for v in np.unique(sets[0])[:4])

    def found(self) -> Recognised | None:
        if self.nonzero < EVIDENCE * self.sets:
            return None
        per = f"group:{self.width}" if self.width else "row"
        shown = ", ".join(f"{value:.6g}" for value in self.example)
        if self.one_each:
            return Recognised(
                "two scales",
                f"has two scales per {per}, one for each sign: the first holds {shown}",
                "A ternary weight has one: keep it.",
            )
        return Recognised(
            "four levels",
            f"has four levels per {per}, no zero: the first holds {shown}",
            "It holds codes of 2 bits: keep it.",
        )


@dataclass
class _Sparse(_Look):
    """Zeros by a rule: at least so many of every four columns, and hardly ever more."""

    zeros: int
    exact: int = 0
    blocks: int = 0

    def at(self, piece: Piece) -> None:
        values = piece.values
        if values.shape[1] % 4:
            self.alive = False
            return
        counts = (values.reshape(-1, 4) == 0).sum(axis=1)
        self.exact += int((counts == self.zeros).sum())
        self.blocks += len(counts)
        self.alive = bool((counts >= self.zeros).all()) and self.exact >= 0.9 * self.blocks

    def found(self) -> Recognised | None:
        if self.blocks < 64:
            return None
        return Recognised(
            f"{4 - self.zeros}:4 sparse",
            f"is {4 - self.zeros}:4 sparse, with values of any size: {self.zeros} of every 4 "
            "columns are zero",
            "Its zeros are a rule of its training: keep it.",
        )
