"""What a conversion did, or would do: a line for each tensor, and a summary."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, TextIO

from tpack.cli.output import TINTS, grouped, plural, shape, size, table

if TYPE_CHECKING:
    from tpack.report import ConversionReport, TensorReport


def report_table(
    report: ConversionReport, stream: TextIO, *, verbose: bool, whole: bool = False
) -> str:
    """Return a line for each weight, or group of repeated layers; all tensors if verbose.

    Args:
        whole: whether to show all tensors, and their dtypes.
    """
    shown = verbose or whole
    tensors = {t.name: t for t in report.tensors if shown or t.left or t.action != "kept"}
    keyed = (
        (t.name, (t.shape, t.dtype, t.action, t.scale, t.method, t.reason))
        for t in tensors.values()
    )
    rows = []
    for label, names in grouped(keyed, each=verbose):
        group = [tensors[name] for name in names]
        first = group[0]
        how = f"{first.scale} {first.method}" if first.scale else first.reason
        error = _error(group) if first.action == "quantized" else ""
        bits = sum(t.bpw * math.prod(t.shape) for t in group)
        bpw = bits / max(sum(math.prod(t.shape) for t in group), 1) if len(group) > 1 else first.bpw
        dtype = [first.dtype] * whole
        rows.append((label, shape(first.shape), *dtype, first.action, how, error, f"{bpw:.2f}"))
    head = ("tensor", "shape", *["dtype"] * whole, "action", "how", "error", "bpw")
    right = (len(head) - 2, len(head) - 1)
    return table(head, rows, right, stream=None if verbose else stream, meanings=TINTS)


def summary_of(report: ConversionReport) -> dict[str, str]:
    """Return what was found, done and proved, a line each, by its title."""
    from tpack.report import counted

    packed, quantized, kept = (
        [t for t in report.tensors if t.action == action]
        for action in ("packed", "quantized", "kept")
    )
    masters = [t for t in quantized if t.is_master]
    others = [t for t in quantized if not t.is_master]
    scales = sorted({str(t.scale) for t in packed})
    found = plural(len(packed), "ternary weight")
    if scales:
        found += f" (a scale per {' or '.join(scales)})"
    proof = "each packed weight unpacks to its source, bit for bit" if packed else ""
    same = "each master is packed as its model rounds it whenever it runs" if masters else ""
    loss = f"quantized with relative error {_error(others)}" if others else ""
    before, after = max(report.input_bytes, 1), max(report.output_bytes, 1)
    ratio = f"{max(before / after, after / before):.1f}"
    change = f"{ratio}× {'smaller' if after < before else 'larger'}"
    if ratio == "1.0":
        change = "about the same"
    found += f", {plural(len(masters), 'master')} of ternary weights" if masters else ""
    return {
        "detected": f"{found}, {plural(len(others), 'other')}, "
        f"{plural(len(kept), 'tensor')} to keep",
        "packed": counted(report.tensors),
        "checked": "; ".join(filter(None, (proof, same, loss))) or "nothing to check",
        "size": f"{size(report.input_bytes)} → {size(report.output_bytes)} ({change})",
    }


def _error(tensors: Sequence[TensorReport]) -> str:
    """Return ``0.523``, or the least and the greatest of several errors."""
    errors = [t.relative_error for t in tensors]
    low, high = f"{min(errors):.3f}", f"{max(errors):.3f}"
    return low if low == high else f"{low}–{high}"
