"""Describe the tensors of a checkpoint: the one describer, whoever writes it.

``convert``, ``save`` and ``save_pretrained`` pass their tensors as ``Stored``. ``describe``
completes the LayerDefs, or makes them from the names, and keeps method, error and source dtype of
weights that did not change. ``Description.files`` returns an ``Output`` for each file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from tpack.codec import Scale, pack, unpack
from tpack.container import (
    INDEX,
    Document,
    Origin,
    Piece,
    Shard,
    TernaryEntry,
    digest,
    program_digest,
    write_checkpoint,
    write_index,
)
from tpack.container.document import NO_DIGEST, UNKNOWN
from tpack.container.writer import checkpoint_size
from tpack.errors import LayerDefError
from tpack.layerdef import Param, Program, Slot, mirror, validate
from tpack.layerdef.completion import Found, complete, match_slots
from tpack.layerdef.tensors import kept_param, ternary_param
from tpack.quantize.fitting import repeat_scale

Array = npt.NDArray[Any]
#: Called with the number of bytes written since the last call.
Advance = Callable[[int], None]


@dataclass(frozen=True)
class Stored:
    """A tensor to be stored.

    Attributes:
        name: its name before packing.
        shape: its shape before packing.
        dtype: the dtype that is stored; that of the scale, if the tensor is packed.
        chunks: returns the bytes of the tensor, or of its packed rows.
        trained: whether the source has it as a parameter; None if the source does not record it.
        entry: how it is packed; None if it is kept.
        scale: the stored elements of the scale, in the shape that the entry has.
        sha256: the digest of the packed rows as stored, if it is known.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    chunks: Callable[[], Iterable[Any]]
    trained: bool | None = None
    entry: TernaryEntry | None = None
    scale: Array | None = None
    sha256: str | None = None

    @property
    def found(self) -> Found:
        """Shape, dtype and granularity, with which LayerDefs are completed."""
        granularity = None if self.entry is None else Scale.parse(self.entry.scale)
        return Found(self.shape, self.dtype, granularity)

    @property
    def param(self) -> Param:
        """The parameter for it in LayerDefs that are made from names."""
        if self.entry is None:
            return kept_param(self.name, self.shape, self.dtype, trained=self.trained)
        scale, entry = Scale.parse(self.entry.scale), self.entry
        return ternary_param(self.name, self.shape, self.dtype, scale, entry.layout, entry.split)

    @property
    def nbytes(self) -> int:
        """Its bytes in a file, scales included."""
        return sum(piece.nbytes for piece in self.pieces())

    def pieces(self) -> Iterator[Piece]:
        """Yield the pieces that are written: one tensor, or a scale and packed rows."""
        if self.entry is None:
            yield Piece(self.name, self.dtype, self.shape, self.chunks)
            return
        scale = np.ascontiguousarray(self.scale)
        yield Piece.of(f"{self.name}_scale", self.dtype, self.entry.scale_shape, scale)
        shape = self.entry.packed_shape
        yield Piece(f"{self.name}_packed", "uint8", shape, self.chunks, self.sha256)

    def known_from(self, origin: Origin) -> Stored:
        """Return the tensor with the entry that its origin has, if it has not changed since."""
        if self.entry is None:
            return self
        return replace(self, entry=origin.entry(self.name, self.entry, self.dtype))

    def at(self, wanted: Scale) -> Stored:
        """Return the same weight with its scale repeated to a finer granularity."""
        assert self.entry is not None
        assert self.scale is not None
        old = Scale.parse(self.entry.scale)
        if old == wanted:
            return self
        entry = replace(self.entry, scale=str(wanted), divisor=None)
        scale = repeat_scale(self.scale, old, wanted, entry.columns, entry.scale_shape)
        return replace(self, entry=replace(entry, scale_sha256=_digest(scale)), scale=scale)


