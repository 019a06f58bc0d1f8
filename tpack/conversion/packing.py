"""Pack the weights of a plan into a spool, one after the other."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from tpack.codec import Scale, pack, rows_and_columns, unpack
from tpack.container import Piece, TernaryEntry, digest
from tpack.container.header import CHUNK
from tpack.conversion.cases import Cases, Left, as_weight
from tpack.conversion.plan import Plan
from tpack.dtypes import BY_NAME
from tpack.errors import NotTernaryError, locate
from tpack.options import Options
from tpack.quantize import Fit, encode_blocks, widen
from tpack.quantize.fitting import repeat_scale
from tpack.report import TensorReport
from tpack.sources import PackedTensor, Source, SourceTensor

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Packed:
    """A weight after packing: its description, its scale, and its place in the spool.

    Attributes:
        entry: the description.
        scale: as stored in ``dtype``.
        offset, length: bytes in the spool.
        sha256: of these bytes; that of the entry, but in layout t5.
    """

    entry: TernaryEntry
    scale: Array
    dtype: str
    offset: int
    length: int
    sha256: str

    def at(self, wanted: Scale) -> Packed:
        """The same weight with its scale repeated to a finer granularity."""
        if str(wanted) == self.entry.scale:
            return self
        entry = replace(self.entry, scale=str(wanted), divisor=None)
        old = Scale.parse(self.entry.scale)
        columns = rows_and_columns(entry.shape, entry.split)[1]
        scale = repeat_scale(self.scale, old, wanted, columns, entry.scale_shape)
        entry = replace(entry, scale_sha256=digest([scale.tobytes()]))
        return replace(self, entry=entry, scale=scale)


@dataclass
class Batch:
    """What the tensors of one output file became.

    Attributes:
        packed: weights, whose bytes lie in the spool.
        kept: tensors that are read from the source when the file is written.
        reasons: why a tensor is kept.
        left: weights among the kept that are not ternary, or are no weights.
        refused: weights that forbid an output.
        zero: weights that are all zero.
        spool: where packed bytes are.
    """

    spool: IO[bytes]
    packed: dict[str, Packed] = field(default_factory=dict)
    kept: dict[str, SourceTensor] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    left: dict[str, Left] = field(default_factory=dict)
    refused: dict[str, Left] = field(default_factory=dict)
    zero: list[str] = field(default_factory=list)

    def leave(self, name: str, why: Left, plan: Plan) -> None:
        """Keep a weight of the plan."""
        self.left[name] = why
        for tensor, reason in plan.as_kept(name, why.kind):
            self.kept[tensor.name], self.reasons[tensor.name] = tensor, reason

    def pieces(self) -> Iterator[Piece]:
        """Every tensor of the output."""
        for name, tensor in self.kept.items():
            yield Piece(name, tensor.dtype, tensor.shape, tensor.chunks)
        for name, item in self.packed.items():
            entry = item.entry
            yield Piece.of(f"{name}_scale", item.dtype, entry.scale_shape, item.scale)
            chunks = partial(self._spooled, item)
            yield Piece(f"{name}_packed", "uint8", entry.packed_shape, chunks, item.sha256)

    def _spooled(self, item: Packed) -> Iterator[bytes]:
        self.spool.seek(item.offset)
        for start in range(0, item.length, CHUNK):
            yield self.spool.read(min(CHUNK, item.length - start))

    def reports(self, source: Source, names: Iterable[str]) -> Iterator[TensorReport]:
        """What became of the tensors ``names``, and of what shares their storage."""
        names = list(names)
        for name in names:
            if name in self.packed:
                yield _packed_report(name, self.packed[name])
            elif name in self.kept:
                tensor = self.kept[name]
                bits = 8.0 * BY_NAME[tensor.dtype].size
                left = name in self.left and not self.left[name].silent
                yield TensorReport(
                    name, "kept", None, None, 0.0, bits, tensor.shape, self.reasons[name], left
                )
        for name, target in source.aliases.items():
            if target in names:
                shape = source.tensors[target].shape
                yield TensorReport(name, "kept", None, None, 0.0, 0.0, shape, f"shares {target}")


def _packed_report(name: str, item: Packed) -> TensorReport:
    entry = item.entry
    return TensorReport(
        name,
        "packed" if entry.method == "exact" else "quantized",
        entry.scale,
        entry.method,
        entry.relative_error or 0.0,
        round(8 * (item.length + item.scale.nbytes) / math.prod(entry.shape), 4),
        entry.shape,
    )


def pack_batch(
    cases: Cases, names: Iterable[str], spool: IO[bytes], label: str, start: int = 0
) -> Batch:
    """Pack or keep the tensors ``names`` of a plan; others of them have been taken in.

    Args:
        label: the file they come from, for messages.
        start: bytes of the source that are done, for the progress.
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
    """Pack a weight into the spool of its batch, or leave it."""
    tensor, split = cases.plan.weights[name]
    options = cases.plan.options
    if isinstance(tensor, PackedTensor):
        batch.packed[name] = _take(tensor, options, batch.spool)
        return
    found, detected = cases.of(name)
    if isinstance(found, Fit):
        batch.packed[name] = _encode(tensor, split, found, options, batch.spool)
        batch.zero += [name] * detected.zero
    elif found.refused:
        batch.refused[name] = found
    else:
        batch.leave(name, found, cases.plan)


