"""``tpack convert``."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from tpack.cli import options
from tpack.cli.output import print_json, printable, progress, shape, shorten, size, table


@click.command()
@click.argument("source")
@click.option("-o", "--output", metavar="PATH", help="Default: beside SOURCE.")
@click.option("--exact", is_flag=True, help="Refuse what is not already ternary.")
@click.option(
    "--quantize",
    type=click.Choice(["auto", "absmean", "twn", "mse"]),
    default="auto",
    help="For what is not ternary; auto is absmean.",
)
@click.option(
    "--scale", default="auto", metavar="auto|tensor|row|group:N", help="What shares a scale."
)
@click.option("--include", multiple=True, metavar="GLOB", help="Pack these tensors only.")
@click.option("--exclude", multiple=True, metavar="GLOB", help="Keep these tensors.")
@click.option(
    "--keep-dtype", type=click.Choice(["f32", "f16", "bf16"]), help="For floats that are kept."
)
@click.option("--layout", type=click.Choice(["t2", "t5"]), default="t2", help="2 or 1.6 bits.")
@click.option("--layerdef", type=click.Path(path_type=Path), help="JSON: the model's LayerDefs.")
@click.option("--dry-run", is_flag=True, help="Report, and write nothing.")
@click.option("--resume", is_flag=True, help="Go on with an interrupted folder.")
@options.force
@options.as_json
@options.quiet
@options.verbose
def convert(
    source: str,
    output: str | None,
    exact: bool,
    quantize: str,
    scale: str,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    keep_dtype: str | None,
    layout: str,
    layerdef: Path | None,
    dry_run: bool,
    resume: bool,
    force: bool,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Convert a checkpoint to packed ternary safetensors.

    SOURCE is a .safetensors, .gguf, .pt, .pth, .bin or .ckpt file, a folder as model hubs
    have them or FSDP training writes them, a repository (hf://org/name) or another address
    (s3://…). Prints the path of the output. Weights that already are ternary are packed
    losslessly; others are quantized, and the summary says so. Under torchrun or srun the
    processes share the shards of a folder.

    \b
    Example:
      tpack convert model.pt --exact
    """
    from tpack.conversion import convert as run

    with progress(quiet=quiet or as_json) as advance:
        report = run(
            source,
            output,
            exact=exact,
            quantize=quantize,
            scale=scale,
            include=include,
            exclude=exclude,
            keep_dtype=keep_dtype,
            layout=layout,
            layerdef=layerdef,
            dry_run=dry_run,
            resume=resume,
            force=force,
            progress=advance,
        )
    if as_json:
        print_json(report.to_dict())
        return
    if report.output is not None:
        click.echo(report.output)
    if quiet:
        return
    if not report.tensors:  # a process that left the output to another
        for note in report.notes:
            click.echo(printable(f"note: {note}"), err=True)
        return
    rows = [
        (
            shorten(t.name),
            shape(t.shape),
            t.action,
            f"{t.scale} {t.method}" if t.scale else t.reason,
            f"{t.relative_error:.3f}" if t.action == "quantized" else "",
            f"{t.bpw:.2f}",
        )
        for t in report.tensors
        if verbose or t.action != "kept"
    ]
    head = ("tensor", "shape", "action", "how", "error", "bpw")
    click.echo(table(head, rows, right=(4, 5)), err=report.output is not None)
    for note in report.notes:
        click.echo(printable(f"note: {note}"), err=True)
    counts = {
        action: sum(t.action == action for t in report.tensors)
        for action in ("packed", "quantized", "kept")
    }
    ratio = report.input_bytes / max(report.output_bytes, 1)
    click.echo(
        f"{counts['packed']} packed losslessly, {counts['quantized']} quantized, "
        f"{counts['kept']} kept: {size(report.input_bytes)} → {size(report.output_bytes)} "
        f"({ratio:.1f}× smaller)",
        err=True,
    )
    if dry_run:
        click.echo(
            f"needs at most {size(report.memory)} of memory and {size(report.disk)} of disk",
            err=True,
        )
    if report.output is not None:
        # only what is lossless as a whole can equal its source
        lossless = not counts["quantized"] and keep_dtype is None
        against = ["--against", str(source)] if lossless else []
        advice = shlex.join(["tpack", "verify", report.output, *against])
        click.echo(printable(f"next: {advice}"), err=True)
