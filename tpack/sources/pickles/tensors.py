"""Tensors of a file of torch as tensors of a source: read in pieces, by system calls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tpack.container.opening import read_into
from tpack.container.reader import stored_dtype
from tpack.dtypes import BY_NAME, elements_of
from tpack.errors import InputError, UnsupportedError, locate
from tpack.sources.pickles.files import Pickled, itemsize
from tpack.sources.pickles.values import Tensor
from tpack.sources.source import SourceTensor
from tpack.text import size

Array = npt.NDArray[Any]

#: Bytes of a storage that are read at a time, for a tensor whose elements do not lie in a row.
_SPAN = 16 << 20
#: Bytes that a tensor may take whose elements are stored fewer times than it has them.
_EXPANDED = 256 << 20
#: How quantized elements are stored.
_QUANTIZED = {"qint8": "int8", "quint8": "uint8", "qint32": "int32"}


class Reader:
    """Reads the tensors of a file; keeps the last one that had to be put in order.

    Attributes:
        kinds: the subclasses of Tensor that were met.
    """

    def __init__(self, file: Pickled) -> None:
        self.file = file
        self.kinds: set[str] = set()
        self._last: tuple[Tensor | None, Array] = None, np.empty(0)

    def source_tensor(self, name: str, tensor: Tensor) -> SourceTensor:
        """Return a tensor of a source, after all has been checked but the values.

        Raises:
            InputError: its elements are not in the file.
            UnsupportedError: of a kind that cannot be stored.
        """
        self.kinds.add(tensor.kind)
        with locate(tensor=name):
            dtype = self._check(tensor)

        def read(start: int, stop: int) -> Array:
            with locate(tensor=name):
                return self._read(tensor, start, stop)

        coded = f"{tensor.dtype} of torch" if tensor.quantizer else ""
        return SourceTensor(name, dtype, tensor.shape, read, coded=coded).of_elements()

    def _check(self, tensor: Tensor) -> str:
        """Return the dtype of the values of a tensor that can be read."""
        if tensor.refused:
            raise UnsupportedError(tensor.refused)
        dtype = tensor.dtype
        if tensor.quantizer is not None and dtype in _QUANTIZED and _scheme(tensor):
            dtype = "float32"
        if elements_of(dtype, tensor.shape)[0] not in BY_NAME:
            raise UnsupportedError(
                f"has dtype {dtype}, which safetensors cannot hold. Cast it first."
            )
        storage = tensor.storage
        assert storage is not None
        self.file.check(storage)
        held = storage.numel * itemsize(storage.dtype)
        needed = _span(tensor.shape, tensor.strides) * itemsize(tensor.dtype) if tensor.numel else 0
        first = tensor.offset * itemsize(tensor.dtype)
        if len(tensor.strides) != len(tensor.shape) or (needed and first + needed > held):
            raise InputError(
                f"needs the bytes {first} to {first + needed} of a storage of {held}. The file is "
                "damaged: copy or download it again."
            )
        taken = tensor.numel * itemsize(tensor.dtype)
        if taken > max(held, _EXPANDED):
            raise UnsupportedError(
                f"takes {size(taken)}, but only {size(held)} are stored: elements are repeated. "
                "Save it without expand()."
            )
        return dtype

    def _read(self, tensor: Tensor, start: int, stop: int) -> Array:
        """Return values of a tensor, row by row."""
        if _in_a_row(tensor):
            found = self._elements(tensor, tensor.offset + start, stop - start)
        else:
            found = self._ordered(tensor)[start:stop]
        if tensor.quantizer is not None:
            return self._dequantized(tensor, found, start)
        if tensor.conj:
            found = found.conj()
        return -found if tensor.neg else found

    def _elements(self, tensor: Tensor, first: int, count: int) -> Array:
        """Read elements as they lie in the storage."""
        storage = tensor.storage
        assert storage is not None
        kind = np.dtype(_QUANTIZED.get(tensor.dtype) or stored_dtype(tensor.dtype))
        handle, place = self.file.locate(storage)
        found = np.empty(count, kind)
        start = place + storage.start + first * kind.itemsize
        read_into(handle, memoryview(found.view(np.uint8)), start)
        return found.byteswap(inplace=True) if self.file.swapped else found

    def _ordered(self, tensor: Tensor) -> Array:
        """Return all elements of a tensor, row by row."""
        last, flat = self._last
        if last is not tensor:
            kind = np.dtype(_QUANTIZED.get(tensor.dtype) or stored_dtype(tensor.dtype))
            self._last, flat = (None, np.empty(0)), np.empty(0)
            made = np.empty(tensor.shape, kind)
            self._fill(made, tensor, tensor.offset)
            flat = made.reshape(-1)
            self._last = tensor, flat
        return flat

    def _fill(self, into: Array, tensor: Tensor, first: int) -> None:
        """Fill a part of a tensor whose first element is ``first``, by halves if it is long."""
        span = _span(into.shape, tensor.strides)
        if span * into.itemsize <= _SPAN:
            flat = self._elements(tensor, first, span)
            strides = [stride * into.itemsize for stride in tensor.strides]
            into[...] = np.lib.stride_tricks.as_strided(flat, into.shape, strides)
            return
        reach = [(n - 1) * s for n, s in zip(into.shape, tensor.strides, strict=True)]
        axis = reach.index(max(reach))
        half = into.shape[axis] // 2
        rest = np.moveaxis(into, axis, 0)
        low, high = np.moveaxis(rest[:half], 0, axis), np.moveaxis(rest[half:], 0, axis)
        self._fill(low, tensor, first)
        self._fill(high, tensor, first + half * tensor.strides[axis])

    def _dequantized(self, tensor: Tensor, codes: Array, start: int) -> Array:
        """Return the floats that quantized elements stand for, as torch computes them."""
        assert tensor.quantizer is not None
        scheme, scale, zero, *axis = tensor.quantizer
        if scheme == "per_tensor_affine":
            floats: Array = (codes.astype(np.int64) - zero).astype(np.float32)
            return floats * np.float32(scale)
        inner = int(np.prod(tensor.shape[axis[0] + 1 :], dtype=np.int64))
        places = np.arange(start, start + len(codes)) // inner % tensor.shape[axis[0]]
        zeros, scales = (self._read(part, 0, part.numel) for part in (zero, scale))
        doubles: Array = (codes.astype(np.int64) - zeros[places]) * scales[places]
        return doubles.astype(np.float32)


def _scheme(tensor: Tensor) -> bool:
    """Return whether the codes of a quantized tensor can be read."""
    assert tensor.quantizer is not None
    scheme, scale, zero, *axis = tensor.quantizer
    if scheme == "per_tensor_affine":
        return isinstance(scale, float) and isinstance(zero, int)
    count = tensor.shape[axis[0]] if axis and axis[0] < len(tensor.shape) else -1
    return scheme == "per_channel_affine" and all(
        isinstance(part, Tensor) and part.shape == (count,) and part.dtype == dtype
        for part, dtype in ((scale, "float64"), (zero, "int64"))
    )


def _span(shape: Sequence[int], strides: Sequence[int]) -> int:
    """Return how many elements lie between the first and the last of a tensor, with both."""
    return 1 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=False))


def _in_a_row(tensor: Tensor) -> bool:
    """Return whether the elements are stored row by row."""
    expected = 1
    for n, stride in zip(reversed(tensor.shape), reversed(tensor.strides), strict=True):
        if n != 1 and stride != expected:
            return not tensor.numel
        expected *= n
    return True
