"""Verify a checkpoint that a file of another system carries: it is written down, and checked."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tpack.container import Checkpoint
from tpack.container.kinds import kind_of
from tpack.container.reader import is_checkpoint
from tpack.options import Reading
from tpack.sources import Source, open_source
from tpack.verification.report import SOURCE, Checks


def carrying(path: Path, stack: ExitStack) -> Source | None:
    """Open a file that carries a checkpoint; None if it is another file.

    Raises:
        FormatError: what it carries is malformed.
    """
    kind = None if path.is_dir() else kind_of(path)
    if kind is None or kind.name != "ONNX":
        return None
    source = stack.enter_context(open_source(path, Reading()))
    return source if source.carried is not None else None


def written(source: Source, stack: ExitStack) -> Path:
    """Write the checkpoint that a source carries into a folder that is removed with the stack."""
    assert source.carried is not None
    path = Path(stack.enter_context(TemporaryDirectory())) / "model.safetensors"
    source.carried.write(path)
    return path


def other_checkpoint(against: Any, stack: ExitStack) -> Checkpoint | None:
    """Open what to compare with, if it is a checkpoint of tpack."""
    if isinstance(against, str | os.PathLike) and is_checkpoint(against):
        return stack.enter_context(Checkpoint(against))
    return None


def compare_stored(file: Checkpoint, other: Checkpoint, checks: Mapping[str, Checks]) -> list[str]:
    """Add a comparison with another checkpoint, byte for byte, to the checks of each tensor.

    Returns:
        What else differs: a sentence each.
    """
    for name, row in checks.items():
        parts = ("_packed", "_scale") if name in file.document.tensors else ("",)
        same = all(_same(file, other, f"{name}{part}") for part in parts)
        text = "does not have the bytes of the checkpoint that it is compared with"
        if row.check("same_bytes", same, text):
            row.equals = SOURCE
    here, there = file.document, other.document
    more = sorted({*there.tensors, *there.kept} - checks.keys())
    compared = "the checkpoint that it is compared with"
    found = [f"tensor {name!r} is only in {compared}." for name in more]
    if here.program != there.program:
        found.append(f"the LayerDefs are not those of {compared}.")
    if here.aliases != there.aliases:
        found.append(f"the shared names are not those of {compared}.")
    return found


def _same(file: Checkpoint, other: Checkpoint, name: str) -> bool:
    ours, theirs = file.entries[name], other.entries.get(name)
    if theirs is None or (ours.dtype, ours.shape) != (theirs.dtype, theirs.shape):
        return False
    pairs = zip(file.chunks(name), other.chunks(name), strict=True)
    return all(one == another for one, another in pairs)
