"""Convert a checkpoint: find the trits, pack them, describe the result, write it whole."""

from __future__ import annotations

import hashlib
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy.typing as npt

from tpack.codec import Scale, layout_named, pack, rows_and_columns
from tpack.codec.shapes import default_split
from tpack.container import Document, Piece, TernaryEntry, digest, write_checkpoint
from tpack.container.atomic import check_not_input, check_target, storage_errors
from tpack.container.document import NO_DIGEST
from tpack.container.header import CHUNK
from tpack.container.writer import checkpoint_size
from tpack.dtypes import BY_NAME
from tpack.errors import InputError, LayerDefError, UsageError, locate
from tpack.layerdef import LayerDef, Param, Program, Slot, mirror, slots, validate
from tpack.layerdef.refine import Found, match_slots, refine
from tpack.quantize import METHODS, encode_blocks, fit
from tpack.quantize.fit import repeat_scale
from tpack.report import ConversionReport, TensorReport
from tpack.selection import keep_reason
from tpack.sources import Source, SourceTensor, open_source, with_companion
from tpack.sources.description import read_layerdef

Array = npt.NDArray[Any]

KEEP_DTYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}

#: Called with what is being done, and how far it is of how many bytes.
Progress = Callable[[str, int, int], None]


@dataclass
class _Packed:
    """A weight after packing: its description, scale, and place in the spool."""

    entry: TernaryEntry
    scale: Array
    dtype: str
    offset: int
    length: int

    def at(self, wanted: Scale) -> _Packed:
        """The same weight with its scale repeated to a finer granularity."""
        if str(wanted) == self.entry.scale:
            return self
        entry = replace(self.entry, scale=str(wanted))
        old = Scale.parse(self.entry.scale)
        columns = rows_and_columns(entry.shape, entry.split)[1]
        scale = repeat_scale(self.scale, old, wanted, columns, entry.scale_shape)
        entry = replace(entry, scale_sha256=digest([scale.tobytes()]))
        return replace(self, entry=entry, scale=scale)


@dataclass
class _Options:
    exact: bool = False
    quantize: str = "auto"
    scale: str = "auto"
    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    keep_dtype: str | None = None
    layout: str = "t2"
    progress: Progress = field(default=lambda *_: None)

    def __post_init__(self) -> None:
        for option, value, known in (
            ("keep_dtype", self.keep_dtype, (None, *KEEP_DTYPES)),
            ("quantize", self.quantize, ("auto", *METHODS)),
        ):
            if value not in known:
                expected = ", ".join(filter(None, known))
                raise UsageError(f"{option} {value!r} is unknown, expected {expected}.")
        layout_named(self.layout)
        if self.scale != "auto":
            Scale.parse(self.scale)


