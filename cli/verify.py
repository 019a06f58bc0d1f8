"""``tpack verify``."""

from __future__ import annotations

from pathlib import Path

import click

from tpack.cli import options
from tpack.cli.output import print_json, printable, table


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
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
        click.echo(table(("tensor", "result", "checks"), rows))
    for problem in report.problems:
        click.echo(printable(f"{file}: {problem}"), err=True)
    if not quiet:
        count = len(report.tensors)
        source = f", equal to {against}" if against else ""
        good = f"ok: {file}: {count} tensors{source}"
        bad = f"FAILED: {file}: {len(report.problems)} problems"
        click.echo(good if report.ok else bad)
    return 0 if report.ok else 5
