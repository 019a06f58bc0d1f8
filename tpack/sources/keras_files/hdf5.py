"""HDF5 files, read without following anything that leads out of them.

The HDF5 library can be made to open other files, by links, external storage and virtual datasets,
and to load code, by filters. Here only plain links, own storage and known filters are accepted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from tpack.container.header import MAX_DIMS
from tpack.errors import InputError, UnsupportedError, locate
from tpack.sources.archive import AGAIN, Part
from tpack.sources.source import SourceTensor
from tpack.sources.stored_array import StoredArray, check_density, dtype_name, native

Array = npt.NDArray[Any]

#: Groups and datasets of a file, and how deep they may lie.
_MANY, _DEEP = 10_000, 48
#: Filters that h5py has built in: deflate, shuffle, Fletcher's checksum, LZF.
_FILTERS = (1, 2, 3, 32000)
#: Bytes of a chunk, which is read whole.
_CHUNK = 1 << 26
#: Of texts that attributes hold: a config of many layers.
_TEXT = 6 << 20


@dataclass
class Hdf5:
    """An open file.

    Attributes:
        datasets: its datasets of numbers, by their path.
        left_out: paths of other datasets: texts, records.
        groups: paths of groups, with those that are not looked into.
    """

    datasets: dict[str, SourceTensor]
    left_out: list[str]
    groups: set[str]
    _file: Any

    @classmethod
    def open(cls, handle: int, place: int, length: int, skip: tuple[str, ...] = ()) -> Hdf5:
        """Open the file that a part of an open file is, and look at everything in it.

        Args:
            handle: of the file.
            place: where in it the HDF5 file begins.
            length: its bytes.
            skip: paths of groups that are not looked into.

        Raises:
            InputError: damaged, or made to cost time or memory.
            UnsupportedError: it leads to other files, or needs filters that are not built in.
        """
        with _damage():
            file = h5py.File(BufferedReader(Part(handle, place, length)), "r")
        found = cls({}, [], set(), file)
        at = None if file.userblock_size else (handle, place)
        found._walk(file, "", at, skip, set())
        return found

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def text(self, path: str, name: str) -> str | None:
        """Return an attribute that is a text; None if there is none."""
        value = self._attribute(path, name)
        value = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
        if isinstance(value, str) and len(value) > _TEXT:
            raise InputError(f"has a long attribute {name!r} in {path!r}. {AGAIN}")
        return value if isinstance(value, str) else None

    def texts(self, path: str, name: str) -> list[str]:
        """Return an attribute that is a list of texts, which may be split: ``name0``, ``name1``."""
        whole = self._attribute(path, name)
        parts = [] if whole is None else [whole]
        while whole is None and (part := self._attribute(path, f"{name}{len(parts)}")) is not None:
            parts.append(part)
        found = [one for part in parts if isinstance(part, np.ndarray) for one in part.reshape(-1)]
        return [t.decode("utf-8", "replace") if isinstance(t, bytes) else str(t) for t in found]

    def has(self, path: str) -> bool:
        """Return whether there is a group."""
        return path in self.groups

    def _attribute(self, path: str, name: str) -> Any:
        with _damage():
            attributes = self._file[path or "/"].attrs
            if name not in attributes:
                return None
            kind = attributes.get_id(name)
            if math.prod(kind.shape) * kind.dtype.itemsize > _TEXT:
                raise InputError(f"has a long attribute {name!r} in {path!r}. {AGAIN}")
            return attributes[name]

    def _walk(
        self,
        group: Any,
        path: str,
        at: tuple[int, int] | None,
        skip: tuple[str, ...],
        seen: set[int],
    ) -> None:
        if path.count("/") >= _DEEP:
            raise InputError(f"has groups in more than {_DEEP} levels. {AGAIN}")
        for key in _keys(group):
            inner = f"{path}/{key}".lstrip("/")
            if inner in skip:
                self.groups.add(inner)
                continue
            with locate(tensor=inner[:200]):
                with _damage():
                    found: Any = None
                    if isinstance(group.get(key, getlink=True), h5py.HardLink):
                        found = group[key]
                        place = h5py.h5o.get_info(found.id).addr
                if found is None:
                    raise UnsupportedError(
                        "is a link to another place, which tpack does not follow. Save the model "
                        "in one file."
                    )
                if len(seen) >= _MANY:
                    raise UnsupportedError(f"comes after {_MANY} others, expected fewer.")
                if place in seen:
                    raise UnsupportedError("is in the file twice, by links. Save the model again.")
                seen.add(place)
                if isinstance(found, h5py.Dataset):
                    self._add(found, inner, at)
            if isinstance(found, h5py.Group):
                self.groups.add(inner)
                self._walk(found, inner, at, skip, seen)

    def _add(self, dataset: Any, path: str, at: tuple[int, int] | None) -> None:
        with _damage():
            dtype, shape = dataset.dtype, dataset.shape
            plan = dataset.id.get_create_plist()
            layout, outside = plan.get_layout(), plan.get_external_count()
            filters = [plan.get_filter(i)[0] for i in range(plan.get_nfilters())]
            stored = dataset.id.get_storage_size()
            offset = dataset.id.get_offset()
        if outside or layout == h5py.h5d.VIRTUAL:
            raise UnsupportedError(
                "has its values in another file, which tpack does not open. Save the model in one "
                "file."
            )
        if shape is None or dtype.hasobject or dtype.kind in "SUMm" or dtype.names is not None:
            self.left_out.append(path)
            return
        name = "bfloat16" if self._is_bfloat16(path, dtype) else dtype_name(dtype)
        if len(shape) > MAX_DIMS:
            raise InputError(f"has {len(shape)} dims, expected at most {MAX_DIMS}. {AGAIN}")
        kind = np.dtype("<u2") if name == "bfloat16" else dtype
        array = StoredArray(kind, shape, offset or 0, lambda: at or (0, 0))
        if unknown := [number for number in filters if number not in _FILTERS]:
            raise UnsupportedError(
                f"is compressed by filter {unknown[0]} of HDF5, expected gzip or LZF. Save it "
                "without compression."
            )
        if layout == h5py.h5d.CHUNKED:
            if math.prod(dataset.chunks) * kind.itemsize > _CHUNK:
                raise UnsupportedError(
                    f"has chunks of more than {_CHUNK} bytes. Save it without chunks."
                )
            check_density(stored, array.nbytes)
        elif stored != array.nbytes:
            raise InputError(f"holds {stored} bytes, expected {array.nbytes}. {AGAIN}")
        in_a_row = layout == h5py.h5d.CONTIGUOUS and offset is not None and at is not None
        read = array.read if in_a_row else _Slices(dataset, path, kind)
        self.datasets[path] = SourceTensor(path, name, shape, read)

    def _is_bfloat16(self, path: str, dtype: np.dtype[Any]) -> bool:
        return dtype.kind == "V" and dtype.itemsize == 2 and self.text(path, "dtype") == "bfloat16"


@dataclass
class _Slices:
    """Reads elements of a dataset in chunks by whole indices of its first dim."""

    dataset: Any
    path: str
    kind: np.dtype[Any]

    def __call__(self, start: int, stop: int) -> Array:
        shape = self.dataset.shape
        with locate(tensor=self.path), _damage():
            if not shape or start >= stop:
                flat = np.asarray(self.dataset[()]).reshape(-1)[start:stop]
            else:
                row = math.prod(shape[1:])
                first, last = start // row, -(-stop // row)
                flat = self.dataset[first:last].reshape(-1)[
                    start - first * row : stop - first * row
                ]
        return native(flat.view(self.kind))


def _keys(group: Any) -> Iterator[str]:
    with _damage():
        if len(group) > _MANY:
            raise InputError(f"has {len(group)} members in a group, expected at most {_MANY}.")
        yield from list(group)


@contextmanager
def _damage() -> Iterator[None]:
    """Say that a file is damaged: h5py fails wherever it first stumbles."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"cannot be read as HDF5. {AGAIN}") from error


def joined(files: Mapping[str, Hdf5]) -> Iterator[tuple[str, SourceTensor]]:
    """Yield the datasets of the shards of a model.

    Raises:
        InputError: two shards have a dataset of one path.
    """
    seen: dict[str, str] = {}
    for shard, file in files.items():
        for path, tensor in file.datasets.items():
            if path in seen:
                raise InputError(
                    f"is in {seen[path]!r} and in {shard!r}. Save the model again.", tensor=path
                )
            seen[path] = shard
            yield path, tensor
