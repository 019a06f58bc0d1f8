"""Lay text out in lines of at most 88 columns, the way ``ruff format`` would.

That holds for names of up to 50 characters; longer ones may come out in another, valid form.

Knows brackets and width, nothing of layers. A piece of text is a string or one of:

- ``Call``: ``head(a, b)``; breaks into one indented line of arguments, else one each
- ``Items``: ``(a, b)``; breaks into one item a line
- ``Pairs``: ``{"a": b}``; likewise
- ``Generator``: ``item for … in …``; breaks before ``for``
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH = 88
INDENT = "    "

#: Plain names, which no line break can shorten.
_NAME = re.compile(r"[\w.]+")


@dataclass(frozen=True)
class Call:
    """A call; if ``breaks``, its arguments may go on lines of their own."""

    head: str
    args: tuple[Text, ...]
    breaks: bool = True

    def __str__(self) -> str:
        return f"{self.head}({', '.join(map(str, self.args))})"


@dataclass(frozen=True)
class Items:
    """A tuple, without parentheses if ``bare``; one with a single item keeps its comma."""

    items: tuple[Text, ...]
    bare: bool = False

    def __str__(self) -> str:
        inner = ", ".join(map(str, self.items)) + ("," if len(self.items) == 1 else "")
        return inner if self.bare else f"({inner})"


class List(Items):
    """``[a, b]``."""

    def __str__(self) -> str:
        return f"[{', '.join(map(str, self.items))}]"


@dataclass(frozen=True)
class Pairs:
    """A dict of words."""

    items: tuple[tuple[str, Text], ...]

    def __str__(self) -> str:
        inner = ", ".join(f'"{name}": {value}' for name, value in self.items)
        return f"{{{inner}}}"


@dataclass(frozen=True)
class Keyword:
    """``name=value``."""

    name: str
    value: Text

    def __str__(self) -> str:
        return f"{self.name}={self.value}"


@dataclass(frozen=True)
class Generator:
    """The only argument of a call: ``item for _ in …``."""

    item: Text
    loop: str

    def __str__(self) -> str:
        return f"{self.item} {self.loop}"


Text = str | Call | Items | Pairs | Keyword | Generator


class TooLongError(Exception):
    """A piece that cannot break does not fit."""


def lay_out(text: Text, indent: str, before: str = "", after: str = "") -> list[str]:
    """Return the lines of ``before text after`` at an indent.

    Raises:
        TooLongError: a piece that cannot break, and is not a plain name, does not fit.
    """
    flat = f"{indent}{before}{text}{after}"
    if len(flat) <= WIDTH:
        return [flat]
    if isinstance(text, str) and _NAME.fullmatch(text):
        return in_parentheses(text, indent, before) if before.endswith(" = ") else [flat]
    match text:
        case Keyword(name, value):
            return lay_out(value, indent, f"{before}{name}=", after)
        case Generator(item, loop):
            return [*lay_out(item, indent), f"{indent}{loop}"]
        case Call(head, args, True) if args:
            first, last = f"{indent}{before}{head}(", f"{indent}){after}"
            if len(first) > WIDTH and before.endswith((" = ", "return ")):
                return in_parentheses(text, indent, before)
            inner = f"{indent}{INDENT}{', '.join(map(str, args))}"
            if len(inner) <= WIDTH:
                return [first, inner, last]
            if isinstance(args[0], Generator):
                return [first, *lay_out(args[0], indent + INDENT), last]
            return [first, *_each(args, indent), last]
        case List(items) if items:
            return [f"{indent}{before}[", *_each(items, indent), f"{indent}]{after}"]
        case Items(items) if items:
            return [f"{indent}{before}(", *_each(items, indent), f"{indent}){after}"]
        case Pairs(items):
            inner = indent + INDENT
            rows = [lay_out(value, inner, f'"{name}": ', ",") for name, value in items]
            lines = [line for row in rows for line in row]
            return [f"{indent}{before}{{", *lines, f"{indent}}}{after}"]
        case Call(_, (), True) if before.endswith(" = "):
            return in_parentheses(text, indent, before)
        case _:
            raise TooLongError(str(text))


def in_parentheses(text: Text, indent: str, before: str) -> list[str]:
    """Put a value on lines of its own."""
    return [f"{indent}{before}(", *lay_out(text, indent + INDENT), f"{indent})"]


def _each(items: Sequence[Text], indent: str) -> list[str]:
    return [line for item in items for line in lay_out(item, indent + INDENT, after=",")]