class Packer:
    """Takes the rows of a weight, packed in layout t2, and writes them in another layout.

    Args:
        layout: the layout to write.
        write: called with the bytes.
    """

    def __init__(self, layout: str, write: Callable[[Any], Any]) -> None:
        self.layout, self.write = layout, write
        self._canonical = hashlib.sha256()
        self._stored = self._canonical if layout == "t2" else hashlib.sha256()

    @property
    def sha256(self) -> str:
        """The digest of the rows as stored, in hex."""
        return self._stored.hexdigest()

    def rows(self, packed: npt.NDArray[np.uint8], columns: int) -> None:
        """Take some rows: uint8 (rows, row bytes), of ``columns`` trits each."""
        self._canonical.update(packed)
        if self.layout != "t2":
            packed = pack(unpack(packed, columns), self.layout)
            self._stored.update(packed)
        self.write(packed)

    def entry(
        self,
        shape: tuple[int, ...],
        split: int,
        granularity: Scale,
        scale: Array,
        source_dtype: str,
        *,
        method: str = UNKNOWN,
        relative_error: float | None = None,
        divisor: float | None = None,
    ) -> TernaryEntry:
        """Return the entry of the weight whose rows were taken; see ``TernaryEntry``."""
        return TernaryEntry(
            shape=shape,
            split=split,
            layout=self.layout,
            scale=str(granularity),
            method=method,
            source_dtype=source_dtype,
            relative_error=relative_error,
            sha256=self._canonical.hexdigest(),
            scale_sha256=_digest(scale),
            divisor=divisor,
        )


def _digest(scale: Array) -> str:
    return digest([scale.tobytes()])


@dataclass(frozen=True)
class Output:
    """The content of one file of a checkpoint.

    Attributes:
        document: the description.
        pieces: the tensors.
        metadata: other keys of ``__metadata__``.
    """

    document: Document
    pieces: Sequence[Piece]
    metadata: Mapping[str, str]

    @property
    def nbytes(self) -> int:
        """The bytes of its tensors."""
        return sum(piece.nbytes for piece in self.pieces)

    @property
    def size(self) -> int:
        """The size of the file in bytes."""
        return checkpoint_size(self.document, self.pieces, self.metadata)

    def write(self, path: Path, *, force: bool = False, advance: Advance = lambda _: None) -> int:
        """Write the file; see ``write_checkpoint`` for arguments, result and errors."""
        return write_checkpoint(
            path, self.document, self.pieces, metadata=self.metadata, force=force, progress=advance
        )


class Shards:
    """Writes the files of a folder one after the other, and their index.

    Args:
        folder: the folder that gets the files.
        names: the names of the files, in order.
        force: replace files that exist.
    """

    def __init__(self, folder: Path, names: Sequence[str], *, force: bool = False) -> None:
        self.folder, self.force = folder, force
        self._names = iter(names)
        self._homes: dict[str, str] = {}
        self._nbytes = 0

    def __call__(self, output: Output, advance: Advance = lambda _: None) -> int:
        """Write the next file and return its size in bytes."""
        name = next(self._names)
        self._homes |= {piece.name: name for piece in output.pieces}
        self._nbytes += output.nbytes
        return output.write(self.folder / name, force=self.force, advance=advance)

    def write_index(self, **metadata: int) -> None:
        """Write the index of all files; raises the errors of ``write_index``."""
        about = metadata | {"total_size": self._nbytes}
        write_index(self.folder / INDEX, self._homes, about)


