"""Lowered expressions and statements → text."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from tpack.codegen.printer import (
    INDENT,
    WIDTH,
    Call,
    Items,
    Keyword,
    Text,
    TooLongError,
    in_parentheses,
    lay_out,
)
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
        earlier: list[str] = []
        value = self.hoist_loops(statement.value, indent, earlier)
        if isinstance(value, LayerCall) and self.repeats(value):
            returns = isinstance(statement, Return)
            target = self.fresh() if isinstance(statement, Return) else statement.target
            looped = self.loop(target, value, indent)
            return [*earlier, *looped, *[f"{indent}return {target}"] * returns]
        if isinstance(statement, Return):
            before = "return "
        else:
            self.locals.add(statement.target)
            before = f"{statement.target} = "
        try:
            bare = isinstance(statement, Return) and isinstance(value, Tuple)
            text = self.text(value)
            if bare and isinstance(text, Items) and len(text.items) > 1:
                text = replace(text, bare=True)
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
            return in_parentheses(self.text(value), indent, before)
        inner = indent + INDENT
        whole = f"{inner}{self.text(value)}"
        if len(whole) <= WIDTH:
            return [f"{indent}{before}(", whole, f"{indent})"]
        left = self.operand(value.left, BINARY[value.operator])
        right = self.operand(value.right, BINARY[value.operator] + 1)
        return [
            f"{indent}{before}(",
            f"{inner}{left}",
            f"{inner}{value.operator} {right}",
            f"{indent})",
        ]

    def hoist_loops(self, node: Expression, indent: str, lines: list[str]) -> Expression:
        """Compute repeated children inside a value first, however deep: a loop is a statement.

        Args:
            lines: takes the statements.
        """

        def hoist(part: Expression) -> Expression:
            inner = self.hoist_loops(part, indent, lines)
            if not (isinstance(inner, LayerCall) and self.repeats(inner)):
                return inner
            name = self.fresh()
            lines.extend(self.loop(name, inner, indent))
            return Identifier(name)

        return _with_parts(node, hoist)

    def repeats(self, call: LayerCall) -> bool:
        """Whether a call is of a repeated child, and so a loop."""
        return self.children[call.layer].repeat is not None

    def loop(self, target: str, call: LayerCall, indent: str) -> list[str]:
        """The loop over a repeated child."""
        self.locals.add(target)
        item = self.fresh("layer")
        first, *others = call.args
        lines: list[str] = []
        for i, other in enumerate(others):  # evaluated once, before the target changes
            if other == Identifier(target) or not isinstance(other, Identifier | Literal):
                name = self.fresh()
                others[i] = Identifier(name)
                lines += self.statement(Assignment(name, other), indent)
        if first != Identifier(target):
            lines += self.statement(Assignment(target, first), indent)
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
                return number(value)
            case Tuple(items):
                return Items(tuple(self.text(item) for item in items))
            case UnaryOp(operator, operand):
                # two signs in a row would read like a decrement, and ** is easy to misread
                return f"{operator}{self.operand(operand, BINARY['**'] + 1)}"
            case BinaryOp(operator, left, right):
                level = BINARY[operator]
                # ** groups to the right, all others to the left
                first = self.operand(left, level + (operator == "**"))
                second = self.operand(right, level + (operator != "**"))
                space = "" if operator == "**" and _is_simple(left) and _is_simple(right) else " "
                return f"{first}{space}{operator}{space}{second}"
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
            case Literal() if text.startswith("-"):
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
        head, breaks = spelling, True
        if spelling.startswith("."):
            receiver = given[params.pop(0).name]
            head = f"{self.operand(receiver, _ATOM)}{spelling}"
            breaks = isinstance(receiver, Identifier)
        args: list[Text] = []
        named = False
        for param in params:
            if param.name not in given or given[param.name] == Literal(param.default):
                named = True  # what follows a gap needs its name
                continue
            value = self.argument(param, given[param.name])
            named = named or param.keyword
            args.append(Keyword(torch_name(op.name, param.name), value) if named else value)
        return Call(head, tuple(args), breaks)

    def argument(self, param: OpParam, value: Expression) -> Text:
        if param.kind == "dtype" and isinstance(value, Literal):
            return f"torch.{value.value}"
        if isinstance(value, Literal) and isinstance(value.value, str):
            return f'"{value.value}"'
        return self.text(value)


def number(value: object) -> str:
    """A number, bool or None as ruff would write it."""
    return repr(value).replace("e+", "e")


def _is_simple(node: Expression) -> bool:
    """Whether ruff hugs ``**`` beside an operand: a name, or a number without a sign."""
    if isinstance(node, Literal):
        return not number(node.value).startswith("-")
    return isinstance(node, Identifier)


def _with_parts(node: Expression, change: Callable[[Expression], Expression]) -> Expression:
    """A value with each of its direct parts changed, first to last."""
    match node:
        case UnaryOp(operator, operand):
            return UnaryOp(operator, change(operand))
        case BinaryOp(operator, left, right):
            return BinaryOp(operator, change(left), change(right))
        case FunctionCall(function, args, kwargs):
            return FunctionCall(function, args, [(name, change(part)) for name, part in kwargs])
        case LayerCall(layer, args):
            return LayerCall(layer, [change(part) for part in args])
        case Tuple(items):
            return Tuple([change(item) for item in items])
        case _:
            return node


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
