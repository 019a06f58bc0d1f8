"""Compare one tensor of two checkpoints, piece by piece."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from tpack.codec import unpack
from tpack.container import Checkpoint, TernaryEntry
from tpack.container.reader import differing
from tpack.difference.changes import Changes, Trits
from tpack.difference.report import TensorDifference
from tpack.errors import FormatError, NotTernaryError, locate
from tpack.quantize import widen
from tpack.quantize.fitting import repeat_scale

#: Scales that are compared in one go.
_SCALES = 1 << 20


def compare(a: Checkpoint, b: Checkpoint, name: str) -> TensorDifference:
    """Compare a tensor that both have.

    Raises:
        InputError: it is damaged, or cannot be read.
    """
    ours, theirs = a.document.tensors.get(name), b.document.tensors.get(name)
    if ours is not None and theirs is not None:
        return _compare_ternary(a, b, name, ours, theirs)
    if ours is None and theirs is None:
        return _compare_kept(a, b, name)
    kinds = tuple("kept" if entry is None else "ternary" for entry in (ours, theirs))
    shape = (ours or theirs or a.entries[name]).shape
    form = {"kind": (kinds[0], kinds[1])}
    return TensorDifference(name, "either", form, math.prod(shape), None, shape=shape)


def _compare_ternary(
    a: Checkpoint, b: Checkpoint, name: str, ours: TernaryEntry, theirs: TernaryEntry
) -> TensorDifference:
    (scale, scale_dtype, _), (_, other_dtype, _) = a.scale(name), b.scale(name)
    form = {
        key: (str(x), str(y))
        for key, x, y in (
            ("shape", ours.shape, theirs.shape),
            ("split", ours.split, theirs.split),
            ("layout", ours.layout, theirs.layout),
            ("scale", ours.scale, theirs.scale),
            ("scale dtype", scale_dtype, other_dtype),
            ("source dtype", ours.source_dtype, theirs.source_dtype),
            ("method", ours.method, theirs.method),
            ("divisor", ours.divisor, theirs.divisor),
        )
        if x != y
    }
    found = TensorDifference(
        name, "ternary", form, math.prod(ours.shape), None, scale.size, None, shape=ours.shape
    )
    if "shape" in form:
        return found
    if "split" not in form:
        found = _with_scales(found, a, b)
    changes = Changes(ours.rows, ours.columns)
    for at, x, y in _pieces(a, b, name):
        changes.add(at, x, y)
    found = replace(found, changed=changes.count)
    if not changes.count:
        return found
    return replace(found, turned=changes.table(a.trit_counts(name)), blocks=changes.blocks)


def _with_scales(found: TensorDifference, a: Checkpoint, b: Checkpoint) -> TensorDifference:
    """Count the scales, and those that differ; the coarser ones are repeated."""
    (one, dtype, own), (two, other_dtype, other) = a.scale(found.name), b.scale(found.name)
    columns = a.document.tensors[found.name].columns
    bits = dtype == other_dtype
    if not bits:
        one, two = widen(one, dtype), widen(two, other_dtype)
    if own.can_repeat(other):
        one = repeat_scale(one, own, other, columns, two.shape)
    elif other.can_repeat(own):
        two = repeat_scale(two, other, own, columns, one.shape)
    else:
        return replace(found, scales=one.size)
    count, low, high = 0, math.inf, -math.inf
    for start in range(0, one.size, _SCALES):
        x, y = (part.reshape(-1)[start : start + _SCALES] for part in (one, two))
        changed = _differ(x, y) if bits else x != y
        count += int(changed.sum())
        x, y = ((widen(part, dtype) if bits else part)[changed] for part in (x, y))
        usable = np.isfinite(x) & np.isfinite(y) & (x != 0) & (y != 0)
        ratios = y[usable].astype(np.float64) / x[usable]
        low, high = float(ratios.min(initial=low)), float(ratios.max(initial=high))
    factors = (low, high) if low <= high else None
    return replace(found, scales=one.size, scales_changed=count, factors=factors)


def _pieces(a: Checkpoint, b: Checkpoint, name: str) -> Iterator[tuple[int, Trits, Trits]]:
    """Yield ``(first index, trits, trits)`` of pieces that differ somewhere.

    Raises:
        FormatError: a byte without valid codes.
    """
    ours, theirs = a.document.tensors[name], b.document.tensors[name]
    try:
        if (ours.split, ours.layout) != (theirs.split, theirs.layout):
            yield from _aligned(_flat(a, name), _flat(b, name))
            return
        for (row, x), (_, y) in zip(a.packed_blocks(name), b.packed_blocks(name), strict=True):
            if np.array_equal(x, y):
                continue
            with locate(tensor=f"{name}_packed"):
                with locate(file=a.path):
                    one = unpack(x, ours.columns, ours.layout)
                with locate(file=b.path):
                    two = unpack(y, ours.columns, ours.layout)
            yield row * ours.columns, one.reshape(-1), two.reshape(-1)
    except NotTernaryError as error:  # of a file, not of weights that somebody gave
        problem = FormatError(error.message, rule="R14", tensor=error.tensor)
        problem.file = error.file
        raise problem from error


def _flat(file: Checkpoint, name: str) -> Iterator[Trits]:
    for _, trits in file.trit_blocks(name):
        yield trits.reshape(-1)


def _aligned(a: Iterator[Trits], b: Iterator[Trits]) -> Iterator[tuple[int, Trits, Trits]]:
    """Cut two streams of equal length into pieces of equal lengths, each with its place."""
    x = y = np.empty(0, np.int8)
    at = 0
    while True:
        x = x if x.size else next(a, x)
        y = y if y.size else next(b, y)
        count = min(x.size, y.size)
        if not count:
            return
        yield at, x[:count], y[:count]
        at += count
        x, y = x[count:], y[count:]


def _compare_kept(a: Checkpoint, b: Checkpoint, name: str) -> TensorDifference:
    ours, theirs = a.entries[name], b.entries[name]
    form = {
        key: (str(x), str(y))
        for key, x, y in (
            ("dtype", ours.dtype, theirs.dtype),
            ("shape", ours.shape, theirs.shape),
        )
        if x != y
    }
    changed = None
    if not form:
        # bits, not values: kept means kept bit for bit, NaN and -0.0 too
        changed = 0
        for x, y in zip(a.chunks(name), b.chunks(name), strict=True):
            if x != y:
                changed += int(differing(x, y, ours.dtype).sum())
    return TensorDifference(name, "kept", form, math.prod(ours.shape), changed, shape=ours.shape)


def _differ(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Return where stored elements differ, bit for bit."""
    bits = np.dtype(f"u{a.dtype.itemsize}")
    changed: npt.NDArray[np.bool_] = a.view(bits) != b.view(bits)
    return changed