class _Sink:
    """Takes packed rows: digests them in layout t2, and spools them in the layout wanted."""

    def __init__(self, spool: IO[bytes], layout: str) -> None:
        self.spool, self.layout = spool, layout
        self.offset = spool.tell()
        self.state = hashlib.sha256()
        self.stored = self.state if layout == "t2" else hashlib.sha256()

    def rows(self, canonical: npt.NDArray[np.uint8], columns: int) -> None:
        self.state.update(canonical)
        if self.layout != "t2":
            canonical = pack(unpack(canonical, columns), self.layout)
            self.stored.update(canonical)
        self.spool.write(canonical)

    def packed(self, entry: TernaryEntry, scale: Array, dtype: str) -> Packed:
        entry = replace(
            entry, sha256=self.state.hexdigest(), scale_sha256=digest([scale.tobytes()])
        )
        length = self.spool.tell() - self.offset
        return Packed(entry, scale, dtype, self.offset, length, self.stored.hexdigest())


def _encode(
    tensor: SourceTensor, split: int, found: Fit, options: Options, spool: IO[bytes]
) -> Packed:
    """Append the trits of a fitted weight, packed, to the spool."""
    sink = _Sink(spool, options.layout)
    error = float(f"{encode_blocks(as_weight(tensor, split), found, sink.rows):.3e}")
    entry = TernaryEntry(
        shape=tensor.shape,
        split=split,
        layout=options.layout,
        scale=str(found.granularity),
        method=found.method,
        source_dtype=tensor.dtype_unpacked(found.method),
        relative_error=error,
        sha256="",
        scale_sha256="",
    )
    return sink.packed(entry, found.scale, found.dtype)


def _take(tensor: PackedTensor, options: Options, spool: IO[bytes]) -> Packed:
    """Append a weight that comes packed to the spool, as it is.

    Raises:
        NotTernaryError: its scale is no finite number.
    """
    if not np.isfinite(widen(tensor.scale, tensor.scale_dtype)).all():
        raise NotTernaryError("has a scale that is NaN or infinite, expected finite numbers.")
    sink = _Sink(spool, options.layout)
    for _, rows in tensor.blocks():
        sink.rows(rows, tensor.shape[-1])
    entry = TernaryEntry(
        shape=tensor.shape,
        split=tensor.split,
        layout=options.layout,
        scale=str(tensor.granularity),
        method="exact",
        source_dtype=tensor.dtype,
        relative_error=0.0,
        sha256="",
        scale_sha256="",
        divisor=tensor.divisor,
    )
    return sink.packed(entry, tensor.scale, tensor.scale_dtype)
