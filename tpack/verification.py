"""Verify a checkpoint: every byte is accounted for, and unpacking gives the source back."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from tpack.codec import LAYOUTS, Scale, pack
from tpack.container import Checkpoint, TernaryEntry, digest
from tpack.errors import locate
from tpack.quantize import widen
from tpack.quantize.fit import repeat_scale, spread
from tpack.sources import PackedTensor, Source, SourceTensor, open_source
from tpack.sources.packed_layouts import packed_groups
from tpack.sources.scaled_codes import readings

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class TensorVerification:
    """The checks of one tensor: name of the check → whether it held."""

    name: str
    checks: Mapping[str, bool]

    @property
    def ok(self) -> bool:
        """Whether all checks held."""
        return all(self.checks.values())


@dataclass
class VerificationReport:
    """The result of ``verify``.

    Attributes:
        file: the checkpoint.
        tensors: one row each.
        problems: one sentence for each check that did not hold.
    """

    file: str
    tensors: list[TensorVerification] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether there is no problem."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        rows = [{"name": t.name, "ok": t.ok, "checks": dict(t.checks)} for t in self.tensors]
        return {"ok": self.ok, "file": self.file, "tensors": rows, "problems": self.problems}


def verify(
    path: str | os.PathLike[str],
    against: str | os.PathLike[str] | Mapping[str, Any] | Any | None = None,
) -> VerificationReport:
    """Check a checkpoint, and with ``against`` that unpacking reproduces its source.

    Structure and LayerDefs are checked when the file is opened; then codes, padding, scales
    and the digests of all tensors, of the description and of the index of a folder.

    Args:
        path: the checkpoint.
        against: what it was converted from: a path, a state dict or a module.

    Raises:
        InputError: either cannot be read, or its structure is broken.
    """
    with Checkpoint(path) as file:
        report = VerificationReport(str(path))
        if not file.digest_holds:
            report.problems.append(
                "the header or the description in it does not have its own digest: it was changed."
            )
        if file.index is not None and not file.index.holds:
            report.problems.append(
                f"{file.index.path.name} does not have its own digest: it was changed, or written "
                "by another program. Shards of another model may go unnoticed."
            )
        checks = {name: _check_ternary(file, name, entry) for name, entry in file.ternary()}
        checks |= {name: _check_kept(file, name) for name in sorted(file.document.kept)}
        if against is not None:
            with open_source(against) as source, locate(file=source.label):
                _compare(file, source, checks, report.problems)
        report.tensors = [TensorVerification(name, found) for name, found in checks.items()]
        for row in report.tensors:
            report.problems += [
                _PROBLEMS[c].format(row.name) for c, ok in row.checks.items() if not ok
            ]
        return report


_PROBLEMS = {
    "codes": "tensor '{0}_packed' has bytes that hold no valid codes.",
    "padding": "tensor '{0}_packed' has padding that is not code 1.",
    "scale": "tensor '{0}_scale' has NaN or infinity.",
    "digest": "tensor '{0}' does not have the digest of its description: its data was changed.",
    "scale_digest": "tensor '{0}_scale' does not have its digest: its data was changed.",
    "in_source": "tensor '{0}' is not in the source.",
    "same_form": "tensor '{0}' has another shape or dtype in the source.",
    "same_values": "tensor '{0}' does not unpack to the values of the source.",
    "lossless": "tensor '{0}' was quantized: it unpacks to the nearest ternary values, not to "
    "those of the source.",
}


def _check_ternary(file: Checkpoint, name: str, entry: TernaryEntry) -> dict[str, bool]:
    layout = LAYOUTS[entry.layout]
    codes = padding = True
    state = hashlib.sha256()
    for _, packed in file.packed_blocks(name):
        codes = codes and bool(layout.valid[packed].all())
        decoded = layout.decode(packed[:, -1:])
        spare = entry.columns - layout.per_byte * (packed.shape[1] - 1)
        padding = padding and bool((decoded[:, spare:] == 1).all())
        if layout.name == "t2":
            state.update(packed)
        elif codes:
            columns = layout.decode(packed)[:, : entry.columns]
            state.update(pack(columns.astype(np.int8) - np.int8(1)))
    scale, dtype, _ = file.scale(name)
    return {
        "codes": codes,
        "padding": padding,
        "scale": bool(np.isfinite(widen(scale, dtype)).all()),
        "digest": state.hexdigest() == entry.sha256,
        "scale_digest": digest([scale.tobytes()]) == entry.scale_sha256,
    }


def _check_kept(file: Checkpoint, name: str) -> dict[str, bool]:
    return {"digest": digest(file.chunks(name)) == file.document.kept[name]}


# ---- against the source


def _compare(
    file: Checkpoint, source: Source, checks: dict[str, dict[str, bool]], problems: list[str]
) -> None:
    """Add the checks against the source to those of each tensor."""
    used = set()
    packed = {group.codes: group for group in packed_groups(source.tensors)}
    for name, entry in file.document.tensors.items():
        tensor = source.tensors.get(name)
        checks[name]["in_source"] = tensor is not None
        if tensor is None:
            continue
        used.add(name)
        found = _compare_weight(file, name, entry, tensor, checks[name]["codes"])
        if name in packed:  # in one of the ways in which it can be read
            for reading in readings(packed[name], source.tensors):
                used |= set(reading.taken)
                found = _compare_weight(file, name, entry, reading.weight, checks[name]["codes"])
                if all(found.values()):
                    break
        checks[name] |= found
    for name in file.document.kept:
        tensor = source.tensors.get(name)
        checks[name]["in_source"] = tensor is not None
        if tensor is None:
            continue
        used.add(name)
        if isinstance(tensor, PackedTensor):
            tensor = tensor.dense()
        stored = file.entries[name]
        same = (tensor.shape, tensor.dtype) == (stored.shape, stored.dtype)
        checks[name]["same_form"] = same
        if same:
            checks[name]["same_values"] = digest(tensor.chunks()) == digest(file.chunks(name))
    unused = sorted(set(source.tensors) - used)
    problems += [f"tensor {name!r} of the source is not in the checkpoint." for name in unused]
    if dict(file.document.aliases) != dict(source.aliases):
        problems.append("the source shares storage between other names than the checkpoint says.")


def _compare_weight(
    file: Checkpoint,
    name: str,
    entry: TernaryEntry,
    tensor: SourceTensor | PackedTensor,
    readable: bool,  # its codes are valid
) -> dict[str, bool]:
    """Compare a packed weight with a tensor of the source."""
    if isinstance(tensor, PackedTensor):
        return _compare_packed(file, name, entry, tensor)
    dtype = tensor.dtype_unpacked(entry.method)
    same = (tensor.shape, dtype) == (entry.shape, entry.source_dtype)
    if not same or not readable:
        return {"same_form": same}
    key = "same_values" if entry.method == "exact" else "lossless"
    return {"same_form": True, key: _same_values(file, name, entry, tensor)}


def _compare_packed(
    file: Checkpoint, name: str, entry: TernaryEntry, tensor: PackedTensor
) -> dict[str, bool]:
    """Compare trits and scales with those of a source that is packed itself."""
    if (tensor.shape, tensor.dtype) != (entry.shape, entry.source_dtype):
        return {"same_form": False}
    if tensor.split != entry.split or not tensor.granularity.can_repeat(Scale.parse(entry.scale)):
        return {"same_form": True, "same_values": _same_values(file, name, entry, tensor.dense())}
    state = hashlib.sha256()
    for _, rows in tensor.blocks():
        state.update(rows)
    stored, dtype, granularity = file.scale(name)
    ours, theirs = widen(stored, dtype), widen(tensor.scale, tensor.scale_dtype)
    if granularity != tensor.granularity:
        theirs = repeat_scale(
            theirs, tensor.granularity, granularity, entry.columns, entry.scale_shape
        )
    same = state.hexdigest() == entry.sha256 and np.array_equal(ours, theirs)
    return {"same_form": True, "same_values": same and tensor.divisor == entry.divisor}


def _same_values(file: Checkpoint, name: str, entry: TernaryEntry, tensor: SourceTensor) -> bool:
    """Whether ``scale * trit`` equals the source everywhere; +0 and -0 are equal."""
    weight = tensor.weight(entry.split, entry.source_dtype)
    stored, dtype, granularity = file.scale(name)
    scale = widen(stored, dtype)
    for first, trits in file.trit_blocks(name):
        start = first * entry.columns
        values = weight.read(start, start + trits.size).reshape(trits.shape)
        unpacked = spread(scale, granularity, first, *trits.shape) * trits
        if not np.array_equal(unpacked, values):
            return False
    return True
