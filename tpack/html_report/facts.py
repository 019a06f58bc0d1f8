"""What the page shows of a checkpoint, as plain data."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tpack.container import Checkpoint
from tpack.container.document import UNKNOWN
from tpack.grouping import Place
from tpack.inspection import InspectionReport, KeptInfo, TernaryInfo, inspect
from tpack.quantize import widen
from tpack.text import printable
from tpack.verification import VerificationReport, verify

#: Least, quartiles and greatest magnitude of the scales of a tensor.
Spread = tuple[float, float, float, float, float]


@dataclass(frozen=True)
class Facts:
    """What the page shows.

    Attributes:
        name: of the file, without its folder.
        tensors: ternary and kept ones, layer 2 before layer 10.
        scales: of the ternary ones; None where no scale is finite.
        against: the source that the checkpoint was compared with, if it was.
    """

    name: str
    inspection: InspectionReport
    verification: VerificationReport
    tensors: tuple[TernaryInfo | KeptInfo, ...]
    scales: Mapping[str, Spread | None]
    against: str | None


def gather(
    path: str | os.PathLike[str],
    against: str | os.PathLike[str] | None = None,
    *,
    key: str | None = None,
    i2s_order: str | None = None,
) -> Facts:
    """Inspect and verify a checkpoint, and compare it with its source if that is given.

    Raises:
        InputError: it cannot be read, or its structure is broken.
    """
    report = inspect(path)
    with Checkpoint(path) as file:
        scales = {t.name: _spread(widen(*file.scale(t.name)[:2])) for t in report.tensors}
    rows: list[TernaryInfo | KeptInfo] = [*report.tensors, *report.kept]
    rows.sort(key=lambda tensor: Place.of(tensor.name).sort_key)
    proof = verify(path, against, key=key, i2s_order=i2s_order)
    source = None if against is None else file_name(against)
    return Facts(file_name(path), report, proof, tuple(rows), scales, source)


def file_name(path: str | os.PathLike[str]) -> str:
    """Return the name of a file or folder as text, without where it lies."""
    return os.fsencode(Path(os.path.abspath(path)).name).decode(errors="replace")  # noqa: PTH100


def _spread(scale: npt.NDArray[Any]) -> Spread | None:
    finite = np.abs(scale[np.isfinite(scale)]).astype(np.float64)
    if not finite.size:
        return None
    least, low, middle, high, greatest = np.quantile(finite, (0, 0.25, 0.5, 0.75, 1)).tolist()
    return (_short(least), _short(low), _short(middle), _short(high), _short(greatest))


def _short(value: float) -> float:
    """Six digits: more than a chart shows, and no noise of another machine's arithmetic."""
    return float(f"{value:.6g}")


def chart_data(facts: Facts) -> dict[str, Any]:
    """What the script draws: one list for each property of the tensors, in their order.

    ``roles`` are the rows of the heat maps, ``role`` and ``depth`` the cell of each tensor;
    ``kinds`` are what the filter of the table looks for; bytes are packed, scales or kept.
    """
    ternary = [t if isinstance(t, TernaryInfo) else None for t in facts.tensors]
    return places([t.name for t in facts.tensors]) | {
        "file": facts.inspection.file_bytes,
        "kinds": [_kinds(t) for t in facts.tensors],
        "elements": [math.prod(t.shape) for t in facts.tensors],
        "size": [sum(t.counts) if t else 0 for t in ternary],
        "zeros": [t and t.zeros for t in ternary],
        "error": [t and t.relative_error for t in ternary],
        "bpw": [t and t.bpw for t in ternary],
        "packed": [t.packed_bytes if t else 0 for t in ternary],
        "scales": [t.scale_bytes if t else 0 for t in ternary],
        "bytes": [t.nbytes for t in facts.tensors],
        "spread": [facts.scales.get(t.name) for t in facts.tensors],
    }


def _kinds(tensor: TernaryInfo | KeptInfo) -> str:
    if isinstance(tensor, KeptInfo):
        return "kept"
    said = tensor.method if tensor.method in ("exact", UNKNOWN) else "quantized"
    return f"ternary {said}"


def places(names: Sequence[str]) -> dict[str, Any]:
    """Return the names of tensors and where each stands: its role and its layer."""
    found = [Place.of(name) for name in names]
    roles = list(dict.fromkeys(place.role for place in found))
    number = {role: i for i, role in enumerate(roles)}
    stack, labels = role_labels(roles)
    return {
        "stack": printable(stack),
        "roles": [printable(text) for text in labels],
        "names": [printable(name) for name in names],
        "role": [number[place.role] for place in found],
        "depth": [place.depth for place in found],
    }


def role_labels(roles: list[str]) -> tuple[str, list[str]]:
    """Shorten names of roles by what all repeated layers begin with.

    Returns:
        That beginning, up to the number of the layer, and a label for each role.

    Example:
        >>> role_labels(["lm_head.weight", "h.*.up.weight", "h.*.up.bias", "h.*.down.weight"])
        ('h.*', ['lm_head', 'up', 'up.bias', 'down'])
    """
    # a number at the end leaves nothing to call the role by
    numbered = [role for role in roles if "*" in role.split(".")[:-1]]
    stacks = {_stack(role) for role in numbered}
    stack = stacks.pop() if len(stacks) == 1 else ""
    trimmed = [role.removesuffix(".weight") for role in roles]
    for labels in (_without(stack, trimmed), _without(stack, roles), trimmed):
        if len(set(labels)) == len(roles):
            return stack, labels
    return stack, roles


def _without(stack: str, roles: list[str]) -> list[str]:
    return [role.removeprefix(f"{stack}.") if stack else role for role in roles]


def _stack(role: str) -> str:
    parts = role.split(".")
    return ".".join(parts[: parts.index("*") + 1])
