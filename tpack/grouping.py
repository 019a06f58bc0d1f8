"""Group the tensors of repeated layers: what differs only in the numbers of its name."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

#: Ranges of numbers in a label; lines of a table are as long as the longest one.
_SHOWN = 32


@dataclass(frozen=True)
class Place:
    """Where a tensor stands in a model.

    Attributes:
        role: its name with ``*`` for the parts that are numbers.
        numbers: those parts, from left to right.
    """

    role: str
    numbers: tuple[int, ...]

    @classmethod
    def of(cls, name: str) -> Place:
        """Read a name.

        Example:
            >>> Place.of("layers.3.experts.7.up.weight")
            Place(role='layers.*.experts.*.up.weight', numbers=(3, 7))
        """
        parts = name.split(".")
        if "*" in parts:  # nobody's number
            return cls(name, ())
        places = [i for i, part in enumerate(parts) if _is_number(part)]
        numbers = tuple(int(parts[i]) for i in places)
        for i in places:
            parts[i] = "*"
        return cls(".".join(parts), numbers)

    @property
    def depth(self) -> int | None:
        """The first number: the position of the layer in its stack; None outside of one."""
        return self.numbers[0] if self.numbers else None

    @property
    def sort_key(self) -> tuple[tuple[int, int, str], ...]:
        """Orders names as people do: layer 2 before layer 10."""
        numbers = iter(self.numbers)
        return tuple(
            (0, next(numbers, 0), "") if part == "*" else (1, 0, part)
            for part in self.role.split(".")
        )


def _is_number(part: str) -> bool:
    return part.isascii() and part.isdigit() and len(part) <= 9 and str(int(part)) == part


def groups(keyed: Iterable[tuple[str, Hashable]]) -> list[list[str]]:
    """Names that share a role and a key, in the order of the first of each.

    Example:
        >>> groups([("a.0.w", 1), ("b", 1), ("a.1.w", 1), ("a.2.w", 2)])
        [['a.0.w', 'a.1.w'], ['b'], ['a.2.w']]
    """
    found: dict[Hashable, list[str]] = {}
    for name, key in keyed:
        place = Place.of(name)
        found.setdefault((place.role, len(place.numbers), key), []).append(name)
    return list(found.values())


def label(names: Sequence[str]) -> str:
    """One name for a group: numbers as ranges, and how many there are.

    Example:
        >>> label(["layers.0.up.weight", "layers.1.up.weight", "layers.3.up.weight"])
        'layers.0–1,3.up ×3'
        >>> label(["layers.0.up.weight"])
        'layers.0.up.weight'
    """
    if len(names) == 1:
        return names[0]
    places = [Place.of(name) for name in names]
    values = iter([_ranges({p.numbers[i] for p in places}) for i in range(len(places[0].numbers))])
    parts = [next(values) if part == "*" else part for part in places[0].role.split(".")]
    return f"{'.'.join(parts).removesuffix('.weight')} ×{len(names)}"


def _ranges(numbers: set[int]) -> str:
    """``0–2,5`` for 0, 1, 2 and 5; of very many ranges, the first ones and the last."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    shown = [str(a) if a == b else f"{a}–{b}" for a, b in runs]
    if len(shown) > _SHOWN:
        shown[_SHOWN - 2 : -1] = ["…"]
    return ",".join(shown)
