"""Names and numbers for people, in a terminal or on a page."""

from __future__ import annotations

from collections.abc import Sequence
from unicodedata import category

#: What belongs to a text though ``str.isprintable`` does not count it: also the joiners of letters
#: and of emoji.
_LAYOUT = "\n\t\u200c\u200d"


def printable(text: str) -> str:
    """Escape what would drive a terminal, or turn its letters, in a line of text.

    Example:
        >>> print(printable("a\\x1b[31m\\n → b"))
        a\\x1b[31m\\n → b
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def readable(text: str) -> str:
    """Escape what would drive a terminal in a text of several lines; keep its layout.

    Line feeds, tabs, spaces of all kinds, and what joins letters stay.

    Example:
        >>> print(readable("a\\x1b[31m\\nb"))
        a\\x1b[31m
        b
    """
    return "".join(c if c in _LAYOUT or category(c) == "Zs" else printable(c) for c in text)


def listed(names: Sequence[str]) -> str:
    """Join a few names; of many, the first four.

    Example:
        >>> listed("ab"), listed("abcde")
        ('a, b', 'a, b, c, d and others')
    """
    return ", ".join(names[:4]) + " and others" * (len(names) > 4)


def size(count: float) -> str:
    """Spell a number of bytes for people.

    Example:
        >>> size(532), size(1_234_567)
        ('532 B', '1.2 MB')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError


def shape(sizes: Sequence[int]) -> str:
    """``64×3×3``; a scalar is ``()``."""
    return "×".join(map(str, sizes)) or "()"


def plural(count: int, noun: str) -> str:
    """Spell a number and its noun.

    Example:
        >>> plural(1, "tensor"), plural(0, "tensor")
        ('1 tensor', '0 tensors')
    """
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
