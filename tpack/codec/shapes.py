"""How a logical shape becomes rows and columns, and how finely scales lie over them."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from tpack.choices import FormatRow
from tpack.errors import UsageError, unknown

#: The usual group sizes, which the shape of a scale alone tells; coarsest first.
GROUP_SIZES = (256, 128, 64, 32)

_NUMBERED = re.compile(r"([a-z]+):([1-9][0-9]{0,8})")


@dataclass(frozen=True)
class Granularity(FormatRow):
    """Which weights of a matrix share a scale.

    Attributes:
        name: what options and files call it, with ``N`` for a number of columns.
        meaning: what has a scale of its own, in one line.
        by_row: whether each row has its own scales, or all rows share them.
        width: how many columns share a scale; 0 for all, None for ``N``.
    """

    name: str
    meaning: str
    by_row: bool
    width: int | None


#: The granularities by name.
GRANULARITIES = {
    row.name: row
    for row in (
        Granularity("tensor", "one scale for all weights", by_row=False, width=0),
        Granularity("row", "one for each row", by_row=True, width=0),
        Granularity("column", "one for each column", by_row=False, width=1),
        Granularity("group:N", "one for each N columns of a row", by_row=True, width=None),
    )
}


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


@dataclass(frozen=True)
class Scale:
    """Which weights share one scale.

    A tensor's scale can be repeated for rows or for columns, a row's for groups; a column and a
    row have no common refinement (``can_repeat``).

    Attributes:
        granularity: a row of ``GRANULARITIES``.
        group_size: columns that share a scale within a row; 0 unless the kind is group.
    """

    granularity: Granularity
    group_size: int = 0

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``tensor``, ``row``, ``column`` or ``group:N``.

        Raises:
            UsageError: anything else.
        """
        match = _NUMBERED.fullmatch(text)
        row = GRANULARITIES.get(f"{match[1]}:N" if match else text)
        if row is None or (row.width is None) != bool(match):
            raise unknown("scale", text, GRANULARITIES)
        return cls(row, int(match[2]) if match else 0)

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
        rows = GRANULARITIES.values()
        groups = [cls(row, size) for row in rows if row.width is None for size in sizes]
        others = [] if group_size else [cls(row) for row in rows if row.width is not None]
        for found in (*others, *groups):
            if found.shape(shape, split) == tuple(scale_shape):
                return found
        raise UsageError(
            f"scale has shape {tuple(scale_shape)}, which shows no group size for a weight of "
            f"shape {tuple(shape)}. Name the group size."
        )

    @property
    def kind(self) -> str:
        """Return the name without a number, such as ``group``."""
        return self.granularity.name.partition(":")[0]

    @property
    def width(self) -> int:
        """Columns that share a scale; 0 for all."""
        return self.group_size if self.granularity.width is None else self.granularity.width

    def __str__(self) -> str:
        return f"{self.kind}:{self.group_size}" if self.group_size else self.kind

    def can_repeat(self, finer: Scale) -> bool:
        """Whether each set of ``finer`` lies in one set of this granularity.

        Example:
            >>> Scale.parse("tensor").can_repeat(Scale.parse("column"))
            True
            >>> Scale.parse("column").can_repeat(Scale.parse("group:32"))
            False
        """
        rows = finer.granularity.by_row or not self.granularity.by_row
        return rows and (not self.width or (finer.width > 0 and self.width % finer.width == 0))

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
        if self.granularity == other.granularity:
            return Scale(self.granularity, math.gcd(self.group_size, other.group_size))
        return None

    def shape(self, shape: Sequence[int], split: int) -> tuple[int, ...]:
        """The shape of the scale tensor of a weight.

        Example:
            >>> Scale.parse("group:128").shape((64, 300), 1)
            (64, 3)
            >>> Scale.parse("column").shape((64, 300), 1)
            (1, 300)
        """
        by_row, width = self.granularity.by_row, self.width
        if not by_row and not width:
            return (1,)
        sets = -(-math.prod(shape[split:]) // width) if width else 1
        return (*(shape[:split] if by_row else (1,) * split), sets)
