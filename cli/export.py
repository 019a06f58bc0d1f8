"""``tpack export``."""

from __future__ import annotations

from pathlib import Path

import click

from tpack.cli import options
from tpack.cli.output import print_json, printable, shape, shorten, size, table


@click.command()
@click.argument("file", type=options.checkpoint)
@click.option(
    "--to", type=click.Choice(["hf-bitnet", "gguf"]), required=True, help="The target system."
)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True)
@click.option(
    "--type",
    "kind",
    type=click.Choice(["auto", "tq1_0", "tq2_0", "q2_0"]),
    default="auto",
    help="Block type in GGUF; auto: that of the source, else tq2_0 or q2_0.",
)
@click.option("--allow-inexact", is_flag=True, help="Round scales, unpack what fits no block.")
@options.force
@options.as_json
@options.quiet
@options.verbose
def export(
    file: Path,
    to: str,
    output: Path,
    kind: str,
    allow_inexact: bool,
    force: bool,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Write a checkpoint in the dialect of another system.

    gguf is a file for llama.cpp, made from a GGUF file or from the folder of a model such as
    Llama or BitNet. hf-bitnet is a folder for transformers. A tensor that the dialect cannot
    express exactly is refused, by name.

    \b
    Example:
      tpack export model.tpack --to gguf -o model.gguf
    """
    from tpack.exporting import export as run
    from tpack.exporting.gguf import GgufReport

    report = run(file, output, to, type=kind, allow_inexact=allow_inexact, force=force)
    if as_json:
        print_json(report.to_dict())
        return
    click.echo(report.output)
    if quiet:
        return
    if isinstance(report, GgufReport):
        rows = [
            (shorten(t.name), shape(t.shape), t.type, t.reason)
            for t in report.tensors
            if verbose or t.reason
        ]
        if rows:
            click.echo(table(("tensor", "shape", "type", "not exact"), rows), err=True)
    for note in report.notes:
        click.echo(printable(f"note: {note}"), err=True)
    click.echo(f"{to}: {size(report.output_bytes)}", err=True)
