"""Write the checkpoint that a file of another system carries, as it was."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from tpack.container.atomic import check_not_input
from tpack.describing import Output
from tpack.dtypes import BY_NAME
from tpack.errors import FormatError, UsageError, locate
from tpack.options import Options
from tpack.report import ConversionReport, TensorReport
from tpack.sources import Source
from tpack.sources.carried import changed
from tpack.wording import spell


def restore(
    source: Source, options: Options, layerdef: Any, target: Path, *inputs: Path
) -> ConversionReport:
    """Write a carried checkpoint; its tensors must have their digests.

    Raises:
        UsageError: an option that would change it.
        FormatError: its bytes are not those that were exported.
        ExistsError, StorageError: as ``new_file``.
    """
    output = source.carried
    assert output is not None
    default = Options()
    asked = {
        each.name: getattr(options, each.name)
        for each in fields(Options)
        if each.compare and getattr(options, each.name) != getattr(default, each.name)
    } | ({} if layerdef is None else {"layerdef": ...})
    asked.pop("exact", None)
    if asked:
        raise UsageError(
            f"{spell(**asked)} cannot be used: the model carries a checkpoint of tpack, which is "
            "written as it was. Convert the source of that instead."
        )
    with locate(file=source.label):
        for name in changed(output):
            raise FormatError(
                "does not have the digest of its description: it was changed. Export the model "
                "again.",
                rule="R17",
                tensor=name,
            )
    size = output.size
    if not options.dry_run:
        check_not_input(target, *inputs)
        size = output.write(target, force=options.force)
    notes = ("the checkpoint that the model was exported from, written as it was",)
    return ConversionReport(
        None if options.dry_run else str(target), source.nbytes, size, tuple(_rows(output)), notes
    )


def _rows(output: Output) -> Iterator[TensorReport]:
    pieces = {piece.name: piece for piece in output.pieces}
    for name, entry in output.document.tensors.items():
        nbytes = sum(pieces[f"{name}_{part}"].nbytes for part in ("packed", "scale"))
        yield TensorReport(
            name,
            "packed",
            entry.scale,
            entry.method,
            entry.relative_error or 0.0,
            round(8 * nbytes / math.prod(entry.shape), 4),
            entry.shape,
            dtype=entry.source_dtype,
        )
    for name in output.document.kept:
        dtype, shape = pieces[name].dtype, pieces[name].shape
        bits = float(BY_NAME[dtype].bits)
        yield TensorReport(name, "kept", None, None, 0.0, bits, shape, "as it was", dtype=dtype)
