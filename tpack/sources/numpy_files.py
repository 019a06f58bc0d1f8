"""Files of NumPy as a source: ``.npy`` has one array, ``.npz`` is a zip archive of them.

Nothing is unpickled: arrays of objects are refused, whatever they hold.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy

from tpack.container.header import MAX_DIMS, check_name
from tpack.container.opening import open_input, read_into
from tpack.container.reader import stored_dtype
from tpack.dtypes import BY_NAME
from tpack.errors import InputError, UnsupportedError, locate
from tpack.options import Reading
from tpack.sources.archive import AGAIN, Archive, archive_of
from tpack.sources.source import Source, SourceTensor
from tpack.text import listed, size

Array = npt.NDArray[Any]

#: Bytes in which a header has to end; numpy reads no longer ones either.
_HEADER = 10_000
_READERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
#: Arrays of an archive: beyond that, opening it would take long.
_MANY = 20_000
#: What a compressed array may be beyond, in bytes and in times its compressed size.
_LARGE, _DENSE = 1 << 28, 200
_ENDING = ".npy"


@dataclass
class _Stored:
    """An array in a file.

    Attributes:
        dtype: of its elements as stored, in their byte order.
        shape: its shape.
        by_columns: whether the first index runs fastest, as in Fortran.
        start: where in its record the elements begin.
        locate: returns handle and first byte of the record.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    by_columns: bool
    start: int
    locate: Callable[[], tuple[int, int]]
    _turned: Array | None = field(default=None, repr=False)

    @property
    def nbytes(self) -> int:
        """Bytes of its elements."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def name(self) -> str:
        """Name of the dtype, without its byte order."""
        return self.dtype.newbyteorder("=").name

    def elements(self, start: int, stop: int) -> Array:
        """Read elements as they lie in the file, in the byte order of this machine."""
        handle, place = self.locate()
        width = self.dtype.itemsize
        found = np.empty(stop - start, self.dtype)
        read_into(handle, memoryview(found.view(np.uint8)), place + self.start + start * width)
        return found.astype(self.dtype.newbyteorder("="), copy=False).view(stored_dtype(self.name))

    def read(self, start: int, stop: int) -> Array:
        """Read elements row by row; of an array by columns all, until the last was asked for."""
        if not self.by_columns:
            return self.elements(start, stop)
        if self._turned is None:
            whole = self.elements(0, math.prod(self.shape))
            self._turned = whole.reshape(self.shape, order="F").reshape(-1)
        found = self._turned[start:stop]
        if stop == self._turned.size:
            self._turned = None
        return found


def open_numpy(path: Path, _: Reading = Reading()) -> Source:  # noqa: B008  # frozen
    """Open a file of ``numpy.save``, ``savez`` or ``savez_compressed``.

    A slash in a name becomes a dot: ``Dense_0/kernel`` is the ``kernel`` of the module
    ``Dense_0``. The array of a ``.npy`` is called as its file is.

    Raises:
        InputError: damaged, or two arrays have one name.
        UnsupportedError: an array whose elements are objects, records or unnamed bytes.
    """
    resources = ExitStack()
    with resources:
        handle = resources.enter_context(open_input(path)).fileno()
        archive = archive_of(handle)
        arrays: dict[str, _Stored] = {}
        notes = []
        if archive is None:
            length = os.fstat(handle).st_size
            begin = os.pread(handle, _HEADER, 0)
            with locate(tensor=path.stem):
                arrays[path.stem] = _stored(begin, length, lambda: (handle, 0))
        else:
            resources.callback(archive.close)
            found = [name for name in archive.names if name.endswith(_ENDING)]
            if len(found) > _MANY:
                raise UnsupportedError(
                    f"holds {len(found)} arrays, expected at most {_MANY}. Save fewer in a file."
                )
            for record in found:
                name = record.removesuffix(_ENDING)
                with locate(tensor=name):
                    packed, length = archive.sizes(record)
                    if length > max(_LARGE, _DENSE * packed):
                        raise UnsupportedError(
                            f"takes {size(length)}, but is compressed to {size(packed)}, expected "
                            f"at most {_DENSE} times as much. Save it with numpy.savez."
                        )
                    begin = archive.begin(record, _HEADER)
                    arrays[name] = _stored(begin, length, _place(archive, record))
            if others := [name for name in archive.names if not name.endswith(_ENDING)]:
                notes.append(f"left out {listed(others)}: not arrays of NumPy")
        tensors, said = _tensors(arrays)
        return Source(
            str(path),
            tensors,
            notes=[*notes, *said],
            files=(path,),
            nbytes=path.stat().st_size,
            splits={name: len(t.shape) - 1 for name, t in tensors.items() if _is_kernel(t)},
            resources=resources.pop_all(),
        )


def _place(archive: Archive, record: str) -> Callable[[], tuple[int, int]]:
    return lambda: archive.locate(record)


def _is_kernel(tensor: SourceTensor) -> bool:
    """Return whether a name is that of JAX and Keras for weights whose last dim is the output."""
    return tensor.name.endswith("kernel") and len(tensor.shape) >= 2


def _stored(begin: bytes, length: int, locate_record: Callable[[], tuple[int, int]]) -> _Stored:
    """Read a header.

    Args:
        begin: first bytes of the record.
        length: of the record.

    Raises:
        InputError: it is no header, or the record has another length than it says.
        UnsupportedError: objects, records or unnamed bytes.
    """
    stream = BytesIO(begin)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of headers that Python 2 wrote
            version = npy.read_magic(stream)
            shape, by_columns, dtype = _READERS[version](stream, max_header_size=_HEADER)
    except Exception as error:  # damaged, it fails wherever reading first stumbles
        raise InputError(f"has no header of NumPy in its first {_HEADER} bytes. {AGAIN}") from error
    _check_dtype(dtype)
    if len(shape) > MAX_DIMS or not all(0 <= n < 1 << 63 for n in shape):
        raise InputError(f"has {shape!s:.60} as its shape, expected sizes of dims. {AGAIN}")
    by_columns = by_columns and len(shape) > 1
    stored = _Stored(dtype, tuple(shape), by_columns, stream.tell(), locate_record)
    if stored.start + stored.nbytes != length:
        raise InputError(
            f"holds {length - stored.start} bytes, expected {stored.nbytes} for shape "
            f"{stored.shape!s:.60} in {dtype}. {AGAIN}"
        )
    return stored


def _check_dtype(dtype: np.dtype[Any]) -> None:
    """Refuse elements that are no numbers, or numbers whose kind is not in the file.

    Raises:
        UnsupportedError: with what to do.
    """
    if dtype.names is not None or dtype.subdtype is not None:
        raise UnsupportedError(
            "is an array of records, expected numbers. Save each field as an array of its own."
        )
    if dtype.hasobject:
        raise UnsupportedError(
            "is an array of Python objects, which only a pickle can hold and tpack never "
            "unpickles. Save each array in it under a name of its own: numpy.savez(path, **arrays)."
        )
    if dtype.kind == "V":
        raise UnsupportedError(
            f"has elements of {dtype.itemsize} bytes without a kind, as NumPy saves bfloat16 and "
            "float8. Save it as float32: array.astype('float32')."
        )
    if dtype.kind not in "SUMm" and dtype.name not in BY_NAME:
        raise UnsupportedError(
            f"is an array of {dtype.name}, expected numbers of at most 8 bytes. Cast it first."
        )


def _tensors(arrays: dict[str, _Stored]) -> tuple[dict[str, SourceTensor], list[str]]:
    """Return arrays of numbers as tensors, and notes.

    Raises:
        InputError: two arrays have one name.
    """
    tensors: dict[str, SourceTensor] = {}
    texts = [name for name, array in arrays.items() if array.dtype.kind in "SUMm"]
    for stored, array in arrays.items():
        if stored in texts:
            continue
        name = stored.replace("/", ".")
        check_name(name)
        if name in tensors:
            raise InputError(
                f"would have the name {name!r}, which another array has. Rename one.",
                tensor=stored,
            )
        tensors[name] = SourceTensor(name, array.name, array.shape, array.read)
    notes = []
    if any("/" in name for name in arrays):
        notes.append("wrote '/' in names as '.'")
    if texts:
        notes.append(f"left out {listed(texts)}: texts or times, not numbers")
    return tensors, notes
