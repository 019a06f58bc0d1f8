"""The shapes that source tells its reader: in the docstring of a forward, and in comments.

They are read as generated source writes them::

    \"\"\"x (batch, length, 64) → (batch, length, 256).\"\"\"
    hidden = self.up(x)  # (batch, length, 256)

What has another form is a remark of a person, and left alone.
"""

from __future__ import annotations

import ast
import io
import linecache
import re
import tokenize
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import CodeType

from tpack.errors import LayerDefError
from tpack.layerdef import Sizes
from tpack.layerdef.params import check_sizes
from tpack.readback.code import compiled, equal

#: The shapes of several values; None where one is not told.
Several = tuple[Sizes | None, ...]

_SIZE = r"[^\W\d]\w{0,80}|\d{1,20}"
#: As a tuple of Python: one size is followed by a comma.
_SHAPE = rf"\((?:(?:{_SIZE}),|(?:{_SIZE})(?:, (?:{_SIZE}))+|)\)"
_COMMENT = re.compile(rf"#\s*({_SHAPE}(?:, {_SHAPE})*)(\s+each)?\s*")
#: Names, if any, and the shape that they share.
_GROUP = re.compile(rf"((?:[^\W\d]\w*(?:, [^\W\d]\w*)*)?) ?({_SHAPE})?")


@dataclass(frozen=True)
class Told:
    """What a docstring tells.

    Attributes:
        inputs: the shape of each argument.
        results: in order, names of results and the shape that they share.
    """

    inputs: tuple[tuple[str, Sizes | None], ...] = ()
    results: tuple[tuple[tuple[str, ...], Sizes | None], ...] = ()

    def of_inputs(self, names: Sequence[str]) -> Mapping[str, Sizes | None]:
        """Return the shapes of arguments; none if the docstring has other arguments."""
        return dict(self.inputs) if [name for name, _ in self.inputs] == [*names] else {}

    def of_results(self, names: Sequence[str], known: Sequence[Sizes | None]) -> Several | None:
        """Return the shapes of results; None if it tells of others.

        Args:
            names: of the results, empty for those that have none.
            known: shapes that comments tell of them.
        """
        fits = [
            [name in group if name else known_as in (None, shape) for group, shape in self.results]
            for name, known_as in zip(names, known, strict=True)
        ]
        places = _in_order(fits)
        return None if places is None else tuple(self.results[at][1] for at in places)


def _in_order(fits: Sequence[Sequence[bool]]) -> list[int] | None:
    """Return a group for each item, so that every group has some and they stay in order.

    Where several ways fit, they print as the same text.

    Args:
        fits: for each item and each group, whether it may be in it.
    """
    if not fits or not fits[0]:
        return None
    last = len(fits[0]) - 1
    ends = [[False] * (last + 1) for _ in fits]  # whether the rest fits from here on
    for i in range(len(fits) - 1, -1, -1):
        for at in range(last + 1):
            after = at == last if i == len(fits) - 1 else any(ends[i + 1][at : at + 2])
            ends[i][at] = fits[i][at] and after
    if not ends[0][0]:
        return None
    places = [0]
    for each in ends[1:]:
        places.append(places[-1] + (not each[places[-1]]))
    return places


@dataclass(frozen=True)
class Comment:
    """The shapes in a comment on a statement that stands in some lines."""

    first: int
    last: int
    targets: tuple[str, ...]
    shapes: Several


class Comments:
    """The comments with shapes in a forward.

    Args:
        code: of the forward. There are none if its file is not to be found, or was changed after
            it was imported.
    """

    def __init__(self, code: CodeType) -> None:
        self.file = code.co_filename
        self.found: tuple[Comment, ...] = ()
        linecache.checkcache(self.file)
        functions = _functions("".join(linecache.getlines(self.file)))
        there = functions.get((code.co_name, code.co_firstlineno))
        if there is not None and equal(there[0], code):
            self.found = there[1]

    def of(self, place: str, targets: Sequence[str]) -> Several | None:
        """Return the shapes that the comment on a statement tells of its targets.

        Args:
            place: the file and line of what the statement computes.
        """
        file, _, line = place.rpartition(":")
        for one in self.found if file == self.file else ():
            if one.first <= int(line) <= one.last and one.targets == tuple(targets):
                return one.shapes
        return None


