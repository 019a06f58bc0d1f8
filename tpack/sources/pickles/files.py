"""The files that ``torch.save`` writes: a pickle, and the bytes of storages beside it.

Since torch 1.6 they are zip archives of one record for each storage; before, the pickle and the
storages follow each other in a stream.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from tpack.container.opening import read_into
from tpack.dtypes import BY_NAME
from tpack.errors import InputError, UnsupportedError
from tpack.sources.archive import AGAIN, Archive, archive_of
from tpack.sources.pickles.building import STORAGES
from tpack.sources.pickles.machine import ROOM
from tpack.sources.pickles.opcodes import read_pickle
from tpack.sources.pickles.torchscript import parameters, read_classes
from tpack.sources.pickles.values import Global, Storage

#: Bytes that the pickle of any file may have.
_LONGEST = 64 << 20
#: What is read of a stream at first, to find the end of its pickles.
_FIRST = 1 << 20
#: How a stream begins: two numbers of torch, each a pickle.
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
#: Sizes of elements that only torch has; a dtype of none of the tables is refused before.
_SIZES = {"complex128": 16, "qint8": 1, "quint8": 1, "qint32": 4}

_PLAIN = (
    "is a plain pickle, expected what torch.save writes. If you trust it, load it in Python, "
    "and save its tensors with torch.save(tensors, path), or its arrays with numpy.savez(path, "
    "**arrays)."
)
NOT_TORCH = "is not a checkpoint of torch, or is damaged. Download or copy it again."


def itemsize(dtype: str) -> int:
    """Return the bytes of an element; 1 for a dtype of torch that tpack does not know."""
    return BY_NAME[dtype].nbytes(1) if dtype in BY_NAME else _SIZES.get(dtype, 1)


@dataclass
class Pickled:
    """What a file of torch holds.

    Attributes:
        value: what the pickle was read to.
        named: the globals that it names, in order.
        check: checks that a storage is there, and as long as it should be.
        locate: returns where the bytes of a storage are: handle of a file, first byte. Checks
            their CRC-32 if there is one.
        swapped: whether elements are stored with the highest byte first.
        checksums: whether there are CRC-32s.
        notes, warnings: about tensors that are no parameters.
    """

    value: Any
    named: dict[str, Global]
    check: Callable[[Storage], None]
    locate: Callable[[Storage], tuple[int, int]]
    swapped: bool = False
    checksums: bool = False
    notes: Sequence[str] = ()
    warnings: Sequence[str] = ()


def read_file(handle: int, resources: ExitStack) -> Pickled:
    """Read the pickle of an open file of torch; the bytes of tensors are left where they are.

    Args:
        handle: of the file.
        resources: gets what is to be closed after the last tensor was read.

    Raises:
        InputError: damaged, or not a file of torch.
        UnsupportedError: of a kind that tpack does not read.
    """
    archive = archive_of(handle)
    size = os.fstat(handle).st_size
    # large files have more to say: of more tensors, and of objects beside them
    share = min(size // 16, 512 << 20)
    longest, room = _LONGEST + share, ROOM + share + min(8 * size, 128 << 20)
    try:
        if archive is not None:
            resources.callback(archive.close)
            return _read_archive(archive, longest, room)
        return _read_stream(handle, size, longest, room)
    except InputError:
        raise
    except Exception as error:  # damaged, it fails wherever reading first stumbles
        raise InputError(NOT_TORCH) from error


class Storages:
    """The storages that a pickle names, each made once.

    Args:
        folder: of an archive, where their bytes are; it begins their keys.
    """

    def __init__(self, folder: str = "") -> None:
        self.folder = folder
        self.found: dict[str, Storage] = {}
        self.views: dict[tuple[str, int, int], Storage] = {}

    def __call__(self, persistent: Any) -> Any:
        """Return what a persistent id stands for.

        Raises:
            Exception: it is none of torch.
        """
        what, *parts = persistent
        if what == "module":  # before torch 0.4: the class, and the text of its source
            return parts[0]
        kind, key, _, numel, *view = parts
        dtype = STORAGES[kind.name.rpartition(".")[2]]
        if what != "storage" or type(numel) is not int or not 0 <= numel < 1 << 62:
            raise ValueError
        key = f"{self.folder}{key}"
        storage = self.found.setdefault(key, Storage(key, dtype, numel))
        if (storage.dtype, storage.numel) != (dtype, numel):
            raise ValueError
        if not view or view[0] is None:
            return storage
        _, first, count = view[0]
        if not 0 <= first <= first + count <= numel:
            raise ValueError
        made = Storage(storage.key, dtype, count, first * itemsize(dtype))
        return self.views.setdefault((storage.key, first, count), made)


# ---- archives


def _read_archive(archive: Archive, longest: int, room: int) -> Pickled:
    prefix = archive.names[0].split("/")[0]
    archive.check_description(longest)
    if f"{prefix}/data.pkl" not in archive.names:
        raise InputError(NOT_TORCH)
    data = archive.read(f"{prefix}/data.pkl")
    value, _, named = read_pickle(data, Storages("data/"), room=room)
    notes: list[str] = []
    warnings: list[str] = []
    if f"{prefix}/constants.pkl" in archive.names:
        text = archive.read(f"{prefix}/constants.pkl")
        constants, *_ = read_pickle(text, Storages("constants/"), room=room)
        classes = dict(read_classes(archive, f"{prefix}/code/"))
        value, notes, warnings = parameters(value, constants, classes)
    order = f"{prefix}/byteorder"
    big = order in archive.names and archive.read(order) == b"big"

    def check(storage: Storage) -> None:
        size = itemsize(storage.dtype)
        archive.check_size(f"{prefix}/{storage.key}", storage.numel * size, size)

    def locate(storage: Storage) -> tuple[int, int]:
        return archive.locate(f"{prefix}/{storage.key}")

    return Pickled(value, named, check, locate, big, archive.checksums, notes, warnings)


# ---- streams


def _read_stream(handle: int, size: int, longest: int, room: int) -> Pickled:
    for length in (_FIRST, longest):
        head = os.pread(handle, length, 0)
        if head.startswith(b"\x80") and _MAGIC.to_bytes(10, "little") not in head[:64]:
            raise UnsupportedError(_PLAIN)
        try:
            value, named, keys, storages, at = _read_pickles(head, room)
            break
        except EOFError:
            if len(head) < length or length > _FIRST:
                raise
    places: dict[str, int] = {}
    for key in keys:
        storage = storages.found[str(key)]
        count = bytearray(8)
        read_into(handle, memoryview(count), at)
        if struct.unpack("<q", count) != (storage.numel,):
            raise ValueError
        places[storage.key] = at + 8
        at += 8 + storage.numel * itemsize(storage.dtype)
    if at > size:
        raise InputError(f"ends before its last tensor: it has {size} bytes of {at}. {AGAIN}")

    def check(storage: Storage) -> None:
        if storage.key not in places:
            raise InputError(
                f"needs storage {storage.key!r}, which the file does not have. {AGAIN}"
            )

    return Pickled(value, named, check, lambda storage: (handle, places[storage.key]))


def _read_pickles(
    head: bytes, room: int
) -> tuple[Any, dict[str, Global], list[Any], Storages, int]:
    """Read the five pickles that a stream begins with."""
    storages, at = Storages(), 0

    def following() -> tuple[Any, dict[str, Global]]:
        nonlocal at
        value, at, named = read_pickle(head, storages, at, room)
        return value, named

    if following()[0] != _MAGIC or following()[0] != _PROTOCOL:
        raise ValueError
    following()  # sizes of integers on that machine; the bytes are always those of little endian
    value, named = following()
    keys, _ = following()
    return value, named, list(keys), storages, at
