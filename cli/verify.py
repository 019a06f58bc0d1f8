"""``tpack verify``."""

from __future__ import annotations

from pathlib import Path

import click

from tpack.cli import options
from tpack.cli.output import plural, print_json, printable, table, tint


@click.command()
@click.argument("file", type=options.checkpoint)
@click.option(
    "--against",
    metavar="SOURCE",
    help="What FILE was converted from: prove that unpacking gives it back.",
)
@options.as_json
@options.quiet
@options.verbose
def verify(file: Path, against: str | None, as_json: bool, quiet: bool, verbose: bool) -> int:
    """Check a checkpoint: structure, codes, padding, digests, LayerDefs.

    Exits with 5 if a check does not hold.

    \b
    Example:
      tpack verify model.tpack.safetensors --against model.pt
    """
    from tpack.verification import verify as run

    report = run(file, against)
    if as_json:
        print_json(report.to_dict())
        return 0 if report.ok else 5
    if verbose:
        rows = [(t.name, "ok" if t.ok else "FAILED", ", ".join(t.checks)) for t in report.tensors]
        meanings = {"ok": "good", "FAILED": "bad"}
        click.echo(table(("tensor", "result", "checks"), rows, meanings=meanings))
    for problem in report.problems:
        click.echo(printable(f"{file}: {problem}"), err=True)
    if not quiet:
        if report.ok:
            source = f", equal to {against}" if against else ""
            told = f"{file}: {plural(len(report.tensors), 'tensor')}{source}"
            click.echo(f"{tint('ok', 'good')}: {printable(told)}")
        else:
            told = f"{file}: {plural(len(report.problems), 'problem')}"
            click.echo(f"{tint('FAILED', 'bad')}: {printable(told)}")
    return 0 if report.ok else 5
