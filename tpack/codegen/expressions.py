"""Lowered expressions and statements → text."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from tpack.codegen.printer import INDENT, Call, Items, Keyword, Text, TooLongError, lay_out
from tpack.layerdef import (
    Assignment,
    BinaryOp,
    Expression,
    FunctionCall,
    Identifier,
    LayerCall,
    Literal,
    Param,
    Return,
    Statement,
    Tuple,
    UnaryOp,
)
from tpack.layerdef.names import is_position
from tpack.layerdef.ops import BINARY, OPS, PACKED_OPS, UNARY, OpParam, torch_name

#: Binds tighter than any operator.
_ATOM = 10

_Positions = tuple[str | int, ...]


class ExpressionPrinter:
    """Prints the body of one forward.

    Attributes:
        stored: names of stored tensors, which are attributes of self.
        used: spellings printed so far, for the imports.
        locals: names that are taken.
    """

    def __init__(self, stored: set[str], children: dict[str, Param], names: set[str]) -> None:
        self.stored = stored
        self.children = children
        self.locals = names
        self.used: set[str] = set()

    # ---- statements

    def statement(self, statement: Statement, indent: str) -> list[str]:
        """The lines of one statement; what does not fit is computed in steps."""
        assert isinstance(statement, Assignment | Return)
        value = statement.value
        if isinstance(statement, Assignment) and isinstance(value, LayerCall):
            looped = self.loop(statement.target, value, indent)
            if looped is not None:
                return looped
        if isinstance(statement, Return):
            if isinstance(value, LayerCall):
                looped = self.loop(self.fresh(), value, indent)
                if looped is not None:
                    target = looped[-1].split()[0]
                    return [*looped, f"{indent}return {target}"]
            before = "return "
        else:
            self.locals.add(statement.target)
            before = f"{statement.target} = "
        value, earlier = self.hoist_loops(value, indent)
        try:
            bare = isinstance(statement, Return) and isinstance(value, Tuple)
            text = self.text(value)
            if bare:
                text = replace(text, bare=True)  # type: ignore[type-var]
            return [*earlier, *lay_out(text, indent, before)]
        except TooLongError:
            return [*earlier, *self.in_steps(replace(statement, value=value), indent, before)]

    def in_steps(self, statement: Assignment | Return, indent: str, before: str) -> list[str]:
        """Name the largest part of a value that cannot break, and go on with the rest."""
        parts = [
            (len(str(self.text(part))), rebuild, part)
            for part, rebuild in _parts(statement.value)
            if not isinstance(part, Identifier | Literal | Tuple)
        ]
        if not parts:  # names alone are too long
            return self.broken(statement.value, indent, before)
        _, rebuild, part = max(parts, key=lambda item: item[0])
        name = self.fresh()
        first = self.statement(Assignment(name, part), indent)
        rest = replace(statement, value=rebuild(Identifier(name)))
        return [*first, *self.statement(rest, indent)]

    def broken(self, value: Expression, indent: str, before: str) -> list[str]:
        if not isinstance(value, BinaryOp):
            return [f"{indent}{before}{self.text(value)}"]
        inner = indent + INDENT
        left = self.operand(value.left, BINARY[value.operator])
        right = self.operand(value.right, BINARY[value.operator] + 1)
        return [
            f"{indent}{before}(",
            f"{inner}{left}",
            f"{inner}{value.operator} {right}",
            f"{indent})",
        ]

    def hoist_loops(self, value: Expression, indent: str) -> tuple[Expression, list[str]]:
        """Compute repeated children inside a value first: a loop is a statement."""
        lines: list[str] = []
        changed = True
        while changed:
            changed = False
            for part, rebuild in _parts(value):
                if isinstance(part, LayerCall) and self.children[part.layer].repeat is not None:
                    name = self.fresh()
                    lines += self.statement(Assignment(name, part), indent)
                    value = rebuild(Identifier(name))
                    changed = True
                    break
        return value, lines

    def loop(self, target: str, call: LayerCall, indent: str) -> list[str] | None:
        """The loop over a repeated child, or None for a single one."""
        if self.children[call.layer].repeat is None:
            return None
        item = self.fresh("layer")
        first, *others = call.args
        lines: list[str] = []
        if first != Identifier(target):
            lines += self.statement(Assignment(target, first), indent)
        self.locals.add(target)
        text = Call(item, tuple(self.text(arg) for arg in (Identifier(target), *others)))
        lines.append(f"{indent}for {item} in {self.child(call.layer)}:")
        return [*lines, *lay_out(text, indent + INDENT, f"{target} = ")]

    def fresh(self, stem: str = "value") -> str:
        """A name that is not taken."""
        name, number = stem, 1
        while name in self.locals or name in self.stored:
            number += 1
            name = f"{stem}{number}"
        self.locals.add(name)
        return name

    # ---- expressions

    def text(self, node: Expression) -> Text:
        """The text of a value."""
        match node:
            case Identifier(name):
                return f"self.{name}" if name in self.stored else name
            case Literal(value):
                return repr(value)
            case Tuple(items):
                return Items(tuple(self.text(item) for item in items))
            case UnaryOp(operator, operand):
                return f"{operator}{self.operand(operand, UNARY[operator])}"
            case BinaryOp(operator, left, right):
                level = BINARY[operator]
                # ** groups to the right, all others to the left
                first = self.operand(left, level + (operator == "**"))
                second = self.operand(right, level + (operator != "**"))
                return f"{first} {operator} {second}"
            case FunctionCall():
                return self.call(node)
            case LayerCall(layer, args):
                return Call(self.child(layer), tuple(self.text(arg) for arg in args))

    def operand(self, node: Expression, level: int) -> str:
        """An operand, in parentheses where it binds less than ``level``."""
        text = str(self.text(node))
        match node:
            case BinaryOp(operator):
                own = BINARY[operator]
            case UnaryOp(operator):
                own = UNARY[operator]
            case Literal(value) if isinstance(value, int | float) and value < 0:
                own = UNARY["-"]
            case _:
                own = _ATOM
        return f"({text})" if own < level else text

    def child(self, name: str) -> str:
        """How self reaches a child."""
        return f"self[{name}]" if is_position(name) else f"self.{name}"

    def call(self, node: FunctionCall) -> Text:
        op = OPS.get(node.function) or PACKED_OPS[node.function]
        given = dict(node.kwargs)
        spelling = op.spelling
        self.used.add(spelling)
        params = list(op.params)
        head = spelling
        if spelling.startswith("."):
            head = f"{self.operand(given[params.pop(0).name], _ATOM)}{spelling}"
        args: list[Text] = []
        named = False
        for param in params:
            if param.name not in given or given[param.name] == Literal(param.default):
                named = True  # what follows a gap needs its name
                continue
            value = self.argument(param, given[param.name])
            named = named or param.keyword
            args.append(Keyword(torch_name(op.name, param.name), value) if named else value)
        return Call(head, tuple(args))

    def argument(self, param: OpParam, value: Expression) -> Text:
        if param.kind == "dtype" and isinstance(value, Literal):
            return f"torch.{value.value}"
        if isinstance(value, Literal) and isinstance(value.value, str):
            return f'"{value.value}"'
        return self.text(value)


def _parts(
    node: Expression,
) -> Iterator[tuple[Expression, Callable[[Expression], Expression]]]:
    """The parts of a value, each with a function that puts another in its place."""
    match node:
        case UnaryOp(_, operand):
            yield operand, lambda new: replace(node, operand=new)
        case BinaryOp(_, left, right):
            yield left, lambda new: replace(node, left=new)
            yield right, lambda new: replace(node, right=new)
        case FunctionCall(function, args, kwargs):
            for i, (name, value) in enumerate(kwargs):

                def rebuild(new: Expression, i: int = i, name: str = name) -> Expression:
                    return FunctionCall(
                        function, args, [*kwargs[:i], (name, new), *kwargs[i + 1 :]]
                    )

                yield value, rebuild
                if isinstance(value, Tuple):
                    yield from _inside(value, rebuild)
        case LayerCall(layer, args):
            for i, value in enumerate(args):
                yield (
                    value,
                    lambda new, i=i: LayerCall(layer, [*args[:i], new, *args[i + 1 :]]),  # type: ignore[misc]
                )
        case Tuple():
            yield from _inside(node, lambda new: new)


def _inside(
    node: Tuple, rebuild: Callable[[Expression], Expression]
) -> Iterator[tuple[Expression, Callable[[Expression], Expression]]]:
    for i, item in enumerate(node.items):
        yield (
            item,
            lambda new, i=i: rebuild(Tuple([*node.items[:i], new, *node.items[i + 1 :]])),  # type: ignore[misc]
        )
