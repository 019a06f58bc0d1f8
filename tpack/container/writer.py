"""Write safetensors files as a stream: no tensor is held, the same input gives the same bytes.

The safetensors library orders several metadata keys at random and takes all tensors in
memory; this writer does neither. Its output is tested against that library's reader.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tpack.container.atomic import new_file, write_json
from tpack.container.document import NO_DIGEST, Document
from tpack.container.header import CHUNK, Entry, header_bytes, lay_out
from tpack.container.index import INDEX, SINGLE
from tpack.container.rereading import CheckedFile
from tpack.dtypes import BY_NAME
from tpack.errors import StorageError


@dataclass(frozen=True)
class Piece:
    """A tensor to be written: its description, and its bytes when they are asked for.

    Attributes:
        name, dtype, shape: as in the header.
        chunks: gives its bytes.
        sha256: what they must have, where that is known: they lay on a disk in between.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    chunks: Callable[[], Iterable[Any]]
    sha256: str | None = None

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        return BY_NAME[self.dtype].nbytes(math.prod(self.shape))

    @classmethod
    def of(cls, name: str, dtype: str, shape: tuple[int, ...], data: Any) -> Piece:
        """A piece whose bytes (any buffer) are in memory."""
        return cls(name, dtype, shape, lambda: _slices(memoryview(data).cast("B")))


def _slices(data: memoryview) -> Iterator[memoryview]:
    for start in range(0, len(data), CHUNK):
        yield data[start : start + CHUNK]


def write_checkpoint(
    path: str | os.PathLike[str],
    document: Document,
    pieces: Iterable[Piece],
    *,
    metadata: Mapping[str, str] | None = None,
    force: bool = False,
    progress: Callable[[int], None] = lambda _: None,
) -> int:
    """Write a tpack checkpoint; digests of kept tensors are taken while they pass.

    Args:
        document: with placeholders for the digests of kept tensors.
        pieces: every tensor of the file.
        metadata: other keys of ``__metadata__``, whose digests the document has.
        progress: called with the number of bytes written since the last call.

    Returns:
        Size of the file in bytes.

    Raises:
        ExistsError, StorageError: as ``new_file``.
    """
    waiting = document.with_kept(dict.fromkeys(document.kept, NO_DIGEST))

    def describe(entries: Mapping[str, Entry], digests: Mapping[str, str]) -> dict[str, str]:
        full = document.with_kept(digests) if digests else waiting
        return _metadata(full, entries, metadata)

    with new_file(path, force=force) as file:
        return _write(file, pieces, describe, progress)


def checkpoint_size(
    document: Document, pieces: Iterable[Piece], metadata: Mapping[str, str] | None = None
) -> int:
    """The size in bytes that ``write_checkpoint`` would give."""
    entries = lay_out((piece.name, piece.dtype, piece.shape) for piece in pieces)
    header = header_bytes(entries, _metadata(document, entries, metadata))
    return len(header) + sum(e.nbytes for e in entries.values())


def _metadata(
    document: Document, entries: Mapping[str, Entry], more: Mapping[str, str] | None
) -> dict[str, str]:
    return {**(more or {}), "format": "pt", "tpack": document.to_json(entries)}


def write_tensors(
    path: str | os.PathLike[str], pieces: Iterable[Piece], *, force: bool = False
) -> int:
    """Write a plain safetensors file; returns its size in bytes.

    Raises:
        ExistsError, StorageError: as ``new_file``.
    """
    with new_file(path, force=force) as file:
        return _write(file, pieces, lambda *_: {"format": "pt"}, lambda _: None)


def write_plain_shards(folder: Path, files: Mapping[str, Sequence[Piece]]) -> int:
    """Write the plain safetensors files of a folder, and their index if there are several.

    Args:
        files: the tensors of each file, by its name; a single one becomes ``model.safetensors``.

    Returns:
        The size of all files of tensors, in bytes.
    """
    if len(files) == 1:
        files = {SINGLE: next(iter(files.values()))}
    size = sum(write_tensors(folder / name, pieces) for name, pieces in files.items())
    if len(files) > 1:
        homes = {piece.name: name for name, pieces in files.items() for piece in pieces}
        total = sum(piece.nbytes for pieces in files.values() for piece in pieces)
        index = {"metadata": {"total_size": total}, "weight_map": homes}
        write_json(folder / INDEX, index, sort_keys=True)
    return size


def _write(
    file: CheckedFile,
    pieces: Iterable[Piece],
    metadata: Callable[[Mapping[str, Entry], Mapping[str, str]], dict[str, str]],
    progress: Callable[[int], None],
) -> int:
    """Data first, whose digests the metadata takes up; then the header, whose length they do not
    change.

    Raises:
        StorageError: a piece does not have its digest.
    """
    by_name = {piece.name: piece for piece in pieces}
    entries = lay_out((piece.name, piece.dtype, piece.shape) for piece in by_name.values())
    size = len(header_bytes(entries, metadata(entries, {})))
    file.seek(size)
    digests: dict[str, str] = {}
    for name, entry in entries.items():
        piece, written = by_name[name], 0
        for chunk in piece.chunks():
            written += file.write(chunk)
            progress(len(chunk))
        assert written == entry.nbytes, f"{name}: {written} bytes came, {entry.nbytes} announced"
        digests[name] = file.section()
        if piece.sha256 not in (None, digests[name]):
            raise StorageError(
                "came back from a temporary file with other bytes than were written there: the "
                "disk or the memory is failing. Choose another disk.",
                file=file.path,
                tensor=name,
            )
        size += written
    header = header_bytes(entries, metadata(entries, digests))
    assert len(header) + sum(e.nbytes for e in entries.values()) == size, "header changed its size"
    file.seek(0)
    file.write(header)
    return size
