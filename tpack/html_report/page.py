"""The parts of the page, in the order in which they are read."""

from __future__ import annotations

from collections.abc import Sequence

from tpack.container.document import UNKNOWN
from tpack.container.version import Version
from tpack.html_report.facts import Facts, chart_data
from tpack.html_report.markup import asset, document, json_block, text
from tpack.html_report.program import program_section
from tpack.inspection import KeptInfo, TernaryInfo
from tpack.text import plural, shape, size

#: Problems of verification that the page lists.
MAX_PROBLEMS = 20
#: Columns of the table: title, property to sort by, whether it holds numbers.
_COLUMNS = (
    ("Tensor", "order", False),
    ("Shape", "elements", False),
    ("Stored as", "stored", False),
    ("Scale", "scale", False),
    ("Method", "method", False),
    ("Zeros", "zeros", True),
    ("Error", "error", True),
    ("Bits/w", "bpw", True),
    ("Size", "bytes", True),
)


def render(facts: Facts) -> str:
    """Return the page of a checkpoint."""
    data = chart_data(facts)
    parts = [
        "<main>",
        _header(facts),
        _totals(facts),
        _charts(facts, data["stack"]),
        _table(facts),
        '<section><h2>LayerDefs</h2><p class="lead">The model as the file describes it, and the '
        f"PyTorch source generated from that.</p>{program_section(facts.inspection.program)}"
        "</section>",
        "</main>",
        _footer(facts.inspection.version),
        '<div id="tip" role="presentation" hidden></div>',
        '<div id="dock" hidden><b></b><a href="#tensors-title">Show in the table</a>'
        '<button type="button">Clear</button></div>',
        '<p id="said" class="unseen" aria-live="polite"></p>',
        json_block("data", data),
    ]
    return document(f"{facts.name} · tpack", "\n".join(parts))


def _header(facts: Facts) -> str:
    found = facts.verification
    if found.ok:
        badge = (
            f'<p class="badge good"><span aria-hidden="true">✓</span> Verified: '
            f"{plural(len(found.tensors), 'tensor')}, every code, digest and byte of padding</p>"
        )
    else:
        count = len(found.problems)
        rows = "".join(f"<li>{text(problem)}</li>" for problem in found.problems[:MAX_PROBLEMS])
        more = f"<li>and {count - MAX_PROBLEMS} more</li>" if count > MAX_PROBLEMS else ""
        badge = (
            f'<p class="badge bad"><span aria-hidden="true">✕</span> Verification failed: '
            f'{plural(count, "problem")}</p><ul class="problems">{rows}{more}</ul>'
        )
    return (
        f'<header><p class="kicker">Ternary checkpoint</p><h1>{text(facts.name)}</h1>'
        f"{badge}</header>"
    )


def _totals(facts: Facts) -> str:
    report = facts.inspection
    dtypes = sorted({t.source_dtype for t in report.tensors})
    ratio = report.source_bytes / max(report.stored_bytes, 1)
    bits = sum(t.nbytes for t in report.tensors) * 8
    weights = sum(sum(t.counts) for t in report.tensors)
    before = f"than in {' and '.join(dtypes)}" if dtypes else "than its source"
    numbers = [
        (f"{bits / weights:.2f}" if weights else "–", "bits per weight, scales included"),
        (f"{ratio:.1f}×" if weights else "–", f"smaller {before}"),
        (size(report.file_bytes), f"on disk, {report.bpw_total:.2f} bits per element in all"),
        (f"{len(report.tensors)}", f"ternary, {plural(len(report.kept), 'tensor')} kept"),
    ]
    cards = "".join(
        f"<div><dt>{text(label)}</dt><dd>{text(value)}</dd></div>" for value, label in numbers
    )
    return f'<section aria-label="Totals"><dl class="totals">{cards}</dl>{_trits(facts)}</section>'


def _trits(facts: Facts) -> str:
    """Draw the shares of -1, 0 and +1 as one bar, in a viewBox that is 1000 wide."""
    totals = [sum(t.counts[i] for t in facts.inspection.tensors) for i in range(3)]
    if not (count := sum(totals)):
        return '<p class="empty">No tensor of this checkpoint is ternary.</p>'
    bars, labels, left = [], [], 0.0
    for total, name, kind in zip(totals, ("−1", "0", "+1"), ("minus", "zero", "plus"), strict=True):
        width = 1000 * total / count
        bars.append(f'<rect class="{kind}" x="{left:.3f}" width="{width:.3f}" height="10"/>')
        labels.append(f'<li class="{kind}"><b>{name}</b> {total / count:.1%}</li>')
        left += width
    return (
        '<div class="trits"><svg viewBox="0 0 1000 10" preserveAspectRatio="none" role="img" '
        f'aria-label="Shares of −1, 0 and +1">{"".join(bars)}</svg><ul>{"".join(labels)}</ul></div>'
    )


