"""Print JSON, tables, sizes, and progress on a terminal."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, TextIO

import click

from tpack.choices import QUANTIZERS
from tpack.grouping import groups, label
from tpack.text import plural, printable, readable, shape, size

__all__ = [
    "TINTS",
    "cut",
    "grouped",
    "plural",
    "print_json",
    "printable",
    "progress",
    "readable",
    "shape",
    "shorten",
    "size",
    "table",
    "tint",
]


def print_json(data: Any) -> None:
    """Print one JSON document on stdout."""
    click.echo(json.dumps(data, indent=2, allow_nan=False))


#: Colours by meaning. The words have the meaning too: none is in a colour alone.
_COLOURS = {"good": "green", "warn": "yellow", "bad": "red"}

#: Words of tables that have a colour: what was lossless, and what was not.
TINTS = MappingProxyType(
    {"exact": "good", "packed": "good"} | dict.fromkeys(("quantized", *QUANTIZERS), "warn")
)


def tint(text: str, meaning: str) -> str:
    """Colour a text as ``good``, ``warn`` or ``bad``.

    It stays plain with ``NO_COLOR``; if the output is not a terminal, click drops the colour.
    """
    return text if os.environ.get("NO_COLOR") else click.style(text, fg=_COLOURS[meaning])


def grouped(
    keyed: Iterable[tuple[str, Hashable]], *, each: bool = False
) -> list[tuple[str, list[str]]]:
    """Return label and names of each line of a table; repeated layers share one if not ``each``."""
    found = [[name] for name, _ in keyed] if each else groups(keyed)
    return [(label(names), names) for names in found]


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    right: Sequence[int] = (),
    *,
    stream: TextIO | None = None,
    meanings: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """Align rows in columns, two spaces apart; columns ``right`` are aligned to the right.

    Args:
        stream: if it is a terminal, the first column is cut until the lines fit.
        meanings: the cells to colour → the meaning of the colour.
    """
    cells = [[printable(cell) for cell in row] for row in (head, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    if stream is not None and stream.isatty():
        room = shutil.get_terminal_size().columns - sum(widths[1:]) - 2 * (len(head) - 1)
        widths[0] = min(widths[0], max(room, 12))
        for row in cells:
            row[0] = cut(row[0], widths[0])
    lines = []
    for row in cells:
        parts = [
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        last = max((i for i, cell in enumerate(row) if cell), default=0)
        shown = [
            tint(part, meanings[cell]) if cell in meanings else part
            for part, cell in zip(parts, row, strict=True)
        ][: last + 1]
        lines.append("  ".join(shown).rstrip())
    return "\n".join(lines)


def cut(name: str, width: int) -> str:
    """Cut a name in the middle, so that both its ends can be read.

    Example:
        >>> cut("model.layers.0–29.mlp.up_proj ×30", 20)
        'model.lay…p_proj ×30'
    """
    if len(name) <= width:
        return name
    return f"{name[: width // 2 - 1]}…{name[-(width - width // 2) :]}"


def shorten(name: str, width: int = 34) -> str:
    """Cut a name in the middle on a terminal; keep it whole in a pipe."""
    return cut(name, width) if sys.stdout.isatty() else name


@contextmanager
def progress(*, quiet: bool) -> Iterator[Callable[[str, int, int], None] | None]:
    """Show a progress bar on stderr if that is a terminal; yield what advances it, or None."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn as TimeLeft,
        TransferSpeedColumn as Speed,
    )

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), Speed(), TimeLeft())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, Any] = {}

        def advance(phase: str, done: int, total: int) -> None:
            if phase not in tasks:
                tasks[phase] = bars.add_task(phase, total=total)
            bars.update(tasks[phase], completed=done)

        yield advance
