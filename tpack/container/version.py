"""The version of the format: which one a file needs, and what is said of a newer one.

``docs/format.md``, section 8, says which change of the format is which version.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Self

from tpack.choices import FormatRow
from tpack.errors import FormatError, LayerDefError


class Version(NamedTuple):
    """A version of the format.

    Attributes:
        major: another one means that files are read otherwise.
        minor: a higher one has more rows in its tables.
    """

    major: int
    minor: int = 0

    @classmethod
    def of(cls, rows: Iterable[FormatRow]) -> Self:
        """Return the lowest version that has all of these rows."""
        return cls(KNOWN.major, max((row.since for row in rows), default=0))

    @classmethod
    def parse(cls, data: Any) -> Self:
        """Read the field ``version`` of a description.

        Raises:
            FormatError: rule R9: it is no version, or one of another major.
        """
        numbers = [data, 0] if type(data) is int else data
        if not (
            isinstance(numbers, list)
            and len(numbers) == 2
            and all(type(n) is int and n >= 0 for n in numbers)
            and numbers[0] >= KNOWN.major
            and cls(*numbers).to_json() == data
        ):
            raise FormatError(
                f"has format version {data!r:.60}, expected {KNOWN.major} or "
                f"[{KNOWN.major}, minor]. The file is damaged: convert it again.",
                rule="R9",
            )
        version = cls(*numbers)
        if version.major > KNOWN.major:
            raise FormatError(
                f"has format version {version}, expected {KNOWN}. The file was made by a newer "
                "tpack: update tpack.",
                rule="R9",
            )
        return version

    def to_json(self) -> int | list[int]:
        """The field ``version`` of a description: 1 for 1.0, [1, 2] for 1.2."""
        return [*self] if self.minor else self.major

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}" if self.minor else f"{self.major}"


#: The newest version that this tpack knows.
KNOWN = Version(1, 0)


@contextmanager
def read_as(version: Version) -> Iterator[None]:
    """Say of what is not understood in a file of a newer version that a newer tpack made it.

    Raises:
        FormatError: rule R9, in place of what was raised.
    """
    try:
        yield
    except (FormatError, LayerDefError) as error:
        if version <= KNOWN:
            raise
        node = "" if error.node is None else f"{error.node}: "
        found = error.message.removesuffix(".").split(". ")[0]  # without what else to do
        raise FormatError(
            f"{node}{found}. The file was made by a newer tpack (format version {version}, "
            f"expected at most {KNOWN}): update tpack.",
            rule="R9",
            tensor=error.tensor,
        ) from error