def convert(
    source: str | os.PathLike[str] | Mapping[str, Any] | Any,
    destination: str | os.PathLike[str] | None = None,
    *,
    exact: bool = False,
    quantize: str = "auto",
    scale: str = "auto",
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    keep_dtype: str | None = None,
    layout: str = "t2",
    layerdef: LayerDef | Program | str | os.PathLike[str] | None = None,
    dry_run: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> ConversionReport:
    """Convert a checkpoint to packed ternary safetensors.

    A weight that already is ternary, at any granularity, is packed losslessly; another is
    quantized and the report says so. What is no weight is kept bit for bit.

    Args:
        source: path of a checkpoint, a state dict, or an ``nn.Module``.
        destination: path of the output; beside a source file, ``<stem>.tpack.safetensors``, if
            not given.
        exact: refuse a weight that is not ternary.
        quantize: ``auto`` (absmean), ``absmean``, ``twn`` or ``mse``.
        scale: ``auto``, ``tensor``, ``row`` or ``group:N``.
        include: patterns of names to pack, and no others.
        exclude: patterns of names to keep.
        keep_dtype: ``f32``, ``f16`` or ``bf16`` for floats that are not packed.
        layout: ``t2`` or ``t5``.
        layerdef: the description of the model, or the path of its JSON; decides what is packed.
        dry_run: write nothing.
        force: replace an existing output.
        progress: called with a phase, bytes done and bytes in all.

    Raises:
        TpackError: see ``tpack.errors``; nothing is left behind.
    """
    options = _Options(exact, quantize, scale, include, exclude, keep_dtype, layout)
    options.progress = progress or options.progress
    program = None if layerdef is None else read_layerdef(layerdef)
    target = _target(source, destination)
    with ExitStack() as stack:
        opened = stack.enter_context(open_source(source))
        if not dry_run:
            paths = (p for p in (source, layerdef) if isinstance(p, str | os.PathLike))
            check_not_input(target, *paths)
            check_target(target, force=force)
        stack.enter_context(locate(file=opened.label))
        stack.enter_context(storage_errors(target))
        spool = stack.enter_context(_spool(None if dry_run else target.parent))
        work = _Conversion(opened, options, program, spool)
        work.run()
        size = work.write(None if dry_run else target, force=force)
    return ConversionReport(
        None if dry_run else str(target),
        opened.nbytes,
        size,
        tuple(work.reports()),
        (*opened.notes, *work.notes),
    )


def default_output(source: Path) -> Path:
    """``<stem>.tpack.safetensors`` beside a source file."""
    return source.parent / f"{source.stem}.tpack.safetensors"


class _Conversion:
    """One run: plan, pack, describe, write."""

    def __init__(
        self, source: Source, options: _Options, program: Program | None, spool: IO[bytes]
    ) -> None:
        self.source = source
        self.options = options
        self.program = program
        self.ternary = (
            None
            if program is None
            else {s.name for s in slots(program) if s.param.param_type == "TernaryTensor"}
        )
        self.spool = spool
        self.packed: dict[str, _Packed] = {}
        self.kept: dict[str, SourceTensor] = {}
        self.reasons: dict[str, str] = {}
        self.notes: list[str] = []
        self.done = 0
        self.total = sum(tensor.nbytes for tensor in source.tensors.values())

    # ---- plan

    def run(self) -> None:
        """Pack every weight of the source into the spool."""
        tensors = self.fold_companions()
        matched = {}
        if self.program is not None:
            shapes = {name: tensor.shape for name, (tensor, _) in tensors.items()}
            matched = match_slots(self.program, shapes)
        for name, (tensor, reason) in tensors.items():
            slot = matched.get(name)
            if reason is None:
                split = slot.param.rows_split if slot else default_split(len(tensor.shape))
                with locate(tensor=name):
                    self.pack(tensor, split)
            else:
                self.keep(tensor, reason)
            self.done += tensor.nbytes
            self.options.progress("packing", self.done, self.total)
        if not self.packed:
            raise InputError(
                f"holds no weight to pack: all {len(tensors)} tensors are kept. Name what to pack "
                "with --include."
            )
        self.check_names()

    def fold_companions(self) -> dict[str, tuple[SourceTensor, str | None]]:
        """Each tensor with the reason to keep it; int8 weights take in their ``_scale``."""
        tensors = {name: (t, self.reason(t)) for name, t in self.source.tensors.items()}
        for name, (tensor, reason) in list(tensors.items()):
            companion = self.source.tensors.get(f"{name}_scale")
            if reason is None and tensor.dtype == "int8" and companion is not None:
                folded = with_companion(tensor, companion)
                if folded is not None:
                    tensors[name] = (folded, None)
                    del tensors[companion.name]
                    self.notes.append(f"took {companion.name} as the scale of {name}")
        return tensors

    def reason(self, tensor: SourceTensor) -> str | None:
        if self.ternary is not None:
            return None if tensor.name in self.ternary else "LayerDef"
        return keep_reason(
            tensor.name, tensor.dtype, tensor.shape, self.options.include, self.options.exclude
        )

    # ---- tensors

    def pack(self, tensor: SourceTensor, split: int) -> None:
        """Find the trits of a weight and append them, packed, to the spool."""
        options = self.options
        weight = tensor.weight(split, tensor.dtype_unpacked("exact"))
        found = fit(weight, options.quantize, options.scale, exact_only=options.exact)
        offset = self.spool.tell()
        state = hashlib.sha256()

        def take(trits: Array) -> None:
            canonical = pack(trits)
            state.update(canonical)
            self.spool.write(canonical if options.layout == "t2" else pack(trits, options.layout))

        error = float(f"{encode_blocks(weight, found, take):.3e}")
        entry = TernaryEntry(
            shape=tensor.shape,
            split=split,
            layout=options.layout,
            scale=str(found.granularity),
            method=found.method,
            source_dtype=tensor.dtype_unpacked(found.method),
            relative_error=error,
            sha256=state.hexdigest(),
            scale_sha256=digest([found.scale.tobytes()]),
        )
        length = self.spool.tell() - offset
        self.packed[tensor.name] = _Packed(entry, found.scale, found.dtype, offset, length)

    def keep(self, tensor: SourceTensor, reason: str) -> None:
        """Keep a tensor as it is, or in the dtype wished for floats."""
        wish = KEEP_DTYPES.get(self.options.keep_dtype or "", tensor.dtype)
        if wish != tensor.dtype and tensor.dtype in ("float64", *KEEP_DTYPES.values()):
            reason += f", {tensor.dtype} to {wish}"
            tensor = tensor.cast(wish)
        self.kept[tensor.name] = tensor
        self.reasons[tensor.name] = reason

    def reports(self) -> Iterator[TensorReport]:
        """What became of each tensor, in the order of the source."""
        for name in self.source.tensors:
            if name in self.packed:
                item = self.packed[name]
                entry = item.entry
                yield TensorReport(
                    name,
                    "packed" if entry.method == "exact" else "quantized",
                    entry.scale,
                    entry.method,
                    entry.relative_error,
                    round(8 * (item.length + item.scale.nbytes) / math.prod(entry.shape), 4),
                    entry.shape,
                )
            elif name in self.kept:
                tensor = self.kept[name]
                bits = 8.0 * BY_NAME[tensor.dtype].size
                yield TensorReport(
                    name, "kept", None, None, 0.0, bits, tensor.shape, self.reasons[name]
                )
        for name, target in self.source.aliases.items():
            shape = self.source.tensors[target].shape
            yield TensorReport(name, "kept", None, None, 0.0, 0.0, shape, f"shares {target}")

    def check_names(self) -> None:
        """Refuse names that clash with those of packed tensors."""
        taken = {*self.kept, *self.packed, *self.source.aliases}
        for name in self.packed:
            for stored in (f"{name}_packed", f"{name}_scale"):
                if stored in taken:
                    raise InputError(
                        f"has the name that the packed form of {name!r} needs. Rename it.",
                        tensor=stored,
                    )
        for alias, name in self.source.aliases.items():
            if name not in taken:
                raise InputError(
                    f"shares the storage of {name!r}, which is taken in as a scale. Copy it.",
                    tensor=alias,
                )

    # ---- description

    def describe(self) -> Document:
        """The program and the document; scales take their final granularity."""
        found = {name: Found(t.shape, t.dtype) for name, t in self.kept.items()}
        for name, item in self.packed.items():
            found[name] = Found(item.entry.shape, item.dtype, Scale.parse(item.entry.scale))
        if self.program is not None:
            program: Program | None
            program, scales = refine(self.program, found, self.options.layout)
            for name, scale in scales.items():
                self.packed[name] = self.packed[name].at(scale)
        else:
            program = self.mirrored(found)
        return Document(
            program,
            {name: item.entry for name, item in self.packed.items()},
            dict.fromkeys(self.kept, NO_DIGEST),
            self.source.aliases,
        )

    def mirrored(self, found: Mapping[str, Found]) -> Program | None:
        """The program that the names of the state dict draw; None if they are no names."""
        stored = [
            Slot(name, self.param(name, found[name]))
            for name in self.source.tensors
            if name in found
        ]
        try:
            program = mirror(stored)
            validate(program)
        except LayerDefError as error:
            self.notes.append(f"no LayerDefs: {error}")
            return None
        return program

    def param(self, name: str, found: Found) -> Param:
        if found.scale is not None:
            scale, layout = str(found.scale), self.options.layout
            return Param(
                name, "TernaryTensor", found.shape, dtype=found.dtype, scale=scale, layout=layout
            )
        trained = BY_NAME[found.dtype].is_float and "running_" not in name
        return Param(name, "Tensor" if trained else "Buffer", found.shape, dtype=found.dtype)

    # ---- output

    def write(self, target: Path | None, *, force: bool) -> int:
        """Write the checkpoint, or only measure it; returns its size."""
        document = self.describe()
        pieces = list(self.pieces())
        total = sum(piece.nbytes for piece in pieces)
        if target is None:
            return checkpoint_size(document, pieces)
        done = 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            self.options.progress("writing", done, total)

        return write_checkpoint(target, document, pieces, force=force, progress=advance)

    def pieces(self) -> Iterator[Piece]:
        """Every tensor of the output."""
        for name, tensor in self.kept.items():
            yield Piece(name, tensor.dtype, tensor.shape, tensor.chunks)
        for name, item in self.packed.items():
            entry = item.entry
            yield Piece.of(f"{name}_scale", item.dtype, entry.scale_shape, item.scale)
            chunks = partial(self.spooled, item)
            yield Piece(f"{name}_packed", "uint8", entry.packed_shape, chunks)

    def spooled(self, item: _Packed) -> Iterator[bytes]:
        self.spool.seek(item.offset)
        for start in range(0, item.length, CHUNK):
            yield self.spool.read(min(CHUNK, item.length - start))


def _target(source: Any, destination: str | os.PathLike[str] | None) -> Path:
    if destination is not None:
        return Path(destination)
    if isinstance(source, str | os.PathLike):
        return default_output(Path(source))
    raise UsageError("convert needs a destination for a state dict or module.")


def _spool(folder: Path | None) -> IO[bytes]:
    """A nameless file for packed bytes, beside the output: a tenth of the source at most."""
    return tempfile.SpooledTemporaryFile(max_size=64 << 20, dir=str(folder) if folder else None)
