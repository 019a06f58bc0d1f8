"""Find weights that are ternary except for a few values, or for rounding."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from tpack.codec import Scale
from tpack.kernels.reference import by_group
from tpack.quantize.pieces import Piece, in_pieces
from tpack.quantize.weight import Weight

Array = npt.NDArray[Any]

#: What is tried, coarsest first, and the finest, which fails only where those it divides do.
TRIED = tuple(
    Scale.parse(text)
    for text in ("tensor", "row", "column", "group:256", "group:128", "group:64", "group:32")
)
FINEST = TRIED[-1]
#: One nonzero value in so many may deviate; in a part of the weight, one in so many.
FEW, FEW_OF_PART = 100, 10
#: How far a value may be from a level and count as rounded to it, in scales.
ROUNDING = 1e-3
#: Values that must agree with another of their set.
EVIDENCE = 8


@dataclass
class Deviants:
    """Values of a weight that are not in ``{-s, 0, +s}``.

    Attributes:
        count: how many.
        first: index of the first; the value there; the s of its set.
        agreeing: values near the scale that do not deviate.
    """

    count: int = 0
    first: tuple[tuple[int, ...], Any, Any] | None = None
    agreeing: int = 0


@dataclass
class Near:
    """How nearly a weight is ternary at a granularity.

    Attributes:
        exact: values that differ from the levels at all.
        loose: values that differ by more than ``ROUNDING``.
        rounding: the largest difference of those that do not, in scales.
        nonzero: nonzero values.
        sets: sets with a nonzero value.
    """

    granularity: Scale
    exact: Deviants = field(default_factory=Deviants)
    loose: Deviants = field(default_factory=Deviants)
    rounding: float = 0.0
    nonzero: int = 0
    sets: int = 0

    def is_few(self, deviants: Deviants) -> bool:
        """Whether few enough values deviate for the weight to be nearly ternary."""
        few = deviants.count <= max(1, self.nonzero // FEW)
        return few and deviants.agreeing - self.sets >= max(EVIDENCE, self.sets // 2)

    def add(self, piece: Piece, scales: Array | None, weight: Weight) -> Array:
        """Count the deviants of a piece.

        Args:
            scales: the s of each set that began in an earlier piece, 0 where it is not known.

        Returns:
            The s of each set.
        """
        values = piece.values
        sets = _sets(values, self.granularity)
        sizes = np.abs(sets)
        known = scales
        if known is None or not known.all():
            here = _scales(sizes)
            known = here if known is None else np.where(known == 0, here, known)
        differs = np.minimum(sizes, np.abs(sizes - known[:, None]))
        exact, loose = differs != 0, differs > ROUNDING * known[:, None]
        present = sets != 0
        at_scale = sizes > known[:, None] / 2
        self.nonzero += int(present.sum())
        self.sets = self.sets * (scales is None) + int((known != 0).sum())
        with np.errstate(divide="ignore", invalid="ignore"):
            relative = differs / known[:, None]
        self.rounding = max(self.rounding, float(relative[exact & ~loose].max(initial=0)))
        for deviants, other in ((self.exact, exact), (self.loose, loose)):
            count = int(other.sum())
            deviants.count += count
            deviants.agreeing += int((at_scale & ~other).sum())
            if count and deviants.first is None:
                at, place = divmod(int(other.argmax()), sets.shape[1])
                row, column = self._place(at, place, values.shape)
                flat = (piece.row + row) * weight.columns + piece.column + column
                deviants.first = (weight.index(flat), values[row, column], known[at])
        return known

    def _place(self, at: int, place: int, shape: tuple[int, ...]) -> tuple[int, int]:
        """Return row and column, in its piece, of a value of a set."""
        kind = self.granularity.kind
        if kind == "tensor":
            return divmod(place, shape[1])
        if kind == "column":
            return place, at
        if kind == "row":
            return at, place
        row, group = divmod(at, -(-shape[1] // self.granularity.group_size))
        return row, group * self.granularity.group_size + place


def find_near(weight: Weight, probe: Weight) -> Near | None:
    """Find the coarsest granularity at which a weight nearly is ternary; None if it is at none.

    Args:
        probe: the first rows of it, read first: an ordinary float weight shows there.
    """
    columns = weight.columns
    finest = _count(probe, FINEST) is not None
    for granularity in TRIED:
        inside = granularity.kind in ("row", "group")
        if inside and (not finest or granularity.group_size >= columns):
            continue
        if _count(probe, granularity) is None:
            continue
        near = _count(weight, granularity)
        if near is not None and (near.is_few(near.exact) or near.is_few(near.loose)):
            return near
    return None


def _count(weight: Weight, granularity: Scale) -> Near | None:
    """Count what deviates; None as soon as it is too much."""
    near, scales = Near(granularity), None
    shared = granularity.kind in ("tensor", "column")
    for piece in _pieces(weight):
        found = near.add(piece, scales, weight)
        if shared:
            scales = found
        if near.loose.count > max(1, near.nonzero // FEW_OF_PART):
            return None
    return near


def _pieces(weight: Weight) -> Iterator[Piece]:
    return in_pieces(weight, TRIED[1], lambda piece: piece, whole_rows=True)


def _sets(values: Array, granularity: Scale) -> Array:
    """Lay out the values of each set of a piece, ``(sets, values in a set)``, padded with zeros."""
    if granularity.kind == "tensor":
        return values.reshape(1, -1)
    if granularity.kind == "column":
        return values.T
    return by_group(values, granularity.group_size or values.shape[1])


def _scales(sizes: Array) -> Array:
    """Find the s that fits most values of each set, 0 where all are zero.

    It is the median of |w|: of those that are not zero, or, where zeros are noise, of those that
    are not small. The one from which fewer differ is taken.

    Args:
        sizes: |w|, ``(sets, values in a set)``.
    """
    ordered = np.sort(sizes, axis=1)
    width = ordered.shape[1]
    top = ordered[:, width - 1 - width // 64]
    found: list[Array] = []
    for least in (np.zeros_like(top), top / 8):
        count = (ordered > least[:, None]).sum(axis=1)
        middle = width - 1 - count // 2
        found.append(
            ordered[np.arange(len(ordered)), np.maximum(middle, width - count).clip(max=width - 1)]
        )
    median, large = found
    if np.array_equal(median, large):
        return median
    misses = [
        (np.minimum(sizes, np.abs(sizes - s[:, None])) > ROUNDING * s[:, None]).sum(axis=1)
        for s in found
    ]
    return np.where(misses[0] <= misses[1], median, large)
