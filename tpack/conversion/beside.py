"""Write what lies beside the shards of an output folder; join the reports of sub-folders."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from tpack.container.atomic import write_json
from tpack.hfconfig import packed_config
from tpack.report import ConversionReport, TensorReport
from tpack.sources import Source


def write_config(source: Source, out: Path, *, inner: bool) -> None:
    """Write the config of a packed model, if the source has a config.

    Args:
        inner: whether the source is a sub-folder. Its config stays as it is unless it is that of
            a model of transformers.
    """
    config = source.config
    if config is None:
        return
    if not inner or {"model_type", "architectures"} & config.keys():
        config = packed_config(config)
    write_json(out / "config.json", config, sort_keys=True)


def named_rows(place: str, report: ConversionReport) -> Iterator[TensorReport]:
    """Return the rows of a sub-folder, its name put before the names of the tensors."""
    return (replace(row, name=f"{place}/{row.name}") for row in report.tensors)


def with_parts(report: ConversionReport, parts: Mapping[str, ConversionReport]) -> ConversionReport:
    """Join the report of a folder with those of its sub-folders."""
    notes, warnings = list(report.notes), list(report.warnings)
    for place, part in parts.items():
        packed = sum(row.action != "kept" for row in part.tensors)
        notes.append(f"{place}: {packed} of {len(part.tensors)} tensors packed")
        notes += [f"{place}: {note}" for note in part.notes if "matches no name" not in note]
        warnings += [f"{place}: {warning}" for warning in part.warnings]
    return replace(
        report,
        output_bytes=report.output_bytes + sum(part.output_bytes for part in parts.values()),
        tensors=(*report.tensors, *(r for p, part in parts.items() for r in named_rows(p, part))),
        notes=tuple(notes),
        warnings=tuple(warnings),
        memory=max([report.memory, *(part.memory for part in parts.values())]),
        disk=report.disk + sum(part.disk for part in parts.values()),
    )
