"""The page of two checkpoints: which trits, scales and kept tensors differ, and where."""

from __future__ import annotations

from typing import Any

import numpy as np

from tpack.difference import DiffReport, TensorDifference
from tpack.difference.changes import Blocks
from tpack.grouping import Place
from tpack.html_report.facts import file_name, places
from tpack.html_report.markup import document, text
from tpack.html_report.parts import (
    Column,
    by_layer,
    figure,
    foot,
    head,
    names,
    overlays,
    pair,
    table,
    totals,
    verdict,
)
from tpack.text import plural, shape

#: Upper ends of the shares that have one colour in the map of a tensor; the last has the rest.
SHARES = (0.0, 0.001, 0.01, 0.1, 0.5)
#: With more tensors than these, their maps have half the blocks each way.
_MANY = 256
_SIGNS = ("−1", "0", "+1")
_COLUMNS = (
    Column("Tensor", "order"),
    Column("Shape", "elements", number=True),
    Column("Kind", "kind"),
    Column("Differs in", "form"),
    Column("Changed", "count", number=True),
    Column("Share", "share", number=True),
    Column("Scales", "rescaled", number=True),
    Column("Times", "drift", number=True),
)
_KINDS = {
    "trits": "Trits changed", "scales": "Scales changed", "kept": "Kept tensors",
    "form": "Other form", "only": "In one only",
}  # fmt: skip


def render_comparison(report: DiffReport) -> str:
    """Return the page of a comparison."""
    first, second = (text(file_name(path)) for path in (report.first, report.second))
    title = f'{first} <span class="to">→</span> {second}'
    rows = sorted(report.tensors, key=lambda tensor: Place.of(tensor.name).sort_key)
    for names_of, where in ((report.only_first, "first"), (report.only_second, "second")):
        rows += [TensorDifference(name, f"only in the {where}", {}, 0, None) for name in names_of]
    data = _data(rows) if rows else None
    parts = ["<main>", head("Comparison of two checkpoints", title, _verdict(report))]
    if not report.equal:
        parts.append(_totals(report))
    if data is not None:
        parts.append(_charts(report, data["stack"]))
        parts.append(table("Tensors that differ", _COLUMNS, map(_row, rows), _KINDS, data))
    parts += [_others(report), "</main>", foot("", "the checkpoints", charts=data is not None)]
    if data is not None:
        parts.append(overlays())
    heading = f"{file_name(report.first)} → {file_name(report.second)} · tpack"
    return document(heading, "\n".join(parts), data)


def _verdict(report: DiffReport) -> str:
    compared = plural(report.compared, "tensor")
    if report.equal:
        return verdict(
            "good",
            "✓",
            f"Equal: {compared}",
            "Compared value by value for this page, with the LayerDefs, shared names and metadata.",
        )
    if count := len(report.tensors):
        differ = "differs" if count == 1 else "differ"
        return verdict("plain", "≠", f"{count} of {compared} in both {differ}")
    return verdict("plain", "≠", "Every tensor in both is equal, something else differs")


def _totals(report: DiffReport) -> str:
    trits = sum(t.changed or 0 for t in report.tensors if t.kind == "ternary")
    scales = sum(t.scales_changed or 0 for t in report.tensors)
    kept = sum(t.kind == "kept" for t in report.tensors)
    lonely = len(report.only_first) + len(report.only_second)
    times = _times(_factors(report.tensors))
    cards = [
        (_share(trits, report.trits), f"of the trits changed: {trits:,} of {report.trits:,}"),
        (f"{scales:,}", f"changed scales{', ' if times else ''}{times}"),
        (f"{kept:,}", "kept tensors with changes"),
        (f"{lonely:,}", "tensors in one only"),
    ]
    if forms := sum(bool(t.form) for t in report.tensors):
        either = sum("kind" in t.form for t in report.tensors)
        more = f": {either:,} packed in one, kept in the other" if either else ""
        cards.append((f"{forms:,}", f"tensors in another form{more}"))
    return totals(cards)


def _charts(report: DiffReport, stack: str) -> str:
    tables = [t.turned for t in report.tensors if t.turned is not None]
    changed = drift = turned = maps = ""
    lead = f"{by_layer(stack)} A tensor that is equal in both has no cell."
    if tables:
        changed = figure("changed", "Changed trits", lead)
        turned = figure(
            "turned",
            "What turned into what",
            "Trits of the tensors in which some changed, with the share of their row.",
            _turned(np.sum(tables, axis=0).tolist()),
        )
        maps = figure(
            "maps",
            "Where in the tensors",
            "The matrix of each weight in blocks: the twelve with the largest share of changed "
            "trits, or those that you choose above.",
        )
    if any(t.scales_changed for t in report.tensors):
        drift = figure("drift", "Largest change of a scale", "|after ∕ before − 1|. " + lead)
    return f"{pair(changed, drift)}{turned}{maps}"


