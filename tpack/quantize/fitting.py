"""What a method decides about a weight, before any trit is written."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tpack.codec import Scale
from tpack.errors import InputError
from tpack.quantize.weight import Weight, narrow, widen

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Fit:
    """Scales and the rule that decides which weights are kept.

    A weight w becomes sign(w) where ``|w| > threshold`` and 0 elsewhere. Both arrays have the
    stored shape of the scale.

    Attributes:
        method: ``exact``, ``absmean``, ``twn`` or ``mse``.
        granularity: what shares one scale.
        scale: as stored (bfloat16 as bits in uint16).
        dtype: of the scale.
        threshold: float32, or float64 for a float64 weight.
        packed: the trits, where they were packed while the weight was measured: pieces of
            rows in layout t2, each with its number of columns.
    """

    method: str
    granularity: Scale
    scale: Array
    dtype: str
    threshold: Array
    packed: tuple[tuple[npt.NDArray[np.uint8], int], ...] | None = None


def make_fit(
    weight: Weight,
    method: str,
    granularity: Scale,
    scale: Array,
    threshold: Array | None = None,
) -> Fit:
    """Round the scale to its stored dtype and shape, and complete the rule.

    Raises:
        InputError: a scale overflows its dtype, or becomes 0 in it.
    """
    shape = granularity.shape(weight.shape, weight.split)
    stored = narrow(scale, weight.scale_dtype)
    held = widen(stored, weight.scale_dtype)
    bad = ~np.isfinite(held) | ((held == 0) & (scale != 0))
    if bad.any():
        raise InputError(
            f"needs a scale of {scale[bad].max():g}, which {weight.scale_dtype} cannot hold. "
            "Divide the weights by a constant first."
        )
    limit = np.zeros_like(scale) if threshold is None else threshold
    return Fit(
        method,
        granularity,
        stored.reshape(shape),
        weight.scale_dtype,
        limit.astype(weight.real).reshape(shape),
    )


def repeat_scale(
    scale: Array, old: Scale, new: Scale, columns: int, shape: tuple[int, ...]
) -> Array:
    """Repeat a scale at a finer granularity: each value for all parts of its set.

    ``old.can_repeat(new)`` tells whether there is one.

    Args:
        columns: of the weight.
        shape: of the result.
    """
    values = scale.reshape(-1, scale.shape[-1])
    if old.kind == "group":
        starts = np.arange(0, columns, new.group_size)
        values = values[:, starts // old.group_size]
    rows = math.prod(shape[:-1])
    return np.ascontiguousarray(np.broadcast_to(values, (rows, shape[-1]))).reshape(shape)


def spread(values: Array, granularity: Scale, first: int, count: int, columns: int) -> Array:
    """Broadcast one value per tensor, column, row or group over ``count`` rows from ``first``.

    Returns:
        An array that broadcasts against ``(count, columns)``.
    """
    rows = values.reshape(-1, values.shape[-1])
    if granularity.granularity.by_row:
        rows = rows[first : first + count]
    return (
        np.repeat(rows, granularity.width, axis=1)[:, :columns] if granularity.width > 1 else rows
    )
