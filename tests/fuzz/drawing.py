"""Values drawn from the bytes that a fuzzer gives: the same bytes, the same values.

A coverage-guided fuzzer changes bytes and keeps what reaches new code, so a decision takes one
byte wherever that is enough, and bytes that are used up read as zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Draw:
    """Reads decisions off bytes, front to back."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.position = 0

    def byte(self) -> int:
        """The next byte; 0 after the last."""
        self.position += 1
        return self.data[self.position - 1] if self.position <= len(self.data) else 0

    def number(self, width: int) -> int:
        """An unsigned integer of ``width`` bytes."""
        return int.from_bytes(bytes(self.byte() for _ in range(width)), "little")

    def below(self, limit: int) -> int:
        """An integer from 0 to ``limit - 1``; a limit is at most 65536."""
        return self.number(1 if limit <= 256 else 2) % limit

    def one(self, choices: Sequence[T]) -> T:
        """One of several."""
        return choices[self.below(len(choices))]

    def chance(self, of: int) -> bool:
        """True once in ``of`` times; never where bytes are used up."""
        return self.below(of) == of - 1

    def rest(self) -> bytes:
        """All bytes that are left."""
        start, self.position = self.position, len(self.data)
        return self.data[start:]

    def some(self, longest: int) -> bytes:
        """Up to ``longest`` bytes."""
        count = self.below(longest + 1)
        start = min(self.position, len(self.data))
        self.position = start + count
        return self.data[start : start + count]

    @property
    def left(self) -> int:
        """How many bytes are left."""
        return max(len(self.data) - self.position, 0)