def _turned(counts: list[list[int]]) -> str:
    """Return the 3×3 table of what trits were and are."""
    heads = "".join(f'<th scope="col">is {sign}</th>' for sign in _SIGNS)
    rows = ""
    for was, row in enumerate(counts):
        cells = "".join(
            f"<td{' class=same' if was == now else ''}>{count:,}"
            f"<span>{_share(count, sum(row))}</span></td>"
            for now, count in enumerate(row)
        )
        rows += f'<tr><th scope="row">was {_SIGNS[was]}</th>{cells}</tr>'
    return (
        f'<table class="turned"><thead><tr><td></td>{heads}</tr></thead>'
        f"<tbody>{rows}</tbody></table>"
    )


def _row(tensor: TensorDifference) -> tuple[str, ...]:
    form = ", ".join(f"{key} {one} → {two}" for key, (one, two) in tensor.form.items())
    changed = tensor.changed is not None
    scales = ""
    if tensor.kind == "ternary" and tensor.scales_changed is not None:
        scales = f"{tensor.scales_changed:,} of {tensor.scales:,}"
    return (
        tensor.name, shape(tensor.shape) if tensor.values else "", tensor.kind, form,
        f"{tensor.changed:,}" if changed else "",
        _share(tensor.changed or 0, tensor.values) if changed else "",
        scales, _times(tensor.factors),
    )  # fmt: skip


def _others(report: DiffReport) -> str:
    """List what differs beside the tensors."""
    parts = (
        ("LayerDefs", (f"{text(name)}: {how}" for name, how in report.layerdefs.items())),
        ("Shared names", map(text, report.aliases)),
        ("Metadata", map(text, report.metadata)),
    )
    lists = "".join(names(title, items) for title, items in parts)
    return f'<section class="others"><h2>What else differs</h2>{lists}</section>' if lists else ""


def _data(rows: list[TensorDifference]) -> dict[str, Any]:
    """Return what the script draws, and sorts and filters by: a list for each property."""
    many = sum(t.blocks is not None for t in rows) > _MANY
    trits = [t.kind == "ternary" and t.changed is not None for t in rows]
    return places([t.name for t in rows]) | {
        "kinds": [_kinds(t) for t in rows],
        "elements": [t.values for t in rows],
        "size": [t.values if known else 0 for t, known in zip(rows, trits, strict=True)],
        "count": [t.changed for t in rows],
        "share": [t.share for t in rows],
        "changed": [t.share if known else None for t, known in zip(rows, trits, strict=True)],
        "rescaled": [t.scales_changed if t.kind == "ternary" else None for t in rows],
        "drift": [_drift(t) for t in rows],
        "times": [_times(t.factors) for t in rows],
        "turned": [t.turned for t in rows],
        "blocks": [t.blocks and _levels(t.blocks.merged() if many else t.blocks) for t in rows],
    }


def _kinds(tensor: TensorDifference) -> str:
    words = {
        "trits": tensor.kind == "ternary" and tensor.changed,
        "scales": tensor.scales_changed,
        "kept": tensor.kind == "kept",
        "form": tensor.form,
        "only": tensor.kind.startswith("only"),
    }
    return " ".join(word for word, holds in words.items() if holds)


def _levels(blocks: Blocks) -> tuple[int, int, int, int, str]:
    """Return rows and columns of the matrix and of a block, and a digit for each share."""
    levels = np.searchsorted(SHARES, blocks.changed / blocks.sizes)
    digits = "".join(map(str, levels.reshape(-1).tolist()))
    return (blocks.rows, blocks.columns, blocks.height, blocks.width, digits)


def _drift(tensor: TensorDifference) -> float | None:
    if tensor.factors is not None:
        return float(f"{max(abs(x - 1) for x in tensor.factors):.6g}")
    return 0.0 if tensor.scales_changed == 0 else None


def _factors(tensors: tuple[TensorDifference, ...]) -> tuple[float, float] | None:
    known = [x for t in tensors if t.factors is not None for x in t.factors]
    return (min(known), max(known)) if known else None


def _times(factors: tuple[float, float] | None) -> str:
    """Say by how much scales were multiplied."""
    if factors is None:
        return ""
    low, high = (f"×{x:.4g}" for x in factors)
    return low if low == high else f"{low} to {high}"


def _share(count: int, of: int) -> str:
    """Return a share with two digits that are not 0.

    Example:
        >>> _share(0, 5), _share(1, 1000), _share(1, 10**7), _share(999, 1000)
        ('0%', '0.1%', '0.00001%', '99.9%')
    """
    share = 100 * count / max(of, 1)
    if share < 1:
        return f"{share:.2g}%" if share == 0 or share >= 1e-4 else f"{share:.7f}".rstrip("0") + "%"
    return f"{share:.1f}%"
