"""Put a new file in place whole, or leave everything as it was."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from tpack.container.opening import open_input
from tpack.container.rereading import CheckedFile
from tpack.errors import ExistsError, StorageError, locate, occupied


@contextmanager
def new_file(path: str | os.PathLike[str], *, force: bool = False) -> Iterator[CheckedFile]:
    """Open a file that appears under ``path`` only if the block ends without an exception.

    It is written beside its place under a temporary name, flushed to the disk, read again,
    compared with what was written and renamed: a reader never sees half of it, what was there
    before outlives a crash, and a disk that stores something else is noticed.

    Args:
        path: where it goes.
        force: replace a file that exists; its mode is kept.

    Raises:
        ExistsError: the file exists and ``force`` is not given.
        StorageError: no space, no permission, an I/O error, not a place for a file, or other
            bytes on the disk than were written.
    """
    target = Path(path)
    check_target(target, force=force)
    try:
        mode = stat.S_IMODE(target.stat().st_mode)
    except OSError:
        mode = 0o666 & ~_umask()
    with storage_errors(target):
        handle, temporary = _open_temporary(target)
        # closing it ends the lock: not before the file has its name, or is gone
        with closing(CheckedFile(target, handle)) as file, _removed_on_error(temporary):
            os.fchmod(handle, mode)
            yield file
            file.check()
            publish(temporary, target, force=force)
        sync_folder(target.parent)


def write_text(path: str | os.PathLike[str], text: str, *, force: bool = False) -> None:
    """Write a text file, as UTF-8, through ``new_file``."""
    with new_file(path, force=force) as file:
        file.write(text.encode())


def write_json(
    path: str | os.PathLike[str], data: Any, *, sort_keys: bool = False, force: bool = False
) -> None:
    """Write plain data as a JSON file, two spaces a level, through ``new_file``."""
    write_text(path, json.dumps(data, indent=2, sort_keys=sort_keys) + "\n", force=force)


def copy_files(files: Mapping[str, Path], folder: Path) -> None:
    """Copy files into a folder, under their names in it: ``assets/a.png``; see ``copy_file``."""
    for name, path in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        copy_file(path, folder / name)


def copy_file(source: str | os.PathLike[str], path: str | os.PathLike[str]) -> None:
    """Copy the bytes of a file into a new one.

    Raises:
        InputError: the source cannot be read.
        ExistsError, StorageError: as ``new_file``.
    """
    with locate(file=source):
        file = open_input(source)
    with file, new_file(path) as out:
        while piece := file.read(1 << 22):
            out.write(piece)


def _open_temporary(target: Path) -> tuple[int, Path]:
    """Open the temporary file of a target, empty and locked.

    There is one for each target, so that what a killed process has left is taken over by the
    next, not added to. Its name does not hold that of the target, which may be as long as names
    can be.

    Raises:
        StorageError: another process is writing to the same target.
    """
    name = hashlib.sha256(os.fsencode(target.name)).hexdigest()[:16]
    path = target.parent / f".tpack-{name}.tmp"
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            if _take_over(handle, path):
                return handle, path
        except BlockingIOError:
            os.close(handle)
            raise StorageError("is being written by another process.", file=target) from None
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _take_over(handle: int, path: Path) -> bool:
    """Lock and empty a temporary file; False if it is not what the path leads to any more.

    Raises:
        BlockingIOError: another process has it.
    """
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    try:
        there = path.stat(follow_symlinks=False)
    except FileNotFoundError:
        return False
    if not os.path.samestat(os.fstat(handle), there):
        return False  # it got its name between opening and locking
    if there.st_nlink == 1:
        with _removed_on_error(path):
            os.ftruncate(handle, 0)
        return True
    path.unlink()  # an output has this name too: it was to be removed when the process was killed
    return False


@contextmanager
def _removed_on_error(path: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        with suppress(OSError):
            path.unlink()
        raise


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
                raise occupied(target)
        check_parent(target)


def check_parent(target: Path) -> None:
    """Refuse a target whose folder is missing.

    Raises:
        StorageError: it is.
    """
    if not target.parent.is_dir():
        raise StorageError(
            f"cannot be written: folder {str(target.parent)!r} does not exist. Create it first.",
            file=target,
        )


#: The first bytes of a page or source that tpack wrote.
_WRITTEN = re.compile(
    rb'"""[^"\n]+, generated by tpack from LayerDefs'
    rb'|<!doctype html>\s<html lang="en">\s<head>\s<meta name="generator" content="tpack">'
)


def check_not_input(target: str | os.PathLike[str], *inputs: str | os.PathLike[str]) -> None:
    """Refuse to write onto an input, even with ``force``.

    What exists in a folder that is read may be part of it: all but what tpack wrote into it, a
    page or a source.

    Raises:
        ExistsError: the target is one of the inputs, under any name, a folder that holds one, or
            part of one.
    """
    target = _local(target)
    for source in map(_local, inputs):
        with suppress(OSError):
            if target.samefile(source) or target.resolve() in source.resolve().parents:
                raise ExistsError(
                    "is the input itself, or holds it. Choose another output.", file=target
                )
        if source.is_dir() and target.exists() and _is_inside(target, source):
            with suppress(OSError), target.open("rb") as file:
                if _WRITTEN.match(file.read(4096)):
                    continue
            raise ExistsError(
                f"is part of the input {os.fspath(source)!r}. Choose another output.", file=target
            )


def _local(path: str | os.PathLike[str]) -> Path:
    """Return the path that an address ``file://…`` means, also as ``Path`` spells it."""
    return Path(re.sub("^file:/+", "/", os.fspath(path)))


def _is_inside(target: Path, folder: Path) -> bool:
    """Whether a path leads into a folder, as it is spelled or through links; or one in it there."""
    real = os.path.realpath
    spelled = Path(os.path.abspath(target))  # noqa: PTH100  # follows no link
    meant = real(target)
    places = (spelled, Path(real(target.parent), target.name), Path(meant))
    roots = {Path(os.path.abspath(folder)), Path(real(folder))}  # noqa: PTH100
    if any(not roots.isdisjoint(place.parents) for place in places):
        return True
    return any(real(path) == meant for path in folder.rglob("*"))


def publish(temporary: Path, target: Path, *, force: bool) -> None:
    """Give a file on the same disk its name.

    Raises:
        ExistsError: there is one of that name, and ``force`` is not given.
    """
    if force:
        temporary.replace(target)
        return
    try:
        os.link(temporary, target)  # unlike a rename, fails if somebody was faster
    except FileExistsError:
        raise occupied(target, "appeared while it was written") from None
    except OSError:  # a file system without hard links
        if target.exists():
            raise occupied(target, "appeared while it was written") from None
        temporary.replace(target)
    else:
        temporary.unlink()


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk, where the file system and its rights allow that.

    Raises:
        OSError: the disk is full or damaged.
    """
    try:
        handle = os.open(folder, os.O_RDONLY)
    except PermissionError:
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def exchange(first: Path, second: Path) -> bool:
    """Let two paths change places in one step; False where the system cannot.

    Raises:
        OSError: it can, but failed.
    """
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        return False
    at, swap = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    if call(at, os.fsencode(first), at, os.fsencode(second), swap) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS):
        return False
    raise OSError(code, os.strerror(code), os.fspath(second))


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
