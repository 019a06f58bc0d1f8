"""Compare a checkpoint with what it was converted from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from tpack.codec import Scale
from tpack.container import Checkpoint, TernaryEntry
from tpack.container.document import UNKNOWN
from tpack.dtypes import BY_NAME
from tpack.errors import InputError, locate
from tpack.grouping import groups
from tpack.quantize import Fit, Weight, detect, encode_blocks, quantize, widen
from tpack.quantize.fitting import repeat_scale
from tpack.sources import PackedTensor, Source, SourceTensor
from tpack.sources.packed_layouts import packed_groups
from tpack.sources.scaled_codes import readings
from tpack.verification import differences
from tpack.verification.report import SOURCE, Checks, Difference, subject

Array = npt.NDArray[Any]

_OTHER_VALUES = "does not unpack to the values of the source"


def compare(file: Checkpoint, source: Source, checks: dict[str, Checks]) -> list[str]:
    """Add the checks against a source to those of each tensor.

    Returns:
        What else differs: a sentence each.
    """
    used = set()
    packed = {group.codes: group for group in packed_groups(source.tensors)}
    for name in [*file.document.tensors, *file.document.kept]:
        tensor = source.tensors.get(name)
        if not checks[name].check("in_source", tensor is not None, "is not in the source"):
            continue
        assert tensor is not None
        used.add(name)
        with locate(tensor=name):
            if name in file.document.kept:
                _compare_kept(file, checks[name], tensor)
                continue
            found = _compared(file, checks[name], tensor)
            if name in packed:  # in one of the ways in which it can be read
                for reading in readings(packed[name], source.tensors):
                    used |= set(reading.taken)
                    found = _compared(file, checks[name], reading.weight)
                    if not found.failed:
                        break
            checks[name] = found
    unused = groups((name, None) for name in source.tensors if name not in used)
    problems = [f"{subject(names)} of the source is not in the checkpoint." for names in unused]
    return problems + list(_aliases(file, source))


def _aliases(file: Checkpoint, source: Source) -> Iterator[str]:
    ours, theirs = dict(file.document.aliases), dict(source.aliases)
    for name in sorted({*ours, *theirs}):
        if ours.get(name) != theirs.get(name):
            here, there = (_owner(names, name) for names in (ours, theirs))
            yield f"{name!r} {here} in the checkpoint, and {there} in the source."


def _owner(aliases: Mapping[str, str], name: str) -> str:
    return f"shares {aliases[name]!r}" if name in aliases else "is no shared name"


def _compared(file: Checkpoint, before: Checks, tensor: SourceTensor | PackedTensor) -> Checks:
    """Add the checks against a tensor of the source to those of a weight."""
    checks = replace(before, held=dict(before.held), failed=list(before.failed))
    if isinstance(tensor, PackedTensor):
        _compare_packed(file, checks, tensor)
    else:
        _compare_plain(file, checks, tensor)
    return checks


def _compare_kept(file: Checkpoint, checks: Checks, tensor: SourceTensor | PackedTensor) -> None:
    plain = tensor.dense() if isinstance(tensor, PackedTensor) else tensor
    stored = file.entries[checks.name]
    if plain.stored is not None and plain.stored.dtype == stored.dtype:
        plain = plain.stored
    both = [BY_NAME[dtype] for dtype in (plain.dtype, stored.dtype)]
    cast = plain.dtype != stored.dtype and all(d.is_cast for d in both)
    dtype = stored.dtype if cast else plain.dtype
    if not _same_form(checks, (stored.dtype, stored.shape), (dtype, plain.shape)):
        return
    equals = f"the source cast to {stored.dtype}" if cast else SOURCE
    checks.maker = "the cast gives" if cast else "the source has"
    try:
        found = differences.of_kept(file, checks.name, plain, cast=cast)
    except InputError as error:
        if not cast or error.file is not None:
            raise
        checks.check("same_cast", False, f"is not {equals}, which {error.message.rstrip('.')}")
        return
    name = "same_cast" if cast else "same_values"
    told = f"is not {equals}" if cast else "does not have the values of the source"
    checks.compare(name, equals, found, told)


def _may_be_compared(
    checks: Checks, entry: TernaryEntry, dtype: str, shape: tuple[int, ...]
) -> bool:
    """Return whether a source has the shape of a weight whose codes can be read."""
    wanted = dtype if entry.method == UNKNOWN else entry.source_dtype  # no dtype is claimed
    return _same_form(checks, (wanted, entry.shape), (dtype, shape)) and checks.held["codes"]


_Form = tuple[str, tuple[int, ...]]


def _same_form(checks: Checks, ours: _Form, theirs: _Form) -> bool:
    """Check dtype and shape."""
    told = f"is {ours[0]} {ours[1]} in the checkpoint, {theirs[0]} {theirs[1]} in the source"
    return checks.check("same_form", ours == theirs, told)


def _compare_plain(file: Checkpoint, checks: Checks, tensor: SourceTensor) -> None:
    """Compare a weight with the floats, or the integers, that it was packed from."""
    entry = file.document.tensors[checks.name]
    dtype = tensor.dtype_unpacked(entry.method)
    if not _may_be_compared(checks, entry, dtype, tensor.shape):
        return
    if entry.method in ("exact", UNKNOWN):
        found = differences.of_values(file, checks.name, tensor.weight(entry.split, dtype))
        checks.compare("same_values", SOURCE, found, _OTHER_VALUES)
    else:
        weight = tensor.weight(entry.split, tensor.dtype_unpacked("exact"))
        _compare_quantized(file, checks, weight)


def _compare_packed(file: Checkpoint, checks: Checks, tensor: PackedTensor) -> None:
    """Compare trits and scales with those of a source that is packed itself."""
    entry = file.document.tensors[checks.name]
    plain = tensor.dense()
    if entry.method not in ("exact", UNKNOWN) or tensor.split != entry.split:
        _compare_plain(file, checks, plain)
        return
    if not _may_be_compared(checks, entry, tensor.dtype, tensor.shape):
        return
    state = hashlib.sha256()
    for _, rows in tensor.blocks():
        state.update(rows)
    stored, dtype, granularity = file.scale(checks.name)
    ours, theirs = widen(stored, dtype), widen(tensor.scale, tensor.scale_dtype)
    given = tensor.granularity
    if given.can_repeat(granularity):
        theirs = repeat_scale(theirs, given, granularity, entry.columns, entry.scale_shape)
    elif granularity.can_repeat(given):
        ours = repeat_scale(ours, granularity, given, entry.columns, theirs.shape)
    else:
        _compare_plain(file, checks, plain)
        return
    found: Difference | None = None
    if state.hexdigest() != entry.sha256:
        found = differences.of_values(file, checks.name, plain.weight(entry.split))
    found = found or differences.of_scales(ours, theirs)
    checks.compare("same_values", SOURCE, found, _OTHER_VALUES)
    if entry.method != UNKNOWN and found is None:
        text = f"divides by {entry.divisor} in the checkpoint, by {tensor.divisor} in the source"
        checks.check("same_divisor", tensor.divisor == entry.divisor, text)


# ---- quantized again


def _compare_quantized(file: Checkpoint, checks: Checks, weight: Weight) -> None:
    """Quantize a source as the checkpoint says it was, and compare trits and scales."""
    method, first = file.document.tensors[checks.name].method, None
    told = f"is not what {method} makes of the source"
    try:
        for fit in _fits(file, checks.name, weight):
            if _gives(fit, file, checks.name, weight):
                checks.compare("same_method", f"{method} of the source", None, told)
                return
            first = first or fit
        assert first is not None
        if differences.of_values(file, checks.name, weight) is None:  # the file, unpacked
            checks.compare("same_values", SOURCE, None, told)
            return
        found = differences.of_trits(file, checks.name, weight, first) or differences.of_scales(
            *_scales(first, file, checks.name)
        )
    except InputError as error:
        if error.file is not None:
            raise
        checks.check("same_method", False, f"{told}, which {error.message.rstrip('.')}")
        return
    checks.maker = f"{method} gives"
    checks.compare("same_method", "", found, told)


def _gives(fit: Fit, file: Checkpoint, name: str, weight: Weight) -> bool:
    """Return whether a fit gives the scales and the trits that are stored."""
    stored, expected = _scales(fit, file, name)
    if not np.array_equal(stored, expected):
        return False
    state = hashlib.sha256()
    encode_blocks(weight, fit, lambda packed, _: state.update(packed))
    return state.hexdigest() == file.document.tensors[name].sha256


def _scales(fit: Fit, file: Checkpoint, name: str) -> tuple[Array, Array]:
    """Return the stored scale and that of a fit, at the same granularity."""
    entry = file.document.tensors[name]
    stored, dtype, own = file.scale(name)
    scale = widen(fit.scale, fit.dtype)
    expected = repeat_scale(scale, fit.granularity, own, entry.columns, entry.scale_shape)
    return widen(stored, dtype), expected


def _fits(file: Checkpoint, name: str, weight: Weight) -> Iterator[Fit]:
    """Yield the fits of a weight's method at each granularity it may have been used at.

    The one that is stored comes first. A scale may have been repeated to it, so that layers share
    a LayerDef: then the coarser ones come into question over which the stored scale is constant.
    """
    method = file.document.tensors[name].method
    stored, _, own = file.scale(name)
    yield from _fits_at(own, method, weight)
    for granularity in _coarser(own, stored):
        yield from _fits_at(granularity, method, weight)


def _fits_at(granularity: Scale, method: str, weight: Weight) -> Iterator[Fit]:
    detected = detect(weight, str(granularity))
    if method == "mse" and detected.fit is not None and detected.fit.method == method:
        yield detected.fit  # ternary, but for the rounding of its scale
    yield quantize(weight, method, str(granularity), detected)


def _coarser(own: Scale, stored: Array) -> Iterator[Scale]:
    """Return the coarser granularities over which a scale is constant; of groups the largest."""
    rows = stored.reshape(-1, stored.shape[-1])
    for text in ("tensor", "row"):
        at = Scale.parse(text)
        if at != own and at.can_repeat(own):
            values = rows.reshape(1, -1) if text == "tensor" else rows
            if _is_constant(values, values.shape[1]):
                yield at
    if own.kind == "group":
        for count in range(rows.shape[1] - 1, 1, -1):
            if _is_constant(rows, count):
                yield Scale.parse(f"group:{count * own.group_size}")
                return


def _is_constant(rows: Array, count: int) -> bool:
    """Return whether every ``count`` values of a row are the same."""
    first = np.arange(rows.shape[1]) // count * count
    return np.array_equal(rows, rows[:, first])
