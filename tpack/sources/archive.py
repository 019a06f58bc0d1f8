"""The zip archives that torch writes: their records are compared with their sizes and CRC-32s.

torch compares neither: a flipped bit in a weight comes in without a word.
"""

from __future__ import annotations

import os
import shutil
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from io import BufferedReader, RawIOBase
from itertools import pairwise
from tempfile import TemporaryFile
from threading import Lock
from typing import TYPE_CHECKING

from tpack.container.opening import read_into
from tpack.errors import InputError, locate
from tpack.kernels.selection import default_threads
from tpack.text import size

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

BEGIN = b"PK\x03\x04"
AGAIN = "The file is damaged: copy or download it again."

#: Signature, version, flags, method, time, date, CRC-32, two sizes, lengths of name and extra.
_LOCAL = struct.Struct("<4s5H3I2H")
#: Flags: sizes and CRC-32 stand behind the bytes; the name is UTF-8.
_BEHIND, _UTF8 = 0x8, 0x800
_CHUNK = 1 << 20
#: Records from this size on are read by several threads.
_LARGE = 16 * _CHUNK


def archive_of(handle: int, start: int = 0, length: int | None = None) -> Archive | None:
    """Return the zip archive that an open file, or a part of it, is; None if it is not one.

    Raises:
        InputError: its directory is damaged.
    """
    begins = os.pread(handle, len(BEGIN), start) == BEGIN
    return Archive(handle, start, length) if begins else None


class Archive:
    """The records of a zip archive, in a file that somebody else keeps open.

    Args:
        handle: of the file.
        start: where in it the archive begins.
        length: its bytes; None for all that follow.

    Attributes:
        checksums: whether it has CRC-32s; torch has an option to write zeros instead.

    Raises:
        InputError: its directory is damaged.
    """

    def __init__(self, handle: int, start: int = 0, length: int | None = None) -> None:
        self._handle, self._start = handle, start
        whole = os.fstat(handle).st_size - start if length is None else length
        with _damage("its directory"):
            self._zip = zipfile.ZipFile(BufferedReader(Part(handle, start, whole)))
        self._places: dict[int, zipfile.ZipInfo] = {}
        self._by_name: dict[str, int] = {}
        self._whole: set[int] = set()
        self._inflated: dict[str, int] = {}
        self._files = ExitStack()
        self._lock = Lock()
        for info in self._zip.infolist():
            try:
                self._by_name[info.filename] = place = self._place(info)
            except Exception as error:
                raise _unreadable(f"the header of record {info.filename!r}") from error
            self._places[place] = info
        records = self._places.values()
        if min(len(self._by_name), len(records)) < len(self._zip.infolist()):
            raise InputError(f"has two records of one name or place. {AGAIN}")
        self.checksums = any(info.CRC for info in records)

    def _place(self, info: zipfile.ZipInfo) -> int:
        """Return where the bytes of a record begin in the file, by the header before them.

        Raises:
            ValueError: that header differs from the directory at the end.
        """
        named = info.orig_filename.encode("utf-8" if info.flag_bits & _UTF8 else "cp437")
        begin = self._start + info.header_offset
        header = os.pread(self._handle, _LOCAL.size + len(named), begin)
        fields = _LOCAL.unpack_from(header)
        magic, _, flags, method, _, _, crc, packed, whole, name, extra = fields
        same = magic == BEGIN and method == info.compress_type
        same = same and name == len(named) and header.endswith(named)
        if not flags & _BEHIND and whole != 0xFFFFFFFF:
            same = same and (crc, packed, whole) == (info.CRC, info.compress_size, info.file_size)
        if not same:
            raise ValueError
        return begin + len(header) + int(extra)

    @property
    def names(self) -> list[str]:
        """The names of its records."""
        return list(self._by_name)

    def size(self, name: str) -> int:
        """Return how many bytes a record has; 0 if there is none."""
        place = self._by_name.get(name)
        return 0 if place is None else self._places[place].file_size

    def sizes(self, name: str) -> tuple[int, int]:
        """Return how many bytes a record takes in the file, and how many it has."""
        info = self._places[self._by_name[name]]
        return info.compress_size, info.file_size

    def begin(self, name: str, count: int) -> bytes:
        """Read the first bytes of a record.

        Raises:
            InputError: it is damaged.
        """
        with _damage(f"record {name!r}"), self._zip.open(name) as record:
            return record.read(count)

    def read(self, name: str) -> bytes:
        """Read the bytes of a small record.

        Raises:
            InputError: it is damaged.
        """
        with _damage(f"record {name!r}"):
            handle, place = self.locate(name)
            found = bytearray(self.size(name))
            read_into(handle, memoryview(found), place)
            return bytes(found)

    def check_description(self, most: int) -> None:
        """Check what tells of the tensors: all records but their bytes, of ``most`` bytes at most.

        Raises:
            InputError: one is damaged, or they are longer.
        """
        records = {place: info for place, info in self._places.items() if not _is_data(info)}
        found = sum(info.file_size for info in records.values())
        if found > most:
            raise InputError(
                f"describes its tensors in {size(found)}, expected at most {size(most)}. Save the "
                "state dict alone: torch.save(model.state_dict(), path)."
            )
        for place, info in records.items():
            self._check(place, info)

    def check_all(self, tensors: Mapping[str, str] | None = None) -> None:
        """Check every record.

        Args:
            tensors: by the name of a record, the tensor that is stored in it, to name it.

        Raises:
            InputError: one is damaged.
        """
        for place, info in self._places.items():
            with locate(tensor=(tensors or {}).get(info.filename)):
                self._check(place, info)

    def check_size(self, name: str, nbytes: int, itemsize: int) -> None:
        """Check that a record is as long as what is stored in it.

        Args:
            name: of the record.
            nbytes: of what is stored, whole elements of ``itemsize`` bytes.

        Raises:
            InputError: there is none, or it has another size.
        """
        if name not in self._by_name:
            raise InputError(f"needs record {name!r}, which the file does not have. {AGAIN}")
        if not 0 <= self.size(name) - nbytes < itemsize:
            raise InputError(
                f"needs {nbytes} bytes, but record {name!r} has {self.size(name)}. {AGAIN}"
            )

    def locate(self, name: str) -> tuple[int, int]:
        """Return where the bytes of a record are, after its CRC-32 was compared: file, first byte.

        Raises:
            InputError: it is damaged.
        """
        place = self._by_name[name]
        info = self._places[place]
        if not info.compress_type:
            self._check(place, info)
            return self._handle, place
        with self._lock:
            if name not in self._inflated:
                file = self._files.enter_context(TemporaryFile())  # noqa: SIM115
                with _damage(f"record {name!r}"), self._zip.open(info) as record:
                    shutil.copyfileobj(record, file, _CHUNK)
                file.flush()
                self._inflated[name] = file.fileno()
            return self._inflated[name], 0

    def close(self) -> None:
        """Close the files that compressed records were written to."""
        self._files.close()

    def _check(self, place: int, info: zipfile.ZipInfo) -> None:
        with self._lock:  # who comes second needs the answer too
            if place in self._whole:
                return
            if info.compress_type:
                with _damage(f"record {info.filename!r}"), self._zip.open(info) as file:
                    while file.read(_CHUNK):
                        pass
            elif self.checksums:
                found = checksum(self._handle, place, info.file_size)
                if found != info.CRC:
                    raise InputError(
                        f"has CRC-32 {found:08x} in record {info.filename!r}, expected "
                        f"{info.CRC:08x}. {AGAIN}"
                    )
            self._whole.add(place)


