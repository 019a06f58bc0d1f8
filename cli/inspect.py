"""``tpack inspect``."""

from __future__ import annotations

from pathlib import Path

import click

from tpack.cli import options
from tpack.cli.output import print_json, shape, shorten, size, table


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@options.as_json
@options.verbose
def inspect(file: Path, as_json: bool, verbose: bool) -> None:
    """Show what is in a checkpoint, tensor by tensor.

    \b
    Example:
      tpack inspect model.tpack.safetensors
    """
    from tpack.inspection import inspect as run

    report = run(file)
    if as_json:
        print_json(report.to_dict())
        return
    rows = [
        (
            t.name if verbose else shorten(t.name),
            shape(t.shape),
            t.layout,
            t.scale,
            t.method,
            f"{t.zeros:.1%}",
            f"{t.bpw:.2f}",
        )
        for t in report.tensors
    ]
    rows += [
        (t.name if verbose else shorten(t.name), shape(t.shape), t.dtype, "", "kept", "", "")
        for t in report.kept
    ]
    head = ("tensor", "shape", "layout", "scale", "method", "zeros", "bpw")
    click.echo(table(head, rows, right=(5, 6)))
    layers = len(report.program.layers) if report.program else 0
    click.echo(
        f"{len(report.tensors)} ternary, {len(report.kept)} kept, {report.bpw_total:.2f} bits per "
        f"weight in all, {size(report.file_bytes)}, {layers} LayerDefs"
    )
