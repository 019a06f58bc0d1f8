"""Write a GGUF file as a stream: no tensor is held, the same input gives the same bytes."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tpack.container import new_file
from tpack.dialects.gguf_values import Value, alignment_of, encode, encode_string
from tpack.errors import UnsupportedError

VERSION = 3
#: What llama.cpp takes: dimensions, and bytes of a name.
MAX_DIMS = 4
MAX_NAME = 63


@dataclass(frozen=True)
class OutTensor:
    """A tensor to be written.

    Attributes:
        name: as the file has it.
        number: of its type.
        shape: logical shape; the file has its reverse.
        nbytes: bytes that it takes.
        chunks: its bytes, when they are asked for.
    """

    name: str
    number: int
    shape: tuple[int, ...]
    nbytes: int
    chunks: Callable[[], Iterable[Any]]


def write_gguf(
    path: str | os.PathLike[str],
    metadata: Mapping[str, Value],
    tensors: Sequence[OutTensor],
    *,
    force: bool = False,
) -> int:
    """Write a GGUF file; returns its size in bytes.

    Args:
        metadata: in the order of the file; ``general.alignment`` is obeyed.
        tensors: in the order of the file.

    Raises:
        UnsupportedError: a name or rank that GGUF has no room for.
        ExistsError, StorageError: as ``new_file``.
    """
    alignment = alignment_of(metadata)
    header = _header(metadata, tensors, alignment)
    with new_file(path, force=force) as file:
        size = file.write(_padded(header, alignment))
        for tensor in tensors:
            written = 0
            for chunk in tensor.chunks():
                written += file.write(chunk)
            assert written == tensor.nbytes, f"{tensor.name}: {written}, not {tensor.nbytes} bytes"
            size += written + file.write(bytes(-written % alignment))
    return size


def _header(metadata: Mapping[str, Value], tensors: Sequence[OutTensor], alignment: int) -> bytes:
    parts = [b"GGUF", struct.pack("<IQQ", VERSION, len(tensors), len(metadata))]
    for key, value in metadata.items():
        parts += [encode_string(key.encode()), encode(value)]
    offset = 0
    for tensor in tensors:
        name = tensor.name.encode()
        if len(name) > MAX_NAME or len(tensor.shape) > MAX_DIMS:
            raise UnsupportedError(
                f"has shape {tensor.shape} and a name of {len(name)} bytes, expected at most "
                f"{MAX_DIMS} dimensions and {MAX_NAME} bytes in GGUF. Rename or reshape it.",
                tensor=tensor.name,
            )
        sizes = tensor.shape[::-1] or (1,)
        parts += [encode_string(name), struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes)]
        parts.append(struct.pack("<IQ", tensor.number, offset))
        offset += tensor.nbytes + -tensor.nbytes % alignment
    return b"".join(parts)


def _padded(data: bytes, alignment: int) -> bytes:
    return data + bytes(-len(data) % alignment)
