"""Folders of ``torch.distributed.checkpoint`` (FSDP training) as a source.

The metadata is a pickle that may name classes of a closed list only; tensors are read one at a
time, each put together from the parts that the ranks wrote.
"""

from __future__ import annotations

import math
import pickle
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load

from tpack.container.opening import open_input
from tpack.errors import InputError, locate
from tpack.options import Reading
from tpack.sources.archive import archive_of
from tpack.sources.names import clean_names
from tpack.sources.nesting import choose
from tpack.sources.source import Source, SourceTensor
from tpack.sources.torch_source import element_reader

#: What the metadata of a checkpoint consists of.
ALLOWED = {
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch": {"Size"},
    "torch.serialization": {"_get_layout"},
    "collections": {"OrderedDict"},
    "pathlib": {"PosixPath", "PurePosixPath"},
}


class _Unpickler(pickle.Unpickler):
    """Loads the classes of ``ALLOWED`` and torch's dtypes, nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        """Look a class up.

        Raises:
            InputError: it is not on the list.
        """
        if name in ALLOWED.get(module, ()):
            return super().find_class(module, name)
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        raise InputError(
            f"asks for {module}.{name} when it is loaded, expected the metadata of a distributed "
            "checkpoint."
        )


class _Reader(FileSystemReader):
    """Reads the metadata with the restricted unpickler, once."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        with locate(file=path / ".metadata"), open_input(path / ".metadata") as file:
            try:
                found = _Unpickler(file).load()
            except InputError:
                raise
            except Exception as error:  # damaged, it fails wherever pickle first stumbles
                raise InputError(
                    "is damaged, or not a distributed checkpoint. Copy the folder again."
                ) from error
            if not isinstance(found, Metadata):
                raise InputError(
                    "is damaged, or not a distributed checkpoint. Copy the folder again."
                )
        if getattr(found, "storage_meta", None) is None:
            found.storage_meta = None
        self.found = found

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        """Read the metadata of the folder."""
        return self.found


class _Tensors:
    """Reads tensors whole, and keeps the last one."""

    def __init__(
        self, path: Path, reader: _Reader, infos: Mapping[str, TensorStorageMetadata]
    ) -> None:
        self.path, self.reader, self.infos = path, reader, infos
        self.parts: dict[str, list[Any]] = {}
        for index, part in reader.found.storage_data.items():
            self.parts.setdefault(index.fqn, []).append(part)
        self.name = ""
        self.value = torch.empty(0)

    def read(self, name: str) -> Tensor:
        """Read one tensor and put its parts together.

        Raises:
            InputError: a part of it is missing or damaged.
        """
        if self.name != name:
            info = self.infos[name]
            self.name, self.value = "", torch.empty(0)
            self._check(name)
            value = torch.empty(info.size, dtype=info.properties.dtype)
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # that there is no process group is meant
                    load({name: value}, storage_reader=self.reader, no_dist=True)
            except (Exception, CheckpointException) as error:  # the second is no Exception
                raise InputError(
                    "cannot be read: a file of the checkpoint is missing or damaged.",
                    file=self.path,
                    tensor=name,
                ) from error
            self.name, self.value = name, value
        return self.value

    def _check(self, name: str) -> None:
        """Compare the parts of a tensor, each an archive of its own, with their CRC-32s.

        Raises:
            InputError: one is damaged.
        """
        for part in self.parts.get(name, ()):
            if not getattr(part, "transform_descriptors", None):
                path = self.path / part.relative_path
                with locate(file=path, tensor=name), open_input(path) as file:
                    archive = archive_of(file.fileno(), part.offset, part.length)
                    if archive is not None:
                        archive.check_all()


def open_dcp(path: Path, reading: Reading) -> Source:
    """Open a folder that ``torch.distributed.checkpoint.save`` wrote.

    Raises:
        InputError: damaged; metadata that asks for code; no tensors; several dicts of them that
            may be the model.
        UsageError: the key leads to no dict with tensors.
    """
    reader = _Reader(path)
    with locate(file=path / ".metadata"):
        nested = _nested(reader.found)
    chosen = choose(nested, _measure, reading.key)
    names, stripped = clean_names(chosen.tensors)
    infos = {stored.name: stored.info for stored in chosen.tensors.values()}
    tensors = _Tensors(path, reader, infos)
    found = {}
    for key, name in names.items():
        stored = chosen.tensors[key].name
        found[name] = _tensor(name, stored, infos[stored], tensors)
    files = sorted(path.glob("*.distcp"))
    there = sum(file.stat().st_size for file in files)
    for name, tensor in found.items():
        if tensor.nbytes > there:
            raise InputError(
                f"takes {tensor.nbytes} bytes, but all files together have {there}. The checkpoint "
                "is not whole.",
                tensor=name,
            )
    return Source(
        str(path),
        found,
        notes=chosen.notes + stripped,
        warnings=chosen.warnings,
        files=(path / ".metadata", *files),
        nbytes=sum(tensor.nbytes for tensor in found.values()),
        path=path,
    )


@dataclass(frozen=True)
class _Stored:
    """A tensor, or another value, by its name in the folder."""

    name: str
    info: Any


def _nested(found: Metadata) -> dict[str, Any]:
    """Return the nested dicts that were saved, with records of what is in the files.

    Raises:
        InputError: a value would lie in a tensor.
    """
    nested: dict[str, Any] = {}
    paths = found.planner_data if isinstance(found.planner_data, dict) else {}
    for name, info in found.state_dict_metadata.items():
        path = paths.get(name)
        if not isinstance(path, tuple) or not path:  # not recorded: the first is around the model
            path = tuple(name.split(".", 1))
        inner = nested
        for key in map(str, path[:-1]):
            inner = inner.setdefault(key, {})
            if not isinstance(inner, dict):
                raise InputError("is damaged: it names a value in a tensor. Copy the folder again.")
        inner[str(path[-1])] = _Stored(name, info)
    return nested


def _measure(value: Any) -> tuple[tuple[int, ...], int] | None:
    if not isinstance(value, _Stored) or not isinstance(value.info, TensorStorageMetadata):
        return None
    shape = tuple(value.info.size)
    return shape, math.prod(shape) * value.info.properties.dtype.itemsize


def _tensor(name: str, stored: str, info: TensorStorageMetadata, tensors: _Tensors) -> SourceTensor:
    shape = tuple(info.size)
    dtype, convert = element_reader(info.properties.dtype, name, shape)

    def read(start: int, stop: int) -> npt.NDArray[Any]:
        return convert(tensors.read(stored).reshape(-1)[start:stop])

    return SourceTensor(name, dtype, shape, read).of_elements()
