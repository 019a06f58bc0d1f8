"""Describe what is in a checkpoint."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tpack.container import Checkpoint
from tpack.container.version import Version
from tpack.dtypes import BY_NAME
from tpack.layerdef import Program


@dataclass(frozen=True)
class TernaryInfo:
    """One ternary tensor.

    Attributes:
        method: ``exact``, a quantizer, or ``unknown`` for a weight that was saved from a module.
        relative_error: None where the method is unknown: there is no source to compare with.
        zeros: share of trits that are 0.
        bpw: stored bits per weight, scales included.
        counts: how many trits are -1, 0 and +1.
        packed_bytes: size of the trits as they are stored.
        scale_bytes: size of the scales.
    """

    name: str
    shape: tuple[int, ...]
    layout: str
    scale: str
    method: str
    zeros: float
    bpw: float
    relative_error: float | None
    source_dtype: str
    counts: tuple[int, int, int]
    packed_bytes: int
    scale_bytes: int

    @property
    def nbytes(self) -> int:
        """Stored bytes."""
        return self.packed_bytes + self.scale_bytes


@dataclass(frozen=True)
class KeptInfo:
    """One tensor that is kept as it was."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int


@dataclass(frozen=True)
class InspectionReport:
    """What is in a checkpoint.

    Attributes:
        bpw_total: bits of all tensors per element of all tensors, kept ones included.
        program: the LayerDefs.
        aliases: other names that tensors had in the source → the name they are stored by.
        version: the lowest version of the format that has all that the checkpoint names.
    """

    file: str
    file_bytes: int
    tensors: tuple[TernaryInfo, ...]
    kept: tuple[KeptInfo, ...]
    bpw_total: float
    program: Program | None
    aliases: Mapping[str, str]
    version: Version

    @property
    def source_bytes(self) -> int:
        """What the tensors took before, ternary ones in the dtype that they came in."""
        ternary = sum(BY_NAME[t.source_dtype].nbytes(math.prod(t.shape)) for t in self.tensors)
        return ternary + sum(t.nbytes for t in self.kept)

    @property
    def stored_bytes(self) -> int:
        """What the tensors take now."""
        return sum(t.nbytes for t in self.tensors) + sum(t.nbytes for t in self.kept)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        return {
            "file": self.file,
            "format_version": self.version.to_json(),
            "file_bytes": self.file_bytes,
            "tensors": [{**row.__dict__, "shape": list(row.shape)} for row in self.tensors],
            "kept": [{**row.__dict__, "shape": list(row.shape)} for row in self.kept],
            "aliases": dict(self.aliases),
            "bpw_total": self.bpw_total,
            "layerdefs": [] if self.program is None else [x.name for x in self.program.layers],
        }


def inspect(path: str | os.PathLike[str]) -> InspectionReport:
    """Describe a checkpoint, tensor by tensor.

    Raises:
        InputError: it cannot be read, or its structure is broken.
    """
    with Checkpoint(path) as file:
        tensors = []
        bits = weights = 0
        for name, entry in file.ternary():
            count = entry.rows * entry.columns
            packed, scale = (file.entries[f"{name}_{part}"].nbytes for part in ("packed", "scale"))
            counts = file.trit_counts(name)
            tensors.append(
                TernaryInfo(
                    name,
                    entry.shape,
                    entry.layout,
                    entry.scale,
                    entry.method,
                    round(counts[1] / count, 6),
                    round(8 * (packed + scale) / count, 4),
                    entry.relative_error,
                    entry.source_dtype,
                    counts,
                    packed,
                    scale,
                )
            )
            bits += 8 * (packed + scale)
            weights += count
        kept = [file.entries[name] for name in sorted(file.document.kept)]
        bits += sum(8 * entry.nbytes for entry in kept)
        weights += sum(math.prod(entry.shape) for entry in kept)
        return InspectionReport(
            str(path),
            file.nbytes,
            tuple(tensors),
            tuple(KeptInfo(entry.name, entry.dtype, entry.shape, entry.nbytes) for entry in kept),
            round(bits / max(weights, 1), 4),
            file.document.program,
            dict(sorted(file.document.aliases.items())),
            file.document.version,
        )
