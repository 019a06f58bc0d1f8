"""``tpack convert``."""

from __future__ import annotations

import sys
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

import click

from tpack.cli import options
from tpack.cli.conversion import report_table, summary_of
from tpack.cli.output import (
    print_json,
    printable,
    progress,
    size,
)
from tpack.wording import spell_call

#: Bytes of a source from which on one waits where there are no compiled kernels.
_LARGE = 100_000_000


def _fields() -> tuple[Field[Any], ...]:
    from tpack.options import Options

    return fields(Options)


@click.command(cls=options.Described, described=_fields)
@click.argument("source")
@click.option("-o", "--output", type=options.OutputPath(), help="Default: beside SOURCE.")
@click.option("--layerdef", type=click.Path(path_type=Path), help="JSON: the model's LayerDefs.")
@options.as_json
@options.quiet
@options.verbose
def convert(
    source: str,
    output: str | None,
    layerdef: Path | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    **chosen: Any,
) -> None:
    """Convert a checkpoint to packed ternary safetensors.

    SOURCE is a file of PyTorch (.pt, .pth, .bin, .ckpt, .pt2), .safetensors, .gguf or another
    kind that docs/checkpoints.md lists, a folder as model hubs have them or FSDP training
    writes them, a repository (hf://org/name) or another address (s3://…). Prints the path of
    the output. Weights that already are ternary are packed losslessly; others are kept or
    quantized, as the summary shows. Under torchrun or srun the processes share the shards of
    a folder.

    \b
    Example:
      tpack convert model.pt --exact
    """
    from tpack.conversion import convert as run
    from tpack.kernels.selection import missing

    with progress(quiet=quiet or as_json) as advance:
        report = run(source, output, layerdef=layerdef, progress=advance, **chosen)
    if as_json:
        print_json(report.to_dict())
        return
    if report.output is not None:
        click.echo(report.output)
    for warning in report.warnings:
        click.echo(printable(f"warning: {warning}"), err=True)
    if quiet:
        return
    if not report.tensors:  # a process that left the output to another
        for note in report.notes:
            click.echo(printable(f"note: {note}"), err=True)
        return
    written = report.output is not None
    stream = sys.stderr if written else sys.stdout
    click.echo(report_table(report, stream, verbose=verbose), err=written)
    slow = [missing] if missing and report.input_bytes >= _LARGE else []
    for note in (*report.notes, *slow):
        click.echo(printable(f"note: {note}"), err=True)
    summary = summary_of(report)
    if chosen["dry_run"]:
        summary["needs"] = f"at most {size(report.memory)} of memory, {size(report.disk)} of disk"
    if report.output is not None:
        read = {e.name: chosen[e.name] for e in options.reading() if chosen[e.name] != e.default}
        summary["next"] = spell_call("verify", report.output, against=source, **read)
    for title, told in summary.items():
        click.echo(f"{title:<8}  {printable(told)}", err=True)
