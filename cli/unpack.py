"""``tpack unpack``."""

from __future__ import annotations

from pathlib import Path

import click

from tpack.cli import options
from tpack.cli.output import print_json, size


@click.command()
@click.argument("file", type=options.checkpoint)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True)
@options.force
@options.as_json
@options.quiet
def unpack(file: Path, output: Path, force: bool, as_json: bool, quiet: bool) -> None:
    """Write plain safetensors: weights dequantized, in the dtype of their source.

    \b
    Example:
      tpack unpack model.tpack.safetensors -o model.safetensors
    """
    from tpack.container import Checkpoint
    from tpack.unpacking import unpack_file

    written = unpack_file(file, output, force=force)
    if as_json:
        print_json({"output": str(output), "output_bytes": written})
        return
    click.echo(str(output))
    if not quiet:
        with Checkpoint(file) as packed:
            click.echo(f"{size(packed.nbytes)} → {size(written)}", err=True)
