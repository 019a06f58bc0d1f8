"""The safetensors header: eight bytes of length, JSON, then the data without a gap."""

from __future__ import annotations

import gc
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from tpack.container.opening import input_errors, open_input, read_into
from tpack.container.strictjson import canonical_json, parse_json
from tpack.dtypes import BY_CODE, BY_NAME
from tpack.errors import FormatError, InputError, locate
from tpack.wording import spell_call

#: What readers of safetensors accept, and what hubs still serve.
MAX_HEADER = 100_000_000
MAX_HEADER_WRITTEN = 25_000_000
#: Twice what numpy and torch take; a product of a million sizes would take hours.
MAX_DIMS = 128
#: Where the data begins, so that mapped tensors are aligned.
ALIGNMENT = 64
_FIELDS = {"dtype", "shape", "data_offsets"}
#: Bytes read or written at a time; no element of any dtype, of 6 bits either, lies in two of them.
CHUNK = 3 << 20

_SURROGATE = re.compile("[\ud800-\udfff]")
#: An escape that nobody writes: all writers use small hex digits, a flipped bit makes large ones.
_LARGE_ESCAPE = re.compile(rb"(?<!\\)(?:\\\\)*\\u[0-9a-f]{0,3}[A-F]")


@dataclass(frozen=True)
class Entry:
    """One tensor in a file: its dtype's name, shape, and bytes from the start of the data."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        return self.stop - self.start


def parse_header(text: bytes, data_size: int) -> tuple[dict[str, Entry], dict[str, str]]:
    """Parse the JSON of a header and check it against the size of the data.

    Returns:
        The entries in the order of their data, and ``__metadata__``.

    Raises:
        FormatError: rules R3 to R7.
    """
    with _uncollected():
        return _parse(text, data_size)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Keep the garbage collector from going again and again through what grows: none of it is
    garbage, and it would take as long as the rest.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def _parse(text: bytes, data_size: int) -> tuple[dict[str, Entry], dict[str, str]]:
    raw = parse_json(text, "R3", "header")
    if not isinstance(raw, dict):
        raise FormatError("header is not a JSON object.", rule="R3")
    metadata = raw.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise FormatError("__metadata__ is not an object of strings.", rule="R7")
    entries = sorted(
        (_entry(name, value) for name, value in raw.items()), key=lambda e: (e.start, e.stop)
    )
    position = 0
    for entry in entries:
        if entry.start != position:
            problem = "leaves a hole" if entry.start > position else "overlaps its neighbour"
            raise FormatError(
                f"starts at byte {entry.start}, expected {position}: it {problem}.",
                rule="R6",
                tensor=entry.name,
            )
        position = entry.stop
    if position != data_size:
        raise FormatError(
            f"holds {data_size} bytes of data, expected {position}. The file is "
            f"{'truncated' if data_size < position else 'longer than its header says'}.",
            rule="R6",
        )
    return {entry.name: entry for entry in entries}, metadata


def _entry(name: str, value: Any) -> Entry:
    def fail(reason: str, rule: str = "R4") -> FormatError:
        return FormatError(reason, rule=rule, tensor=name[:200])

    if not isinstance(value, dict) or value.keys() != _FIELDS:
        raise fail("has other fields than dtype, shape and data_offsets.")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BY_CODE:
        raise fail(
            f"has dtype {dtype!r:.40}, expected one of {', '.join(BY_CODE)}. No reader of "
            "safetensors opens a file with another: write it again with one of these.",
            "R5",
        )
    if not isinstance(shape, list) or len(shape) > MAX_DIMS or not _are_sizes(shape):
        raise fail(
            f"has shape {shape!r:.60}, expected a list of at most {MAX_DIMS} integers from 0."
        )
    if (
        not isinstance(offsets, list)
        or len(offsets) != 2
        or not _are_sizes(offsets)
        or offsets[0] > offsets[1]
    ):
        raise fail(f"has data_offsets {offsets!r:.60}, expected [start, stop].")
    if math.prod(shape) * BY_CODE[dtype].bits % 8:
        raise fail(
            f"has shape {tuple(shape)!r:.100} in {dtype}, expected elements that fill whole bytes. "
            "No reader of safetensors opens such a file: write it again with rows that do.",
            "R5",
        )
    expected = BY_CODE[dtype].nbytes(math.prod(shape))
    if expected != offsets[1] - offsets[0]:
        count = str(expected) if expected < 2**64 else "far more"
        raise fail(
            f"holds {offsets[1] - offsets[0]} bytes, expected {count} for shape "
            f"{tuple(shape)!r:.100} in {dtype}.",
            "R5",
        )
    return Entry(name, BY_CODE[dtype].name, tuple(shape), *offsets)


def _are_sizes(values: list[Any]) -> bool:
    """Return whether all are integers from 0; quickly, as there may be a million such lists."""
    return not set(map(type, values)) - {int} and min(values, default=0) >= 0


def check_name(name: str) -> None:
    """Make sure that a header can hold a tensor of this name.

    Raises:
        InputError: it is ``__metadata__``, or no text that UTF-8 can spell.
    """
    if name == "__metadata__" or _SURROGATE.search(name):
        raise InputError("has a name that safetensors cannot hold. Rename it.", tensor=name)


def lay_out(pieces: Iterable[tuple[str, str, tuple[int, ...]]]) -> dict[str, Entry]:
    """Place tensors (name, dtype, shape): by bits of an element descending, then by name.

    Raises:
        InputError: as ``check_name``.
    """
    entries: dict[str, Entry] = {}
    position = 0
    for name, dtype, shape in sorted(pieces, key=lambda p: (-BY_NAME[p[1]].bits, p[0])):
        check_name(name)
        stop = position + BY_NAME[dtype].nbytes(math.prod(shape))
        entries[name] = Entry(name, dtype, shape, position, stop)
        position = stop
    return entries


def header_bytes(entries: Mapping[str, Entry], metadata: Mapping[str, str]) -> bytes:
    """The length and the header, padded with spaces so that data begins at a multiple of 64.

    Raises:
        InputError: the header is larger than hubs accept.
    """
    described: dict[str, Any] = {
        entry.name: {
            "dtype": BY_NAME[entry.dtype].code,
            "shape": list(entry.shape),
            "data_offsets": [entry.start, entry.stop],
        }
        for entry in entries.values()
    }
    # __metadata__ first, as the safetensors crate writes it
    fields = {"__metadata__": dict(metadata)} | described
    parts = [canonical_json({name: value})[1:-1] for name, value in fields.items()]
    body = ("{" + ",".join(parts) + "}").encode("ascii")
    if len(body) > MAX_HEADER_WRITTEN:
        raise InputError(
            f"the header takes {len(body)} bytes, expected at most {MAX_HEADER_WRITTEN}: hubs "
            "refuse more. Split the model into shards."
        )
    body += b" " * (-(8 + len(body)) % ALIGNMENT)
    return len(body).to_bytes(8, "little") + body


class TensorFile:
    """A safetensors file, opened and checked; tensors are read by position, not mapped.

    Attributes:
        path: of the file.
        entries: by name, in the order of their data.
        metadata: ``__metadata__``.
        spelled: whether escapes in the header have small hex digits.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        with locate(file=self.path):
            self._file = open_input(self.path)
            try:
                with input_errors():
                    self._read_header()
            except BaseException:
                self.close()
                raise

    def _read_header(self) -> None:
        size = os.fstat(self._file.fileno()).st_size
        if size < 8:
            raise FormatError(
                f"is {size} bytes long, too short for a safetensors file. Download or copy it "
                "again.",
                rule="R1",
            )
        length = int.from_bytes(self._file.read(8), "little")
        if length > MAX_HEADER or 8 + length > size:
            raise FormatError(
                f"is not a safetensors file, or is truncated: its header would take {length} "
                f"bytes, expected at most {min(MAX_HEADER, size - 8)}. Download or copy it again; "
                f"other formats are packed by {spell_call('convert')}.",
                rule="R2",
            )
        self.data_start = 8 + length
        text = os.pread(self._file.fileno(), length, 8)
        self.entries, self.metadata = parse_header(text, size - self.data_start)
        self.spelled = _LARGE_ESCAPE.search(text) is None

    def read(self, name: str, start: int = 0, stop: int | None = None) -> memoryview:
        """Read bytes ``start`` to ``stop`` of a tensor.

        Raises:
            InputError: the file became shorter since it was opened, or cannot be read.
        """
        entry = self.entries[name]
        stop = entry.nbytes if stop is None else stop
        view = memoryview(np.empty(stop - start, np.uint8))  # unlike a bytearray, not cleared
        with locate(file=self.path, tensor=name):
            read_into(self._file.fileno(), view, self.data_start + entry.start + start)
        return view

    def chunks(self, name: str) -> Iterator[memoryview]:
        """Read a tensor piece by piece."""
        size = self.entries[name].nbytes
        for start in range(0, size, CHUNK):
            yield self.read(name, start, min(start + CHUNK, size))

    def fileno(self) -> int:
        """The descriptor of the open file."""
        return self._file.fileno()

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
