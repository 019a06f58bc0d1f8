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
from tpack.quantize.fit import Fit, spread
from tpack.quantize.sets import Doubles, for_kernels, kernel_group
from tpack.quantize.weight import Piece, Weight, changed, widen

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

    Where the fit is exact, every ``scale * trit`` is unpacked and compared with its source: the
    proof that packing is lossless, not an assumption of it.

    Args:
        take: called with packed rows in layout t2, ``(rows, ceil(columns / 4))``, and their
            number of columns. Of a row that is cut, all pieces but the last have a multiple
            of 20 columns: whole bytes in every layout.

    Raises:
        InputError: the weight is not what was fitted: its source changed.
    """
    squares = np.zeros(2)
    scale = widen(fit.scale, fit.dtype)
    for piece in weight.pieces(fit.granularity):
        take(_pack(piece, fit, scale, squares), piece.stored.shape[1])
    lost, total = squares
    return math.sqrt(lost / total) if total else 0.0


def _pack(piece: Piece, fit: Fit, scale: Array, squares: Doubles) -> Bytes:
    """Pack a piece and compare it with its source; what is lost is added to the squares."""
    limit, scale = (piece.part(each, fit.granularity) for each in (fit.threshold, scale))
    exact = fit.method == "exact"
    different = -1
    if not for_kernels(piece.stored, fit.granularity):
        values = piece.values
        limit, scale = (spread(e, fit.granularity, 0, *values.shape) for e in (limit, scale))
        trits = reference.ternarize(values, limit)
        packed, restored = reference.pack_codes(trits + np.int8(1)), scale * trits
        if exact:
            different = reference.first_different(values, restored)
        else:
            reference.square_sums(values, restored, squares)
    elif exact:
        group = kernel_group(fit.granularity)
        packed, different = kernels.quantize_exact(piece.stored, scale, group)
    else:
        group = kernel_group(fit.granularity)
        packed = kernels.quantize_measured(piece.stored, limit, scale, group, squares)
    if different >= 0:
        raise changed()
    return packed