def _is_data(info: zipfile.ZipInfo) -> bool:
    """Return whether a record holds the bytes of a tensor: ``NAME/data/0``.

    A program of TorchScript also has them in ``constants`` and ``traced_inputs``.
    """
    return info.filename.split("/")[1:2] in (["data"], ["constants"], ["traced_inputs"])


def checksum(handle: int, start: int, length: int) -> int:
    """Compute the CRC-32 of a part of a file, on several threads if it is long.

    Raises:
        InputError: the file ends before.
    """
    threads = default_threads() if length >= _LARGE else 1
    cuts = [start + length * i // threads for i in range(threads + 1)]
    if threads == 1:
        return _checksum(handle, *cuts)
    with ThreadPoolExecutor(threads) as pool:
        parts = list(pool.map(lambda part: _checksum(handle, *part), pairwise(cuts)))
    return _joined(parts, [stop - begin for begin, stop in pairwise(cuts)])


def _checksum(handle: int, start: int, stop: int) -> int:
    buffer, crc = memoryview(bytearray(min(_CHUNK, stop - start))), 0
    for at in range(start, stop, _CHUNK):
        piece = buffer[: stop - at]
        read_into(handle, piece, at)
        crc = zlib.crc32(piece, crc)
    return crc


def _joined(parts: Sequence[int], lengths: Sequence[int]) -> int:
    """Join the CRC-32s of parts that follow each other.

    A CRC is a remainder of polynomials over GF(2): n bytes more multiply it by x to the 8n.
    """
    crc = 0
    for part, length in zip(parts, lengths, strict=True):
        factor, square, left = 1 << 31, 1 << 23, length  # 1 and x^8: the lowest power is on top
        while left:
            if left & 1:
                factor = _product(factor, square)
            square = _product(square, square)
            left >>= 1
        crc = _product(crc, factor) ^ part
    return crc


def _product(a: int, b: int) -> int:
    """Multiply two polynomials modulo the polynomial of CRC-32."""
    product = 0
    for power in range(31, -1, -1):
        if a >> power & 1:
            product ^= b
        b = b >> 1 ^ (0xEDB88320 if b & 1 else 0)
    return product


class Part(RawIOBase):
    """A part of an open file as a file of its own, with a position of its own."""

    def __init__(self, handle: int, start: int, length: int) -> None:
        self._handle, self._start, self._length, self._at = handle, start, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        view = view[: max(self._length - self._at, 0)]
        count = os.preadv(self._handle, [view], self._start + self._at) if view else 0
        self._at += count
        return count

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._length}[whence]
        if base + offset < 0:
            raise OSError("before the beginning")
        self._at = base + offset
        return self._at


@contextmanager
def _damage(what: str) -> Iterator[None]:
    """Say what is damaged: zipfile fails wherever it first stumbles."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise _unreadable(what) from error


def _unreadable(what: str) -> InputError:
    return InputError(f"{what} cannot be read. {AGAIN}")
