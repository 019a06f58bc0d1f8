"""Pack the weights of a plan into a spool, one after the other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from tpack.codec import rows_and_columns
from tpack.container import TernaryEntry
from tpack.container.document import UNKNOWN
from tpack.container.header import CHUNK
from tpack.conversion.cases import Cases, Left, as_weight
from tpack.conversion.plan import Plan
from tpack.describing import Packer, Stored
from tpack.errors import NotTernaryError, locate
from tpack.options import Options
from tpack.quantize import Fit, encode_blocks, widen
from tpack.sources import PackedTensor, Source, SourceTensor

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Packed:
    """A weight after packing: its description, its scale, and its place in the spool.

    Attributes:
        entry: the description.
        scale: its stored elements, of ``dtype``.
        offset, length: where its rows lie in the spool, in bytes.
        sha256: the digest of these bytes; equal to that of the entry, except in layout t5.
    """

    entry: TernaryEntry
    scale: Array
    dtype: str
    offset: int
    length: int
    sha256: str


@dataclass
class Batch:
    """The tensors of one output file, packed or kept.

    Attributes:
        packed: weights whose bytes lie in the spool.
        kept: tensors that are read from the source when the file is written.
        reasons: why a tensor is kept.
        left: weights of the plan that are kept, and why.
        refused: weights that forbid an output.
        zero: packed weights that are all zero.
        spool: the file with the packed bytes.
    """

    spool: IO[bytes]
    packed: dict[str, Packed] = field(default_factory=dict)
    kept: dict[str, SourceTensor] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    left: dict[str, Left] = field(default_factory=dict)
    refused: dict[str, Left] = field(default_factory=dict)
    zero: list[str] = field(default_factory=list)

    def leave(self, name: str, why: Left, plan: Plan) -> None:
        """Keep a weight that the plan would have packed."""
        self.left[name] = why
        for tensor, reason in plan.as_kept(name, why.kind):
            self.kept[tensor.name], self.reasons[tensor.name] = tensor, reason

    def stored(self, source: Source) -> Iterator[Stored]:
        """Yield every tensor of the output: first the kept ones, then the packed ones."""
        for name, tensor in self.kept.items():
            trained = source.trained.get(name)
            yield Stored(name, tensor.shape, tensor.dtype, tensor.chunks, trained)
        for name, item in self.packed.items():
            yield Stored(
                name,
                item.entry.shape,
                item.dtype,
                partial(self._spooled, item),
                entry=item.entry,
                scale=item.scale,
                sha256=item.sha256,
            )

    def _spooled(self, item: Packed) -> Iterator[bytes]:
        self.spool.seek(item.offset)
        for start in range(0, item.length, CHUNK):
            yield self.spool.read(min(CHUNK, item.length - start))


def pack_batch(
    cases: Cases, names: Iterable[str], spool: IO[bytes], label: str, start: int = 0
) -> Batch:
    """Pack or keep the tensors ``names``; skip those that a weight of the plan was read from.

    Args:
        label: the file that the tensors come from, for messages.
        start: bytes of the source that earlier batches took, for the progress.
    """
    batch, plan, options = Batch(spool), cases.plan, cases.plan.options
    total = sum(t.nbytes for t, _ in plan.weights.values())
    total += sum(t.nbytes for t in plan.kept.values())
    done = start
    for name in names:
        if name in plan.weights:
            tensor = plan.weights[name][0]
            with locate(file=label, tensor=name):
                _pack(name, cases, batch)
            done += tensor.nbytes
        elif name in plan.kept:
            batch.kept[name] = plan.kept[name]
            batch.reasons[name] = plan.reasons[name]
            done += plan.kept[name].nbytes
        else:
            continue
        options.progress("packing", done, total)
    return batch


def _pack(name: str, cases: Cases, batch: Batch) -> None:
    """Pack a weight into the spool of its batch, or note why it is kept or refused."""
    tensor, split = cases.plan.weights[name]
    options = cases.plan.options
    if isinstance(tensor, PackedTensor):
        batch.packed[name] = _packed(tensor, options, batch.spool)
        return
    found, detected = cases.of(name)
    if isinstance(found, Fit):
        batch.packed[name] = _encoded(tensor, split, found, options, batch.spool)
        batch.zero += [name] * detected.zero
    elif found.refused:
        batch.refused[name] = found
    else:
        batch.leave(name, found, cases.plan)


def _packed(tensor: PackedTensor, options: Options, spool: IO[bytes]) -> Packed:
    """Append a weight that comes packed to the spool, without rounding.

    Raises:
        NotTernaryError: its scale has NaN or infinity.
    """
    if not np.isfinite(widen(tensor.scale, tensor.scale_dtype)).all():
        raise NotTernaryError("has a scale that is NaN or infinite, expected finite numbers.")
    packer, offset = Packer(tensor.layout or options.layout, spool.write), spool.tell()
    columns = rows_and_columns(tensor.shape, tensor.split)[1]
    for _, rows in tensor.blocks():
        packer.rows(rows, columns)
    entry = packer.entry(
        tensor.shape,
        tensor.split,
        tensor.granularity,
        tensor.scale,
        tensor.dtype,
        method=tensor.method or UNKNOWN,
        relative_error=None if tensor.method is None else 0.0,
        divisor=tensor.divisor,
    )
    length = spool.tell() - offset
    return Packed(entry, tensor.scale, tensor.scale_dtype, offset, length, packer.sha256)


def _encoded(
    tensor: SourceTensor, split: int, found: Fit, options: Options, spool: IO[bytes]
) -> Packed:
    """Pack the trits of a fitted weight and append them to the spool."""
    packer, offset = Packer(options.layout, spool.write), spool.tell()
    error = float(f"{encode_blocks(as_weight(tensor, split), found, packer.rows):.3e}")
    entry = packer.entry(
        tensor.shape,
        split,
        found.granularity,
        found.scale,
        tensor.dtype_unpacked(found.method),
        method=found.method,
        relative_error=error,
    )
    return Packed(entry, found.scale, found.dtype, offset, spool.tell() - offset, packer.sha256)
