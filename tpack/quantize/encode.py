"""Write the trits of a fitted weight, and measure what that loses."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tpack.quantize.fit import Fit, spread
from tpack.quantize.weight import Weight, widen

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Encoded:
    """The trits of a weight ``(rows, columns)`` int8, and ‖w - s·q‖ / ‖w‖."""

    trits: npt.NDArray[np.int8]
    relative_error: float


def encode(weight: Weight, fit: Fit) -> Encoded:
    """Encode a whole weight in memory."""
    parts: list[Array] = []
    error = encode_blocks(weight, fit, parts.append)
    empty = np.empty((0, weight.columns), dtype=np.int8)
    return Encoded(np.concatenate([empty, *parts]), error)


def encode_blocks(weight: Weight, fit: Fit, take: Callable[[Array], None]) -> float:
    """Hand the trits of a weight, block by block, to ``take``; return the relative error.

    Where the fit is exact, every ``scale * trit`` is compared with its source: the proof
    that packing is lossless, not an assumption of it.
    """
    lost = total = 0.0
    for first, values in weight.blocks():
        threshold = spread(fit.threshold, fit.granularity, first, *values.shape)
        kept = np.abs(values) > threshold
        trits = np.sign(values).astype(np.int8) * kept
        difference = values - dequantize_rows(trits, fit, first).astype(values.dtype)
        if fit.method == "exact":
            assert not difference.any(), "exact detection accepted a weight that is not ternary"
        else:
            lost += float(np.square(difference, dtype=np.float64).sum())
            total += float(np.square(values, dtype=np.float64).sum())
        take(trits)
    return math.sqrt(lost / total) if total else 0.0


def dequantize_rows(trits: Array, fit: Fit, first: int = 0) -> Array:
    """``scale * trit`` of rows starting at ``first``: float32 ``(rows, columns)``."""
    scale = widen(fit.scale, fit.dtype)
    return spread(scale, fit.granularity, first, *trits.shape) * trits
