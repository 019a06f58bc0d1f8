"""Write safetensors files as a stream: no tensor is held, the same input gives the same bytes.

The safetensors library orders several metadata keys at random and takes all tensors in
memory; this writer does neither. Its output is tested against that library's reader.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from tpack.container.atomic import new_file
from tpack.container.document import NO_DIGEST, Document
from tpack.container.header import CHUNK, Entry, header_bytes, lay_out
from tpack.dtypes import BY_NAME


@dataclass(frozen=True)
class Piece:
    """A tensor to be written: its description, and its bytes when they are asked for."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    chunks: Callable[[], Iterable[Any]]

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        return math.prod(self.shape) * BY_NAME[self.dtype].size

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
        return _write(file, pieces, describe, progress, document.kept)


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


def _write(
    file: BinaryIO,
    pieces: Iterable[Piece],
    metadata: Callable[[Mapping[str, Entry], Mapping[str, str]], dict[str, str]],
    progress: Callable[[int], None],
    digested: Container[str] = (),
) -> int:
    """Data first, while digests are taken of the tensors ``digested``; then the header, whose
    length they do not change.
    """
    by_name = {piece.name: piece for piece in pieces}
    entries = lay_out((piece.name, piece.dtype, piece.shape) for piece in by_name.values())
    header = header_bytes(entries, metadata(entries, {}))
    file.write(header)
    digests: dict[str, str] = {}
    size = len(header)
    for name, entry in entries.items():
        state = hashlib.sha256() if name in digested else None
        written = 0
        for chunk in by_name[name].chunks():
            if state is not None:
                state.update(chunk)
            file.write(chunk)
            written += len(chunk)
            progress(len(chunk))
        assert written == entry.nbytes, f"{name}: {written} bytes came, {entry.nbytes} announced"
        if state is not None:
            digests[name] = state.hexdigest()
        size += written
    final = header_bytes(entries, metadata(entries, digests))
    assert len(final) == len(header), "digests changed the length of the header"
    file.seek(0)
    file.write(final)
    return size
