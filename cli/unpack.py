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
    """Write plain tensors: weights dequantized, in the dtype of their source.

    The suffix of the output says in which form: .safetensors; .pt, .pth or .bin, as torch.save
    writes them; .npz, as NumPy does. A folder becomes a folder, with its config and tokenizer,
    unless the output has such a suffix.

    \b
    Example:
      tpack unpack model.tpack.safetensors -o model.safetensors
      tpack unpack packed-model -o plain-model
    """
    from tpack.container import Checkpoint
    from tpack.container.kinds import is_called_as_file
    from tpack.hfconfig import read_config, rounds_inputs
    from tpack.unpacking import unpack_file, unpack_folder

    whole = file.is_dir() and not is_called_as_file(output)
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
