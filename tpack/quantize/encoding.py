"""Write the trits of a fitted weight, and measure what that loses."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tpack import kernels
from tpack.kernels import reference
from tpack.kernels.reference import add_in_order
from tpack.quantize.fitting import Fit, spread
from tpack.quantize.pieces import Piece, for_kernels, in_pieces
from tpack.quantize.sets import Doubles, kernel_group
from tpack.quantize.weight import Weight, changed, widen

Array = npt.NDArray[Any]
Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Encoded:
    """The packed rows of a weight ``(rows, ceil(columns / 4))``, and ‖w - s·q‖ / ‖w‖."""

    packed: Bytes
    relative_error: float


def encode(weight: Weight, fit: Fit) -> Encoded:
    """Encode a whole weight in memory."""
    parts: list[Bytes] = []
    error = encode_blocks(weight, fit, lambda packed, _: parts.append(packed.reshape(-1)))
    flat = np.concatenate([np.empty(0, np.uint8), *parts])
    return Encoded(flat.reshape(weight.rows, -(-weight.columns // 4)), error)


def encode_blocks(weight: Weight, fit: Fit, take: Callable[[Bytes, int], None]) -> float:
    """Hand the packed rows of a weight, piece by piece, to ``take``; return the relative error.

    Where the fit is exact, every ``scale * trit`` is unpacked and compared with its source, here
    or when it was measured: the proof that packing is lossless, not an assumption of it.

    Args:
        take: called with packed rows in layout t2, ``(rows, ceil(columns / 4))``, and their
            number of columns. Of a row that is cut, all pieces but the last have a multiple
            of 20 columns: whole bytes in every layout.

    Raises:
        InputError: the weight is not what was fitted: its source changed.
    """
    if fit.packed is not None:
        for packed, columns in fit.packed:
            take(packed, columns)
        return 0.0
    scale = widen(fit.scale, fit.dtype)
    squares = np.zeros((weight.rows, 2))
    native = for_kernels(weight, fit.granularity)

    def work(piece: Piece) -> tuple[Bytes, int]:
        limits, scales = (piece.part(each, fit.granularity) for each in (fit.threshold, scale))
        own = squares[piece.row : piece.row + len(piece.stored)]
        pack = _pack_natively if native else _pack_by_numpy
        packed, different = pack(piece, fit, limits, scales, own)
        if different >= 0:
            raise changed()
        return packed, piece.stored.shape[1]

    for packed, columns in in_pieces(weight, fit.granularity, work):
        take(packed, columns)
    lost, total = (add_in_order(each) for each in squares.T)
    if not total:  # squares of float64 that are no numbers: such weights are lost altogether
        return float(fit.method != "exact")
    return math.sqrt(lost / total)


def _pack_natively(
    piece: Piece, fit: Fit, limits: Array, scales: Array, squares: Doubles
) -> tuple[Bytes, int]:
    group, threads = kernel_group(fit.granularity), piece.threads
    if fit.method == "exact":
        return kernels.quantize_exact(piece.stored, scales, group, threads=threads)
    packed = kernels.quantize_measured(
        piece.stored, limits, scales, group, squares, threads=threads
    )
    return packed, -1


def _pack_by_numpy(
    piece: Piece, fit: Fit, limits: Array, scales: Array, squares: Doubles
) -> tuple[Bytes, int]:
    values = piece.values
    limit, scale = (spread(e, fit.granularity, 0, *values.shape) for e in (limits, scales))
    trits = reference.ternarize(values, limit)
    packed, restored = reference.pack_codes(trits + np.int8(1)), scale * trits
    if fit.method == "exact":
        return packed, reference.first_different(values, restored)
    reference.square_sums(values, restored, squares)
    return packed, -1
