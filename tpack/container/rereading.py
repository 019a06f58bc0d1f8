"""A file that is read back after writing, to prove that the disk holds what was written."""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from tpack.errors import StorageError

#: Bytes read at a time.
_PIECE = 1 << 22


class CheckedFile:
    """A new file whose bytes are hashed on their way out, section by section.

    A section ends where ``section`` or ``seek`` is called. Each byte is written once.

    Attributes:
        path: where the file will appear.
    """

    def __init__(self, path: Path, handle: int) -> None:
        self.path = path
        self._file = os.fdopen(handle, "w+b")
        self._sections: list[tuple[int, int, str]] = []
        self._start = self._position = 0
        self._state = hashlib.sha256()

    def write(self, data: Any) -> int:
        """Append the bytes of any buffer; returns their number."""
        self._state.update(data)
        count = self._file.write(data)
        self._position += count
        return count

    def section(self) -> str:
        """End a section; returns the SHA-256 of its bytes."""
        found = self._state.hexdigest()
        self._sections.append((self._start, self._position, found))
        self._start, self._state = self._position, hashlib.sha256()
        return found

    def seek(self, position: int) -> None:
        """Go on writing elsewhere."""
        self.section()
        self._file.seek(position)
        self._start = self._position = position

    def flush(self) -> None:
        """Hand what is buffered to the system."""
        self._file.flush()

    def check(self) -> None:
        """Bring the file to the disk, read it from there, and compare it with what was written.

        Raises:
            StorageError: it is not the same.
            OSError: it cannot be written or read.
        """
        self.section()
        self.flush()
        handle = self._file.fileno()
        os.fsync(handle)
        with suppress(AttributeError, OSError):  # no such call on this system
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        end = 0
        for start, stop, _ in sorted(self._sections):
            assert start == end, f"bytes {end} to {start} were written twice or never"
            end = stop
        for start, stop, written in self._sections:
            if _digest(handle, start, stop) != written:
                raise StorageError(
                    f"holds other bytes from {start} to {stop} than were written there: the disk "
                    "or the memory is failing. Choose another disk.",
                    file=self.path,
                )
        if (size := os.fstat(handle).st_size) != end:
            raise StorageError(
                f"holds {size} bytes, expected {end}: the disk is failing.", file=self.path
            )

    def close(self) -> None:
        """Close the file, which ends the lock on it."""
        self._file.close()


def _digest(handle: int, start: int, stop: int) -> str:
    """Return the SHA-256 of bytes ``start`` to ``stop``, as far as the file has them."""
    state, view = hashlib.sha256(), memoryview(bytearray(min(_PIECE, stop - start)))
    while start < stop:
        count = os.preadv(handle, [view[: stop - start]], start)
        if count == 0:
            break
        state.update(view[:count])
        start += count
    return state.hexdigest()
