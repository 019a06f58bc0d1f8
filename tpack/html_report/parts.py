"""What both pages are made of: the head, totals, bars, places of charts, the table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tpack.html_report.markup import asset, text
from tpack.text import plural


@dataclass(frozen=True)
class Column:
    """A column of the table.

    Attributes:
        key: the list of the page's data to sort by; if it has none of that name, the text.
    """

    title: str
    key: str
    number: bool = False


def head(kicker: str, title: str, lines: str) -> str:
    """Return the head of a page: what it is of, and what was proven."""
    return f'<header><p class="kicker">{kicker}</p><h1>{title}</h1>{lines}</header>'


def verdict(kind: str, mark: str, words: str, more: str = "") -> str:
    """Return one finding: ``good``, ``bad`` or ``plain``, with a mark that needs no colour."""
    below = f"<p>{more}</p>" if more else ""
    return (
        f'<div class="verdict {kind}"><span aria-hidden="true">{mark}</span>'
        f"<div><b>{text(words)}</b>{below}</div></div>"
    )


def totals(cards: Iterable[tuple[str, str]], below: str = "") -> str:
    """Return large numbers, each with what it counts."""
    shown = "".join(
        f"<div><dt>{text(label)}</dt><dd>{text(value)}</dd></div>" for value, label in cards
    )
    return f'<section aria-label="Totals"><dl class="totals">{shown}</dl>{below}</section>'


def bar(title: str, parts: Sequence[tuple[str, str, float, str]]) -> str:
    """Draw shares as one bar, in a viewBox that is 1000 wide: class, name, amount, more words."""
    count = sum(amount for _, _, amount, _ in parts)
    bars, labels, left = [], [], 0.0
    for kind, name, amount, more in parts:
        share = amount / count
        bars.append(
            f'<rect class="{kind}" x="{1000 * left:.3f}" width="{1000 * share:.3f}" height="10"/>'
        )
        labels.append(f'<li class="{kind}"><b>{name}</b> {more}{share:.1%}</li>')
        left += share
    return (
        '<div class="shares"><svg viewBox="0 0 1000 10" preserveAspectRatio="none" role="img" '
        f'aria-label="{title}">{"".join(bars)}</svg><ul class="key">{"".join(labels)}</ul></div>'
    )


def figure(name: str, title: str, lead: str, content: str = "") -> str:
    """Return a place that the script draws a chart into."""
    return (
        f'<section aria-labelledby="{name}-title"><h2 id="{name}-title">{title}</h2>'
        f'<p class="lead">{lead}</p><div id="{name}" class="chart">{content}</div></section>'
    )


def pair(*figures: str) -> str:
    """Lay figures side by side; one alone has the whole width."""
    shown = [one for one in figures if one]
    return f'<div class="pair">{"".join(shown)}</div>' if len(shown) > 1 else "".join(shown)


def by_layer(stack: str) -> str:
    """Say what the axes of a map are, and what its labels leave out."""
    return f"By layer of <code>{text(stack)}</code>." if stack else "By layer and projection."


def table(
    title: str,
    columns: Sequence[Column],
    rows: Iterable[Sequence[str]],
    kinds: Mapping[str, str],
    data: Mapping[str, Any],
) -> str:
    """Return a table to sort and to filter; the first cell of a row is the name of a tensor.

    A column in which nothing would stand is left out.

    Args:
        kinds: what the filter may offer: a word in the ``kinds`` of the data → its label.
        data: of the page.
    """
    there = {word for words in data["kinds"] for word in words.split()}
    lines = list(rows)
    used = [i for i in range(len(columns)) if any(cells[i] for cells in lines)]
    heads = "".join(
        f'<th scope="col"{" class=n" if columns[i].number else ""}'
        f"{' aria-sort=ascending' if columns[i].key == 'order' else ''}>"
        f'<button type="button" data-key="{columns[i].key}">{columns[i].title}</button></th>'
        for i in used
    )
    body = [
        f'<tr><th scope="row">{text(cells[0])}</th>'
        + "".join(
            f"<td{' class=n' if columns[i].number else ''}>{text(cells[i])}</td>" for i in used[1:]
        )
        + "</tr>"
        for cells in lines
    ]
    options = "".join(
        f'<option value="{kind}">{label}</option>' for kind, label in kinds.items() if kind in there
    )
    return f"""<section aria-labelledby="tensors-title"><h2 id="tensors-title">{title}</h2>
<form class="filter" id="filter" role="search">
<input type="search" name="words" placeholder="Filter, e.g. layers.*.mlp" \
aria-label="Filter tensors by name" autocomplete="off" spellcheck="false">
<select name="kind" aria-label="Kind of tensors"><option value="">All</option>{options}</select>
<button type="button" id="chosen" hidden></button>
<output id="count" for="filter">{plural(len(body), "tensor")}</output>
</form>
<div class="scroll" tabindex="0" role="region" aria-labelledby="tensors-title">
<table id="tensors"><thead><tr>{heads}</tr></thead><tbody>
{chr(10).join(body)}
</tbody></table></div></section>"""


def names(title: str, items: Iterable[str]) -> str:
    """Return a short list under a title; nothing if there is nothing in it."""
    rows = "".join(f"<li>{item}</li>" for item in items)
    return f'<p class="lead">{title}</p><ul class="names">{rows}</ul>' if rows else ""


def overlays() -> str:
    """Return what lies over the page: the tip at the pointer, and the way to what is chosen."""
    return (
        '<div id="tip" role="presentation" hidden></div>'
        '<div id="dock" hidden><b></b><a href="#tensors-title">Show in the table</a>'
        '<button type="button">Clear</button></div>'
        '<p id="said" class="unseen" aria-live="polite"></p>'
    )


def foot(version: str, of: str, *, charts: bool = True) -> str:
    """Say what made the page, and whose library draws in it."""
    licence = "\n".join(text(line) for line in asset("d3/LICENSE").splitlines())
    drawn = (
        f"<details><summary>Charts are drawn with D3 (ISC licence)</summary><pre>{licence}</pre>"
        "</details>"
    )
    return (
        f"<footer><p>Made by tpack{version}. This page is one file, makes no request, and runs no "
        f"code from {of}.</p>{drawn if charts else ''}</footer>"
    )
