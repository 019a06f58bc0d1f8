"""Memory and disk that a conversion needs, computed before it begins."""

from __future__ import annotations

import math
import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from tpack.choices import QUANTIZERS
from tpack.codec import layout_named, rows_and_columns
from tpack.conversion.architecture import may_capture
from tpack.conversion.plan import Plan
from tpack.dtypes import BY_NAME
from tpack.errors import StorageError
from tpack.kernels.selection import default_threads
from tpack.options import Options
from tpack.quantize.exact import SMALL
from tpack.quantize.pieces import MOST_THREADS
from tpack.quantize.weight import BLOCK
from tpack.sources import PackedTensor, Source, SourceTensor
from tpack.text import size

#: Bytes of the interpreter with numpy, and of torch if a source needs it; measured.
INTERPRETER, TORCH = 64 << 20, 200 << 20
#: Bytes of torch and transformers with a model of 30 layers that is captured without weights;
#: and up to which weights are loaded too, in copies, to compare. Measured: 440 MB.
CAPTURE, COMPARED, COPIES = 640 << 20, 256 << 20, 4
#: Copies of a piece that a thread works on, at four bytes a number; measured.
PIECE_BYTES = 4 * 4 * BLOCK


@dataclass(frozen=True)
class Needs:
    """Bounds in bytes: from the shapes alone, later from what was packed.

    Attributes:
        memory: resident, with what is mapped from a pickle.
        disk: for the output and what is spooled on the way, if all weights are packed.
    """

    memory: int
    disk: int

    @classmethod
    def of(cls, plan: Plan, source: Source, options: Options) -> Needs:
        """Return what a plan needs."""
        layout = layout_named(options.layout)
        packed = scales = largest = 0
        for tensor, split in plan.weights.values():
            rows, columns = rows_and_columns(tensor.shape, split)
            packed += rows * layout.bytes_for(columns)
            scales += 4 * rows * math.ceil(columns / SMALL[-1])
            largest = max(largest, _at_once(tensor, options))
        kept = sum(t.nbytes for t in plan.kept.values())
        pieces = PIECE_BYTES * (1 + min(default_threads(), MOST_THREADS))
        memory = INTERPRETER + pieces + largest + _of_torch(source) + _of_capture(source, options)
        return cls(memory, 2 * packed + scales + kept)

    def with_output(self, spooled: int, output: int) -> Needs:
        """Return the needs once the bytes of the spool and of the output are known."""
        return replace(self, disk=max(self.disk, spooled + output))

    def left(self, spooled: int) -> Needs:
        """Return what is still needed after the packed bytes were spooled."""
        return replace(self, disk=max(0, self.disk - spooled))


def _at_once(tensor: SourceTensor | PackedTensor, options: Options) -> int:
    """Return the bytes for a whole weight: trits and sums, for some methods all its numbers."""
    needed = 2 * tensor.numel
    if options.quantize != "auto" and QUANTIZERS[options.quantize].at_once:
        needed += 2 * tensor.numel * (8 if tensor.dtype == "float64" else 4)
    return needed


def _of_capture(source: Source, options: Options) -> int:
    """Return the bytes for the model of a folder, if it is captured."""
    if not may_capture(source, options):
        return 0
    dense = sum(BY_NAME[t.dtype].nbytes(t.numel) for t in source.tensors.values())
    return CAPTURE + (COPIES * dense if dense <= COMPARED else 0)


def _of_torch(source: Source) -> int:
    """Return the bytes for torch, if it holds the tensors: maps of pickles, copied strides."""
    if "torch" not in sys.modules:
        return 0
    mapped = sum(f.stat().st_size for f in source.files if f.suffix != ".safetensors")
    return TORCH + mapped + max((t.nbytes for t in source.tensors.values()), default=0)


def check_room(folder: Path, needs: Needs) -> None:
    """Check that a file system has enough room, before hours are spent.

    Raises:
        StorageError: there is less free space than the needs.
    """
    free = shutil.disk_usage(folder).free
    if free < needs.disk:
        raise StorageError(
            f"has {size(free)} of free space, but up to {size(needs.disk)} are needed. Free "
            "some, or choose an output on another disk.",
            file=folder,
        )
