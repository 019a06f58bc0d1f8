"""``tpack diff``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tpack.cli import options
from tpack.cli.output import grouped, plural, print_json, printable, table, tint
from tpack.cli.usage import Command

if TYPE_CHECKING:
    from tpack.difference import DiffReport, TensorDifference


@click.command(cls=Command)
@click.argument("first", type=options.checkpoint)
@click.argument("second", type=options.checkpoint)
@click.option("--html", type=options.output, help="Write a page: which trits changed, where.")
@options.force
@options.as_json
@options.quiet
@options.verbose
def diff(
    first: Path,
    second: Path,
    html: Path | None,
    force: bool,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> int:
    """Compare two checkpoints, files or folders.

    Shows tensors that only one has, how many trits, scales and kept elements changed, and
    which LayerDefs. Repeated layers share a line. With --html: a self-contained page that needs
    no network, with a map of the changes in each tensor. Prints its path. Exits with 5 if
    anything differs.

    \b
    Example:
      tpack diff before.tpack.safetensors after.tpack.safetensors
      tpack diff before.tpack.safetensors after.tpack.safetensors --html diff.html
    """
    from tpack.container.atomic import check_not_input, check_target, new_file
    from tpack.difference import diff as run

    if html is not None:
        check_not_input(html, first, second)
        check_target(html, force=force)
    report = run(first, second)
    if html is not None:
        from tpack.html_report import render_comparison

        page = render_comparison(report).encode()
        with new_file(html, force=force) as out:
            out.write(page)
        if as_json:
            print_json({"output": str(html), "equal": report.equal})
        elif not quiet:
            click.echo(html)
    elif as_json:
        print_json(report.to_dict())
    elif not quiet:
        _show(report, verbose=verbose)
    return 0 if report.equal else 5


def _show(report: DiffReport, *, verbose: bool) -> None:
    rows = [
        *_only(report.only_first, "only in the first", verbose=verbose),
        *_only(report.only_second, "only in the second", verbose=verbose),
        *_tensors(report, verbose=verbose),
        *((name, "LayerDef", how, "", "") for name, how in report.layerdefs.items()),
        *((name, "alias", "changed", "", "") for name in report.aliases),
        *((name, "metadata", "changed", "", "") for name in report.metadata),
    ]
    if not rows:
        told = f"{report.first} and {report.second}: {plural(report.compared, 'tensor')}"
        click.echo(f"{tint('equal', 'good')}: {printable(told)}")
        return
    head = ("name", "kind", "what", "changed", "share")
    stream = None if verbose else sys.stdout
    click.echo(table(head, rows, right=(3, 4), stream=stream))
    trits = sum(t.changed or 0 for t in report.tensors if t.kind == "ternary")
    lonely = len(report.only_first) + len(report.only_second)
    told = (
        f"{len(report.tensors)} of {plural(report.compared, 'tensor')} changed, "
        f"{plural(trits, 'trit')} in all, {lonely} in one only, "
        f"{plural(len(report.layerdefs), 'LayerDef')} changed"
    )
    click.echo(f"{tint('different', 'bad')}: {told}")


def _only(names: tuple[str, ...], where: str, *, verbose: bool) -> list[tuple[str, ...]]:
    found = grouped(((name, where) for name in names), each=verbose)
    return [(label, "tensor", where, "", "") for label, _ in found]


def _tensors(report: DiffReport, *, verbose: bool) -> list[tuple[str, ...]]:
    """Return a line for each way in which a tensor, or a group of tensors, differs."""
    tensors = {t.name: t for t in report.tensors}
    rows: list[tuple[str, ...]] = []
    for label, names in grouped(((t.name, _ways(t)) for t in report.tensors), each=verbose):
        group = [tensors[name] for name in names]
        first = group[0]
        for key, (one, two) in first.form.items():
            rows.append((label, first.kind, f"{key} {one} → {two}", "", ""))
        if first.changed:
            what = "trits" if first.kind == "ternary" else "elements"
            rows.append((label, first.kind, what, *_counts([(t.changed, t.values) for t in group])))
        if first.scales_changed:
            counts = _counts([(t.scales_changed, t.scales) for t in group])
            rows.append((label, first.kind, "scales", *counts))
    return rows


def _ways(tensor: TensorDifference) -> tuple[object, ...]:
    """Return the ways in which a tensor differs, whatever the counts."""
    form = tuple(sorted(tensor.form.items()))
    return (tensor.kind, form, bool(tensor.changed), bool(tensor.scales_changed))


def _counts(pairs: list[tuple[int | None, int]]) -> tuple[str, str]:
    """Return how many values changed, and their share of all."""
    changed = sum(count or 0 for count, _ in pairs)
    return f"{changed}", f"{changed / max(sum(total for _, total in pairs), 1):.2%}"
