"""Open a tpack checkpoint, a file or a folder of shards.

Every structural rule is checked before anything is returned.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeGuard

import numpy as np
import numpy.typing as npt

from tpack.codec import LAYOUTS, Scale, unpack
from tpack.container.document import (
    Document,
    TernaryEntry,
    check_program,
    digest,
    parse_document,
    program_digest,
)
from tpack.container.header import Entry, TensorFile
from tpack.container.index import INDEX, SINGLE, Index, description_digest, read_index
from tpack.container.kinds import Kind, kind_of
from tpack.dtypes import BY_NAME
from tpack.errors import FormatError, InputError, UnsupportedError, locate
from tpack.wording import spell_call


def stored_dtype(dtype: str) -> str:
    """numpy's name for how elements are read: float8 and bool as bytes, bfloat16 as bits.

    Bools stay bytes because a damaged one may be neither 0 nor 1, and is to be kept as it is.
    Elements of less than a byte are read as the bytes that they lie in.
    """
    if dtype == "bool" or dtype.startswith(("float8", "float6_", "float4_")):
        return "uint8"
    return "uint16" if dtype == "bfloat16" else dtype


def differing(a: Any, b: Any, dtype: str) -> npt.NDArray[np.bool_]:
    """Return which elements differ, bit for bit, in two buffers of equally many whole bytes.

    Elements of less than a byte begin at its lowest bits.
    """
    one, two = (np.frombuffer(buffer, np.uint8) for buffer in (a, b))
    width, rest = divmod(BY_NAME[dtype].bits, 8)
    if rest:
        one, two = (np.unpackbits(part, bitorder="little") for part in (one, two))
        width = rest
    found: npt.NDArray[np.bool_] = (one != two).reshape(-1, width).any(axis=1)
    return found


class CheckpointFile(TensorFile):
    """One file of a checkpoint whose structure (rules R1 to R13) has been checked.

    Args:
        path: of the file.
        whole: of the checkpoint: the file, or the folder that it is in.

    Attributes:
        document: its description.
        digest_holds: whether the description agrees with its own digest, the metadata that
            it covers with theirs, and the header is spelled as writers do.
    """

    document: Document
    digest_holds: bool

    def __init__(self, path: Path, whole: Path) -> None:
        self._whole = whole
        super().__init__(path)

    def _read_header(self) -> None:
        kind = kind_of(self.path)
        if _is_foreign(kind):
            raise _foreign(kind, self._whole)
        super()._read_header()
        if "tpack" not in self.metadata:
            raise FormatError(
                "is a plain safetensors file, expected a tpack checkpoint. Convert it first: "
                f"{spell_call('convert', self._whole)}",
                rule="R7",
            )
        if self.metadata.get("format") != "pt":
            raise FormatError(
                f"has format {self.metadata.get('format')!r:.20}, expected 'pt'.", rule="R7"
            )
        self.document, holds = parse_document(self.metadata["tpack"], self.entries)
        self.digest_holds = (
            holds
            and self.spelled
            and all(
                key in self.metadata and digest([self.metadata[key].encode()]) == wanted
                for key, wanted in self.document.metadata.items()
            )
        )


class Checkpoint:
    """A tpack checkpoint, a file or a folder of shards, opened and checked.

    Attributes:
        path: of the file or folder.
        files: the files that it consists of, the first with the program.
        entries: of all files, by name.
        document: the description of the whole.
        index: of a folder of shards.
        digest_holds: whether every description agrees with its own digest.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        with ExitStack() as resources, locate(file=self.path):
            self.index, parts = checkpoint_files(self.path)
            self.files = tuple(
                resources.enter_context(CheckpointFile(part, self.path)) for part in parts
            )
            if self.index is not None:
                _check_index(self.index, self.files)
            self._home = {name: file for file in self.files for name in file.entries}
            self.entries: dict[str, Entry] = {}
            for file in self.files:
                self.entries |= file.entries
            self.document = self._join()
            if self.index is not None:
                _check_tie(self.index, self.files)
            self.digest_holds = all(file.digest_holds for file in self.files)
            self._resources = resources.pop_all()

    def _join(self) -> Document:
        """Join the descriptions of the files to one, and check R19."""
        if len(self.files) == 1 and self.files[0].document.shard is None:
            return self.files[0].document
        described = []
        for file in self.files:
            shard = file.document.shard
            if shard is None:
                raise FormatError(
                    f"{file.path.name} is a whole checkpoint, not a shard.", rule="R19"
                )
            described.append((shard, file))
        described.sort(key=lambda pair: pair[0].number)
        self.files = tuple(file for _, file in described)
        numbers = [shard.number for shard, _ in described]
        of = described[0][0].of
        if numbers != list(range(1, of + 1)):
            raise FormatError(
                f"holds the shards {', '.join(map(str, numbers))}, expected 1 to {of}. Shards are "
                "missing, or of several models.",
                rule="R19",
            )
        first = self.files[0].document
        program = program_digest(first.program)
        for shard, file in described:
            if shard.of != of or shard.program_sha256 != program:
                raise FormatError(f"{file.path.name} belongs to another model.", rule="R19")
            if shard.number > 1 and file.document.program is not None:
                raise FormatError(f"{file.path.name} has a program of its own.", rule="R19")
        tensors: dict[str, TernaryEntry] = {}
        kept: dict[str, str] = {}
        aliases: dict[str, str] = {}
        for file in self.files:
            tensors |= file.document.tensors
            kept |= file.document.kept
            aliases |= file.document.aliases
        whole = replace(first, tensors=tensors, kept=kept, aliases=aliases, shard=None)
        check_program(whole, self.entries)
        return whole

    def read(self, name: str, start: int = 0, stop: int | None = None) -> memoryview:
        """Read bytes ``start`` to ``stop`` of a tensor.

        Raises:
            InputError: the file became shorter since it was opened, or cannot be read.
        """
        return self._home[name].read(name, start, stop)

    def chunks(self, name: str) -> Iterator[memoryview]:
        """Read a tensor piece by piece."""
        return self._home[name].chunks(name)

    def array(self, name: str) -> npt.NDArray[Any]:
        """A stored tensor, with elements as ``stored_dtype`` says."""
        entry = self.entries[name]
        return np.frombuffer(self.read(name), dtype=stored_dtype(entry.dtype)).reshape(entry.shape)

    def packed_blocks(self, name: str) -> Iterator[tuple[int, npt.NDArray[np.uint8]]]:
        """Yield ``(first row, bytes (rows, row bytes))`` of a ternary parameter."""
        entry = self.document.tensors[name]
        width = entry.packed_shape[-1]
        step = max(1, (1 << 20) // width)
        for first in range(0, entry.rows, step):
            last = min(first + step, entry.rows)
            data = self.read(f"{name}_packed", first * width, last * width)
            yield first, np.frombuffer(data, dtype=np.uint8).reshape(last - first, width)

    def trit_blocks(self, name: str) -> Iterator[tuple[int, npt.NDArray[np.int8]]]:
        """Yield ``(first row, trits (rows, columns))`` of a ternary parameter.

        Raises:
            NotTernaryError: a byte without valid codes.
        """
        entry = self.document.tensors[name]
        for first, packed in self.packed_blocks(name):
            with locate(file=self.path, tensor=f"{name}_packed"):
                yield first, unpack(packed, entry.columns, entry.layout)

    def trit_counts(self, name: str) -> tuple[int, int, int]:
        """Count the trits of a ternary parameter that are -1, 0 and +1, without the padding."""
        entry = self.document.tensors[name]
        seen = np.zeros(256, dtype=np.int64)
        for _, packed in self.packed_blocks(name):
            seen += np.bincount(packed.reshape(-1), minlength=256)
        minus, zero, plus = (int(count) for count in seen @ _codes_of_bytes(entry.layout))
        padding = entry.packed_shape[-1] * LAYOUTS[entry.layout].per_byte - entry.columns
        return minus, zero - padding * entry.rows, plus

    def scale(self, name: str) -> tuple[npt.NDArray[Any], str, Scale]:
        """The scale of a ternary parameter as stored, its dtype and its granularity."""
        stored = f"{name}_scale"
        granularity = Scale.parse(self.document.tensors[name].scale)
        return self.array(stored), self.entries[stored].dtype, granularity

    def ternary(self) -> Iterator[tuple[str, TernaryEntry]]:
        """The ternary parameters by name."""
        yield from sorted(self.document.tensors.items())

    @property
    def metadata(self) -> Mapping[str, str]:
        """``__metadata__`` of its first file."""
        return self.files[0].metadata

    @property
    def nbytes(self) -> int:
        """Bytes of all its files."""
        return sum(
            file.data_start + sum(entry.nbytes for entry in file.entries.values())
            for file in self.files
        )

    def close(self) -> None:
        """Close the files."""
        self._resources.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


@cache
def _codes_of_bytes(layout: str) -> npt.NDArray[np.int64]:
    """Return how often each byte holds each code, ``(256, 3)``."""
    codes = LAYOUTS[layout].decode(np.arange(256, dtype=np.uint8)[:, None])
    return np.stack([(codes == code).sum(axis=1) for code in range(3)], axis=1)


def checkpoint_files(path: Path) -> tuple[Index | None, list[Path]]:
    """Return the index of a folder, if it has one, and the files of the checkpoint.

    Raises:
        InputError: a folder without a checkpoint in it, or with shards that do not fit its index.
        FormatError: rule R18.
    """
    if not path.is_dir():
        return None, [path]
    if (path / INDEX).exists():
        index = read_index(path / INDEX)
        return index, [path / name for name in index.files]
    if (path / SINGLE).exists():
        return None, [path / SINGLE]
    if (kind := kind_of(path)) is not None:
        raise _foreign(kind, path)
    raise InputError(
        f"holds no tpack checkpoint, expected {INDEX} or {SINGLE}. If it holds a model, convert it "
        f"first: {spell_call('convert', path)}"
    )


def _foreign(kind: Kind, path: Path) -> UnsupportedError:
    """Make the error for what is not a checkpoint of tpack."""
    advice = kind.advice or f"Convert it first: {spell_call('convert', path)}"
    return UnsupportedError(f"is {kind.what}, expected a tpack checkpoint. {advice}")


def _check_index(index: Index, files: tuple[CheckpointFile, ...]) -> None:
    """Check R19: every tensor is in the file that the index names."""
    for file in files:
        named = {name for name, home in index.weight_map.items() if home == file.path.name}
        if wrong := named ^ set(file.entries):
            raise FormatError(
                f"is not where {index.path.name} says.", rule="R19", tensor=min(wrong)[:200]
            )


def _check_tie(index: Index, files: tuple[CheckpointFile, ...]) -> None:
    """Check R20: the shards are those that the index was written for, if it has digests."""
    described = index.described()
    if described is None:
        return
    for file in files:
        name = file.path.name
        if described[name] != description_digest(file.metadata):
            raise FormatError(
                f"{name} is not the shard that {index.path.name} describes: it is of another "
                "model or another conversion. Download the folder again.",
                rule="R20",
            )


def is_checkpoint(path: str | os.PathLike[str]) -> bool:
    """Return whether a file or folder is safetensors with a tpack description, even malformed.

    Raises:
        InputError: it is missing, or safetensors that cannot be read.
    """
    path = Path(path)
    with locate(file=path):
        if path.is_dir() and not any((path / name).exists() for name in (INDEX, SINGLE)):
            return False
        first = checkpoint_files(path)[1][0]
        if _is_foreign(kind_of(first)):
            return False
    with TensorFile(first) as file:
        return "tpack" in file.metadata


def _is_foreign(kind: Kind | None) -> TypeGuard[Kind]:
    return kind is not None and kind.name not in {"safetensors", "empty"}