@dataclass(frozen=True)
class Description:
    """The tensors of a checkpoint with their LayerDefs and aliases.

    Attributes:
        tensors: the tensors by name.
        program: the LayerDefs; None if they cannot express the names.
        problem: why there are no LayerDefs; else empty.
        aliases: other names of tensors.
        origin: has the other keys of ``__metadata__``, with their digests.
    """

    tensors: Mapping[str, Stored]
    program: Program | None
    problem: str
    aliases: Mapping[str, str]
    origin: Origin

    def pieces(self) -> Iterator[Piece]:
        """Yield the pieces of all tensors."""
        return (piece for one in self.tensors.values() for piece in one.pieces())

    def split(self, limit: int) -> list[list[str]]:
        """Group the names of tensors, at most ``limit`` bytes or one tensor in each group."""
        groups: list[list[str]] = [[]]
        room = limit
        for name, one in self.tensors.items():
            if one.nbytes > room and groups[-1]:
                groups.append([])
                room = limit
            groups[-1].append(name)
            room -= one.nbytes
        return groups

    def files(self, groups: Sequence[Collection[str]] | None = None) -> list[Output]:
        """Return the content of each file.

        Args:
            groups: the names of the tensors of each file; if not given, one file has all.
        """
        if groups is None:
            groups = [self.tensors]
        program = program_digest(self.program)
        outputs = []
        for number, names in enumerate(groups, 1):
            some = {name: self.tensors[name] for name in names}
            first = number == 1
            document = Document(
                self.program if first else None,
                {name: one.entry for name, one in some.items() if one.entry is not None},
                {name: NO_DIGEST for name, one in some.items() if one.entry is None},
                {alias: name for alias, name in self.aliases.items() if name in some},
                Shard(number, len(groups), program) if len(groups) > 1 else None,
                self.origin.digests if first else {},
            )
            pieces = [piece for one in some.values() for piece in one.pieces()]
            outputs.append(Output(document, pieces, self.origin.metadata if first else {}))
        return outputs


def describe(
    tensors: Iterable[Stored],
    program: Program | None = None,
    *,
    origin: Origin = Origin(),  # noqa: B008  # frozen
    aliases: Mapping[str, str] = MappingProxyType({}),
    int8_inputs: Collection[str] = (),
    in_out: Collection[str] = (),
) -> Description:
    """Describe tensors that are to be stored.

    Args:
        tensors: the tensors, in the order in which LayerDefs made from names list them.
        program: the LayerDefs, which are completed with dtypes, layouts and scales; the copies of
            a layer share these. None to make LayerDefs from the names.
        origin: the checkpoint that the tensors were loaded from. A weight that still has the same
            digests keeps its entry.
        aliases: other names of tensors; those of tensors that are not stored are dropped.
        int8_inputs: the names of weights of linear layers that round their inputs to int8.
        in_out: the names of weights of linear layers whose rows are the inputs.

    Raises:
        LayerDefError: the program has other tensors, or the copies of a layer differ in what
            they must share.
    """
    stored = {one.name: one.known_from(origin) for one in tensors}
    problem = ""
    if program is not None:
        program, stored = _completed(program, stored)
    else:
        try:
            slots = [Slot(name, one.param) for name, one in stored.items()]
            program = mirror(slots, int8_inputs=int8_inputs, in_out=in_out)
            validate(program)
        except LayerDefError as error:
            program, problem = None, str(error)
    there = {alias: name for alias, name in aliases.items() if name in stored}
    return Description(stored, program, problem, there, origin)


def _completed(program: Program, stored: Mapping[str, Stored]) -> tuple[Program, dict[str, Stored]]:
    """Complete a program, and repeat scales to the granularity that copies of a layer share."""
    layouts = {one.entry.layout for one in stored.values() if one.entry is not None}
    matched = match_slots(program, {name: one.shape for name, one in stored.items()})
    for name, slot in matched.items():
        ternary, entry = slot.param.param_type == "TernaryTensor", stored[name].entry
        if ternary != (entry is not None):
            raise LayerDefError(
                f"is {'kept' if ternary else 'packed'}, but the LayerDefs declare a "
                f"{slot.param.param_type}.",
                tensor=name,
            )
    found = {name: one.found for name, one in stored.items()}
    program, scales = complete(program, found, layouts.pop() if len(layouts) == 1 else None)
    return program, {
        name: one.at(scales[name]) if name in scales else one for name, one in stored.items()
    }
