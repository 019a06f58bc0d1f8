"""What a user chooses by name: a row each, with its meaning in one line.

The command line, the checks and errors of options, the reader of files and the manual take the
names from these tables, and what computes with them, higher up, is held to them by a test. Two
more such tables have their functions in their rows: the layouts and granularities of
``tpack.codec``, and the targets of ``tpack.exporting``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol


class Row(Protocol):
    """A row of any of the tables."""

    @property
    def meaning(self) -> str:
        """What the name stands for: a line without a full stop."""


@dataclass(frozen=True)
class FormatRow:
    """A row of a table whose names stand in files.

    Attributes:
        name: what files call it.
        since: the minor version of the format that it came with; docs/format.md, section 8.
    """

    name: str
    since: int = field(default=0, kw_only=True)


#: Rows by name, in the order in which a user sees them.
Table = Mapping[Any, Row]


@dataclass(frozen=True)
class Choice:
    """A name, and what it stands for."""

    name: str
    meaning: str


@dataclass(frozen=True)
class Quantizer(Choice, FormatRow):
    """A rule that rounds a weight to trits and scales.

    ``tpack.quantize.METHODS`` has its function, ``tpack.nn.ternarization.METHODS`` its form for
    training.

    Attributes:
        at_once: whether it holds all values of a weight at once; others read it in pieces.
    """

    at_once: bool = False


QUANTIZERS = {
    row.name: row
    for row in (
        Quantizer("absmean", "keep what is above half the mean of |w|, as BitNet b1.58 trains"),
        Quantizer("twn", "keep what is above 0.7 times the mean of |w|, scale by its mean"),
        Quantizer("mse", "the least squared error of all trits and scales", at_once=True),
    )
}

#: In which order I2_S holds weights; ``tpack.dialects.gguf_blocks.I2_S_ORDERS`` has its blocks.
I2S_ORDERS = {
    row.name: row
    for row in (
        Choice("x86", "blocks of 128 columns, 32 apart in a byte"),
        Choice("arm", "blocks of 64 columns, 16 apart in a byte"),
        Choice("rows", "a column of four rows in a byte, as later builds for x86 write it"),
    )
}

Means = Literal["multiply", "divide"]
#: What scales do that stand beside the integer weights of another system.
MEANINGS: dict[Means, Choice] = {
    "multiply": Choice("multiply", "a weight is its integer times the scale"),
    "divide": Choice("divide", "a weight is its integer divided by the scale"),
}
