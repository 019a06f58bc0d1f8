"""Quantizers: the scales and thresholds for a weight that is not ternary yet.

Each takes a weight and a granularity and returns a ``Fit``. They differ in what they keep:

- ``absmean``: |w| above half the mean of |w|. BitNet b1.58's training rule, so it gives a
  float master back the trits it was trained with.
- ``twn``: |w| above 0.7 times the mean of |w|, scale the mean of the kept.
- ``mse``: the least squared error that any trits and any scale can reach.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from tpack.codec import Scale
from tpack.errors import unknown
from tpack.kernels.reference import absmean_scale, absmean_threshold
from tpack.quantize.fitting import Fit, make_fit, spread
from tpack.quantize.pieces import Piece, in_pieces
from tpack.quantize.sets import Sums, counts
from tpack.quantize.statistics import Statistics
from tpack.quantize.weight import BLOCK, Weight

Array = npt.NDArray[Any]


def absmean(weight: Weight, granularity: Scale, statistics: Statistics) -> Fit:
    """Scale s = max(mean |w|, 1e-5), trit = clamp(round(w · (1/s)), -1, 1), in float32.

    Source: Ma et al. 2024, "The Era of 1-bit LLMs", eq. 1-3; the floor and the multiplication by
    the reciprocal are those of the reference training code, without which weights at a
    rounding boundary change their trit.
    """
    scale = absmean_scale(statistics.sums, counts(weight, granularity), weight.real)
    return make_fit(weight, "absmean", granularity, scale, absmean_threshold(scale))


def twn(weight: Weight, granularity: Scale, statistics: Statistics) -> Fit:
    """Keep |w| > 0.7 · mean |w|; scale = mean of the kept.

    Source: Li and Liu 2016, "Ternary Weight Networks", eq. 5-6.
    """
    mean = statistics.sums / np.maximum(counts(weight, granularity), 1)
    threshold = (0.7 * mean).astype(weight.real)
    kept, number = Sums(weight, granularity), Sums(weight, granularity)

    def add(piece: Piece) -> None:
        size = np.abs(piece.values)
        limit = spread(piece.part(threshold, granularity), granularity, 0, *size.shape)
        above = (size > limit).astype(size.dtype)
        kept.add(piece, size * above)
        number.add(piece, above)

    for _ in in_pieces(weight, granularity, add):
        pass
    total, many = kept.values, number.values
    scale = np.where(many > 0, total / np.maximum(many, 1), 1.0)
    return make_fit(weight, "twn", granularity, scale, threshold)


def mse(weight: Weight, granularity: Scale, _: Statistics) -> Fit:
    """The optimal ternary quantizer: least Σ (w - s·q)² over all q and s.

    For a fixed set of k kept weights the best scale is their mean |w|, which lowers the
    squared error by (Σ kept |w|)² / k; for a fixed k the best set are the k largest. So the
    optimum is the best k of n over the sorted |w|, found exactly.
    """
    sets = (
        _best_cut(np.sort(part)[::-1])
        for part in (
            _whole(weight, granularity)
            if granularity.kind in ("tensor", "column")
            else _parts(weight, granularity)
        )
    )
    both = np.array(list(sets), dtype=np.float64)
    both = both.reshape(*granularity.shape((weight.rows, weight.columns), 1), 2)
    return make_fit(weight, "mse", granularity, both[..., 0], both[..., 1])


def _parts(weight: Weight, granularity: Scale) -> Iterator[Array]:
    """Return |w| of each row or group."""
    width = granularity.group_size or max(weight.columns, 1)
    for size in in_pieces(weight, granularity, lambda p: np.abs(p.values), whole_rows=True):
        for row in size:
            yield from (row[start : start + width] for start in range(0, len(row), width))


def _whole(weight: Weight, granularity: Scale) -> Iterator[Array]:
    """Return |w| of the tensor, or of each column."""
    sizes = np.empty((weight.rows, weight.columns), weight.real)
    for piece in in_pieces(weight, granularity, lambda piece: piece):
        np.abs(piece.values, out=sizes[piece.here])
    if granularity.kind == "tensor":
        yield sizes.reshape(-1)
    else:
        yield from sizes.T


#: The functions of ``tpack.choices.QUANTIZERS``.
METHODS: dict[str, Callable[[Weight, Scale, Statistics], Fit]] = {
    "absmean": absmean,
    "twn": twn,
    "mse": mse,
}


def method_named(name: str) -> Callable[[Weight, Scale, Statistics], Fit]:
    """Look a quantizer up by name; ``auto`` is absmean.

    Raises:
        UsageError: there is no such method.
    """
    if name != "auto" and name not in METHODS:
        raise unknown("method", name, ("auto", *METHODS))
    return METHODS["absmean" if name == "auto" else name]


def _best_cut(descending: Array) -> tuple[float, float]:
    """Find scale and threshold (exclusive) of the best cut of |w| sorted from large to small.

    The sorted values are scanned in blocks, so that a tensor needs no second copy in
    float64.
    """
    best = (0.0, 1.0, np.inf)  # gain, scale, smallest kept
    total = 0.0
    for start in range(0, len(descending), BLOCK):
        block = descending[start : start + BLOCK]
        sums = block.astype(np.float64)
        sums[0] += total
        np.cumsum(sums, out=sums)
        number = np.arange(start + 1, start + 1 + len(block))
        gains = sums * sums / number
        at = int(gains.argmax())
        if gains[at] > best[0]:
            best = (float(gains[at]), float(sums[at] / number[at]), float(block[at]))
        total = float(sums[-1])
    return best[1], float(np.nextafter(best[2], 0, dtype=descending.dtype))
