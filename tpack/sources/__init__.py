"""Where weights come from: files, folders and state dicts, as named tensors read in pieces.

``open_source`` knows which reader a path needs. A source holds no tensor in memory that its
file does not force it to.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from tpack.container.opening import input_errors
from tpack.errors import InputError, locate
from tpack.options import Reading
from tpack.sources.names import Naming, as_stored, clean_names
from tpack.sources.readers import read_file
from tpack.sources.source import (
    PackedTensor,
    Source,
    SourceShard,
    SourceTensor,
)

__all__ = [
    "PackedTensor",
    "Source",
    "SourceShard",
    "SourceTensor",
    "clean_names",
    "open_source",
]


def open_source(
    source: str | os.PathLike[str] | Mapping[str, Any] | Any,
    reading: Reading = Reading(),  # noqa: B008  # frozen
) -> Source:
    """Open a checkpoint of any kind that tpack reads.

    Args:
        source: path of a file of a kind that ``readers.READERS`` lists; of a folder as model hubs
            have them, or as ``torch.distributed.checkpoint`` writes them;
            ``hf://org/name[@revision]`` or ``org/name`` for a repository of the Hugging Face hub;
            an address with another scheme that fsspec knows; a state dict, or an ``nn.Module``.
        reading: how to read it; ``Options`` are one.

    Raises:
        InputError: missing, unreadable or malformed.
        UnsupportedError: another kind of file, or tensors of a kind that cannot be stored.
    """
    if isinstance(source, str | os.PathLike):
        text = os.fspath(source)
        if not text:  # of a variable that is not set; as a path it would be this folder
            raise InputError("source is an empty path, expected a file, a folder or an address.")
        with locate(file=text), input_errors():
            return _open_text(text, reading)
    from tpack.sources.torch_source import state_dict_source

    return state_dict_source(source, reading=reading)


def _open_text(text: str, reading: Reading) -> Source:
    """Open a path, or what an address leads to."""
    from tpack.sources import hub, remote

    open_path = partial(_open_path, reading=reading)
    if repository := hub.repository_of(text):
        return hub.hub_source(repository, open_path)
    if remote.is_remote(text):
        return remote.remote_source(text, open_path)
    return open_path(Path(text))


def _open_path(path: Path, reading: Reading) -> Source:
    if path.is_dir():
        if (path / ".metadata").is_file():
            from tpack.sources.dcp_source import open_dcp

            return open_dcp(path, reading)
        from tpack.sources.folder_source import open_folder

        return open_folder(path, partial(_open_file, reading=reading, naming=as_stored))
    source = _open_file(path, reading)
    source.path = path
    _adapt(source, path)
    return source


def _open_file(path: Path, reading: Reading, naming: Naming = clean_names) -> Source:
    """Open one file, its tensors as they are stored."""
    if not path.exists():
        raise InputError("does not exist.")
    return read_file(path, reading, naming)


def _adapt(source: Source, path: Path) -> None:
    """Read a file in the dialect that the config.json beside it names."""
    from tpack.hfconfig import read_config
    from tpack.sources.dialects import adapt, may_be_packed

    plain = {name: t for name, t in source.tensors.items() if isinstance(t, SourceTensor)}
    if may_be_packed(plain) and len(plain) == len(source.tensors):
        source.tensors, notes = adapt(plain, read_config(path.parent))
        source.notes += notes
