"""Put a new file in place whole, or leave everything as it was."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from tpack.errors import ExistsError, StorageError


@contextmanager
def new_file(path: str | os.PathLike[str], *, force: bool = False) -> Iterator[BinaryIO]:
    """Open a file that appears under ``path`` only if the block ends without an exception.

    It is written beside its place under a temporary name, flushed to the disk and renamed,
    so a reader never sees half of it and a crash never costs what was there before.

    Args:
        path: where it goes.
        force: replace a file that exists; its mode is kept.

    Raises:
        ExistsError: the file exists and ``force`` is not given.
        StorageError: no space, no permission, an I/O error, or not a place for a file.
    """
    target = Path(path)
    check_target(target, force=force)
    try:
        mode = stat.S_IMODE(target.stat().st_mode)
    except OSError:
        mode = 0o666 & ~_umask()
    temporary: Path | None = None
    try:
        with storage_errors(target):
            # not named after the target, whose name may be as long as names can be
            handle, name = tempfile.mkstemp(dir=target.parent, prefix=".tpack-", suffix=".tmp")
            temporary = Path(name)
            with os.fdopen(handle, "wb") as file:
                os.fchmod(handle, mode)
                yield file
                file.flush()
                os.fsync(handle)
            _publish(temporary, target, force=force)
            temporary = None
            sync_folder(target.parent)
    finally:
        if temporary is not None:
            with suppress(OSError):
                temporary.unlink()


@contextmanager
def storage_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn an OSError of writing into a StorageError that names the output."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"cannot be written: {error.strerror}.", file=path) from error


def check_target(target: Path, *, force: bool) -> None:
    """Refuse a target that exists, is no regular file, or whose folder is missing.

    Raises:
        ExistsError: it exists and ``force`` is not given.
        StorageError: no file can go there.
    """
    with storage_errors(target):
        if target.is_symlink() or target.exists():
            if not target.is_file():
                raise StorageError("is not a regular file. Choose another output.", file=target)
            if not force:
                raise ExistsError("exists already. Use --force to replace it.", file=target)
        if not target.parent.is_dir():
            raise StorageError(
                f"cannot be written: folder {str(target.parent)!r} does not exist.", file=target
            )


def check_not_input(target: Path, *inputs: str | os.PathLike[str]) -> None:
    """Refuse to write onto an input, even with ``force``.

    Raises:
        ExistsError: the target is one of the inputs, under any name.
    """
    for source in inputs:
        with suppress(OSError):
            if target.exists() and target.samefile(source):
                raise ExistsError("is the input itself. Choose another output.", file=target)


def _publish(temporary: Path, target: Path, *, force: bool) -> None:
    if force:
        temporary.replace(target)
        return
    try:
        os.link(temporary, target)  # unlike a rename, fails if somebody was faster
    except FileExistsError:
        raise ExistsError("appeared while it was written. Use --force.", file=target) from None
    except OSError:  # a file system without hard links
        if target.exists():
            raise ExistsError("appeared while it was written.", file=target) from None
        temporary.replace(target)
    else:
        temporary.unlink()


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk."""
    with suppress(OSError):  # some file systems cannot
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
