"""Lay text out in lines of at most 88 columns, the way ``ruff format`` would.

Knows brackets and width, nothing of layers. A piece of text is a string or one of:

- ``Call``: ``head(a, b)``; breaks into one indented line of arguments, else one each
- ``Items``: ``[a, b]``; breaks into one item a line
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

WIDTH = 88
INDENT = "    "


@dataclass(frozen=True)
class Call:
    """A call; ``head`` has no bracket that could break."""

    head: str
    args: tuple[Text, ...]

    def __str__(self) -> str:
        return f"{self.head}({', '.join(map(str, self.args))})"


@dataclass(frozen=True)
class Items:
    """A tuple or list; one with a single item keeps its comma."""

    items: tuple[Text, ...]
    bare: bool = False

    def __str__(self) -> str:
        inner = ", ".join(map(str, self.items)) + ("," if len(self.items) == 1 else "")
        return inner if self.bare else f"({inner})"


@dataclass(frozen=True)
class Keyword:
    """``name=value``."""

    name: str
    value: Text

    def __str__(self) -> str:
        return f"{self.name}={self.value}"


Text = str | Call | Items | Keyword


class TooLongError(Exception):
    """A piece that cannot break does not fit."""


def lay_out(text: Text, indent: str, before: str = "", after: str = "") -> list[str]:
    """Lines for ``before text after`` at an indent.

    Raises:
        TooLongError: a string that is no plain name does not fit.
    """
    flat = f"{indent}{before}{text}{after}"
    if len(flat) <= WIDTH:
        return [flat]
    match text:
        case Keyword(name, value):
            return lay_out(value, indent, f"{before}{name}=", after)
        case Call(head, args) if args:
            first, last = f"{indent}{before}{head}(", f"{indent}){after}"
            inner = f"{indent}{INDENT}{', '.join(map(str, args))}"
            if len(inner) <= WIDTH:
                return [first, inner, last]
            return [first, *_each(args, indent), last]
        case Items(items) if items:
            return [f"{indent}{before}(", *_each(items, indent), f"{indent}){after}"]
        case _:
            raise TooLongError(str(text))


def _each(items: Sequence[Text], indent: str) -> list[str]:
    return [line for item in items for line in lay_out(item, indent + INDENT, after=",")]
