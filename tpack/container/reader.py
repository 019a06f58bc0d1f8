"""Open a tpack checkpoint: every structural rule is checked before anything is returned."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from tpack.codec import Scale, unpack
from tpack.container.document import Document, TernaryEntry, parse_document
from tpack.container.header import TensorFile
from tpack.errors import FormatError, locate


def stored_dtype(dtype: str) -> str:
    """numpy's name for how elements are read: float8 and bool as bytes, bfloat16 as bits.

    Bools stay bytes because a damaged one may be neither 0 nor 1, and is to be kept as it is.
    """
    if dtype == "bool" or dtype.startswith("float8"):
        return "uint8"
    return "uint16" if dtype == "bfloat16" else dtype


class Checkpoint(TensorFile):
    """A tpack checkpoint whose structure (rules R1 to R13) has been checked.

    Attributes:
        document: the description.
        digest_holds: whether the description agrees with its own digest.
    """

    document: Document
    digest_holds: bool

    def _read_header(self) -> None:
        super()._read_header()
        if "tpack" not in self.metadata:
            raise FormatError(
                "has no tpack description. Convert it first: tpack convert FILE.", rule="R7"
            )
        if self.metadata.get("format") != "pt":
            raise FormatError(
                f"has format {self.metadata.get('format')!r:.20}, expected 'pt'.", rule="R7"
            )
        self.document, self.digest_holds = parse_document(self.metadata["tpack"], self.entries)

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

    def scale(self, name: str) -> tuple[npt.NDArray[Any], str, Scale]:
        """The scale of a ternary parameter as stored, its dtype and its granularity."""
        stored = f"{name}_scale"
        granularity = Scale.parse(self.document.tensors[name].scale)
        return self.array(stored), self.entries[stored].dtype, granularity

    def ternary(self) -> Iterator[tuple[str, TernaryEntry]]:
        """The ternary parameters by name."""
        yield from sorted(self.document.tensors.items())


def is_checkpoint(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a safetensors file with a tpack description, well formed or not."""
    with TensorFile(path) as file:
        return "tpack" in file.metadata
