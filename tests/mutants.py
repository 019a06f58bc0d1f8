"""Small faults in Python source, one at a time: what mutation.py runs the tests against.

Left as they are: annotations, docstrings, assertions, ``__all__``, and the texts of errors that
are raised, which are for people. Keywords of those errors (``node=``, ``rule=``) are mutated.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType

COMPARE = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
ARITHMETIC = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.BitXor: ast.BitOr,
}
NAMES = {"min": "max", "max": "min", "any": "all", "all": "any"}


@dataclass(frozen=True)
class Mutant:
    """One fault: the node at a place of a tree, replaced by another, or left out.

    Attributes:
        path: the file.
        lines: of the node, the first where it begins.
        statement: line where the statement around it begins.
        text: what becomes what.
        function: qualified name of the outermost function whose body has it; None for what
            runs on import.
        apply: puts the fault into the tree and compiles it; the tree keeps it.
    """

    path: Path
    lines: range
    statement: int
    text: str
    function: str | None
    apply: Callable[[], CodeType]


def mutants_of(path: Path, source: str) -> list[Mutant]:
    """All faults of a file, in the order of its lines."""
    tree = ast.parse(source)
    found = []
    for place in _places(tree, _Place(tree, "", None, tree)):
        for new in _replacements(place):
            text = f"{_shown(place.node)} → {'nothing' if new is None else _shown(new)}"

            def apply(place: _Place = place, new: ast.AST | None = new) -> CodeType:
                place.put(new)
                return compile(ast.fix_missing_locations(tree), str(path), "exec")

            found.append(Mutant(path, place.lines, place.statement, text, place.function, apply))
    return sorted(found, key=lambda mutant: mutant.lines.start)


@dataclass(frozen=True)
class _Place:
    """A node, and where it is: ``holder.field``, or ``holder.field[index]``."""

    holder: ast.AST
    field: str
    index: int | None
    node: ast.AST
    function: str | None = None
    scope: str = ""
    statement: int = 0
    in_raise: bool = False

    @property
    def lines(self) -> range:
        for node in (self.node, getattr(self.node, "pattern", None), self.holder):
            if hasattr(node, "lineno"):
                return range(node.lineno, node.end_lineno + 1)
        return range(1, 2)

    def put(self, new: ast.AST | None) -> None:
        if self.index is None:
            setattr(self.holder, self.field, new)
        elif new is None:
            del getattr(self.holder, self.field)[self.index]
        else:
            getattr(self.holder, self.field)[self.index] = new


def _shown(node: ast.AST) -> str:
    text = " ".join(ast.unparse(node).split())
    return text if len(text) <= 110 else f"{text[:107]}…"


def _places(node: ast.AST, around: _Place) -> Iterator[_Place]:
    """Every place below a node whose node may be replaced."""
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "ctx", "op", "ops", "type_params"):
            continue
        if around.in_raise and isinstance(node, ast.Call) and field == "args":
            continue  # the text of an error
        for index, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if not isinstance(child, ast.AST) or _is_left_alone(child):
                continue
            function, scope, statement = around.function, around.scope, around.statement
            if isinstance(node, ast.FunctionDef) and field == "body" and function is None:
                function = scope.removesuffix(".")
            if isinstance(child, ast.FunctionDef | ast.ClassDef):
                scope += f"{child.name}."
            if isinstance(child, ast.stmt):
                statement = child.lineno
            in_raise = around.in_raise or isinstance(child, ast.Raise)
            place = _Place(node, field, index, child, function, scope, statement, in_raise)
            yield place
            if not isinstance(child, ast.JoinedStr):
                yield from _places(child, place)


def _is_left_alone(node: ast.AST) -> bool:
    match node:
        case ast.Assert() | ast.ImportFrom() | ast.Import():
            return True
        case ast.Expr(value=ast.Constant()):
            return True
        case ast.Assign(targets=[ast.Name(id="__all__")]):
            return True
    return False


def _changed(node: ast.AST, **fields: object) -> ast.AST:
    new = copy.copy(node)
    for name, value in fields.items():
        setattr(new, name, value)
    return new


def _without(items: list, place: int) -> list:
    return [*items[:place], *items[place + 1 :]]


def _replacements(place: _Place) -> Iterator[ast.AST | None]:
    never = ast.Constant(value=False)
    holder, node = place.holder, place.node
    match node:
        case ast.Raise() if isinstance(holder, ast.If) and len(holder.body) == 1:
            pass  # as if the condition were false
        case ast.Compare(ops=ops):
            for i, op in enumerate(ops):
                yield _changed(node, ops=[*ops[:i], COMPARE[type(op)](), *ops[i + 1 :]])
        case ast.BoolOp(op=op, values=values):
            yield _changed(node, op=ast.Or() if isinstance(op, ast.And) else ast.And())
            for i in range(len(values)):
                rest = _without(values, i)
                yield rest[0] if len(rest) == 1 else _changed(node, values=rest)
        case ast.UnaryOp(operand=operand):
            yield operand
        case ast.BinOp(op=op) if type(op) in ARITHMETIC:
            yield _changed(node, op=ARITHMETIC[type(op)]())
        case ast.AugAssign(op=op):
            yield ast.Pass()
            if type(op) in ARITHMETIC:
                yield _changed(node, op=ARITHMETIC[type(op)]())
        case ast.If() | ast.IfExp():
            yield _changed(node, test=never)
            yield _changed(node, test=ast.Constant(value=True))
        case ast.While() if not isinstance(node.test, ast.Constant):
            yield _changed(node, test=never)
        case ast.comprehension(ifs=ifs):
            for i in range(len(ifs)):
                yield _changed(node, ifs=_without(ifs, i))
        case ast.match_case(guard=guard):
            yield _changed(node, guard=never)
            if guard is not None:
                yield _changed(node, guard=None)
        case ast.Return(value=value) if not isinstance(value, ast.Constant | None):
            yield _changed(node, value=ast.Constant(value=None))
        case ast.Raise() | ast.Expr(value=ast.Call()) | ast.Delete():
            yield ast.Pass()
        case ast.Break():
            yield ast.Continue()
        case ast.Continue():
            yield ast.Break()
        case ast.keyword(arg=str(), value=value) if not _is_bool(value):
            yield None
        case ast.Name(id=name, ctx=ast.Load()) if name in NAMES:
            yield _changed(node, id=NAMES[name])
        case ast.JoinedStr():
            yield ast.Constant(value="mutated")
        case ast.Constant(value=value):
            for changed in _values(value):
                if not place.in_raise or isinstance(changed, str):
                    yield ast.Constant(value=changed)


def _is_bool(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, bool)


def _values(value: object) -> list:
    match value:
        case bool():
            return [not value]
        case int() | float():
            return [value + 1, value - 1]
        case str():
            return [f"{value}x"]
        case bytes():
            return [value + b"x"]
    return []
