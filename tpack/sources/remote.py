"""Addresses with a scheme (``s3://``, ``gs://``, …) through fsspec (the extra ``remote``)."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tpack.errors import InputError, StorageError, UnsupportedError, occupied
from tpack.sources.source import Source

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]+://.", re.DOTALL)


def is_remote(text: str) -> bool:
    """Return whether a text is an address rather than a path.

    Example:
        >>> is_remote("s3://bucket/model"), is_remote("models/a.pt")
        (True, False)
    """
    return _SCHEME.match(text) is not None


def remote_source(address: str, open_path: Callable[[Path], Source]) -> Source:
    """Copy a file or folder to a temporary place, which goes with the source, and open it.

    Raises:
        InputError: it is not there or cannot be read.
        UnsupportedError: fsspec or its driver is not installed.
    """
    files, root = _file_system(address)
    name = root.rstrip("/").rpartition("/")[2] or "model"
    with ExitStack() as resources:
        folder = Path(resources.enter_context(tempfile.TemporaryDirectory(prefix="tpack-")))
        local = folder / name
        try:
            if not files.exists(root):
                raise InputError("does not exist.")
            if files.isdir(root):
                local.mkdir()
                _get(files, root, local)
            else:
                files.get_file(root, str(local))
        except OSError as error:
            raise InputError(f"cannot be read: {error}.") from error
        source = open_path(local)
        source.path = Path(name)
        source.resources.push(resources.pop_all())
        return source
    raise AssertionError  # the block returns or raises


@contextmanager
def remote_target(address: str, *, force: bool) -> Iterator[Path]:
    """Give a local path to write to; what is there in the end goes to the address.

    Raises:
        ExistsError: something is there already, and ``force`` is not given.
        StorageError: it cannot be written.
        UnsupportedError: fsspec or its driver is not installed.
    """
    files, root = _file_system(address)
    if not force and files.exists(root):
        raise occupied(address)
    with tempfile.TemporaryDirectory(prefix="tpack-") as folder:
        local = Path(folder) / (root.rstrip("/").rpartition("/")[2] or "model")
        yield local
        if not local.exists():
            return
        try:
            paths = (
                sorted(p for p in local.rglob("*") if p.is_file()) if local.is_dir() else [local]
            )
            for path in paths:
                inside = path.relative_to(local).as_posix()
                to = f"{root.rstrip('/')}/{inside}" if local.is_dir() else root
                files.makedirs(to.rpartition("/")[0], exist_ok=True)
                files.put_file(str(path), to)
        except OSError as error:
            raise StorageError(f"cannot be written: {error}.", file=address) from error


def _get(files: Any, root: str, local: Path) -> None:
    """Copy what is in a folder, with its sub-folders; hidden ones stay where they are."""
    for found in files.ls(root, detail=False):
        name = found.rstrip("/").rpartition("/")[2]
        if not files.isdir(found):
            files.get_file(found, str(local / name))
        elif not name.startswith("."):
            (local / name).mkdir()
            _get(files, found, local / name)


def _file_system(address: str) -> tuple[Any, str]:
    """Return the file system of an address, and the path in it."""
    scheme = address.partition("://")[0]
    try:
        import fsspec
    except ImportError:
        raise UnsupportedError(
            f"needs the package fsspec for {scheme}://. Install it: "
            'pip install "tpack-ternary[remote]".',
            file=address,
        ) from None
    try:
        files, root = fsspec.url_to_fs(address)
    except (ImportError, ValueError) as error:
        raise UnsupportedError(f"cannot be opened: {error}.", file=address) from error
    return files, str(root)
