"""``tpack convert``."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import Field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tpack.cli import options
from tpack.cli.output import (
    TINTS,
    grouped,
    plural,
    print_json,
    printable,
    progress,
    shape,
    size,
    table,
)
from tpack.wording import spell_call

if TYPE_CHECKING:
    from tpack.report import ConversionReport, TensorReport

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

    SOURCE is a .safetensors, .gguf, .pt2, .pt, .pth, .bin or .ckpt file, a folder as
    model hubs have them or FSDP training writes them, a repository (hf://org/name) or
    another address (s3://…). Prints the path of the output. Weights that already are ternary
    are packed losslessly; others are kept or quantized, as the summary shows. Under torchrun or
    srun the processes share the shards of a folder.

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
    click.echo(_table(report, verbose=verbose), err=report.output is not None)
    slow = [missing] if missing and report.input_bytes >= _LARGE else []
    for note in (*report.notes, *slow):
        click.echo(printable(f"note: {note}"), err=True)
    summary = _summary(report)
    if chosen["dry_run"]:
        summary["needs"] = f"at most {size(report.memory)} of memory, {size(report.disk)} of disk"
    if report.output is not None:
        read = {e.name: chosen[e.name] for e in options.reading() if chosen[e.name] != e.default}
        summary["next"] = spell_call("verify", report.output, against=source, **read)
    for title, told in summary.items():
        click.echo(f"{title:<8}  {printable(told)}", err=True)


def _table(report: ConversionReport, *, verbose: bool) -> str:
    """Return a line for each weight, or group of repeated layers; all tensors if verbose."""
    tensors = {t.name: t for t in report.tensors if verbose or t.left or t.action != "kept"}
    keyed = ((t.name, (t.shape, t.action, t.scale, t.method, t.reason)) for t in tensors.values())
    rows = []
    for label, names in grouped(keyed, each=verbose):
        group = [tensors[name] for name in names]
        first = group[0]
        how = f"{first.scale} {first.method}" if first.scale else first.reason
        error = _error(group) if first.action == "quantized" else ""
        bits = sum(t.bpw * math.prod(t.shape) for t in group)
        bpw = bits / max(sum(math.prod(t.shape) for t in group), 1) if len(group) > 1 else first.bpw
        rows.append((label, shape(first.shape), first.action, how, error, f"{bpw:.2f}"))
    head = ("tensor", "shape", "action", "how", "error", "bpw")
    stream = None if verbose else sys.stderr if report.output is not None else sys.stdout
    return table(head, rows, right=(4, 5), stream=stream, meanings=TINTS)


def _summary(report: ConversionReport) -> dict[str, str]:
    """Return what was found, done and proved, a line each, by its title."""
    from tpack.report import counted

    packed, quantized, kept = (
        [t for t in report.tensors if t.action == action]
        for action in ("packed", "quantized", "kept")
    )
    masters = [t for t in quantized if t.is_master]
    others = [t for t in quantized if not t.is_master]
    scales = sorted({str(t.scale) for t in packed})
    found = plural(len(packed), "ternary weight")
    if scales:
        found += f" (a scale per {' or '.join(scales)})"
    proof = "each packed weight unpacks to its source, bit for bit" if packed else ""
    same = "each master is packed as its model rounds it whenever it runs" if masters else ""
    loss = f"quantized with relative error {_error(others)}" if others else ""
    before, after = max(report.input_bytes, 1), max(report.output_bytes, 1)
    ratio = f"{max(before / after, after / before):.1f}"
    change = f"{ratio}× {'smaller' if after < before else 'larger'}"
    if ratio == "1.0":
        change = "about the same"
    found += f", {plural(len(masters), 'master')} of ternary weights" if masters else ""
    return {
        "detected": f"{found}, {plural(len(others), 'other')}, "
        f"{plural(len(kept), 'tensor')} to keep",
        "packed": counted(report.tensors),
        "checked": "; ".join(filter(None, (proof, same, loss))) or "nothing to check",
        "size": f"{size(report.input_bytes)} → {size(report.output_bytes)} ({change})",
    }


def _error(tensors: Sequence[TensorReport]) -> str:
    """Return ``0.523``, or the least and the greatest of several errors."""
    errors = [t.relative_error for t in tensors]
    low, high = f"{min(errors):.3f}", f"{max(errors):.3f}"
    return low if low == high else f"{low}–{high}"
