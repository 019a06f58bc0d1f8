"""Put a new folder in place whole, or leave everything as it was."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tpack.container.atomic import (
    check_not_input,
    check_parent,
    exchange,
    storage_errors,
    sync_folder,
)
from tpack.container.index import INDEX, SINGLE
from tpack.errors import ExistsError, StorageError, occupied

#: Files that tell the folder of a model from another, which is never replaced.
OF_A_MODEL = ("config.json", SINGLE, INDEX)


@dataclass(frozen=True)
class Workplace:
    """The hidden folder in which an output is put together before it takes its place.

    There is one for each output, so that the next run finds what a killed one has left.

    Attributes:
        folder: where it is.
    """

    folder: Path

    @classmethod
    def beside(cls, target: Path) -> Self:
        """Return the workplace of an output, hidden beside it."""
        return cls(target.parent / f".{target.name}.tpack-partial")

    @contextmanager
    def lock(self, name: str, *, shared: bool = False, wait: bool = False) -> Iterator[bool]:
        """Hold a lock while the block runs; gives False if another process has it.

        The lock ends with the process, however that ends.
        """
        self.folder.mkdir(exist_ok=True)
        try:
            held = (self.folder / f"{name}.lock").open("w")
        except OSError:
            with suppress(OSError):
                self.folder.rmdir()
            raise
        with held as file:
            kind = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
            try:
                fcntl.flock(file, kind)
            except BlockingIOError:
                yield False
                return
            yield True

    def clear(self) -> None:
        """Remove what an earlier run has left, except locks."""
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            if path.suffix != ".lock":
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()

    def remove(self) -> None:
        """Remove the whole workplace; a second time if a fault, which may pass, left some."""
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def output(self) -> Path:
        """Where the output is put together."""
        return self.folder / "out"

    @property
    def replaced(self) -> Path:
        """Where an old output waits while the new one takes its place."""
        return self.folder / "replaced"

    def publish(self, target: Path, *, force: bool) -> None:
        """Give the finished output its name, in one step if the system can do that.

        Raises:
            StorageError: somebody else put a folder there in the meantime, or an I/O error; what
                was there before is there again.
        """
        try:
            if not (force and target.exists()):
                self.output.rename(target)
            elif not exchange(self.output, target):
                target.rename(self.replaced)
                try:
                    self.output.rename(target)
                except BaseException:
                    self.replaced.rename(target)
                    raise
        except OSError as error:
            raise StorageError(f"cannot take its place: {error.strerror}.", file=target) from error

    def restore(self, target: Path) -> None:
        """Bring back an output whose replacement was killed between two steps."""
        if self.holds_the_only(target):
            with self.lock("all") as mine:  # another process may be between the two steps
                if mine and self.holds_the_only(target):
                    self.replaced.rename(target)

    def holds_the_only(self, target: Path) -> bool:
        """Return whether the old output is here, and nothing in its place."""
        return self.replaced.exists() and not target.exists()


@contextmanager
def new_folder(path: str | os.PathLike[str], *, force: bool = False) -> Iterator[Path]:
    """Give a folder to write to that gets the name ``path`` if the block ends well.

    Args:
        path: where it goes.
        force: replace a folder that exists, if it is that of a model.

    Raises:
        ExistsError: the folder exists and ``force`` is not given, or it is not that of a model.
        StorageError: no space, no permission, an I/O error, not a place for a folder, or another
            process writes to it.
    """
    target = Path(path)
    work = Workplace.beside(target)
    with storage_errors(target):
        check_place(target)
        work.restore(target)
        _check_free(target, force=force)
        with _put_together(work, target) as made:
            yield made
            sync_tree(made)
            work.publish(target, force=force)
        sync_folder(target.parent)


@contextmanager
def changed_folder(
    path: str | os.PathLike[str], is_replaced: Callable[[str], bool]
) -> Iterator[Path]:
    """Give an empty folder to write to, whose content then goes into the folder ``path``.

    Everything else in ``path`` stays: what the block wrote and the files that stay change places
    with the old folder in one step, and files that others write there meanwhile follow. A folder
    that has to stay the same folder (it has sub-folders, which others may be writing to; it is
    the current one or a mount point; its parent cannot be written to) is changed file by file
    instead; a crash in between leaves files of both, which loading refuses.

    Args:
        path: an existing folder, or a new one.
        is_replaced: whether a file, by its name, goes even if the block wrote none of this name.

    Raises:
        StorageError: as ``new_folder``.
    """
    target = Path(path).resolve()
    with storage_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        check_place(target)
        in_place = target.is_dir() and _has_to_stay(target)
        work = Workplace(target / ".tpack-partial") if in_place else Workplace.beside(target)
        work.restore(target)
        with _put_together(work, target) as made:
            yield made
            sync_tree(made)
            if in_place:
                _move_over(made, target, is_replaced)
            else:
                linked = _link_rest(target, made, is_replaced) if target.is_dir() else []
                work.publish(target, force=True)
                for old in (work.output, work.replaced):
                    _bring_late(old, target, linked)
        sync_folder(target.parent)


def check_place(target: Path) -> None:
    """Refuse a target that is no place for a folder.

    Raises:
        StorageError: its parent is missing, or something else than a folder is there.
    """
    check_parent(target)
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise StorageError("is not a folder, expected a new one. Choose another.", file=target)


def check_apart(target: Path, source: Path) -> None:
    """Refuse an output folder that is, holds or lies in the folder that it is made of.

    Raises:
        ExistsError: it is, or does.
    """
    check_not_input(target, source)
    if source.resolve() in target.resolve().parents:
        raise ExistsError("lies in the input itself. Choose another output.", file=target)


def _check_free(target: Path, *, force: bool) -> None:
    """Refuse to replace a folder without ``force``, or one that is not that of a model."""
    if not target.exists():
        return
    check_replaceable(target, force=force)
    if any(target.iterdir()) and not any((target / name).exists() for name in OF_A_MODEL):
        raise ExistsError("is not the folder of a model. Choose another output.", file=target)


def check_replaceable(target: Path, *, force: bool) -> None:
    """Refuse to replace a folder without ``force``, or one that cannot be or holds a repository.

    Raises:
        StorageError: it is or holds the current folder, or is a mount point.
        ExistsError: ``force`` is not given, or it has a ``.git``.
    """
    if not force:
        raise occupied(target)
    if _is_held(target):
        raise StorageError(
            "is the current folder, or holds it, or is a mount point: no other can take its place. "
            "Choose another output.",
            file=target,
        )
    if (target / ".git").exists():
        raise ExistsError(
            "holds a repository (.git), which would be lost. Choose another output.", file=target
        )


@contextmanager
def _put_together(work: Workplace, target: Path) -> Iterator[Path]:
    """Give the empty output of a workplace that is locked, and removed in the end."""
    with work.lock("all") as mine:
        if not mine:
            raise StorageError("is being written by another process.", file=target)
        work.clear()
        work.output.mkdir()
        try:
            yield work.output
        finally:
            if not work.holds_the_only(target):
                work.remove()


def sync_tree(folder: Path) -> None:
    """Bring the files in a folder and its sub-folders to the disk, and their names."""
    for place, _, names in os.walk(folder):
        for name in names:
            handle = os.open(Path(place, name), os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        sync_folder(Path(place))


def _has_to_stay(folder: Path) -> bool:
    """Return whether a folder cannot change places with another."""
    return (
        _is_held(folder)
        or any(path.is_dir() and not path.is_symlink() for path in folder.iterdir())
        or not os.access(folder.parent, os.W_OK | os.X_OK)
    )


def _is_held(folder: Path) -> bool:
    """Return whether a folder is or holds the current one, or is a mount point."""
    return Path.cwd().is_relative_to(folder.resolve()) or os.path.ismount(folder)


def _link_rest(old: Path, new: Path, is_replaced: Callable[[str], bool]) -> list[str]:
    """Put what stays of an old folder into the new one, without a copy where that is possible.

    Returns:
        The names of all files of the old folder.
    """
    shutil.copymode(old, new)
    names = sorted(path.name for path in old.iterdir())
    for name in names:
        if not (new / name).exists() and not is_replaced(name):
            _link(old / name, new / name)
    return names


def _bring_late(old: Path, new: Path, linked: Sequence[str]) -> None:
    """Remove an old folder; move what others wrote there after its files were linked."""
    for name in linked:
        (old / name).unlink(missing_ok=True)
    while old.exists():
        try:
            old.rmdir()
        except OSError:  # not empty
            for path in old.iterdir():
                if (new / path.name).exists():
                    return  # written to both: the one in its place stays
                path.rename(new / path.name)


def _link(path: str | Path, to: str | Path) -> None:
    """Give a file a second name, or copy it on a file system without hard links."""
    try:
        os.link(path, to, follow_symlinks=False)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.EXDEV):
            raise
        shutil.copy2(path, to, follow_symlinks=False)


def _move_over(made: Path, target: Path, is_replaced: Callable[[str], bool]) -> None:
    """Move what was written into a folder; the index, which names the rest, goes last."""
    names = sorted((path.name for path in made.iterdir()), key=lambda name: (name == INDEX, name))
    for name in names:
        if (target / name).is_dir():
            shutil.rmtree(target / name)
        (made / name).replace(target / name)
    for path in target.iterdir():
        if path.is_file() and is_replaced(path.name) and path.name not in names:
            path.unlink()
    sync_folder(target)
