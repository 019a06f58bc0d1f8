"""What one pass over a weight tells: whether it is ternary, and the sums of |w|."""

from __future__ import annotations

from dataclasses import dataclass
from threading import Event
from typing import Any

import numpy as np
import numpy.typing as npt

from tpack import kernels
from tpack.codec import Scale
from tpack.errors import InputError
from tpack.kernels import reference
from tpack.quantize.pieces import Piece, for_kernels, in_pieces
from tpack.quantize.sets import Sums
from tpack.quantize.weight import Weight

Array = npt.NDArray[Any]
Bytes = npt.NDArray[np.uint8]

#: The groups in which the kernels look for a single |w|.
GROUP = Scale.parse(f"group:{reference.RANGE_GROUP}")


@dataclass(frozen=True)
class Statistics:
    """What is known of a weight.

    Attributes:
        granularity: of the sums.
        sums: of |w|, ``(1,)`` or ``(rows, sets in a row)``.
        group: what ``scales`` belong to.
        scales: where every such group is ``{-s, 0, +s}``, its s, ``(rows, groups)``, and 0 where
            all are zero; None where a group is not.
        packed: the trits of a weight with ``scales``, each compared with its source, in pieces
            as ``encode_blocks`` hands them out; None where they are still to be packed.
    """

    granularity: Scale
    sums: npt.NDArray[np.float64]
    group: Scale
    scales: Array | None
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
            if ((own != other) & (own != 0) & (other != 0)).any():
                return None
            np.maximum(own, other, out=own)
        scales, factor = joined, factor // step
    return scales


def measure(weight: Weight, granularity: Scale) -> Statistics:
    """Take the statistics of a weight in one pass.

    As long as all groups are ternary, the pieces are packed and proved on the way, while they
    are in a cache: a ternary weight is read once.

    Args:
        granularity: what a sum of |w| is taken of.

    Raises:
        InputError: NaN or infinity, with the index of the first.
    """
    group = granularity if granularity.group_size % GROUP.group_size else GROUP
    scales = np.empty(group.shape((weight.rows, weight.columns), 1), weight.real)
    sums = Sums(weight, granularity)
    mixed = Event()
    native = for_kernels(weight, group)

    def survey(piece: Piece) -> tuple[Bytes, int] | None:
        largest, smallest = sums.survey(piece, group)
        if not np.isfinite(largest).all():
            raise _not_finite(weight, piece)
        if ((largest != smallest) & (largest != 0)).any():
            mixed.set()
        if mixed.is_set():
            return None
        piece.part(scales, group)[...] = largest
        if not native:
            return None
        packed, different = kernels.quantize_exact(
            piece.stored, largest, group.group_size, threads=piece.threads
        )
        assert different < 0, "ranges found a group ternary that is not"
        return packed, piece.stored.shape[1]

    packed = tuple(found for found in in_pieces(weight, granularity, survey) if found)
    if mixed.is_set():
        return Statistics(granularity, sums.values, group, None)
    return Statistics(granularity, sums.values, group, scales, packed if native else None)


def _not_finite(weight: Weight, piece: Piece) -> InputError:
    values = piece.values
    row, column = np.unravel_index(int(np.isfinite(values).argmin()), values.shape)
    index = weight.index((piece.row + int(row)) * weight.columns + piece.column + int(column))
    return InputError(
        f"holds {values[row, column]} at index {index}, expected finite values. Training may "
        "have diverged: repair it or keep it with --exclude."
    )
