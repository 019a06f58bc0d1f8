"""What a pickle is read to: plain Python values, and these records in the place of all else.

No record has a method that a pickle can reach, and none holds anything that can be called.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

#: How deep tuples may lie in a key, and how many values one may have: hashing takes no account.
_KEY_DEPTH, _KEY_SIZE = 16, 1000


@dataclass(frozen=True, slots=True)
class Global:
    """A class or function that a pickle names: only its name, ``module.qualified.name``."""

    name: str


@dataclass(eq=False, slots=True, repr=False)
class Placeholder:
    """What would have been made by code: what it is, and what it would have been made from.

    Attributes:
        name: of the class or function, ``module.qualified.name``.
        args: of the call that would make it, and ``kwargs``.
        state: what it would be given then, most often a dict of its attributes.
        items: what would be appended to it; ``pairs`` what would be set by key.
    """

    name: str
    args: tuple[Any, ...] = ()
    kwargs: Any = None
    state: Any = None
    items: list[Any] = field(default_factory=list)
    pairs: dict[Any, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"<{self.name}>"  # what is in it may hold itself


@dataclass(eq=False, slots=True, repr=False)
class Storage:
    """Bytes of a file that tensors view.

    Attributes:
        key: what the file calls them.
        dtype: of the elements, by torch's name; uint8 for bytes without a dtype.
        numel: number of elements.
        start: first byte, in the storage that ``key`` names.
    """

    key: str
    dtype: str
    numel: int
    start: int = 0


@dataclass(eq=False, slots=True, repr=False)
class Tensor:
    """A tensor: where its elements lie in a storage.

    Attributes:
        dtype: by torch's name; also those that tpack cannot hold, such as qint8.
        shape: logical shape.
        strides: in elements.
        offset: first element, in the storage.
        storage: None for a tensor that has no elements of its own, by ``refused``.
        quantizer: of a quantized tensor, as torch saves it: scheme, scale, zero point.
        conj: whether the values are the conjugates of those stored; ``neg`` the negatives.
        kind: its class, where that is a subclass of Tensor.
        refused: completes "is …", of a tensor that is not dense, such as a sparse one.
    """

    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...] = ()
    offset: int = 0
    storage: Storage | None = None
    quantizer: tuple[Any, ...] | None = None
    conj: bool = False
    neg: bool = False
    kind: str = ""
    refused: str = ""

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(eq=False, slots=True, repr=False)
class ArrayType:
    """A dtype of numpy: its code, and its byte order, which comes as its state."""

    code: str
    order: str = "|"

    def take(self, state: Any) -> None:
        """Take the state of a dtype."""
        self.order = state[1]
        if any(state[2:5]) or self.order not in ("<", ">", "|", "="):  # parts of a record
            self.code = "O"

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype.

        Raises:
            ValueError: its elements are not plain numbers.
        """
        order: Any = self.order
        found = np.dtype(self.code).newbyteorder(order)
        if found.kind not in "biufc":
            raise ValueError
        return found


@dataclass(eq=False, slots=True, repr=False)
class Array:
    """An array of numpy, of any dtype; ``values`` are those of plain numbers."""

    type: ArrayType | None = None
    shape: tuple[int, ...] = (0,)
    data: Any = b""
    fortran: bool = False

    def take(self, state: Any) -> None:
        """Take the state of an array: version, shape, dtype, order, elements."""
        _, self.shape, self.type, self.fortran, self.data = state

    @property
    def values(self) -> npt.NDArray[Any]:
        """The elements.

        Raises:
            ValueError: they are not plain numbers, or not as many as the shape has.
        """
        data = self.data.encode() if isinstance(self.data, str) else self.data
        if self.type is None or not isinstance(data, bytes | bytearray):
            raise ValueError
        order: Any = "F" if self.fortran else "C"
        return np.frombuffer(data, self.type.dtype).reshape(self.shape, order=order)


def called(value: Any) -> str:
    """Return what the class of a value is called, for a message."""
    if isinstance(value, Placeholder | Global):
        return f"{value.name:.80}"
    return "ndarray" if isinstance(value, Array) else type(value).__name__


def check_keys(keys: Iterable[Any]) -> int:
    """Check that values can be keys of a dict, and that it costs little to hash and compare them.

    Returns:
        How many of them have a hash that can be made to be that of others.

    Raises:
        TypeError: a list or another value that cannot be a key, or one of too many parts.
    """
    weak = 0
    for key in keys:
        kind = type(key)
        if kind is str or (kind is int and -(1 << 62) < key < 1 << 62):
            continue
        if kind in (tuple, frozenset):
            _parts(key, 0, _KEY_SIZE)
        elif not isinstance(key, _KEYS):
            raise TypeError
        weak += not isinstance(key, _STRONG)
    return weak


_KEYS = (str, int, float, complex, bytes, type(None), Global, Placeholder, Tensor, Storage)
_STRONG = (str, bytes, bool, type(None), Global, Placeholder, Tensor, Storage)


def _parts(key: Any, depth: int, left: int) -> int:
    """Check the parts of a key, and return how many more it might have."""
    for part in key:
        left -= 1
        if left < 0 or depth == _KEY_DEPTH:
            raise TypeError
        if type(part) in (tuple, frozenset):
            left = _parts(part, depth + 1, left)
        elif not isinstance(part, _KEYS):
            raise TypeError
    return left
