"""``tpack export``."""

from __future__ import annotations

from dataclasses import MISSING, Field, dataclass, fields
from pathlib import Path
from typing import Any

import click

from tpack.cli import options
from tpack.cli.output import print_json, printable, shape, shorten, size, table


def _fields() -> list[Field[Any]]:
    """Return the option ``--to``, and those of all targets."""
    from tpack.exporting import TARGETS
    from tpack.options import option

    @dataclass
    class Chosen:
        to: str = option(MISSING, "For which system.", among=TARGETS)

    records: list[type[Any]] = [Chosen, *(row.options for row in TARGETS.values())]
    return [each for record in records for each in fields(record)]


@click.command(cls=options.Described, described=_fields)
@click.argument("file", type=options.checkpoint)
@click.option("-o", "--output", type=options.output, required=True)
@options.force
@options.as_json
@options.quiet
@options.verbose
def export(
    file: Path,
    to: str,
    output: Path,
    force: bool,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    **chosen: Any,
) -> None:
    """Write a checkpoint for another system.

    gguf is a file for llama.cpp, made of a GGUF file or of the folder of a model such as
    Llama or BitNet. hf-bitnet is a folder for transformers. onnx is a graph for ONNX Runtime,
    of a model whose forward is known. What the target cannot hold exactly is refused, by name.

    \b
    Example:
      tpack export model.tpack --to gguf -o model.gguf
    """
    from tpack.exporting import export as run

    default = click.core.ParameterSource.DEFAULT
    asked = click.get_current_context().get_parameter_source
    given = {name: value for name, value in chosen.items() if asked(name) != default}
    report = run(file, to, output, force=force, **given)
    if as_json:
        print_json(report.to_dict())
        return
    click.echo(report.output)
    if quiet:
        return
    shown = [tensor for tensor in report.tensors if verbose or tensor.reason]
    rows = [(shorten(t.name), shape(t.shape), t.type, t.reason) for t in shown]
    if rows:
        click.echo(table(("tensor", "shape", "type", "not exact"), rows), err=True)
    for note in report.notes:
        click.echo(printable(f"note: {note}"), err=True)
    click.echo(f"{to}: {size(report.output_bytes)}", err=True)
