"""Files of NumPy as a source: ``.npy`` has one array, ``.npz`` is a zip archive of them.

Nothing is unpickled: arrays of objects are refused, whatever they hold.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path

from numpy.lib import format as npy

from tpack.container.header import MAX_DIMS, check_name
from tpack.container.opening import open_input
from tpack.errors import InputError, UnsupportedError, locate
from tpack.options import Reading
from tpack.sources.archive import AGAIN, Archive, archive_of
from tpack.sources.source import Source, SourceTensor
from tpack.sources.stored_array import StoredArray, check_density, dtype_name
from tpack.text import listed

#: Bytes in which a header has to end; numpy reads no longer ones either.
_HEADER = 10_000
_READERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
#: Arrays of an archive: beyond that, opening it would take long.
_MANY = 20_000
#: Kinds of texts and times, which are left out.
_TEXTS = "SUMm"
_ENDING = ".npy"


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
        arrays: dict[str, StoredArray] = {}
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
                    check_density(packed, length)
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


def _stored(begin: bytes, length: int, locate_record: Callable[[], tuple[int, int]]) -> StoredArray:
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
    if dtype.kind not in _TEXTS:
        dtype_name(dtype)
    if len(shape) > MAX_DIMS or not all(type(n) is int and 0 <= n < 1 << 63 for n in shape):
        raise InputError(f"has {shape!s:.60} as its shape, expected sizes of dims. {AGAIN}")
    by_columns = by_columns and len(shape) > 1
    stored = StoredArray(dtype, tuple(shape), stream.tell(), locate_record, by_columns)
    if stored.start + stored.nbytes != length:
        raise InputError(
            f"holds {length - stored.start} bytes, expected {stored.nbytes} for shape "
            f"{stored.shape!s:.60} in {dtype}. {AGAIN}"
        )
    return stored


def _tensors(arrays: dict[str, StoredArray]) -> tuple[dict[str, SourceTensor], list[str]]:
    """Return arrays of numbers as tensors, and notes.

    Raises:
        InputError: two arrays have one name.
    """
    tensors: dict[str, SourceTensor] = {}
    texts = [name for name, array in arrays.items() if array.dtype.kind in _TEXTS]
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
        tensors[name] = SourceTensor(name, dtype_name(array.dtype), array.shape, array.read)
    notes = []
    if any("/" in name for name in arrays):
        notes.append("wrote '/' in names as '.'")
    if texts:
        notes.append(f"left out {listed(texts)}: texts or times, not numbers")
    return tensors, notes
