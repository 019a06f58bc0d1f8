"""The container of a GGUF file, read as if a stranger had made it.

Every length and count is compared with what is left of the file before anything is read or
allocated, so a header costs no more than the file is long.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from tpack.choices import I2S_ORDERS
from tpack.container.opening import input_errors, open_input, read_into
from tpack.dialects.gguf_blocks import I2_S, I2_S_ROWS, PQ2_0, Q2_0, BlockFormat
from tpack.dialects.gguf_quants import QUANTS, Quant
from tpack.dialects.gguf_types import (
    FORMS_OF_42,
    I2_S_TAIL,
    PLAIN,
    STQ1_0,
    TERNARY,
    Unread,
    why_unsupported,
)
from tpack.dialects.gguf_values import DTYPES, MAX_NESTING, TYPES, Array, Value, alignment_of
from tpack.dtypes import BY_NAME
from tpack.errors import InputError, UnsupportedError, locate
from tpack.sources.archive import AGAIN
from tpack.wording import spell

MAGIC = b"GGUF"
#: Of everything before the data; the largest vocabularies take a fifth.
MAX_METADATA = 100_000_000
MAX_TENSORS = 16_384
MAX_KEYS = 65_536
#: Of the metadata, items of arrays included.
MAX_VALUES = 2_000_000
MAX_DIMS = 4

_ROOM = 1 << 20


@dataclass(frozen=True)
class TensorInfo:
    """A tensor of a file.

    Attributes:
        name: as the file has it.
        dtype: of plain elements; None for blocks.
        quant: format of blocks whose codes are not trits; None for anything else.
        blocks: format of blocks of trits; None for anything else.
        shape: logical shape, the reverse of the file's.
        start: first byte in the file.
        nbytes: bytes that it takes.
    """

    name: str
    dtype: str | None
    blocks: BlockFormat | None
    shape: tuple[int, ...]
    start: int
    nbytes: int
    quant: Quant | None = None

    @property
    def kind(self) -> str:
        """The name of its type."""
        found = self.blocks or self.quant
        return str(self.dtype) if found is None else found.name


class GgufFile:
    """A GGUF file, opened and checked.

    Attributes:
        path: of the file.
        version: of the container, 2 or 3.
        metadata: by key, in the order of the file.
        tensors: in the order of the file.

    Args:
        i2_s: the blocks of I2_S, in the order that the file has.

    Raises:
        InputError: the file is not GGUF, truncated, malformed or hostile.
        UnsupportedError: another version, big-endian, or a tensor type that tpack does not read.
    """

    def __init__(self, path: str | os.PathLike[str], i2_s: BlockFormat = I2_S) -> None:
        self.path = Path(path)
        self._i2_s = i2_s
        with locate(file=self.path):
            self._file = open_input(self.path)
            try:
                with input_errors():
                    self._size = os.fstat(self._file.fileno()).st_size
                    self._read_header()
            except BaseException:
                self.close()
                raise

    def _read_header(self) -> None:
        header = _Header(self._file.fileno(), self._size)
        if header.take(4) != MAGIC:
            raise InputError(
                "does not begin with GGUF, so it is not a GGUF file. Download or copy it again."
            )
        self.version = header.integer("I")
        if not self.version & 0xFFFF:
            raise UnsupportedError(
                "is big-endian, expected a little-endian GGUF file. Convert it with llama.cpp's "
                "gguf_convert_endian.py."
            )
        if self.version not in (2, 3):
            raise UnsupportedError(
                f"has GGUF version {self.version}, expected 2 or 3. Convert the original model "
                "again with a newer llama.cpp."
            )
        tensors = header.count("Q", 24, MAX_TENSORS, "tensors")
        keys = header.count("Q", 13, MAX_KEYS, "metadata keys")
        self.metadata: dict[str, Value] = {}
        for _ in range(keys):
            key = header.name("metadata key")
            if key in self.metadata:
                raise InputError(f"has the metadata key {key!r:.80} twice. {AGAIN}")
            self.metadata[key] = header.value(key)
        described = [header.tensor(self._i2_s) for _ in range(tensors)]
        alignment = alignment_of(self.metadata)
        data = -(-header.position // alignment) * alignment
        self.tensors = _placed(described, data, self._size, alignment)

    def read(self, tensor: TensorInfo, start: int, stop: int) -> bytearray:
        """Read bytes ``start`` to ``stop`` of a tensor.

        Raises:
            InputError: the file became shorter since it was opened, or cannot be read.
        """
        buffer = bytearray(stop - start)
        with locate(file=self.path, tensor=tensor.name):
            read_into(self._file.fileno(), memoryview(buffer), tensor.start + start)
        return buffer

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class _Header:
    """The part of a file before the data, read once from front to back."""

    def __init__(self, descriptor: int, size: int) -> None:
        self.descriptor = descriptor
        self.size = size
        self.position = 0
        self.values = 0
        self.buffer = b""

    def need(self, count: int) -> int:
        """Make sure that ``count`` more bytes are in the buffer; returns where they begin."""
        start = self.position
        stop = start + count
        if stop > self.size:
            raise InputError(
                f"ends at byte {self.size}, expected {count} more from byte {start}. {AGAIN}"
            )
        if stop > MAX_METADATA:
            raise InputError(f"has metadata beyond {MAX_METADATA} bytes. {AGAIN}")
        if stop > len(self.buffer):
            # twice as much each time, so that all copies together stay linear
            wanted = min(max(stop, 2 * len(self.buffer), _ROOM), self.size) - len(self.buffer)
            more = os.pread(self.descriptor, wanted, len(self.buffer))
            self.buffer += more
            if len(self.buffer) < stop:
                raise InputError(
                    "became shorter while it was read. Read it when nothing writes to it."
                )
        self.position = stop
        return start

    def take(self, count: int) -> bytes:
        start = self.need(count)
        return self.buffer[start : self.position]

    def integer(self, code: str) -> int:
        start = self.need(8 if code == "Q" else 4)
        return int(struct.unpack_from(f"<{code}", self.buffer, start)[0])

    def count(self, code: str, least: int, most: int, what: str) -> int:
        """Read a number of items that take at least ``least`` bytes each."""
        number = self.integer(code)
        room = (self.size - self.position) // least if least else most
        if number > min(room, most):
            raise InputError(
                f"announces {number} {what}, expected at most {min(room, most)}. {AGAIN}"
            )
        return number

    def string(self) -> bytes:
        return self.take(self.integer("Q"))

    def name(self, what: str) -> str:
        text = self.string()
        try:
            return text.decode()
        except UnicodeDecodeError as error:
            raise InputError(f"has a {what} that is not UTF-8: {text!r:.60}. {AGAIN}") from error

    # ---- metadata

    def value(self, key: str) -> Value:
        kind = self.kind(key)
        return Value(kind, self.data(kind, key, MAX_NESTING))

    def kind(self, key: str) -> str:
        number = self.integer("I")
        if number not in TYPES:
            raise InputError(
                f"has a value of type {number} under {key!r:.80}, expected 0 to {max(TYPES)}. "
                f"{AGAIN}"
            )
        return TYPES[number]

    def data(self, kind: str, key: str, depth: int) -> Any:
        if kind == "string":
            return self.string()
        if kind == "array":
            return self.array(key, depth)
        return np.frombuffer(self.take(DTYPES[kind].itemsize), dtype=DTYPES[kind])[0]

    def array(self, key: str, depth: int) -> Array:
        if not depth:
            raise InputError(f"nests arrays deeper than {MAX_NESTING} under {key!r:.80}. {AGAIN}")
        kind = self.kind(key)
        least = DTYPES[kind].itemsize if kind in DTYPES else 8 if kind == "string" else 12
        most = MAX_VALUES - self.values if kind != "array" else MAX_KEYS
        count = self.count("Q", least, most, f"values under {key!r:.80}")
        self.values += count
        items: Any
        if kind in DTYPES:
            items = np.frombuffer(self.take(count * least), dtype=DTYPES[kind])
        elif kind == "string":
            items = [self.string() for _ in range(count)]
        else:
            items = [self.array(key, depth - 1) for _ in range(count)]
            self.values += count
        return Array(kind, items)

    # ---- tensors

    def tensor(self, i2_s: BlockFormat) -> TensorInfo:
        """Read the description of a tensor.

        Its start counts from the beginning of the data; its size is not final.
        """
        name = self.name("tensor name")
        with locate(tensor=name[:200]):
            rank = self.count("I", 8, MAX_DIMS, "dimensions")
            shape = tuple(self.integer("Q") for _ in range(rank))[::-1]
            if math.prod(shape) >= 2**62 or max(shape, default=0) >= 2**62:
                raise InputError(f"has shape {shape!r:.100}, beyond any file. {AGAIN}")
            number = self.integer("I")
            if number not in PLAIN and number not in TERNARY and number not in QUANTS:
                raise UnsupportedError(why_unsupported(number))
            blocks = TERNARY.get(number)
            blocks = i2_s if blocks is I2_S else blocks
            start, quant = self.integer("Q"), QUANTS.get(number)
            info = TensorInfo(name, PLAIN.get(number), blocks, shape, start, 0, quant)
            return _sized(info)


def _sized(info: TensorInfo) -> TensorInfo:
    """Return a tensor with the number of bytes that its shape takes."""
    kind, count = info.blocks or info.quant, math.prod(info.shape)
    if kind is None:
        return replace(info, nbytes=BY_NAME[str(info.dtype)].nbytes(count))
    columns = info.shape[-1] if info.shape else 1
    if not count or columns % kind.weights:
        raise InputError(
            f"has shape {info.shape}, expected rows of a multiple of {kind.weights} columns in "
            f"{kind.name}. {AGAIN}"
        )
    if kind is I2_S_ROWS and count // columns % 4:
        raise InputError(
            f"has shape {info.shape}, expected a multiple of 4 rows in this order of I2_S. Choose "
            f"another: {spell(i2s_order=tuple(I2S_ORDERS))}."
        )
    tail = I2_S_TAIL if info.blocks is not None and info.blocks.scale_at is None else 0
    return replace(info, nbytes=kind.row_bytes(count) + tail)


def _placed(
    described: Sequence[TensorInfo], data: int, size: int, alignment: int
) -> tuple[TensorInfo, ...]:
    """Return tensors with their place in the file; refuse places that overlap or leave the file."""
    seen = {info.name for info in described}
    if len(seen) != len(described):
        raise InputError(f"has two tensors of one name. {AGAIN}")
    order = sorted(range(len(described)), key=lambda i: described[i].start)
    limits = [*(described[i].start for i in order[1:]), max(size - data, 0)][: len(order)]
    rooms = {i: limit - described[i].start for i, limit in zip(order, limits, strict=True)}
    form = _form_of_42(
        [(described[i], rooms[i]) for i in order if described[i].blocks is Q2_0], alignment
    )
    found = []
    for i, info in enumerate(described):
        with locate(tensor=info.name[:200]):
            if info.blocks is Q2_0 is not form:
                info = _sized(replace(info, blocks=form))  # noqa: PLW2901
            if info.start % alignment:
                raise InputError(
                    f"starts at {info.start}, expected a multiple of {alignment}. {AGAIN}"
                )
            if info.nbytes > rooms[i]:
                raise InputError(
                    f"takes {info.nbytes} bytes from byte {data + info.start}, but "
                    f"{max(rooms[i], 0)} are there. {AGAIN}"
                )
            found.append(replace(info, start=data + info.start))
    return tuple(found)


def _form_of_42(tensors: Sequence[tuple[TensorInfo, int]], alignment: int) -> BlockFormat:
    """Return the blocks that tensors of type 42 have, which only the room that they take shows.

    Raises:
        UnsupportedError: STQ1_0, or several forms fit.
    """

    def fits(form: BlockFormat | Unread) -> bool:
        sizes = [math.prod(i.shape) // form.weights * form.nbytes for i, _ in tensors]
        return all(
            not info.shape[-1] % form.weights and room in (size, size + -size % alignment)
            for (info, room), size in zip(tensors, sizes, strict=True)
        )

    found = [form for form in FORMS_OF_42 if tensors and fits(form)]
    if len(found) > 1:
        info, room = tensors[0]
        raise UnsupportedError(
            f"has type 42, and its {room} bytes fit {' and '.join(f.name for f in found)}. Store "
            "the model in another type, such as TQ2_0.",
            tensor=info.name[:200],
        )
    if found == [STQ1_0]:
        raise UnsupportedError(why_unsupported(42), tensor=tensors[0][0].name[:200])
    return PQ2_0 if found == [PQ2_0] else Q2_0
