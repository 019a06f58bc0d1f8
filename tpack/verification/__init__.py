"""Verify a checkpoint: every byte is accounted for, and unpacking gives the source back.

``against`` compares with a source, ``differences`` finds the first value that differs, ``report``
says so.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from tpack.codec import LAYOUTS, canonical
from tpack.container import Checkpoint, TernaryEntry, digest
from tpack.errors import UsageError, locate
from tpack.options import Reading
from tpack.quantize import widen
from tpack.sources import Source, open_source
from tpack.sources.beside import listed, parts_of, unread
from tpack.sources.carried import changed
from tpack.verification.against import compare
from tpack.verification.carried import carrying, compare_stored, other_checkpoint, written
from tpack.verification.report import (
    Checks,
    Difference,
    TensorVerification,
    VerificationReport,
    problems,
)
from tpack.wording import spell

__all__ = ["Difference", "TensorVerification", "VerificationReport", "verify", "verify_file"]


def verify(
    path: str | os.PathLike[str],
    against: str | os.PathLike[str] | Mapping[str, Any] | Any | None = None,
    *,
    key: str | None = None,
    i2s_order: str | None = None,
) -> VerificationReport:
    """Check a checkpoint, and with ``against`` that it is what its source gives.

    Structure and LayerDefs are checked when the file is opened; then codes, padding, scales
    and the digests of all tensors, of the description and of the index of a folder. Sub-folders
    that belong to the model of a folder are checked too, their tensors under names such as
    ``2_Dense/linear.weight``.

    With a source, an exact weight must unpack to its values. A quantized one is quantized again:
    by the method and at the granularity that the file names, the source must give the same trits
    and the same scales, bit for bit. A kept tensor must equal it, or the cast of it to the dtype
    that ``keep_dtype`` asked for. ``report.equals`` counts which of these was found.

    Args:
        path: the checkpoint.
        against: what it was converted from: a path, a state dict or a module.
        key: which nested dict of weights of ``against`` to compare with.
        i2s_order: the order of weights in I2_S of ``against``: ``x86``, ``arm`` or ``rows``.

    Raises:
        UsageError: these without ``against``.
        InputError: either cannot be read, or its structure is broken.
    """
    reading = Reading(key=key, i2s_order=i2s_order)
    if against is None and (chosen := reading.chosen()):
        raise UsageError(
            f"{spell(**chosen)} says how to read a source. Say which: {spell(against=...)}."
        )
    with ExitStack() as stack:
        if (model := carrying(Path(path), stack)) is not None:
            return _verify_carried(model, against, reading, stack)
        source = None if against is None else stack.enter_context(open_source(against, reading))
        if source is not None and source.carried is not None:
            with Checkpoint(path) as file, Checkpoint(written(source, stack)) as other:
                report, checks = _verify(file)
                report.problems += compare_stored(file, other, checks)
                return _told(report, checks)
        return _verify_with_parts(Path(path), source)


def _verify_carried(
    model: Source, against: Any, reading: Reading, stack: ExitStack
) -> VerificationReport:
    """Check the checkpoint that a model carries, against another checkpoint or a source."""
    assert model.carried is not None
    lost = list(changed(model.carried))
    file = stack.enter_context(Checkpoint(written(model, stack)))
    report, checks = _verify(file)
    report.file = model.label
    for name in lost:
        if name in checks:
            checks[name].check("digest", False, _CHANGED)
    other = other_checkpoint(against, stack)
    if other is not None:
        report.problems += compare_stored(file, other, checks)
    elif against is not None:
        source = stack.enter_context(open_source(against, reading))
        report.problems += compare(file, source, checks)
        report.warnings += source.warnings
        report.notes += source.notes
    return _told(report, checks)


def _told(report: VerificationReport, checks: Mapping[str, Checks]) -> VerificationReport:
    """Complete a report with the checks of each tensor."""
    report.tensors = [row.row() for row in checks.values()]
    report.problems += problems(list(checks.values()))
    return report


def _verify_with_parts(path: Path, source: Source | None) -> VerificationReport:
    """Check a checkpoint, and the sub-folders that belong to it, against those of a source."""
    with Checkpoint(path) as file:
        report, checks = _verify(file)
        if source is not None:
            with locate(file=source.label):
                report.problems += compare(file, source, checks)
            report.warnings += source.warnings
            report.notes += source.notes
        _told(report, checks)
    there = parts_of(path)
    if path.is_dir():
        read = [*(part.path for part in file.files), *(path / place for place in there)]
        if others := unread(path, read):
            report.notes.append(f"did not look at other weights and code: {listed(others)}")
    theirs = {} if source is None else source.parts
    for place in there:
        report.take(place, _verify_with_parts(path / place, theirs.get(place)))
        if source is not None and place not in theirs:
            report.warnings.append(f"{place} was not compared: the source has no such folder")
    report.problems += [
        f"folder {place!r} of the source is not in the checkpoint."
        for place in theirs
        if place not in there
    ]
    return report


def verify_file(file: Checkpoint) -> VerificationReport:
    """Check the data of a checkpoint that is open: every byte of it is read."""
    return _told(*_verify(file))


def _verify(file: Checkpoint) -> tuple[VerificationReport, dict[str, Checks]]:
    """Check the descriptions and each tensor; return what is wrong, and a row for each."""
    report = VerificationReport(str(file.path))
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
    return report, checks


_CHANGED = "does not have the digest of its description: its data was changed"


def _check_ternary(file: Checkpoint, name: str, entry: TernaryEntry) -> Checks:
    layout = LAYOUTS[entry.layout]
    codes = padding = True
    state = hashlib.sha256()
    for _, packed in file.packed_blocks(name):
        codes = codes and bool(layout.valid[packed].all())
        decoded = layout.decode(packed[:, -1:])
        spare = entry.columns - layout.per_byte * (packed.shape[1] - 1)
        padding = padding and bool((decoded[:, spare:] == 1).all())
        if codes or entry.layout == "t2":
            state.update(canonical(packed, entry.columns, entry.layout))
    scale, dtype, _ = file.scale(name)
    finite = bool(np.isfinite(widen(scale, dtype)).all())
    checks = Checks(name)
    checks.check("codes", codes, "has bytes that hold no valid codes", "_packed")
    checks.check("padding", padding, "has padding that is not code 1", "_packed")
    checks.check("scale", finite, "has NaN or infinity", "_scale")
    checks.check("digest", state.hexdigest() == entry.sha256, _CHANGED)
    same = digest([scale.tobytes()]) == entry.scale_sha256
    checks.check("scale_digest", same, _CHANGED, "_scale")
    return checks


def _check_kept(file: Checkpoint, name: str) -> Checks:
    checks = Checks(name)
    checks.check("digest", digest(file.chunks(name)) == file.document.kept[name], _CHANGED)
    return checks
