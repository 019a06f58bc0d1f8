"""Open an input file, or say why it cannot be read."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO

from tpack.errors import FormatError, InputError

#: How the text begins that a clone without Git LFS has in the place of a large file.
_POINTER = b"version https://git-lfs.github.com/spec/"


@contextmanager
def input_errors() -> Iterator[None]:
    """Turn an OSError of reading into an InputError."""
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}.") from error


def open_input(path: str | os.PathLike[str]) -> FileIO:
    """Open a regular file to read from, without a buffer.

    Raises:
        InputError: it is missing, not allowed, no regular file, or a stand-in for one.
    """
    with input_errors():
        file = FileIO(os.fspath(path), opener=_at_once)
        regular = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
        if regular and os.pread(file.fileno(), len(_POINTER), 0) != _POINTER:
            return file
    file.close()
    if regular:
        raise InputError(
            "is a pointer of Git LFS, not the file itself. Run git lfs pull where it was cloned, "
            "or download the file."
        )
    raise InputError("is not a regular file. Save the input to a file first.")


def read_whole(path: str | os.PathLike[str], most: int, rule: str) -> bytes:
    """Read a file of at most ``most`` bytes.

    Raises:
        FormatError: it is longer, which breaks ``rule``.
        InputError: it cannot be read.
    """
    with open_input(path) as file, input_errors():
        text = file.read(most + 1)
    if len(text) > most:
        raise FormatError(f"is longer than {most} bytes.", rule=rule)
    return text


def read_into(handle: int, view: memoryview, start: int) -> None:
    """Fill a view with the bytes of an open file from ``start`` on.

    Raises:
        InputError: the file is shorter than it was when its sizes were looked at, or cannot be
            read.
    """
    done = 0
    with input_errors():
        while done < len(view):
            count = os.preadv(handle, [view[done:]], start + done)
            if count == 0:
                raise InputError(
                    "ends before its last byte: the file was truncated while it was read."
                )
            done += count


def _at_once(path: str, flags: int) -> int:
    """Open a FIFO without waiting for somebody who writes to it."""
    return os.open(path, flags | os.O_NONBLOCK)
