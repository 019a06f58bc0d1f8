"""Tell what is in a checkpoint."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from tpack.codec import LAYOUTS
from tpack.container import Checkpoint
from tpack.container.document import VERSION
from tpack.layerdef import Program


@dataclass(frozen=True)
class TernaryInfo:
    """One ternary tensor.

    Attributes:
        zeros: share of trits that are 0.
        bpw: stored bits per weight, scales included.
    """

    name: str
    shape: tuple[int, ...]
    layout: str
    scale: str
    method: str
    zeros: float
    bpw: float
    relative_error: float
    source_dtype: str


@dataclass(frozen=True)
class KeptInfo:
    """One tensor that is kept as it was."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class InspectionReport:
    """What is in a checkpoint.

    Attributes:
        bpw_total: bits of all tensors per element of all tensors, kept ones included.
        program: the LayerDefs.
    """

    file: str
    file_bytes: int
    tensors: tuple[TernaryInfo, ...]
    kept: tuple[KeptInfo, ...]
    bpw_total: float
    program: Program | None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        return {
            "file": self.file,
            "format_version": VERSION,
            "file_bytes": self.file_bytes,
            "tensors": [{**row.__dict__, "shape": list(row.shape)} for row in self.tensors],
            "kept": [{**row.__dict__, "shape": list(row.shape)} for row in self.kept],
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
            stored = sum(file.entries[f"{name}_{part}"].nbytes for part in ("packed", "scale"))
            tensors.append(
                TernaryInfo(
                    name,
                    entry.shape,
                    entry.layout,
                    entry.scale,
                    entry.method,
                    round(_zeros(file, name) / count, 6),
                    round(8 * stored / count, 4),
                    entry.relative_error,
                    entry.source_dtype,
                )
            )
            bits += 8 * stored
            weights += count
        kept = [file.entries[name] for name in sorted(file.document.kept)]
        bits += sum(8 * entry.nbytes for entry in kept)
        weights += sum(math.prod(entry.shape) for entry in kept)
        return InspectionReport(
            str(path),
            file.nbytes,
            tuple(tensors),
            tuple(KeptInfo(entry.name, entry.dtype, entry.shape) for entry in kept),
            round(bits / max(weights, 1), 4),
            file.document.program,
        )


def _zeros(file: Checkpoint, name: str) -> int:
    """How many trits of a tensor are 0, padding not counted."""
    entry = file.document.tensors[name]
    counts = np.zeros(256, dtype=np.int64)
    for _, packed in file.packed_blocks(name):
        counts += np.bincount(packed.reshape(-1), minlength=256)
    padding = entry.packed_shape[-1] * LAYOUTS[entry.layout].per_byte - entry.columns
    return int(counts @ _zeros_of_bytes(entry.layout)) - padding * entry.rows


@cache
def _zeros_of_bytes(layout: str) -> npt.NDArray[np.int64]:
    """How many codes 1 each byte holds."""
    codes = LAYOUTS[layout].decode(np.arange(256, dtype=np.uint8)[:, None])
    counts: npt.NDArray[np.int64] = (codes == 1).sum(axis=1)
    return counts
