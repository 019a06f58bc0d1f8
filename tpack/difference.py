"""Compare two checkpoints: which trits, scales, kept tensors and LayerDefs differ."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tpack.codec import unpack
from tpack.container import Checkpoint, TernaryEntry
from tpack.dtypes import BY_NAME
from tpack.errors import FormatError, NotTernaryError, locate
from tpack.layerdef import Program
from tpack.quantize import widen
from tpack.quantize.fitting import repeat_scale

Trits = npt.NDArray[np.int8]


@dataclass(frozen=True)
class TensorDifference:
    """How one tensor that both checkpoints have differs.

    Attributes:
        form: what of its form differs: ``shape``, ``layout``, ``scale``, ``dtype`` … → the two
            values as text.
        values: elements or trits in each of the two.
        changed: how many of them differ; None where the shapes do.
        scales: values of the scale, at the finer granularity of the two.
        scales_changed: how many of them differ, as numbers where their dtypes do; None where
            neither scale can be repeated to the granularity of the other.
    """

    name: str
    kind: str
    form: dict[str, tuple[str, str]]
    values: int
    changed: int | None
    scales: int = 0
    scales_changed: int | None = 0

    @property
    def equal(self) -> bool:
        """Whether nothing differs."""
        return not self.form and self.changed == 0 and self.scales_changed == 0

    @property
    def share(self) -> float | None:
        """Changed trits or elements as a share of all."""
        return None if self.changed is None else self.changed / max(self.values, 1)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        form = {key: list(pair) for key, pair in self.form.items()}
        return {**asdict(self), "form": form, "share": self.share}


@dataclass(frozen=True)
class DiffReport:
    """How two checkpoints differ.

    Attributes:
        only_first: tensors that the second has not.
        only_second: tensors that the first has not.
        tensors: those of both that differ.
        compared: how many tensors both have.
        layerdefs: LayerDefs that differ → ``changed``, ``only in the first`` or ``only in the
            second``; under ``root``, that the models have other roots.
        aliases: shared names that are not the same in both.
        metadata: keys of the safetensors metadata whose text is not the same in both.
    """

    first: str
    second: str
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    tensors: tuple[TensorDifference, ...]
    compared: int
    layerdefs: dict[str, str]
    aliases: tuple[str, ...]
    metadata: tuple[str, ...]

    @property
    def equal(self) -> bool:
        """Whether nothing differs; how tensors lie in shards does not count."""
        return not (
            self.only_first
            or self.only_second
            or self.tensors
            or self.layerdefs
            or self.aliases
            or self.metadata
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        return {
            "equal": self.equal,
            "first": self.first,
            "second": self.second,
            "only_first": list(self.only_first),
            "only_second": list(self.only_second),
            "compared": self.compared,
            "tensors": [tensor.to_dict() for tensor in self.tensors],
            "layerdefs": self.layerdefs,
            "aliases": list(self.aliases),
            "metadata": list(self.metadata),
        }


def diff(first: str | os.PathLike[str], second: str | os.PathLike[str]) -> DiffReport:
    """Compare two checkpoints, files or folders, piece by piece.

    Values are read and compared, not digests.

    Raises:
        InputError: one cannot be read, or is damaged.
    """
    with Checkpoint(first) as a, Checkpoint(second) as b:
        ours, theirs = _names(a), _names(b)
        shared = sorted(ours & theirs)
        found = [_compare(a, b, name) for name in shared]
        return DiffReport(
            str(first),
            str(second),
            tuple(sorted(ours - theirs)),
            tuple(sorted(theirs - ours)),
            tuple(tensor for tensor in found if not tensor.equal),
            len(shared),
            _layerdefs(a.document.program, b.document.program),
            _keys(dict(a.document.aliases), dict(b.document.aliases)),
            _keys(_texts(a), _texts(b)),
        )


def _names(file: Checkpoint) -> set[str]:
    return {*file.document.tensors, *file.document.kept}


def _texts(file: Checkpoint) -> dict[str, str]:
    return {key: value for key, value in file.metadata.items() if key != "tpack"}


def _keys(a: dict[str, str], b: dict[str, str]) -> tuple[str, ...]:
    return tuple(sorted(key for key in {*a, *b} if a.get(key) != b.get(key)))


def _layerdefs(a: Program | None, b: Program | None) -> dict[str, str]:
    ours, theirs = (a.by_name if a else {}), (b.by_name if b else {})
    found = {}
    if a and b and a.root != b.root:
        found["root"] = "changed"
    for name in sorted({*ours, *theirs}):
        if name not in theirs:
            found[name] = "only in the first"
        elif name not in ours:
            found[name] = "only in the second"
        elif ours[name] != theirs[name]:
            found[name] = "changed"
    return found


def _compare(a: Checkpoint, b: Checkpoint, name: str) -> TensorDifference:
    ours, theirs = a.document.tensors.get(name), b.document.tensors.get(name)
    if ours is not None and theirs is not None:
        return _compare_ternary(a, b, name, ours, theirs)
    if ours is None and theirs is None:
        return _compare_kept(a, b, name)
    kinds = tuple("kept" if entry is None else "ternary" for entry in (ours, theirs))
    shape = (ours or theirs or a.entries[name]).shape
    return TensorDifference(name, "either", {"kind": (kinds[0], kinds[1])}, math.prod(shape), None)


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
    scales, scales_changed = scale.size, None
    if "shape" not in form and "split" not in form:
        scales, scales_changed = _compare_scales(a, b, name)
    return TensorDifference(
        name,
        "ternary",
        form,
        math.prod(ours.shape),
        None if "shape" in form else sum(_changes(a, b, name, ours, theirs)),
        scales,
        scales_changed,
    )


def _compare_scales(a: Checkpoint, b: Checkpoint, name: str) -> tuple[int, int | None]:
    """Count the scales, and those that differ; the coarser ones are repeated."""
    (one, dtype, own), (two, other_dtype, other) = a.scale(name), b.scale(name)
    entry = a.document.tensors[name]
    if dtype != other_dtype:
        one, two = widen(one, dtype), widen(two, other_dtype)
    if own.can_repeat(other):
        one = repeat_scale(one, own, other, entry.columns, two.shape)
    elif other.can_repeat(own):
        two = repeat_scale(two, other, own, entry.columns, one.shape)
    else:
        return one.size, None
    changed = _differ(one, two) if dtype == other_dtype else one != two
    return one.size, int(changed.sum())


def _changes(
    a: Checkpoint, b: Checkpoint, name: str, ours: TernaryEntry, theirs: TernaryEntry
) -> Iterator[int]:
    """Yield how many trits differ, piece by piece.

    Raises:
        FormatError: a byte without valid codes.
    """
    try:
        if (ours.split, ours.layout) != (theirs.split, theirs.layout):
            yield from (int((x != y).sum()) for x, y in _aligned(_flat(a, name), _flat(b, name)))
            return
        for (_, x), (_, y) in zip(a.packed_blocks(name), b.packed_blocks(name), strict=True):
            if np.array_equal(x, y):
                continue
            with locate(tensor=f"{name}_packed"):
                with locate(file=a.path):
                    one = unpack(x, ours.columns, ours.layout)
                with locate(file=b.path):
                    two = unpack(y, ours.columns, ours.layout)
            yield int((one != two).sum())
    except NotTernaryError as error:  # of a file, not of weights that somebody gave
        problem = FormatError(error.message, rule="R14", tensor=error.tensor)
        problem.file = error.file
        raise problem from error


def _flat(file: Checkpoint, name: str) -> Iterator[Trits]:
    for _, trits in file.trit_blocks(name):
        yield trits.reshape(-1)


def _aligned(a: Iterator[Trits], b: Iterator[Trits]) -> Iterator[tuple[Trits, Trits]]:
    """Cut two streams of equal length into pieces of equal lengths."""
    x = y = np.empty(0, np.int8)
    while True:
        x = x if x.size else next(a, x)
        y = y if y.size else next(b, y)
        count = min(x.size, y.size)
        if not count:
            return
        yield x[:count], y[:count]
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
        width = BY_NAME[ours.dtype].size
        changed = 0
        for x, y in zip(a.chunks(name), b.chunks(name), strict=True):
            if x != y:
                one, two = (np.frombuffer(part, np.uint8).reshape(-1, width) for part in (x, y))
                changed += int((one != two).any(axis=1).sum())
    return TensorDifference(name, "kept", form, math.prod(ours.shape), changed)


def _differ(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Return where stored elements differ, bit for bit."""
    bits = np.dtype(f"u{a.dtype.itemsize}")
    changed: npt.NDArray[np.bool_] = a.view(bits) != b.view(bits)
    return changed
