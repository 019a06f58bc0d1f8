"""``tpack inspect``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tpack.cli import options
from tpack.cli.conversion import report_table
from tpack.cli.output import (
    TINTS,
    grouped,
    plural,
    print_json,
    printable,
    progress,
    shape,
    shorten,
    size,
    table,
    tint,
)
from tpack.wording import spell

if TYPE_CHECKING:
    from tpack.inspection import InspectionReport


@click.command(cls=options.Described, described=options.reading)
@click.argument("file", type=options.checkpoint)
@click.option("--html", type=options.output, help="Write a page of charts; verifies too.")
@click.option(
    "--against", metavar="SOURCE", help="With --html: compare with the source of FILE too."
)
@options.force
@options.as_json
@options.verbose
def inspect(
    file: Path,
    html: Path | None,
    against: str | None,
    force: bool,
    as_json: bool,
    verbose: bool,
    **chosen: Any,
) -> int:
    """Show what is in a checkpoint, tensor by tensor.

    Of a file or folder of another kind (PyTorch, GGUF, ONNX, …): what convert would make of it,
    without writing.

    Repeated layers share a line. With --html: a self-contained page that needs no network, with
    charts, a table to sort and filter, and the source of the model. Prints its path, and
    exits with 5 if a check fails. With --against, the page says what equals SOURCE; without,
    what the conversion recorded.

    \b
    Example:
      tpack inspect model.tpack.safetensors
      tpack inspect model.tpack.safetensors --html report.html
      tpack inspect model.pt
    """
    from tpack.container import is_checkpoint
    from tpack.inspection import inspect as run
    from tpack.options import Reading

    if html is not None:
        problems = _write_page(file, html, against, chosen, force=force)
        if as_json:
            print_json({"output": str(html), "ok": not problems, "problems": problems})
        else:
            click.echo(html)
            if problems:
                told = f"{file}: {plural(len(problems), 'problem')}, which the page lists"
                click.echo(f"{tint('FAILED', 'bad')}: {printable(told)}", err=True)
        return 5 if problems else 0
    if against is not None:
        raise click.UsageError("--against needs --html. To compare alone: tpack verify --against.")
    if not is_checkpoint(file):
        return _foresee(file, chosen, as_json=as_json, verbose=verbose)
    if said := Reading(**chosen).chosen():
        raise click.UsageError(
            f"{spell(**said)} says how to read a source. Say which: --html PAGE --against SOURCE."
        )
    report = run(file)
    if as_json:
        print_json(report.to_dict())
        return 0
    click.echo(_table(report, verbose=verbose))
    layers = len(report.program.layers) if report.program else 0
    click.echo(
        f"{len(report.tensors)} ternary, {len(report.kept)} kept, {report.bpw_total:.2f} bits per "
        f"weight in all, {size(report.file_bytes)}, {plural(layers, 'LayerDef')}"
    )
    if unknown := sum(t.method == "unknown" for t in report.tensors):
        click.echo(
            f"{plural(unknown, 'weight')} saved from a module, for example after training: there "
            "is no source to compare with"
        )
    return 0


def _foresee(file: Path, chosen: dict[str, Any], *, as_json: bool, verbose: bool) -> int:
    """Show what a conversion would find in what is not a checkpoint of tpack."""
    from tpack.container.kinds import kind_of
    from tpack.conversion.foreseeing import foresee
    from tpack.report import counted

    with progress(quiet=as_json) as advance:
        report, kind = foresee(file, progress=advance, **chosen), kind_of(file)
    if as_json:
        name = "folder" if kind is None else kind.name
        print_json({"file": str(file), "kind": name, **report.to_dict()})
        return 0
    click.echo(report_table(report, sys.stdout, verbose=verbose, whole=True))
    for warning in report.warnings:
        click.echo(printable(f"warning: {warning}"), err=True)
    for note in report.notes:
        click.echo(printable(f"note: {note}"), err=True)
    what = f"{'a folder' if kind is None else kind.what}, {size(report.input_bytes)}"
    if any(tensor.action == "refused" for tensor in report.tensors):
        click.echo(f"{what}: convert refuses it")
    else:
        told = f"{counted(report.tensors)}, {size(report.output_bytes)}"
        click.echo(f"{what}: convert would give {told}")
    return 0


def _write_page(
    file: Path, html: Path, against: str | None, chosen: dict[str, Any], *, force: bool
) -> list[str]:
    """Write the page, and return the problems that verification found."""
    from tpack.container.atomic import check_not_input, check_target, new_file
    from tpack.html_report import gather, render

    check_not_input(html, file, *([against] if against else ()))
    check_target(html, force=force)
    facts = gather(file, against, **chosen)
    page = render(facts).encode()
    with new_file(html, force=force) as out:
        out.write(page)
    return list(facts.verification.problems)


def _table(report: InspectionReport, *, verbose: bool) -> str:
    """Return a line for each tensor, or group of repeated layers."""
    ternary = {t.name: t for t in report.tensors}
    kept = {t.name: t for t in report.kept}
    rows = []
    for label, names in grouped(
        ((t.name, (t.shape, t.layout, t.scale, t.method)) for t in report.tensors), each=verbose
    ):
        first, group = ternary[names[0]], [ternary[name] for name in names]
        bits = sum(8 * t.nbytes for t in group) / sum(sum(t.counts) for t in group)
        stored = f"{first.layout} {first.scale}"
        zeros = _percents([t.zeros for t in group])
        rows.append((label, shape(first.shape), stored, first.method, zeros, f"{bits:.2f}"))
    for label, names in grouped(((t.name, (t.shape, t.dtype)) for t in report.kept), each=verbose):
        like = kept[names[0]]
        rows.append((label, shape(like.shape), like.dtype, "kept", "", ""))
    rows += [
        (alias, "", f"= {shorten(name, 24)}", "alias", "", "")
        for alias, name in report.aliases.items()
    ]
    head = ("tensor", "shape", "stored as", "method", "zeros", "bpw")
    stream = None if verbose else sys.stdout
    return table(head, rows, right=(4, 5), stream=stream, meanings=TINTS)


def _percents(shares: list[float]) -> str:
    """Return ``31.6%``, or the least and the greatest of several: ``31–38%``."""
    low, high = f"{min(shares):.0%}", f"{max(shares):.0%}"
    if len(shares) == 1:
        return f"{shares[0]:.1%}"
    return low if low == high else f"{low[:-1]}–{high}"
