"""``tpack verify``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tpack.cli import options
from tpack.cli.output import plural, print_json, printable, table, tint

if TYPE_CHECKING:
    from tpack.verification import VerificationReport


@click.command(cls=options.Described, described=options.reading)
@click.argument("file", type=options.checkpoint)
@click.option(
    "--against",
    metavar="SOURCE",
    help="The source of FILE: prove that it gives FILE.",
)
@options.as_json
@options.quiet
@options.verbose
def verify(
    file: Path, against: str | None, as_json: bool, quiet: bool, verbose: bool, **chosen: Any
) -> int:
    """Check a checkpoint: structure, codes, padding, digests, LayerDefs.

    With --against: weights that were ternary must unpack to the values of SOURCE. Weights that
    were quantized are quantized again, and must give the same trits and scales. Shows where
    the first value differs, and how many do. Exits with 5 if a check fails.

    \b
    Example:
      tpack verify model.tpack.safetensors --against model.pt
    """
    from tpack.verification import verify as run

    report = run(file, against, **chosen)
    if as_json:
        print_json(report.to_dict())
        return 0 if report.ok else 5
    if verbose:
        rows = [
            (t.name, "ok" if t.ok else "FAILED", ", ".join(t.checks), t.equals)
            for t in report.tensors
        ]
        head = ("tensor", "result", "checks", "equals" if against else "")
        click.echo(table(head, rows, meanings={"ok": "good", "FAILED": "bad"}))
    for warning in report.warnings:
        click.echo(printable(f"warning: {warning}"), err=True)
    for note in [] if quiet else report.notes:
        click.echo(printable(f"note: {note}"), err=True)
    for problem in report.problems:
        click.echo(printable(f"{file}: {problem}"), err=True)
    if not quiet:
        if report.ok:
            told = f"{file}: {plural(len(report.tensors), 'tensor')}"
            if against:
                told += _proved(report, against)
            click.echo(f"{tint('ok', 'good')}: {printable(told)}")
        else:
            told = f"{file}: {plural(len(report.problems), 'problem')}"
            click.echo(f"{tint('FAILED', 'bad')}: {printable(told)}")
    return 0 if report.ok else 5


def _proved(report: VerificationReport, against: str) -> str:
    """Return what the comparison with the source found."""
    if report.lossless and not report.warnings:  # a source that holds more is not equalled
        return f", equal to {against}"
    found = ", ".join(f"{count} equal {what}" for what, count in report.equals.items())
    return f" compared with {against}: {found}"
