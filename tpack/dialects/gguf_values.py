"""Values of GGUF's metadata: as bytes of a file, and as JSON that loses nothing.

In JSON a number that JSON cannot express (an integer beyond 63 bits, an infinity, a NaN) is the hex
of its bytes, and so is, as ``{"hex": …}``, a string that is not UTF-8.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tpack.errors import InputError

#: Number in the file and numpy dtype of each type of number.
_NUMBERS = {
    "uint8": (0, "<u1"),
    "int8": (1, "<i1"),
    "uint16": (2, "<u2"),
    "int16": (3, "<i2"),
    "uint32": (4, "<u4"),
    "int32": (5, "<i4"),
    "float32": (6, "<f4"),
    "bool": (7, "<u1"),
    "uint64": (10, "<u8"),
    "int64": (11, "<i8"),
    "float64": (12, "<f8"),
}
_IDS = {name: number for name, (number, _) in _NUMBERS.items()} | {"string": 8, "array": 9}
#: Every type of value by its number in the file.
TYPES = {number: name for name, number in _IDS.items()}
DTYPES = {name: np.dtype(dtype) for name, (_, dtype) in _NUMBERS.items()}

#: Arrays in arrays; no writer known nests them at all.
MAX_NESTING = 4
MAX_ALIGNMENT = 1 << 20

_LIMIT = 2**63
#: Integers that JSON can express exactly.
_SMALL = {"uint8", "int8", "uint16", "int16", "uint32", "int32", "bool"}


@dataclass(frozen=True)
class Value:
    """A value of the metadata.

    Attributes:
        kind: its type, one of ``TYPES``.
        data: a numpy scalar, ``bytes`` of a string, or an ``Array``.
    """

    kind: str
    data: Any

    @property
    def plain(self) -> Any:
        """The value as plain Python data: int, float, bool, str, or a list of these."""
        if self.kind == "array":
            return [Value(self.data.kind, item).plain for item in self.data.items]
        if self.kind == "string":
            return self.data.decode("utf-8", "replace")
        return bool(self.data) if self.kind == "bool" else self.data.item()


@dataclass(frozen=True)
class Array:
    """The items of an array: a numpy array of numbers, or a list of strings or arrays."""

    kind: str
    items: npt.NDArray[Any] | Sequence[Any]


def value(kind: str, data: Any) -> Value:
    """Make a value of plain Python data; a sequence becomes an array of ``kind``.

    Example:
        >>> value("uint32", 7).plain, value("string", ["a", "b"]).plain
        (7, ['a', 'b'])
    """
    if isinstance(data, list | tuple | np.ndarray):
        if kind == "string":
            return Value("array", Array(kind, [text.encode() for text in data]))
        return Value("array", Array(kind, np.asarray(data, dtype=DTYPES[kind])))
    return Value(kind, data.encode() if kind == "string" else DTYPES[kind].type(data))


def alignment_of(metadata: Mapping[str, Value]) -> int:
    """Return the multiple of bytes at which tensors begin.

    Raises:
        InputError: it is not a power of 2, which every reader expects.
    """
    stated = metadata.get("general.alignment")
    if stated is None:
        return 32
    number = int(stated.plain) if stated.kind == "uint32" else 0
    if not 0 < number <= MAX_ALIGNMENT or number & (number - 1):
        raise InputError(
            f"has general.alignment {stated.plain!r:.40}, expected a power of 2 in 32 bits, at "
            f"most {MAX_ALIGNMENT}. The file is damaged: download or copy it again."
        )
    return number


# ---- bytes


def encode(item: Value) -> bytes:
    """Encode type and value as a file has them."""
    return struct.pack("<I", _IDS[item.kind]) + _body(item.kind, item.data)


def _body(kind: str, data: Any) -> bytes:
    if kind == "string":
        return encode_string(data)
    if kind == "array":
        head = struct.pack("<IQ", _IDS[data.kind], len(data.items))
        if data.kind in DTYPES:
            return head + np.asarray(data.items, dtype=DTYPES[data.kind]).tobytes()
        return head + b"".join(_body(data.kind, entry) for entry in data.items)
    return np.asarray(data, dtype=DTYPES[kind]).tobytes()


def encode_string(text: bytes) -> bytes:
    """Encode a string as a file has it: its length and its bytes."""
    return struct.pack("<Q", len(text)) + text


# ---- JSON


def to_json(item: Value) -> list[Any]:
    """Return ``[type, data]``; the data of an array is again ``[type of items, items]``."""
    return [item.kind, _to_json(item.kind, item.data)]


def _to_json(kind: str, data: Any) -> Any:
    if kind == "array":
        if data.kind in _SMALL:
            return [data.kind, data.items.tolist()]
        return [data.kind, [_to_json(data.kind, entry) for entry in data.items]]
    if kind == "string":
        try:
            return str(data, "utf-8")
        except UnicodeDecodeError:
            return {"hex": data.hex()}
    if kind in ("float32", "float64"):
        # the shortest decimal that reads back as the same float32
        number = float(str(data)) if math.isfinite(data) else math.nan
        return number if math.isfinite(number) else _hex(kind, data)
    number = int(data)
    return number if -_LIMIT < number < _LIMIT else _hex(kind, data)


def _hex(kind: str, data: Any) -> str:
    return np.asarray(data, dtype=DTYPES[kind]).tobytes().hex()


def from_json(data: Any) -> Value:
    """Read a value that ``to_json`` wrote.

    Raises:
        InputError: the data was not written by ``to_json``.
    """
    try:
        kind, content = data
        return Value(kind, _from_json(kind, content, MAX_NESTING))
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
        raise InputError(f"{data!r:.80} is not a value of GGUF metadata.") from error


def _from_json(kind: str, data: Any, depth: int) -> Any:
    if kind == "array":
        inner, items = data
        if not depth or not isinstance(items, list) or inner not in _IDS:
            raise ValueError(inner)
        found = [_from_json(inner, item, depth - 1) for item in items]
        return Array(inner, np.array(found, dtype=DTYPES[inner]) if inner in DTYPES else found)
    if kind == "string":
        return bytes.fromhex(data["hex"]) if isinstance(data, dict) else data.encode()
    dtype = DTYPES[kind]
    if isinstance(data, str):
        return np.frombuffer(bytes.fromhex(data), dtype=dtype).reshape(())[()]
    if type(data) not in ((int, float) if kind.startswith("float") else (int,)):
        raise TypeError(data)
    return dtype.type(data)
