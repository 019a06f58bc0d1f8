"""The parts of the page of a checkpoint, in the order in which they are read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from tpack.container.document import UNKNOWN
from tpack.dtypes import BY_NAME
from tpack.html_report.facts import Facts, chart_data
from tpack.html_report.markup import document, text
from tpack.html_report.parts import (
    Column,
    bar,
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
from tpack.html_report.program import program_section
from tpack.inspection import KeptInfo, TernaryInfo
from tpack.text import plural, shape, size
from tpack.verification.report import SOURCE

#: Problems of verification that the page lists.
MAX_PROBLEMS = 20
_COLUMNS = (
    Column("Tensor", "order"),
    Column("Shape", "elements", number=True),
    Column("Stored as", "stored"),
    Column("Scale", "scale"),
    Column("Method", "method"),
    Column("Zeros", "zeros", number=True),
    Column("Error", "error", number=True),
    Column("Bits/w", "bpw", number=True),
    Column("Size", "bytes", number=True),
)
_KINDS = {
    "ternary": "Ternary", "exact": "Exact", "quantized": "Quantized", UNKNOWN: "No source known",
    "kept": "Kept",
}  # fmt: skip


def render(facts: Facts) -> str:
    """Return the page of a checkpoint."""
    data = chart_data(facts)
    report = facts.inspection
    parts = [
        "<main>",
        head("Ternary checkpoint", text(facts.name), _proof(facts) + _health(facts)),
        _totals(facts),
        _charts(facts, data["stack"]),
        table("Tensors", _COLUMNS, map(_row, facts.tensors), _KINDS, data),
        names(
            "Shared",
            (
                f"<code>{text(alias)}</code> is <code>{text(name)}</code>"
                for alias, name in report.aliases.items()
            ),
        ),
        '<section><h2>LayerDefs</h2><p class="lead">The model as the file describes it, and the '
        f"PyTorch source generated from that.</p>{program_section(report.program)}</section>",
        "</main>",
        foot(f", format version {report.version}", "the checkpoint"),
        overlays(),
    ]
    return document(f"{facts.name} · tpack", "\n".join(parts), data)


def _proof(facts: Facts) -> str:
    """Say how many packed weights are exact, and how that is known."""
    tensors = facts.inspection.tensors
    if not tensors or not facts.verification.ok:
        return ""
    if facts.against is not None:
        return _comparison(facts, facts.against)
    others = [t for t in tensors if t.method != "exact"]
    words = f"{len(tensors) - len(others)} of {plural(len(tensors), 'packed weight')} exact"
    told = (
        "Recorded by the conversion that wrote the file, not compared again for this page. To "
        "prove it: <code>tpack inspect FILE --html PAGE --against SOURCE</code>."
    )
    if not others:
        return verdict("plain", "✓", f"{words}, by the record in the file", told)
    unknown = sum(t.method == UNKNOWN for t in others)
    if rounded := len(others) - unknown:
        words += f", {rounded} quantized with a relative error of {_errors(others)}"
    if unknown:
        words += f", {unknown} saved from a module"
    if unknown == len(tensors):
        told = "For example after training: no source is known that they could equal."
    return verdict("plain", "≠", words, told)


def _comparison(facts: Facts, source: str) -> str:
    """Say what the packed weights were found to equal: the source, or a rounding of it."""
    tensors, kept = facts.inspection.tensors, facts.inspection.kept
    equals = {row.name: row.equals for row in facts.verification.tensors}
    told = f"Compared with <code>{text(source)}</code> for this page, value by value"
    if kept:
        same = sum(equals[t.name] == SOURCE for t in kept)
        told += f". Of the kept tensors, {same} of {len(kept)} equal it"
    found = Counter(equals[t.name] for t in tensors)
    parts: list[str] = []
    for what in sorted(found, key=lambda each: (each != SOURCE, each)):
        verb = "equals" if found[what] == 1 else "equal"
        of = "" if parts else f" of {plural(len(tensors), 'packed weight')}"
        parts.append(f"{found[what]}{of} {'exact' if what == SOURCE else f'{verb} {what}'}")
    words = ", ".join(parts)
    if rounded := [t for t in tensors if equals[t.name] != SOURCE]:
        told += (
            ". Rounded again as the file records it, the source gives the same trits and scales. "
            f"The rounding has a relative error of {_errors(rounded)}: a model that rounds these "
            "weights itself whenever it runs computes with the same values, any other is changed"
        )
        return verdict("plain", "✓", words, f"{told}.")
    return verdict("good", "✓", f"{words}: equal to the source", f"{told}.")


def _errors(tensors: Sequence[TernaryInfo]) -> str:
    """Return the relative errors of weights that were rounded: one number, or two ends."""
    errors = [t.relative_error for t in tensors if t.relative_error is not None]
    low, high = f"{min(errors):.3g}", f"{max(errors):.3g}"
    return low if low == high else f"{low} to {high}"


def _health(facts: Facts) -> str:
    """Say whether the bytes are those that were written, which proves nothing of the source."""
    found = facts.verification
    if found.ok:
        count = plural(len(found.tensors), "tensor")
        return verdict(
            "plain", "✓", f"File intact: {count}, every code, digest and byte of padding"
        )
    problems = len(found.problems)
    listed = "".join(f"<li>{text(problem)}</li>" for problem in found.problems[:MAX_PROBLEMS])
    more = f"<li>and {problems - MAX_PROBLEMS} more</li>" if problems > MAX_PROBLEMS else ""
    words = f"Verification failed: {plural(problems, 'problem')}"
    return f'{verdict("bad", "✕", words)}<ul class="problems">{listed}{more}</ul>'


def _totals(facts: Facts) -> str:
    """Lead with what is on disk; compare weights with weights."""
    report = facts.inspection
    packed, scales = (
        sum(getattr(t, part) for t in report.tensors) for part in ("packed_bytes", "scale_bytes")
    )
    kept = sum(t.nbytes for t in report.kept)
    rest = report.file_bytes - packed - scales - kept
    parts = (
        ("packed", "Packed trits", packed),
        ("scales", "Scales", scales),
        ("kept", "Kept tensors", kept),
        ("rest", "Header and description", rest),
    )
    disk = bar("What is on disk", [(*part, f"{size(part[2])}, ") for part in parts if part[2]])
    cards = [(size(report.file_bytes), "on disk")]
    if not report.tensors:
        return totals(cards, f'{disk}<p class="empty">No tensor of this checkpoint is ternary.</p>')
    counts = [sum(t.counts[i] for t in report.tensors) for i in range(3)]
    weights, now = sum(counts), packed + scales
    before = sum(BY_NAME[t.source_dtype].nbytes(sum(t.counts)) for t in report.tensors)
    dtypes = " and ".join(sorted({t.source_dtype for t in report.tensors}))
    cards += [
        (f"{before / now:.1f}×", f"smaller weights: {size(before)} in {dtypes}, {size(now)} now"),
        (
            f"{8 * now / weights:.2f}",
            f"bits per packed weight, {8 * scales / weights:.2f} of it scales; "
            f"{report.bpw_total:.2f} in all, kept tensors included",
        ),
        (
            f"{kept / report.file_bytes:.0%}",
            f"of the file kept: {plural(len(report.kept), 'tensor')}",
        ),
    ]
    kinds = (("minus", "−1"), ("zero", "0"), ("plus", "+1"))
    trits = bar("Trits", [(*kind, n, "") for kind, n in zip(kinds, counts, strict=True)])
    return totals(cards, disk + trits)


def _charts(facts: Facts, stack: str) -> str:
    """Return places for the charts that have something to show."""
    tensors = facts.inspection.tensors
    sizes = figure("bytes", "Where the bytes are", "Area is stored size.")
    if not tensors:
        return sizes
    zeros = figure(
        "zeros", "Share of zeros", f"{by_layer(stack)} Choose a cell to find its tensors below."
    )
    error = worst = ""
    if any(t.relative_error for t in tensors):
        error = figure(
            "error", "Relative error", f"‖w − s·q‖ ∕ ‖w‖ of the weights. {_sources(tensors)}"
        )
        worst = figure("worst", "Largest errors", f"The worst of {plural(len(tensors), 'weight')}.")
    scales = figure(
        "scales",
        "Scales",
        "The number that multiplies the trits, on a logarithmic axis. A dot is the only scale of a "
        "weight; of many, the line is the median, the bands are the middle half and all.",
    )
    return f"{pair(zeros, error)}{scales}{pair(sizes, worst)}"


def _sources(tensors: Sequence[TernaryInfo]) -> str:
    unknown = sum(t.method == UNKNOWN for t in tensors)
    return "Empty where no source is known." if unknown else ""


def _row(tensor: TernaryInfo | KeptInfo) -> tuple[str, ...]:
    name, sizes, stored = tensor.name, shape(tensor.shape), size(tensor.nbytes)
    if isinstance(tensor, KeptInfo):
        return (name, sizes, tensor.dtype, "", "kept", "", "", "", stored)
    error = "unknown" if tensor.relative_error is None else f"{tensor.relative_error:.3f}"
    error = "0" if tensor.method == "exact" else error
    return (
        name, sizes, tensor.layout, tensor.scale, tensor.method,
        f"{tensor.zeros:.1%}", error, f"{tensor.bpw:.2f}", stored,
    )  # fmt: skip
