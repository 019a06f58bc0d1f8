"""``tpack unpack``."""

from __future__ import annotations

from pathlib import Path

import click

from tpack.cli import options
from tpack.cli.output import print_json, size
from tpack.cli.usage import Command


@click.command(cls=Command)
@click.argument("file", type=options.checkpoint)
@click.option("-o", "--output", type=options.output, required=True)
@options.force
@options.as_json
@options.quiet
def unpack(file: Path, output: Path, force: bool, as_json: bool, quiet: bool) -> None:
    """Write plain safetensors: weights dequantized, in the dtype of their source.

    A folder becomes a folder, with its config and tokenizer; a file becomes a file, and so
    does a folder if the output ends in .safetensors.

    \b
    Example:
      tpack unpack model.tpack.safetensors -o model.safetensors
      tpack unpack packed-model -o plain-model
    """
    from tpack.container import Checkpoint
    from tpack.hfconfig import read_config, rounds_inputs
    from tpack.unpacking import unpack_file, unpack_folder

    whole = file.is_dir() and output.suffix != ".safetensors"
    written = (unpack_folder if whole else unpack_file)(file, output, force=force)
    if as_json:
        print_json({"output": str(output), "output_bytes": written})
        return
    click.echo(str(output))
    if whole and rounds_inputs(read_config(file) or {}):
        click.echo(
            "note: the layers of the source round their inputs to int8; those of a plain model "
            "do not. tpack export --to hf-bitnet keeps that",
            err=True,
        )
    if not quiet:
        with Checkpoint(file) as packed:
            click.echo(f"{size(packed.nbytes)} → {size(written)}", err=True)
