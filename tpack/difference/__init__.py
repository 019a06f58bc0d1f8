"""Compare two checkpoints: which trits, scales, kept tensors and LayerDefs differ.

``tensors`` compares one tensor, ``changes`` counts its trits while they stream by, ``report``
has what was found.
"""

from __future__ import annotations

import os

from tpack.container import Checkpoint
from tpack.difference.report import DiffReport, TensorDifference
from tpack.difference.tensors import compare
from tpack.layerdef import Program

__all__ = ["DiffReport", "TensorDifference", "diff"]


def diff(first: str | os.PathLike[str], second: str | os.PathLike[str]) -> DiffReport:
    """Compare two checkpoints, files or folders, piece by piece.

    Values are read and compared, not digests.

    Raises:
        InputError: one cannot be read, or is damaged.
    """
    with Checkpoint(first) as a, Checkpoint(second) as b:
        ours, theirs = _names(a), _names(b)
        shared = sorted(ours & theirs)
        found = [compare(a, b, name) for name in shared]
        return DiffReport(
            str(first),
            str(second),
            tuple(sorted(ours - theirs)),
            tuple(sorted(theirs - ours)),
            tuple(tensor for tensor in found if not tensor.equal),
            len(shared),
            sum(t.values for t in found if t.kind == "ternary" and t.changed is not None),
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
