"""What a conversion needs, known before it begins."""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass
from pathlib import Path

from tpack.codec import GROUP_SIZES, layout_named, rows_and_columns
from tpack.conversion.options import Options
from tpack.conversion.plan import Plan
from tpack.errors import StorageError
from tpack.sources import Source

#: Of the interpreter, buffers and threads; measured.
FIXED_MEMORY = 300 << 20


@dataclass(frozen=True)
class Needs:
    """Upper bounds in bytes, from the shapes alone.

    Attributes:
        memory: resident.
        disk: for the output and what is spooled on the way.
    """

    memory: int
    disk: int

    @classmethod
    def of(cls, plan: Plan, source: Source, options: Options) -> Needs:
        """What a plan needs."""
        layout = layout_named(options.layout)
        packed = scales = 0
        for tensor, split in plan.weights.values():
            rows, columns = rows_and_columns(tensor.shape, split)
            packed += rows * layout.bytes_for(columns)
            scales += 4 * rows * math.ceil(columns / GROUP_SIZES[-1])
        kept = sum(t.nbytes for t in plan.kept.values())
        largest = max((t.nbytes for t in source.tensors.values()), default=0)
        return cls(FIXED_MEMORY + largest, 2 * packed + scales + kept)


def check_room(folder: Path, needs: Needs) -> None:
    """Make sure that a file system has the room, before hours are spent.

    Raises:
        StorageError: it has not.
    """
    free = shutil.disk_usage(folder).free
    if free < needs.disk:
        raise StorageError(
            f"has {free / 1e9:.1f} GB of free space, but up to {needs.disk / 1e9:.1f} GB are "
            "needed. Free some, or convert to another disk with -o.",
            file=folder,
        )
