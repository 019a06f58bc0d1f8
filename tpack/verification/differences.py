"""Where two tensors first differ, and how many values do: piece by piece, nothing held whole."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from tpack.container import Checkpoint, TernaryEntry
from tpack.container.reader import differing, stored_dtype
from tpack.dtypes import BY_NAME
from tpack.kernels import reference
from tpack.quantize import Fit, Weight, widen
from tpack.quantize.fitting import spread
from tpack.quantize.weight import BLOCK
from tpack.sources import SourceTensor
from tpack.verification.report import Difference, Value

Array = npt.NDArray[Any]
#: A part of two tensors: where it begins, what is stored, what is expected, what the source has.
Part = tuple[int, Array, Array, Array]


def of_values(file: Checkpoint, name: str, weight: Weight) -> Difference | None:
    """Compare ``scale * trit`` with a source; +0 and -0 are equal."""
    entry = file.document.tensors[name]
    stored, dtype, granularity = file.scale(name)
    scale = widen(stored, dtype)

    def parts() -> Iterator[Part]:
        for first, trits in file.trit_blocks(name):
            values = _rows(weight, entry, first, len(trits))
            unpacked = spread(scale, granularity, first, *trits.shape) * trits
            yield first * entry.columns, unpacked, values, values

    return _first("values", entry.shape, parts(), made=False)


def of_trits(file: Checkpoint, name: str, weight: Weight, fit: Fit) -> Difference | None:
    """Compare trits with those that a quantizer gives."""
    entry = file.document.tensors[name]

    def parts() -> Iterator[Part]:
        for first, trits in file.trit_blocks(name):
            values = _rows(weight, entry, first, len(trits))
            limit = spread(fit.threshold, fit.granularity, first, *trits.shape)
            yield first * entry.columns, trits, reference.ternarize(values, limit), values

    return _first("trits", entry.shape, parts(), made=True)


def of_scales(stored: Array, expected: Array) -> Difference | None:
    """Compare two scales of one shape, as numbers."""
    part = (0, stored.reshape(-1), expected.reshape(-1), expected.reshape(-1))
    return _first("scales", stored.shape, iter([part]), made=False)


def of_kept(
    file: Checkpoint, name: str, tensor: SourceTensor, *, cast: bool = False
) -> Difference | None:
    """Compare a kept tensor with a source, or with the cast of one to its dtype, bit for bit."""
    entry = file.entries[name]
    dtype, count = BY_NAME[entry.dtype], tensor.numel
    plain = tensor.cast(entry.dtype) if cast else tensor
    found: Difference | None = None
    differ = 0
    for start in range(0, count, BLOCK):
        stop = min(start + BLOCK, count)
        stored = file.read(name, dtype.nbytes(start), dtype.nbytes(stop))
        values = np.ascontiguousarray(plain.read(start, stop)).reshape(-1)
        expected = memoryview(values.view(np.uint8))
        if stored == expected:
            continue
        different = differing(stored, expected, entry.dtype)
        differ += int(different.sum())
        if found is None:
            at = int(different.argmax())
            place = slice(at * dtype.bits // 8, dtype.nbytes(at + 1))
            pair = bytes(stored[place]), bytes(expected[place])
            one, two = (_element(element, entry.dtype) for element in pair)
            if str(one) == str(two):  # two that are no numbers, or print as the same
                one, two = (f"{v} ({e.hex()})" for v, e in zip((one, two), pair))  # noqa: B905
            index = _index(start + at, entry.shape)
            source = _source_element(tensor, start + at) if cast else None
            found = Difference("values", index, one, two, source, 0, count)
    return None if found is None else _counted(found, differ)


def _rows(weight: Weight, entry: TernaryEntry, first: int, count: int) -> Array:
    """Return values of a source as rows ``(count, columns)``."""
    start = first * entry.columns
    return weight.read(start, start + count * entry.columns).reshape(count, entry.columns)


def _first(
    what: str, shape: tuple[int, ...], parts: Iterator[Part], *, made: bool
) -> Difference | None:
    """Return the first difference among parts.

    Args:
        made: whether what is expected was made of the source, which then is told too.
    """
    found: Difference | None = None
    differ = of = 0
    for start, stored, expected, source in parts:
        of += stored.size
        if np.array_equal(stored, expected):
            continue
        different = (stored != expected).reshape(-1)
        differ += int(different.sum())
        if found is None:
            at = int(different.argmax())
            one, two, given = (e.reshape(-1)[at].item() for e in (stored, expected, source))
            index = _index(start + at, shape)
            found = Difference(what, index, one, two, given if made else None, 0, 0)
    return None if found is None else _counted(found, differ, of)


def _counted(found: Difference, count: int, of: int | None = None) -> Difference:
    return Difference(
        found.what,
        found.index,
        found.stored,
        found.expected,
        found.source,
        count,
        found.of if of is None else of,
    )


def _index(flat: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(flat, shape))


def _source_element(tensor: SourceTensor, at: int) -> Value:
    element = np.ascontiguousarray(tensor.read(at, at + 1)).tobytes()
    return _element(element, tensor.dtype)


def _element(stored: bytes, dtype: str) -> Value:
    """Return a stored element as a number, or the bytes that it lies in where numpy has none."""
    if dtype == "bool" and stored in (b"\0", b"\1"):
        return bool(stored[0])
    if dtype != "uint8" and stored_dtype(dtype) == "uint8":
        return f"the {'byte' if len(stored) == 1 else 'bytes'} {stored.hex()}"
    raw = np.frombuffer(stored, stored_dtype(dtype))
    value: Value = (widen(raw, dtype) if dtype == "bfloat16" else raw)[0].item()
    return value
