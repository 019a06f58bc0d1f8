"""``tpack codegen``."""

from __future__ import annotations

from pathlib import Path

import click

from tpack.cli import options
from tpack.cli.output import print_json
from tpack.cli.usage import Command


@click.command(cls=Command)
@click.argument("file", type=options.checkpoint)
@click.option("-o", "--output", type=options.output, help="Default: stdout.")
@click.option("--standalone", is_flag=True, help="Source that imports nothing but torch.")
@options.force
@options.as_json
def codegen(file: Path, output: Path | None, standalone: bool, force: bool, as_json: bool) -> None:
    """Regenerate the source of a model from the LayerDefs in its checkpoint.

    \b
    Example:
      tpack codegen model.tpack.safetensors -o model.py
    """
    from tpack.codegen import generate_pytorch_code
    from tpack.container import Checkpoint, new_file
    from tpack.container.atomic import check_not_input
    from tpack.errors import LayerDefError, locate

    if output is not None:
        check_not_input(output, file)
    with Checkpoint(file) as checkpoint:
        program = checkpoint.document.program
    if program is None:
        raise LayerDefError("has no LayerDefs. Convert it with --layerdef FILE.", file=file)
    with locate(file=file):
        source = generate_pytorch_code(program, standalone=standalone)
    if output is not None:
        with new_file(output, force=force) as handle:
            handle.write(source.encode())
    if as_json:
        print_json({"output": output and str(output), "source": source})
    else:
        click.echo(source if output is None else f"{output}\n", nl=False)
