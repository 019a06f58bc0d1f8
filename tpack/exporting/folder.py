"""Put a new folder in place whole, or leave everything as it was."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tpack.container.atomic import storage_errors, sync_folder
from tpack.errors import ExistsError, StorageError


@contextmanager
def new_folder(path: str | os.PathLike[str], *, force: bool = False) -> Iterator[Path]:
    """Give a folder to write to that gets the name ``path`` if the block ends well.

    Args:
        path: where it goes.
        force: replace a folder that exists, if it is that of a model.

    Raises:
        ExistsError: the folder exists and ``force`` is not given, or holds something else than
            a model.
        StorageError: no space, no permission, an I/O error, or not a place for a folder.
    """
    target = Path(path)
    with storage_errors(target):
        _check(target, force=force)
        work = Path(tempfile.mkdtemp(dir=target.parent, prefix=".tpack-"))
        try:
            made = work / "new"
            made.mkdir()  # with the mode that the umask gives, unlike the temporary folder
            yield made
            sync_folder(made)
            if force and target.exists():
                target.rename(work / "replaced")
            made.rename(target)
            sync_folder(target.parent)
        except BaseException:
            if (work / "replaced").exists() and not target.exists():
                (work / "replaced").rename(target)
            raise
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _check(target: Path, *, force: bool) -> None:
    if not target.parent.is_dir():
        raise StorageError(
            f"cannot be written: folder {str(target.parent)!r} does not exist.", file=target
        )
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise StorageError("is no folder, expected a new one. Choose another output.", file=target)
    if not target.exists():
        return
    if not force:
        raise ExistsError("exists already. Use --force to replace it.", file=target)
    if any(target.iterdir()) and not (target / "config.json").exists():
        raise ExistsError(
            "is a folder of something else than a model. Choose another output.", file=target
        )
