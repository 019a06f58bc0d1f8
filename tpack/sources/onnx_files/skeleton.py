"""The protobuf of an ONNX model without the bytes of its large tensors.

protobuf holds a message in memory whole, with all weights inside. Here the large fields of bytes
are left out before it is parsed: each becomes a reference to external data that lies in the
model's own file, so that all large tensors are read alike, in pieces.
"""

from __future__ import annotations

from tpack.container.opening import read_into
from tpack.errors import InputError

#: Fields of fewer bytes stay where they are.
SMALL = 1024
#: What may be left: the graph, and tensors in fields of integers, which have no fixed size.
MAX_SKELETON = 64 << 20
#: Parts of the graph; a file of more would take much more memory than its size.
MAX_PARTS = 1_000_000
#: protobuf's own limit on messages inside of messages.
MAX_DEPTH = 100
#: The location by which a tensor refers to the file of the model itself; no file has this name.
INSIDE = "\0"

_BYTES = 2  # the wire type of strings, bytes and messages
#: Which fields of a message are messages, so far as ONNX models are made of many.
_INSIDE: dict[str, dict[int, str]] = {
    "model": {7: "graph", 8: "leaf", 14: "leaf", 20: "training", 25: "function", 26: "leaf"},
    "graph": {
        1: "node", 5: "tensor", 11: "value", 12: "value", 13: "value", 14: "annotation",
        15: "sparse", 16: "leaf",
    },
    "training": {1: "graph", 2: "graph", 3: "leaf", 4: "leaf"},
    "function": {7: "node", 9: "leaf", 11: "attribute", 12: "value", 14: "leaf"},
    "node": {5: "attribute", 9: "leaf", 10: "leaf"},
    "attribute": {
        5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 14: "type", 15: "type",
        22: "sparse", 23: "sparse",
    },
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {3: "leaf", 13: "leaf", 16: "leaf"},
    "annotation": {2: "leaf"},
    "value": {2: "type", 4: "leaf"},
    # tensor, sequence, map, optional and sparse types
    "type": {1: "typed", 4: "inner", 5: "inner", 8: "typed", 9: "inner"},
    "inner": {1: "type", 2: "type"},
    "typed": {2: "shape"},
    "shape": {1: "leaf"},
    "leaf": {},
}  # fmt: skip
#: Which fields of a message are names, and must be UTF-8: protobuf gives others as bytes.
_NAMES: dict[str, tuple[int, ...]] = {
    "node": (1, 2, 3, 4, 7),
    "tensor": (8,),
    "attribute": (1, 21),
    "value": (1,),
    "function": (1, 4, 5, 6, 10),
    "leaf": (1, 2),
}
#: Fields of a tensor that are its elements as they lie in memory: float_data, raw_data and
#: double_data.
_ELEMENTS = (4, 9, 10)


def cut(handle: int, size: int) -> bytes:
    """Return the message of a model with references in the place of large elements.

    Args:
        handle: of the open file.
        size: its bytes.

    Raises:
        InputError: it is not a protobuf message, or is made of too many or too large parts.
    """
    scan = _Scan(handle, size)
    pieces = scan.message("model", 0, size, 0)
    return b"".join(pieces)


class _Scan:
    """One walk through the fields of a file."""

    def __init__(self, handle: int, size: int) -> None:
        self.handle, self.size = handle, size
        self.parts = self.kept = 0
        self.window, self.at = b"", 0

    def message(self, kind: str, start: int, stop: int, depth: int) -> list[bytes]:
        """Return the pieces of a message, shortened."""
        if depth > MAX_DEPTH:
            raise InputError(f"nests messages deeper than {MAX_DEPTH}. It is not an ONNX model.")
        inside = _INSIDE[kind]
        pieces: list[bytes] = []
        plain = at = start  # fields from ``plain`` on are copied as they are
        while at < stop:
            first = at
            number, content, at = self.field(at, stop)
            if number in inside:
                below = self.message(inside[number], content, at, depth + 1)
                if not below:
                    continue
                pieces += [self.copy(plain, first), *_wrapped(number, below)]
            elif kind == "tensor" and number in _ELEMENTS and at - content >= SMALL:
                pieces += [self.copy(plain, first), _reference(number, content, at)]
            else:
                if number in _NAMES.get(kind, ()):
                    self.check_name(content, at)
                continue
            plain = at
        return [*pieces, self.copy(plain, stop)] if pieces or not depth else []

    def field(self, at: int, stop: int) -> tuple[int, int, int]:
        """Return the number of a field, or 0 if it is no bytes; where its content begins, ends."""
        self.parts += 1
        if self.parts > MAX_PARTS:
            raise InputError(
                f"has a graph of more than {MAX_PARTS} parts. tpack reads no larger ones."
            )
        tag, content = self.varint(at)
        wire, end = tag & 7, content
        if wire == _BYTES:
            length, content = self.varint(content)
            end = content + length
        elif wire == 0:
            _, end = self.varint(content)
        else:
            end = content + {1: 8, 5: 4}.get(wire, stop)  # groups: ONNX has none
        if end > stop or not tag >> 3:
            raise InputError(
                "is not an ONNX model, or is truncated: a field ends beyond its message. "
                "Download or copy it again."
            )
        return tag >> 3 if wire == _BYTES else 0, content, end

    def varint(self, at: int) -> tuple[int, int]:
        """Return an integer and where it ends."""
        place = at - self.at
        if not 0 <= place <= len(self.window) - 10:
            self.at, place = at, 0
            self.window = self.read(at, min(at + (1 << 16), self.size))
        window = self.window
        if place < len(window) and window[place] < 0x80:
            return window[place], at + 1
        value = shift = 0
        for byte in window[place : place + 10]:
            place += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, self.at + place
            shift += 7
        raise InputError("is not an ONNX model, or is truncated. Download or copy it again.")

    def check_name(self, start: int, stop: int) -> None:
        first, last = start - self.at, stop - self.at
        inside = first >= 0 and last <= len(self.window)
        try:
            (self.window[first:last] if inside else self.read(start, stop)).decode()
        except UnicodeDecodeError:
            raise InputError(
                f"has a name at byte {start} that is no text. The file is damaged: copy it again."
            ) from None

    def copy(self, start: int, stop: int) -> bytes:
        self.kept += stop - start
        if self.kept > MAX_SKELETON:
            raise InputError(
                f"holds more than {MAX_SKELETON >> 20} MB besides the raw data of tensors. Save "
                "its tensors as raw data, with onnx.numpy_helper.from_array."
            )
        return self.read(start, stop)

    def read(self, start: int, stop: int) -> bytes:
        found = bytearray(stop - start)
        read_into(self.handle, memoryview(found), start)
        return bytes(found)


def _varint(value: int) -> bytes:
    found = bytearray()
    while value >= 0x80:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)


def _wrapped(number: int, pieces: list[bytes]) -> list[bytes]:
    return [_varint(number << 3 | _BYTES), _varint(sum(map(len, pieces))), *pieces]


def _reference(number: int, start: int, stop: int) -> bytes:
    """Return fields of a tensor that say where its elements lie in the file of the model."""
    entries = {"location": f"{INSIDE}{number}", "offset": str(start), "length": str(stop - start)}
    written = b""
    for key, value in entries.items():
        text = [b"\x0a", _varint(len(key)), key.encode()]
        text += [b"\x12", _varint(len(value)), value.encode()]
        written += b"".join(_wrapped(13, text))
    return written
