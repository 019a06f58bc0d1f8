"""Shapes in generated source: a docstring for each forward, comments inside it.

A shape is noted where it changes, not on every line::

    hidden = self.up(x)  # (batch, length, 256)

Nothing but names and numbers of a validated program stands in them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby
from textwrap import wrap

from tpack.codegen.printer import WIDTH
from tpack.layerdef import Assignment, Param, Return, Sizes, Statement, Unpack
from tpack.layerdef.walking import identifiers, results

#: Names with their shape, which stay on one line.
_WHOLE = re.compile(r"[^;()]{0,40}\([^()]{0,40}\)")


class ShapeComments:
    """The comments of one forward.

    Args:
        inputs: its arguments.
        body: its statements.
    """

    def __init__(self, inputs: Sequence[Param], body: Sequence[Statement]) -> None:
        self.inputs = inputs
        self.body = body
        self.shapes = {param.name: param.sizes for param in inputs}
        self.before = next((param.sizes for param in inputs), None)

    def docstring(self, indent: str) -> list[str]:
        """Return the docstring with the shapes of inputs and results; no lines if none is known."""
        last = self.body[-1]
        assert isinstance(last, Return)
        given = _told([(param.name, param.sizes) for param in self.inputs], "; ")
        names = [name for name, _ in results(last.value)]
        shapes = last.sizes or (None,) * len(names)
        made = _told(list(zip(names, shapes, strict=True)), ", ")
        if any(param.sizes for param in self.inputs) or any(last.sizes or ()):
            return _docstring(given, f"→ {made}.", indent)
        return []

    def commented(self, statement: Statement, lines: list[str], indent: str) -> list[str]:
        """Return the lines of a statement, with its shape beside or above them if that changes.

        A long value is computed in steps, in a line or several each: the shape is that of the last.
        """
        comment = self.comment(statement)
        if not comment:
            return lines
        start = max(i for i, line in enumerate(lines) if _begins(line.removeprefix(indent)))
        earlier, last = lines[:start], lines[start:]
        beside = f"{last[0]}  {comment}"
        if len(last) == 1 and len(beside) <= WIDTH:
            return [*earlier, beside]
        above = f"{indent}{comment}"
        return [*earlier, above, *last] if len(above) <= WIDTH else lines

    def comment(self, statement: Statement) -> str:
        """Return ``# (batch, length, 64)`` if the shape of a value is new, else "".

        It is new if the operands, the former value of its name and the value before it have
        other shapes.
        """
        if isinstance(statement, Assignment):
            told = {statement.target: statement.sizes}
        elif isinstance(statement, Unpack):
            shapes = statement.sizes or (None,) * len(statement.targets)
            told = dict(zip(statement.targets, shapes, strict=True))
            told.pop("_", None)
        else:
            return ""
        known = {self.before, *map(self.shapes.get, [*told, *identifiers(statement.value)])}
        self.shapes |= told
        every = list(told.values())
        self.before = every[-1]
        if None in every or known >= set(every):
            return ""
        if len(every) > 1 and len(set(every)) == 1:
            return f"# {_shape(every[0])} each"
        return f"# {', '.join(map(_shape, every))}"


def _begins(line: str) -> bool:
    """Return whether a line begins a statement, rather than continuing or closing one."""
    return not line.startswith((" ", ")", "]", "}"))


def _shape(sizes: Sizes | None) -> str:
    items = [str(size) for size in sizes or ()]
    return f"({items[0]},)" if len(items) == 1 else f"({', '.join(items)})"


def _told(named: Sequence[tuple[str, Sizes | None]], separator: str) -> str:
    """List names with their shapes; several in a row that share a shape have it once."""
    groups = []
    for sizes, items in groupby(named, key=lambda item: item[1]):
        names = ", ".join(dict.fromkeys(name for name, _ in items if name))
        shape = "" if sizes is None else _shape(sizes)
        groups.append(f"{names} {shape}".strip() or "a tensor")
    return separator.join(groups)


def _docstring(given: str, made: str, indent: str) -> list[str]:
    flat = f'{indent}"""{given} {made}"""'
    if len(flat) <= WIDTH:
        return [flat]
    lines = [line for text in (f'"""{given}', made) for line in _wrapped(text, WIDTH - len(indent))]
    return [*(f"{indent}{line}" for line in lines), f'{indent}"""']


def _wrapped(text: str, width: int) -> list[str]:
    glued = _WHOLE.sub(lambda found: _glued(found[0]), text)
    return [line.replace("\0", " ") for line in wrap(glued, width, break_on_hyphens=False)]


def _glued(text: str) -> str:
    """Return a text with inner spaces where no line breaks."""
    inner = text.lstrip()
    return text[: len(text) - len(inner)] + inner.replace(" ", "\0")
