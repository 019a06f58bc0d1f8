"""Write tensors as zip archives, those of ``torch.save`` and of ``numpy.savez``, as a stream.

Needs no torch: its pickle is a list of names, each with a record and a shape.
"""

from __future__ import annotations

import math
import os
import pickle
import struct
from collections.abc import Callable, Iterable, Iterator
from io import BytesIO
from itertools import accumulate
from pathlib import Path
from typing import Any
from zipfile import ZipFile, ZipInfo

import numpy as np

from tpack.container.atomic import new_file
from tpack.container.header import ALIGNMENT
from tpack.container.reader import stored_dtype
from tpack.container.writer import Piece
from tpack.dtypes import BY_NAME, elements_of
from tpack.errors import UnsupportedError

#: The classes of storages in torch, by dtype; later dtypes have none of their own.
_STORAGES = {
    "complex64": "ComplexFloatStorage",
    "float64": "DoubleStorage",
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "int64": "LongStorage",
    "int32": "IntStorage",
    "int16": "ShortStorage",
    "int8": "CharStorage",
    "uint8": "ByteStorage",
    "bool": "BoolStorage",
}
_LOCAL_HEADER, _ZIP64 = 30, 20


def write_torch(
    path: str | os.PathLike[str], pieces: Iterable[Piece], *, force: bool = False
) -> int:
    """Write a state dict as ``torch.save`` does; returns the size of the file in bytes.

    Pieces with the same ``chunks`` share a storage.

    Raises:
        ExistsError, StorageError: as ``new_file``.
        UnsupportedError: a dtype that torch does not have.
    """
    pieces = list(pieces)
    for piece in pieces:
        dtype = BY_NAME[piece.dtype]
        if elements_of(dtype.held, dtype.held_shape(piece.shape)) != (piece.dtype, piece.shape):
            raise UnsupportedError(
                f"is {piece.dtype} {piece.shape}, which torch does not have. Write .safetensors.",
                tensor=piece.name,
            )
    owners: dict[Any, Piece] = {}
    for piece in pieces:
        owners.setdefault(piece.chunks, piece)
    keys = {chunks: str(number) for number, chunks in enumerate(owners)}
    described = b"".join(
        _plain(piece.name) + _tensor(piece, keys[piece.chunks]) for piece in pieces
    )

    def write(archive: ZipFile) -> None:
        _record(archive, "archive/data.pkl", 0, [b"\x80\x02}(" + described + b"u."])
        _record(archive, "archive/byteorder", 0, [b"little"])
        for chunks, key in keys.items():
            _record(archive, f"archive/data/{key}", owners[chunks].nbytes, chunks())
        _record(archive, "archive/version", 0, [b"3\n"])

    return _write(path, write, force=force)


def write_npz(path: str | os.PathLike[str], pieces: Iterable[Piece], *, force: bool = False) -> int:
    """Write arrays as ``numpy.savez`` does; returns the size of the file in bytes.

    Raises:
        ExistsError, StorageError: as ``new_file``.
        UnsupportedError: a dtype that NumPy does not have.
    """
    pieces = list(pieces)
    for piece in pieces:
        if piece.dtype != "bool" and stored_dtype(piece.dtype) != piece.dtype:
            raise UnsupportedError(
                f"is {piece.dtype}, which NumPy does not have. Write .safetensors or .pt.",
                tensor=piece.name,
            )

    def array(piece: Piece) -> Iterator[Any]:
        descr = np.lib.format.dtype_to_descr(np.dtype(piece.dtype))
        header = BytesIO()
        about = {"descr": descr, "fortran_order": False, "shape": piece.shape}
        np.lib.format.write_array_header_1_0(header, about)
        yield header.getvalue()
        yield from piece.chunks()

    def write(archive: ZipFile) -> None:
        for piece in pieces:
            _record(archive, f"{piece.name}.npy", piece.nbytes, array(piece))

    return _write(path, write, force=force)


def _write(path: str | os.PathLike[str], write: Callable[[ZipFile], None], *, force: bool) -> int:
    with new_file(path, force=force) as file, ZipFile(file, "w") as archive:
        write(archive)
    return Path(path).stat().st_size


def _record(archive: ZipFile, name: str, nbytes: int, chunks: Iterable[Any]) -> None:
    """Write a record whose bytes begin at a multiple of 64, so that they can be mapped."""
    begin = archive.start_dir + _LOCAL_HEADER + _ZIP64 + len(name.encode()) + 4
    padding = -begin % ALIGNMENT
    info = ZipInfo(name)
    info.extra = struct.pack("<2sH", b"FB", padding) + bytes(padding)
    info.file_size = nbytes
    with archive.open(info, "w", force_zip64=True) as record:
        for chunk in chunks:
            record.write(chunk)


def _plain(value: Any) -> bytes:
    """Pickle a name, a number or a tuple of numbers, as part of a larger pickle."""
    return pickle.dumps(value, 2)[2:-1]


def _global(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def _tensor(piece: Piece, key: str) -> bytes:
    """Pickle a contiguous tensor as torch does: its storage by key, then how it lies in it."""
    held = BY_NAME[piece.dtype].held
    shape = BY_NAME[piece.dtype].held_shape(piece.shape)
    storage = _STORAGES.get(held)
    stride = tuple(accumulate((1, *shape[:0:-1]), lambda a, b: a * b))[::-1]
    if storage is None:
        function, kind = "_rebuild_tensor_v3", _global("torch.storage", "UntypedStorage")
        count, dtype = piece.nbytes, _global("torch", held)
    else:
        function, kind = "_rebuild_tensor_v2", _global("torch", storage)
        count, dtype = math.prod(shape), b""
    place = b"(" + _plain("storage") + kind + _plain(key) + _plain("cpu") + _plain(count) + b"tQ"
    hooks = _global("collections", "OrderedDict") + b")R"
    lies = _plain(0) + _plain(shape) + _plain(stride[: len(shape)])
    return _global("torch._utils", function) + b"(" + place + lies + b"\x89" + hooks + dtype + b"tR"
