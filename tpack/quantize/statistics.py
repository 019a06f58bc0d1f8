"""What one pass over a weight finds out: whether it is ternary, and the sums of |w|."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from threading import Event
from typing import Any

import numpy as np
import numpy.typing as npt

from tpack import kernels
from tpack.codec import Scale
from tpack.errors import InputError
from tpack.kernels import reference
from tpack.quantize.pieces import Piece, Place, for_kernels, in_pieces
from tpack.quantize.sets import Sums
from tpack.quantize.weight import Weight, numbers
from tpack.wording import spell

Array = npt.NDArray[Any]
Bytes = npt.NDArray[np.uint8]

#: The groups in which the kernels look for a single |w|, and those that are tried after them.
GROUP, FINE = (Scale.parse(f"group:{n}") for n in (reference.RANGE_GROUP, 16))
#: Values that are looked at before more are.
GLANCE = 1 << 12


@dataclass(frozen=True)
class Statistics:
    """What is known of a weight.

    Attributes:
        granularity: of the sums.
        sums: of |w|, ``(1,)`` or ``(rows, sets in a row)``.
        group: what ``scales`` belong to.
        scales: where every such group is ``{-s, 0, +s}``, its s, ``(rows, groups)``, and 0 where
            all are zero; None where a group is not.
        columns: the same for every column, ``(1, columns)``; None where a column is not, or
            where the whole tensor is, which is coarser.
        packed: the trits of a weight with ``scales`` or ``columns``, each compared with its
            source, in pieces as ``encode_blocks`` hands them out; None where they are still to
            be packed.
    """

    granularity: Scale
    sums: npt.NDArray[np.float64]
    group: Scale
    scales: Array | None
    columns: Array | None = None
    packed: tuple[tuple[Bytes, int], ...] | None = None


def join(scales: Array, of: Scale, to: Scale) -> Array | None:
    """Join sets that are ``{-s, 0, +s}`` to coarser ones, which are so where all s agree.

    Args:
        scales: the s of each set of ``of``, ``(rows, sets in a row)``; 0 where all are zero.

    Returns:
        Those of ``to``, ``(rows, sets in a row)`` or ``(1, 1)``; None if some s differ.
    """
    if to.kind == "group":
        return _join_columns(scales, to.group_size // of.group_size)
    rows = _join_columns(scales, scales.shape[1])
    if rows is None or to.kind == "row":
        return rows
    return _join_columns(rows.reshape(1, -1), len(rows))


def _join_columns(scales: Array, factor: int) -> Array | None:
    """Join every ``factor`` columns, by halves as long as that goes or makes no difference."""
    if not scales.size:  # a row of no columns still has one set
        return np.zeros((len(scales), 1 if factor == scales.shape[1] else 0), scales.dtype)
    if factor >= scales.shape[1]:
        factor = 1 << (scales.shape[1] - 1).bit_length()
    while factor > 1:
        step = 2 if factor % 2 == 0 else factor
        joined = scales[:, ::step].copy()
        for place in range(1, step):
            other = scales[:, place::step]
            own = joined[:, : other.shape[1]]
            if _differ(own, other):
                return None
            np.maximum(own, other, out=own)
        scales, factor = joined, factor // step
    return scales


def _differ(one: Array, other: Array) -> bool:
    """Return where the s of two sets (0: all zero) differ, so that they cannot be joined."""
    return bool(((one != other) & (one != 0) & (other != 0)).any())


def measure(weight: Weight, granularity: Scale, wanted: Scale | None) -> Statistics:
    """Take the statistics of a weight in one pass.

    As long as it may be ternary, its pieces are packed and proved on the way, while they are in
    a cache: a ternary weight is read once.

    Args:
        granularity: what a sum of |w| is taken of.
        wanted: what should be ternary; None for anything.

    Raises:
        InputError: NaN or infinity, with the index of the first.
    """
    survey = _Survey(weight, granularity, wanted)
    return survey.result(list(in_pieces(weight, granularity, survey.look)))


@dataclass(frozen=True)
class _Part:
    """What a look at a piece gives, beside what it writes where it belongs.

    Attributes:
        place: of the piece.
        fine: whether groups of 16 were looked at.
        columns: the s of its columns ``(columns,)``, if they were looked at.
        size: where all that is not zero has one |w|, that, and 0 where all is zero.
        packed: the trits, if they were packed.
    """

    place: Place
    fine: bool
    columns: Array | None
    size: float | None
    packed: Bytes | None


class _Survey:
    """Looks at the pieces of a weight; what is not ternary in one is not looked at in others."""

    def __init__(self, weight: Weight, granularity: Scale, wanted: Scale | None) -> None:
        odd = wanted is not None and wanted.group_size % GROUP.group_size != 0
        self.weight, self.granularity, self.wanted = weight, granularity, wanted
        self.group = wanted if wanted is not None and odd else GROUP
        self.sums = Sums(weight, granularity)
        self.native = for_kernels(weight, self.group)
        matrix = weight.rows, weight.columns
        # memory that is not written to costs nothing
        self.scales = np.empty(self.group.shape(matrix, 1), weight.real)
        self.fine = np.empty(FINE.shape(matrix, 1), weight.real)
        self.mixed, self.finely_mixed, self.crossed = Event(), Event(), Event()
        if wanted is not None:
            self.finely_mixed.set()
            (self.mixed if wanted.kind == "column" else self.crossed).set()

    def look(self, piece: Piece) -> _Part | None:
        """Look at a piece; None where the weight is known not to be ternary."""
        largest, smallest = self.sums.survey(piece, self.group)
        if not np.isfinite(largest).all():
            raise _not_finite(self.weight, piece)
        whole = not ((largest != smallest) & (largest != 0)).any()
        if not whole:
            self.mixed.set()
        if not self.mixed.is_set():
            piece.part(self.scales, self.group)[...] = largest
        fine = self.mixed.is_set() and not self.finely_mixed.is_set()
        if fine and not _fill(piece, self.fine):
            self.finely_mixed.set()
            fine = False
        size, columns = _one_size(largest) if whole else None, None
        if not self.crossed.is_set() and (size is None or not self.native):
            columns = _columns(piece)
            if columns is None:
                self.crossed.set()
        if self.mixed.is_set() and self.finely_mixed.is_set() and self.crossed.is_set():
            return None
        packed = self._pack(piece, largest if whole else None) if self.native else None
        place = Place(piece.row, piece.column, piece.rows, piece.columns)
        return _Part(place, fine, columns, size, packed)

    def _pack(self, piece: Piece, scales: Array | None) -> Bytes:
        if scales is None:  # the look at finer groups or at columns is the proof
            return kernels.quantize(piece.stored, np.zeros(1, np.float32), threads=piece.threads)
        packed, different = kernels.quantize_exact(
            piece.stored, scales, self.group.group_size, threads=piece.threads
        )
        assert different < 0, "ranges found a group ternary that is not"
        return packed

    def result(self, looks: list[_Part | None]) -> Statistics:
        """Put together what the looks at all pieces gave."""
        parts = [part for part in looks if part is not None]
        group, scales = self.group, None if self.mixed.is_set() else self.scales
        if scales is None and not self.finely_mixed.is_set():
            for part in parts:
                if not part.fine:  # looked at before a piece was that needs them
                    of = part.place.part(self.scales, self.group).repeat(2, axis=1)
                    own = part.place.part(self.fine, FINE)
                    own[...] = of[:, : own.shape[1]]
            group, scales = FINE, self.fine
        columns = None if self.crossed.is_set() else self._join(parts)
        packed = None
        if self.native and (scales is not None or columns is not None):
            packed = tuple((p.packed, p.place.columns) for p in parts if p.packed is not None)
        return Statistics(self.granularity, self.sums.values, group, scales, columns, packed)

    def _join(self, parts: list[_Part]) -> Array | None:
        """Return the s of all columns; None if they differ, or the tensor has only one s."""
        sizes = {part.size for part in parts if part.size != 0}
        if self.wanted is None and len(sizes) < 2 and None not in sizes:
            return None
        total = np.zeros((1, self.weight.columns), self.weight.real)
        for part in parts:
            columns = part.columns
            if columns is None:
                assert part.packed is not None, "a piece of one size was not packed"
                columns = _used(part.packed, part.place.columns) * self.weight.real(part.size)
            own = part.place.part(total, _COLUMN)[0]
            if _differ(own, columns):
                return None
            np.maximum(own, columns, out=own)
        return total


_COLUMN = Scale.parse("column")


def _fill(piece: Piece, scales: Array) -> bool:
    """Write the s of each group of 16 of a piece; False where a group is not ternary."""
    corner = np.abs(numbers(piece.stored[:16, : FINE.group_size]))
    if _differ(corner, corner.max(axis=1, keepdims=True)):
        return False
    own = piece.part(scales, FINE)
    for rows in _glances(piece):
        largest, smallest = reference.ranges(numbers(piece.stored[rows]), FINE.group_size)
        if ((largest != smallest) & (largest != 0)).any():
            return False
        own[rows] = largest
    return True


def _columns(piece: Piece) -> Array | None:
    """Return the s of each column of a piece; None if a column is not ternary."""
    double = piece.stored.dtype == np.float64
    sizes: Array = np.zeros(piece.columns, np.float64 if double else np.float32)
    for rows in _glances(piece):
        if double:
            fits = reference.column_sizes(piece.stored[rows], sizes)
        else:
            fits = (
                kernels.column_sizes(piece.stored[rows], sizes, threads=piece.threads) is not None
            )
        if not fits:
            return None
    return sizes


def _glances(piece: Piece) -> Iterator[slice]:
    """Yield ranges of rows to look at, more and more at a time."""
    start, step = 0, max(1, GLANCE // piece.columns)
    while start < piece.rows:
        yield slice(start, start + step)
        start, step = start + step, 4 * step


def _one_size(largest: Array) -> float | None:
    """Return the one |w| of all sets that are not zero; 0 if all are; None if there are several."""
    size = largest.max(initial=0)
    return float(size) if ((largest == size) | (largest == 0)).all() else None


def _used(packed: Bytes, columns: int) -> npt.NDArray[np.bool_]:
    """Return which columns hold a trit that is not 0, bool ``(columns,)``."""
    # code 1 of each column is 0 in the exclusive or, both others are not
    bits = np.bitwise_or.reduce(packed ^ np.uint8(0x55), axis=0)
    codes = (bits[:, None] >> np.arange(0, 8, 2, dtype=np.uint8)) & 3
    used: npt.NDArray[np.bool_] = codes.reshape(-1)[:columns] != 0
    return used


def _not_finite(weight: Weight, piece: Piece) -> InputError:
    values = piece.values
    row, column = np.unravel_index(int(np.isfinite(values).argmin()), values.shape)
    index = weight.index((piece.row + int(row)) * weight.columns + piece.column + int(column))
    return InputError(
        f"holds {values[row, column]} at index {index}, expected finite values. Training may "
        f"have diverged: repair it, or keep it with {spell(exclude=[...])}."
    )