def told(docstring: str | None) -> Told:
    """Read a docstring; one of another form tells nothing."""
    text = " ".join((docstring or "").split())
    given, arrow, made = text.partition("→ ")
    if not arrow or not made.endswith("."):
        return Told()
    inputs: list[tuple[str, Sizes | None]] = []
    for part in filter(None, given.strip().split("; ")):
        group = _GROUP.fullmatch(part)
        if group is None or not group[1]:
            return Told()
        inputs += [(name, _shape(group[2])) for name in group[1].split(", ")]
    results = [*_groups(made.removesuffix("."))]
    return Told(tuple(inputs), tuple(results)) if None not in results else Told()  # type: ignore[arg-type]


def _groups(text: str) -> Iterator[tuple[tuple[str, ...], Sizes | None] | None]:
    """Yield the names and shapes of results; None for what is neither."""
    rest = text
    while rest:
        group = _GROUP.match(rest)
        if rest.startswith("a tensor"):
            yield (), None
            rest = rest.removeprefix("a tensor")
        elif group is None or not group[0]:
            yield None
            return
        else:
            yield tuple(filter(None, group[1].split(", "))), _shape(group[2])
            rest = rest[group.end() :]
        if rest and not rest.startswith(", "):
            yield None
            return
        rest = rest.removeprefix(", ")


def _shape(text: str | None) -> Sizes | None:
    """Return the shape that a text spells; None if it spells none that a LayerDef can have."""
    if text is None:
        return None
    inside = text[1:-1].removesuffix(",")
    parts = inside.split(", ") if inside else []
    sizes = tuple(int(part) if part.isdecimal() else part for part in parts)
    try:
        check_sizes(sizes, "")
    except LayerDefError:
        return None
    return sizes


@lru_cache(maxsize=16)
def _functions(text: str) -> dict[tuple[str, int], tuple[CodeType, tuple[Comment, ...]]]:
    """Return the code and the comments of each function in the text of a file, by name and line."""
    try:
        codes = {(code.co_name, code.co_firstlineno): code for code in compiled(text, "")}
        tokens = [*tokenize.generate_tokens(io.StringIO(text).readline)]
    except (ValueError, SyntaxError, tokenize.TokenError):
        return {}
    beside: dict[int, str] = {}
    above: dict[int, str] = {}
    for token in tokens:
        if token.type == tokenize.COMMENT:
            alone = not token.line[: token.start[1]].strip()
            (above if alone else beside)[token.start[0]] = token.string
    found = {}
    for function in ast.walk(ast.parse(text)):
        if isinstance(function, ast.FunctionDef):
            first = min([function.lineno, *(one.lineno for one in function.decorator_list)])
            if (key := (function.name, first)) in codes:
                comments = (_commented(each, beside, above) for each in function.body)
                found[key] = (codes[key], tuple(filter(None, comments)))
    return found


def _commented(
    statement: ast.stmt, beside: Mapping[int, str], above: Mapping[int, str]
) -> Comment | None:
    """Return the shapes in a comment beside a statement, or on the line above it."""
    last = statement.end_lineno or statement.lineno
    targets = _targets(statement)
    texts = [beside.get(line) for line in range(statement.lineno, last + 1)]
    for comment in (*texts, above.get(statement.lineno - 1)):
        shapes = _several(comment, targets)
        if shapes is not None:
            return Comment(statement.lineno, last, targets, shapes)
    return None


def _targets(statement: ast.stmt) -> tuple[str, ...]:
    """Return the variables that a statement assigns; those of a loop are what its body assigns."""
    if isinstance(statement, ast.For) and len(statement.body) == 1:
        return _targets(statement.body[0])
    if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
        target = statement.targets[0]
        items: Iterable[ast.expr] = target.elts if isinstance(target, ast.Tuple) else [target]
        return tuple(item.id if isinstance(item, ast.Name) else "_" for item in items)
    return ()


def _several(comment: str | None, targets: Sequence[str]) -> Several | None:
    """Return the shapes that a comment tells of targets; None if it tells others, or none."""
    match = _COMMENT.fullmatch(comment or "")
    if match is None:
        return None
    shapes = [_shape(text) for text in re.findall(_SHAPE, match[1])]
    named = [target for target in targets if target != "_"]
    if match[2]:
        shapes *= len(named)
    if len(shapes) != len(named) or None in shapes:
        return None
    order = iter(shapes)
    return tuple(None if target == "_" else next(order) for target in targets)