def _charts(facts: Facts, stack: str) -> str:
    """Places for the charts that have something to show."""
    tensors = facts.inspection.tensors
    lossy = any(t.relative_error for t in tensors)
    worst = _figure("worst", "Largest errors", f"The worst of {plural(len(tensors), 'weight')}.")
    size_map = _figure("bytes", "Where the bytes are", "Area is stored size.")
    sizes = f'<div class="pair">{size_map}{worst}</div>' if lossy else size_map
    if not tensors:
        return sizes
    zeros = _figure(
        "zeros",
        "Share of zeros",
        f"{_by(stack)}. Choose a cell to find its tensors below.",
    )
    error = _figure(
        "error",
        "Relative error",
        f"‖w − s·q‖ ∕ ‖w‖. {_sources(tensors)}",
    )
    scales = _figure(
        "scales",
        "Scales",
        "Their magnitude: median, middle half and full range, on a logarithmic axis.",
    )
    return f'<div class="pair">{zeros}{error}</div>{scales}{sizes}'


def _sources(tensors: Sequence[TernaryInfo]) -> str:
    """Say how many weights equal their source, and for how many no source is known."""
    exact = sum(t.method == "exact" for t in tensors)
    unknown = sum(t.method == UNKNOWN for t in tensors)
    told = f"{exact} of {plural(len(tensors), 'weight')} exact."
    if not unknown:
        return told
    return f"{told} {unknown} saved from a module: no source is known, and so no error."


def _by(stack: str) -> str:
    """Say what the axes are, and what the labels leave out."""
    return f"By layer of <code>{text(stack)}</code>" if stack else "By layer and projection"


def _figure(name: str, title: str, lead: str) -> str:
    return (
        f'<section aria-labelledby="{name}-title"><h2 id="{name}-title">{title}</h2>'
        f'<p class="lead">{lead}</p><div id="{name}" class="chart"></div></section>'
    )


def _table(facts: Facts) -> str:
    heads = "".join(
        f'<th scope="col"{" class=n" if number else ""}'
        f"{' aria-sort=ascending' if key == 'order' else ''}>"
        f'<button type="button" data-key="{key}">{title}</button></th>'
        for title, key, number in _COLUMNS
    )
    rows = "\n".join(_row(tensor) for tensor in facts.tensors)
    aliases = "".join(
        f"<li><code>{text(a)}</code> is <code>{text(b)}</code></li>"
        for a, b in facts.inspection.aliases.items()
    )
    shared = f'<p class="lead">Shared</p><ul class="aliases">{aliases}</ul>' if aliases else ""
    return f"""<section aria-labelledby="tensors-title"><h2 id="tensors-title">Tensors</h2>
<form class="filter" id="filter" role="search">
<input type="search" name="words" placeholder="Filter, e.g. layers.*.mlp" \
aria-label="Filter tensors by name" autocomplete="off" spellcheck="false">
<select name="kind" aria-label="Kind of tensors"><option value="">All</option>\
<option value="ternary">Ternary</option><option value="quantized">Quantized</option>\
<option value="kept">Kept</option></select>
<button type="button" id="chosen" hidden></button>
<output id="count" for="filter">{plural(len(facts.tensors), "tensor")}</output>
</form>
<div class="scroll" tabindex="0" role="region" aria-labelledby="tensors-title">
<table id="tensors"><thead><tr>{heads}</tr></thead><tbody>
{rows}
</tbody></table></div>{shared}</section>"""


def _row(tensor: TernaryInfo | KeptInfo) -> str:
    name, sizes, stored = text(tensor.name), shape(tensor.shape), size(tensor.nbytes)
    if isinstance(tensor, KeptInfo):
        cells = (sizes, tensor.dtype, "", "kept", "", "", "", stored)
    else:
        error = "unknown" if tensor.relative_error is None else f"{tensor.relative_error:.3f}"
        error = "0" if tensor.method == "exact" else error
        cells = (
            sizes, tensor.layout, tensor.scale, tensor.method,
            f"{tensor.zeros:.1%}", error, f"{tensor.bpw:.2f}", stored,
        )  # fmt: skip
    numbers = [number for _, _, number in _COLUMNS[1:]]
    data = "".join(
        f"<td{' class=n' if number else ''}>{text(cell)}</td>"
        for cell, number in zip(cells, numbers, strict=True)
    )
    return f'<tr><th scope="row">{name}</th>{data}</tr>'


def _footer(version: Version) -> str:
    return (
        f"<footer><p>Made by tpack, format version {version}. This page is one file, makes no "
        "request, and runs no code from the checkpoint.</p>"
        "<details><summary>Charts are drawn with D3 (ISC licence)</summary>"
        f"<pre>{text_lines(asset('d3/LICENSE'))}</pre></details></footer>"
    )


def text_lines(lines: str) -> str:
    """Escaped text that keeps its lines."""
    return "\n".join(text(line) for line in lines.splitlines())
