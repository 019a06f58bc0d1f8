"""FlatBuffers, read from an open file: every offset is checked, and nothing is read but what is
asked for, so that the weights stay in the file.

A table begins with the distance back to its vtable, which has the place of each field, or 0.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from tpack.container.opening import read_into
from tpack.errors import InputError
from tpack.sources.archive import AGAIN

#: Elements that a vector of tables or numbers may have.
_MANY = 1 << 20


@dataclass(frozen=True)
class Bytes:
    """A part of a file."""

    start: int
    length: int


class File:
    """The bytes of an open file.

    Args:
        handle: of the file.

    Attributes:
        size: how many there are.
        left: bytes that may still be read of names and numbers: a file that shares them between
            many tables is made to cost time.
    """

    def __init__(self, handle: int) -> None:
        self.handle = handle
        self.size = os.fstat(handle).st_size
        self.left = 4 * self.size

    def root(self) -> Table:
        """Return the table that the file begins with."""
        return Table(self, self.number("<I", 0))

    def read(self, start: int, length: int) -> bytes:
        """Read some bytes.

        Raises:
            InputError: they are not in the file.
        """
        if not 0 <= start <= start + length <= self.size:
            raise InputError(f"points to byte {start + length}, but has {self.size}. {AGAIN}")
        self.left -= length
        if self.left < 0:
            raise InputError(f"uses the same names or numbers again and again. {AGAIN}")
        found = bytearray(length)
        read_into(self.handle, memoryview(found), start)
        return bytes(found)

    def number(self, form: str, at: int) -> int:
        """Read a number in a form of ``struct``."""
        found: int = struct.unpack(form, self.read(at, struct.calcsize(form)))[0]
        return found


class Table:
    """A table of a file.

    Args:
        file: the file.
        at: where in it the table begins.
    """

    def __init__(self, file: File, at: int) -> None:
        self._file, self._at = file, at
        vtable = at - file.number("<i", at)
        length = file.number("<H", vtable)
        self._fields = struct.unpack(f"<{length // 2}H", file.read(vtable, length // 2 * 2))[2:]

    def number(self, field: int, form: str, default: int = 0) -> int:
        """Return a number, in a form of ``struct``."""
        at = self._place(field)
        return default if at is None else self._file.number(form, at)

    def table(self, field: int) -> Table | None:
        """Return a table; None if there is none."""
        at = self._target(field)
        return None if at is None else Table(self._file, at)

    def part(self, field: int, width: int = 1) -> Bytes:
        """Return where the elements of a vector are, each of ``width`` bytes."""
        at = self._target(field)
        if at is None:
            return Bytes(0, 0)
        found = Bytes(at + 4, width * self._file.number("<I", at))
        if found.start + found.length > self._file.size:
            raise InputError(
                f"points to byte {found.start + found.length}, but has {self._file.size}. {AGAIN}"
            )
        return found

    def content(self, field: int, width: int = 1) -> bytes:
        """Return the bytes of a vector or text."""
        place = self.part(field, width)
        return self._file.read(place.start, place.length)

    def count(self, field: int) -> int:
        """Return how many tables a vector has."""
        count = self.part(field, 4).length // 4
        if count > _MANY:
            raise InputError(f"has {count} tables in a row, expected at most {_MANY}. {AGAIN}")
        return count

    def tables(self, field: int) -> Iterator[Table]:
        """Yield the tables of a vector."""
        for place in range(self.count(field)):
            yield self.element(field, place)

    def element(self, field: int, place: int) -> Table:
        """Return a table of a vector.

        Raises:
            InputError: the vector is shorter.
        """
        if not 0 <= place < self.count(field):
            raise InputError(f"uses number {place} of {self.count(field)} tables. {AGAIN}")
        at = self.part(field, 4).start + 4 * place
        return Table(self._file, at + self._file.number("<I", at))

    def _place(self, field: int) -> int | None:
        found: int = self._fields[field] if field < len(self._fields) else 0
        return self._at + found if found else None

    def _target(self, field: int) -> int | None:
        at = self._place(field)
        return None if at is None else at + self._file.number("<I", at)
