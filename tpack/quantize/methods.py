"""Quantizers: the scales and thresholds for a weight that is not ternary yet.

Each takes a weight and a granularity and returns a ``Fit``. They differ in what they keep:

- ``absmean``: |w| above half the mean of |w|. BitNet b1.58's training rule, so it gives a
  float master back the trits it was trained with.
- ``twn``: |w| above 0.7 times the mean of |w|, scale the mean of the kept.
- ``mse``: the least squared error that any trits and any scale can reach.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from tpack.codec import Scale
from tpack.quantize.fit import Fit, make_fit, spread
from tpack.quantize.weight import BLOCK, Weight, group_starts

Array = npt.NDArray[Any]


def absmean(weight: Weight, granularity: Scale) -> Fit:
    """Scale s = mean |w|, trit = clamp(round(w · (1/s)), -1, 1), in float32.

    Source: Ma et al. 2024, "The Era of 1-bit LLMs", eq. 1-3; the floor of 1e-5 and the
    multiplication by the reciprocal are those of the reference training code, without
    which weights at a rounding boundary change their trit.
    """
    total, count = _sums(weight, granularity, lambda size, _: size)
    mean = np.maximum((total / count).astype(weight.real), weight.real(1e-5))
    return make_fit(weight, "absmean", granularity, mean, _last_zero(mean))


def _last_zero(mean: Array) -> Array:
    """The largest |w| that ``round(w · (1/mean))`` takes to 0: a threshold for a product."""
    factor = mean.dtype.type(1) / mean
    limit: Array = mean * mean.dtype.type(0.5)
    while (high := limit * factor > 0.5).any():
        limit = np.where(high, np.nextafter(limit, 0, dtype=limit.dtype), limit)
    while (low := (above := np.nextafter(limit, np.inf, dtype=limit.dtype)) * factor <= 0.5).any():
        limit = np.where(low, above, limit)
    return limit


def twn(weight: Weight, granularity: Scale) -> Fit:
    """Keep |w| > 0.7 · mean |w|; scale = mean of the kept.

    Source: Li and Liu 2016, "Ternary Weight Networks", eq. 5-6.
    """
    total, count = _sums(weight, granularity, lambda size, _: size)
    threshold = 0.7 * total / count
    kept = _sums(weight, granularity, lambda size, limit: size * (size > limit), threshold)[0]
    number = _sums(weight, granularity, lambda size, limit: size > limit, threshold)[0]
    scale = np.where(number > 0, kept / np.maximum(number, 1), 1.0)
    return make_fit(weight, "twn", granularity, scale, threshold)


def mse(weight: Weight, granularity: Scale) -> Fit:
    """The optimal ternary quantizer: least Σ (w - s·q)² over all q and s.

    For a fixed set of k kept weights the best scale is their mean |w|, which lowers the
    squared error by (Σ kept |w|)² / k; for a fixed k the best set are the k largest. So the
    optimum is the best k of n over the sorted |w|, found exactly.
    """
    if granularity.kind == "tensor":
        size = np.concatenate([np.abs(v).reshape(-1) for _, v in weight.finite_blocks()])
        size.sort()
        scale, threshold = _best_cut(size[::-1])
        return make_fit(weight, "mse", granularity, np.array([[scale]]), np.array([[threshold]]))
    width = granularity.group_size or weight.columns
    cuts = [
        [_best_cut(np.sort(row[start : start + width])[::-1]) for start in starts]
        for _, values in weight.finite_blocks()
        for starts in [group_starts(weight.columns, width)]
        for row in np.abs(values)
    ]
    both = np.array(cuts, dtype=np.float64).reshape(weight.rows, -1, 2)
    return make_fit(weight, "mse", granularity, both[..., 0], both[..., 1])


METHODS: dict[str, Callable[[Weight, Scale], Fit]] = {
    "absmean": absmean,
    "twn": twn,
    "mse": mse,
}


def _best_cut(descending: Array) -> tuple[float, float]:
    """Scale and threshold (exclusive) of the best cut of |w| sorted from large to small.

    The sorted values are scanned in blocks, so that a tensor needs no second copy in
    float64.
    """
    best = (0.0, 1.0, np.inf)  # gain, scale, smallest kept
    total = 0.0
    for start in range(0, len(descending), BLOCK):
        block = descending[start : start + BLOCK]
        sums = total + np.cumsum(block, dtype=np.float64)
        number = np.arange(start + 1, start + 1 + len(block))
        gains = sums * sums / number
        at = int(gains.argmax())
        if gains[at] > best[0]:
            best = (float(gains[at]), float(sums[at] / number[at]), float(block[at]))
        total = float(sums[-1])
    return best[1], float(np.nextafter(best[2], 0, dtype=descending.dtype))


def _sums(
    weight: Weight,
    granularity: Scale,
    term: Callable[[Array, Any], Array],
    limits: Array | None = None,
) -> tuple[Array, Array]:
    """Sum ``term(|w|, limit)`` in float64 over the tensor, each row or each group.

    Args:
        limits: one per set, float64; handed to ``term`` broadcast over its weights.

    Returns:
        The sums and the number of weights in each set, both ``(1, 1)`` or ``(rows, sets)``.
    """
    columns = weight.columns
    width = granularity.group_size or columns
    starts = list(group_starts(columns, width))
    sums = np.zeros((weight.rows, len(starts)), dtype=np.float64)
    for first, values in weight.finite_blocks():
        limit = (
            None
            if limits is None
            else spread(limits, granularity, first, len(values), columns).astype(values.dtype)
        )
        terms = term(np.abs(values), limit)
        sums[first : first + len(values)] = np.add.reduceat(terms, starts, axis=1, dtype=np.float64)
    count = np.diff([*starts, columns]).astype(np.float64)
    if granularity.kind == "tensor":
        return sums.sum().reshape(1, 1), np.array([[float(weight.rows * columns)]])
    return sums, np.broadcast_to(count, sums.shape)
