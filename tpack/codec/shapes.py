"""How a logical shape becomes rows and columns, and how finely scales lie over them."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self, get_args

from tpack.errors import UsageError

#: The usual group sizes, which the shape of a scale alone tells; coarsest first.
GROUP_SIZES = (256, 128, 64, 32)

Kind = Literal["tensor", "column", "row", "group"]
#: What may share a scale: all weights, those of a column, of a row, of some columns of a row.
KINDS: tuple[Kind, ...] = get_args(Kind)

_GROUP = re.compile(r"group:([1-9][0-9]{0,8})")


def default_split(rank: int) -> int:
    """Leading dimensions that index rows, unless a LayerDef says otherwise."""
    return min(1, max(rank - 1, 0))


def rows_and_columns(shape: Sequence[int], split: int) -> tuple[int, int]:
    """Split a logical shape: the leading ``split`` dims are rows, the rest columns.

    Example:
        >>> rows_and_columns((64, 3, 3, 3), 1)
        (64, 27)
        >>> rows_and_columns((8,), 0)
        (1, 8)
    """
    return math.prod(shape[:split]), math.prod(shape[split:])


@dataclass(frozen=True, order=True)
class Scale:
    """Which weights share one scale. Ordered from coarse to fine, but for ``column``.

    A tensor's scale can be repeated for rows or for columns, a row's for groups; a column and a
    row have no common refinement (``can_repeat``).

    Attributes:
        rank: place in ``KINDS``; only there to order.
        group_size: columns a group, negated so that smaller groups are finer; 0 unless group.
    """

    rank: int
    _group: int = 0

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``tensor``, ``column``, ``row`` or ``group:N``.

        Raises:
            UsageError: anything else.
        """
        if text in KINDS[:-1]:
            return cls(KINDS.index(text))
        if match := _GROUP.fullmatch(text):
            return cls(KINDS.index("group"), -int(match[1]))
        raise UsageError(f"scale {text!r} is unknown, expected tensor, row, column or group:N.")

    @classmethod
    def of(
        cls, scale_shape: Sequence[int], shape: Sequence[int], split: int, group_size: int = 0
    ) -> Self:
        """Tell from the shape of a scale what it belongs to; the inverse of ``shape``.

        Args:
            scale_shape: of the scale tensor.
            shape: logical shape of the weight.
            split: leading dimensions that index rows.
            group_size: if known; else one of ``GROUP_SIZES``, or an even share of the columns.

        Raises:
            UsageError: no granularity gives this shape.

        Example:
            >>> str(Scale.of((64, 3), (64, 300), 1))
            'group:128'
        """
        columns = math.prod(shape[split:])
        even = [columns // groups for groups in scale_shape[-1:] if 0 < groups <= columns]
        sizes = [group_size] if group_size else [*GROUP_SIZES, *even]
        groups = [f"group:{size}" for size in sizes]
        for text in groups if group_size else ["tensor", "row", "column", *groups]:
            found = cls.parse(text)
            if found.shape(shape, split) == tuple(scale_shape):
                return found
        raise UsageError(
            f"scale has shape {tuple(scale_shape)}, which tells no group size for a weight of "
            f"shape {tuple(shape)}. Name the group size."
        )

    @property
    def kind(self) -> Kind:
        """Which of ``KINDS`` it is."""
        return KINDS[self.rank]

    @property
    def group_size(self) -> int:
        """Columns that share a scale within a row; 0 unless the kind is group."""
        return -self._group

    def __str__(self) -> str:
        return f"group:{self.group_size}" if self.kind == "group" else self.kind

    def can_repeat(self, finer: Scale) -> bool:
        """Whether each set of ``finer`` lies in one set of this granularity.

        Example:
            >>> Scale.parse("tensor").can_repeat(Scale.parse("column"))
            True
            >>> Scale.parse("column").can_repeat(Scale.parse("group:32"))
            False
        """
        if self.kind == "group" and finer.kind == "group":
            return self.group_size % finer.group_size == 0
        if "column" in (self.kind, finer.kind):
            return self.kind in ("tensor", finer.kind)
        return self <= finer

    def common(self, other: Scale) -> Scale | None:
        """The coarsest granularity to which a scale at either can be repeated, if there is one.

        Example:
            >>> str(Scale.parse("group:48").common(Scale.parse("group:64")))
            'group:16'
            >>> Scale.parse("row").common(Scale.parse("column")) is None
            True
        """
        if self.can_repeat(other) or other.can_repeat(self):
            return other if self.can_repeat(other) else self
        if self.kind == other.kind == "group":
            return Scale(self.rank, -math.gcd(self.group_size, other.group_size))
        return None

    def shape(self, shape: Sequence[int], split: int) -> tuple[int, ...]:
        """The shape of the scale tensor of a weight.

        Example:
            >>> Scale.parse("group:128").shape((64, 300), 1)
            (64, 3)
            >>> Scale.parse("column").shape((64, 300), 1)
            (1, 300)
        """
        if self.kind == "tensor":
            return (1,)
        if self.kind == "row":
            return (*shape[:split], 1)
        columns = math.prod(shape[split:])
        if self.kind == "column":
            return (*(1,) * split, columns)
        return (*shape[:split], -(-columns // self.group_size))
