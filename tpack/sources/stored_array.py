"""Arrays that lie in a file as plain elements, read in pieces."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from tpack.container.opening import read_into
from tpack.container.reader import stored_dtype
from tpack.dtypes import BY_NAME
from tpack.errors import UnsupportedError
from tpack.text import size

Array = npt.NDArray[Any]

#: What a compressed array may be beyond, in bytes and in times its compressed size.
_LARGE, _DENSE = 1 << 28, 200


@dataclass
class StoredArray:
    """An array in a file.

    Attributes:
        dtype: of its elements as stored, in their byte order.
        shape: its shape.
        start: where its elements begin, after what ``locate`` returns.
        locate: returns handle of the file and first byte.
        by_columns: whether the first index runs fastest, as in Fortran.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    start: int
    locate: Callable[[], tuple[int, int]]
    by_columns: bool = False
    _turned: Array | None = field(default=None, repr=False)

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of its elements."""
        return self.numel * self.dtype.itemsize

    def read(self, start: int, stop: int) -> Array:
        """Read elements row by row; of an array by columns all, until the last was asked for."""
        if not self.by_columns:
            return self._elements(start, stop)
        if self._turned is None:
            whole = self._elements(0, self.numel)
            self._turned = whole.reshape(self.shape, order="F").reshape(-1)
        found = self._turned[start:stop]
        if stop == self.numel:
            self._turned = None
        return found

    def _elements(self, start: int, stop: int) -> Array:
        """Read elements as they lie in the file."""
        handle, place = self.locate()
        width = self.dtype.itemsize
        found = np.empty(stop - start, self.dtype)
        read_into(handle, memoryview(found.view(np.uint8)), place + self.start + start * width)
        return native(found)


def native(array: Array) -> Array:
    """Return elements in the byte order of this machine, as sources have them."""
    dtype = array.dtype.newbyteorder("=")
    return array.astype(dtype, copy=False).view(stored_dtype(dtype.name))


def dtype_name(dtype: np.dtype[Any]) -> str:
    """Return the name of a dtype of numbers, without its byte order.

    Raises:
        UnsupportedError: elements that are no numbers, or whose kind is not in the file.
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
    name = dtype.newbyteorder("=").name
    if name not in BY_NAME:
        raise UnsupportedError(
            f"is an array of {name}, expected numbers of at most 8 bytes. Cast it first."
        )
    return name


def check_density(packed: int, length: int) -> None:
    """Refuse an array that is compressed further than weights are.

    Raises:
        UnsupportedError: with what to do.
    """
    if length > max(_LARGE, _DENSE * packed):
        raise UnsupportedError(
            f"takes {size(length)}, but is compressed to {size(packed)}, expected at most "
            f"{_DENSE} times as much. Save it without compression."
        )
