"""Names of tensors in GGUF files and in Hugging Face checkpoints, and the order of their rows.

The names stand in the records of ``gguf_architectures``; here a file's metadata chooses a record.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from tpack.dialects.gguf_architectures import Architecture, named
from tpack.dialects.gguf_values import Value
from tpack.errors import InputError
from tpack.grouping import Place


@dataclass(frozen=True)
class Naming:
    """How the tensors of a model are named and ordered in its GGUF file.

    Attributes:
        stated: the architecture as the file spells it; empty if it does not say.
        known: its record; None if it is unknown.
        renamed: whether names are those of Hugging Face outside of the file.
        heads: of tensors that are permuted in the file, how many heads each has.
    """

    stated: str
    known: Architecture | None
    renamed: bool
    heads: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, metadata: Mapping[str, Value]) -> Naming:
        """Read it off the metadata of a file."""

        def plain(key: str) -> Any:
            found = metadata.get(key)
            return None if found is None else found.plain

        architecture = plain("general.architecture")
        stated = architecture if isinstance(architecture, str) else ""
        known = next(iter(named(stated)), None)
        if known is None:
            return cls(stated, None, renamed=False)
        all_heads = plain(f"{stated}.attention.head_count")
        heads = {}
        for tensor, key in known.permuted.items():
            count = plain(f"{stated}.{key}")
            heads[tensor] = all_heads if count is None else count
        # what is to be permuted cannot be renamed without the number of heads
        good = all(type(count) is int and count > 0 for count in heads.values())
        return cls(stated, known, good, heads if good else {})

    def outside(self, gguf_name: str) -> str:
        """Return the name outside of a tensor of the file."""
        return self.known.to_hf(gguf_name) if self.known and self.renamed else gguf_name

    def inside(self, name: str) -> str | None:
        """Return the name in the file of a tensor; None if it can have no name there."""
        if not self.known or not self.renamed:
            return name
        found = self.known.to_gguf(name)
        # what has no other name outside keeps its own
        return name if found is None and not name.startswith("model.") else found

    def order(self, gguf_name: str, rows: int) -> RowOrder | None:
        """Return the order of the rows of a tensor; None if it is the same inside and outside.

        Raises:
            InputError: its number of rows is not an even number for each head.
        """
        heads = self.heads.get(Place.of(gguf_name).role.rpartition(".")[0])
        if heads is None:
            return None
        if rows % (2 * heads):
            raise InputError(
                f"has {rows} rows, expected an even number for each of {heads} heads. The "
                "metadata does not fit the tensor: convert the original model again.",
                tensor=gguf_name,
            )
        return RowOrder(rows // heads)


@dataclass(frozen=True)
class RowOrder:
    """Where rows of a permuted tensor lie, in heads of ``size`` rows."""

    size: int

    def in_gguf(self, first: int, last: int) -> npt.NDArray[np.int64]:
        """Return the rows of the GGUF tensor that are rows ``first`` to ``last`` of the original.

        Example:
            >>> RowOrder(4).in_gguf(0, 4)
            array([0, 2, 1, 3])
        """
        head, row = np.divmod(np.arange(first, last), self.size)
        half, pair = np.divmod(row, self.size // 2)
        order: npt.NDArray[np.int64] = head * self.size + 2 * pair + half
        return order

    def in_original(self, first: int, last: int) -> npt.NDArray[np.int64]:
        """Return the rows of the original that are rows ``first`` to ``last`` in GGUF."""
        head, row = np.divmod(np.arange(first, last), self.size)
        pair, half = np.divmod(row, 2)
        order: npt.NDArray[np.int64] = head * self.size + half * (self.size // 2) + pair
        return order
