"""Lowered expressions and statements → text."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace

from tpack.codegen.printer import (
    INDENT,
    WIDTH,
    Call,
    Items,
    Keyword,
    Pairs,
    Text,
    TooLongError,
    in_parentheses,
    lay_out,
)
from tpack.layerdef import (
    Assignment,
    BinaryOp,
    Dict,
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
    Unpack,
)
from tpack.layerdef.caches import gives_cache
from tpack.layerdef.names import is_position
from tpack.layerdef.ops import BINARY, COMPARISON, OPS, PACKED_OPS, UNARY, OpParam
from tpack.layerdef.walking import parts, with_part, with_parts

#: Binds tighter than any operator.
_ATOM = 10


class ExpressionPrinter:
    """Prints the body of one forward.

    Attributes:
        stored: names of stored tensors, which are attributes of self.
        used: spellings printed so far, for the imports.
        locals: names that are taken.
        caches: those of them that are caches.
    """

    def __init__(
        self,
        stored: set[str],
        children: dict[str, Param],
        names: set[str],
        caches: Collection[str] = (),
    ) -> None:
        self.stored = stored
        self.children = children
        self.locals = names
        self.caches = set(caches)
        self.used: set[str] = set()

    # ---- statements

    def statement(self, statement: Statement, indent: str) -> list[str]:
        """Return the lines of one statement; one that does not fit is computed in steps."""
        assert isinstance(statement, Assignment | Unpack | Return)
        earlier: list[str] = []
        value = self.hoist_loops(statement.value, indent, earlier)
        if isinstance(value, LayerCall) and self.repeats(value):
            returns = isinstance(statement, Return)
            assert not isinstance(statement, Unpack)
            target = self.fresh() if returns else statement.target  # type: ignore[union-attr]
            looped = self.loop(target, value, indent)
            return [*earlier, *looped, *[f"{indent}return {target}"] * returns]
        if isinstance(statement, Return):
            before = "return "
        elif isinstance(statement, Unpack):
            self.locals |= set(statement.targets)
            before = f"{', '.join(statement.targets)} = "
        else:
            self.locals.add(statement.target)
            if gives_cache(value, self.caches):
                self.caches.add(statement.target)
            before = f"{statement.target} = "
        try:
            bare = isinstance(statement, Return) and isinstance(value, Tuple)
            text = self.text(value)
            if bare and isinstance(text, Items) and len(text.items) > 1:
                text = replace(text, bare=True)
            return [*earlier, *lay_out(text, indent, before)]
        except TooLongError:
            return [*earlier, *self.in_steps(replace(statement, value=value), indent, before)]

    def in_steps(
        self, statement: Assignment | Unpack | Return, indent: str, before: str
    ) -> list[str]:
        """Compute the largest part of a value in a statement of its own, then the rest."""
        whole = statement.value
        found = dict(_parts(whole))
        if not found:  # names alone are too long
            return self.broken(whole, indent, before)
        path = max(found, key=lambda path: len(str(self.text(found[path]))))
        name = self.fresh()
        first = self.statement(Assignment(name, found[path]), indent)
        rest = replace(statement, value=with_part(whole, path, Identifier(name)))
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

        return with_parts(node, hoist)

    def repeats(self, call: LayerCall) -> bool:
        """Return whether a call is of a repeated child, and so a loop."""
        return self.children[call.layer].repeat is not None

    def loop(self, target: str, call: LayerCall, indent: str) -> list[str]:
        """Return the lines of a loop over a repeated child."""
        self.locals.add(target)
        first, *others = call.args
        caches = [gives_cache(other, self.caches) for other in others]
        item, index = self.fresh("layer"), self.fresh("i") if any(caches) else ""
        lines: list[str] = []
        for i, other in enumerate(others):  # evaluated once, before the target changes
            if other == Identifier(target) or not isinstance(other, Identifier | Literal):
                name = self.fresh()
                others[i] = Identifier(name)
                lines += self.statement(Assignment(name, other), indent)
        if first != Identifier(target):
            lines += self.statement(Assignment(target, first), indent)
        texts = [self.text(arg) for arg in others]
        parts_ = [
            f"{text}.layer({index})" if cache else text
            for text, cache in zip(texts, caches, strict=True)
        ]
        text = Call(item, (target, *parts_))
        over = self.child(call.layer)
        head = f"{index}, {item} in enumerate({over})" if index else f"{item} in {over}"
        lines.append(f"{indent}for {head}:")
        return [*lines, *lay_out(text, indent + INDENT, f"{target} = ")]

    def fresh(self, stem: str = "value") -> str:
        """Return a name that is not taken, and take it."""
        name, number = stem, 1
        while name in self.locals or name in self.stored:
            number += 1
            name = f"{stem}{number}"
        self.locals.add(name)
        return name

    # ---- expressions

    def text(self, node: Expression) -> Text:
        """Return the text of a value."""
        match node:
            case Identifier(name) if "." in name:
                return self.child(name)
            case Identifier(name):
                return f"self.{name}" if name in self.stored else name
            case Literal(value):
                return number(value)
            case Tuple(items):
                return Items(tuple(self.text(item) for item in items))
            case Dict(pairs):
                return Pairs(tuple((name, self.text(item)) for name, item in pairs))
            case UnaryOp(operator, operand):
                # two signs in a row would read like a decrement, and ** is easy to misread
                return f"{operator}{self.operand(operand, BINARY['**'] + 1)}"
            case BinaryOp(operator, left, right):
                level = BINARY[operator]
                # ** groups to the right, all others to the left
                first = self.operand(left, level + (operator == "**" or operator in COMPARISON))
                second = self.operand(right, level + (operator != "**"))
                space = "" if operator == "**" and _is_simple(left) and _is_simple(right) else " "
                return f"{first}{space}{operator}{space}{second}"
            case FunctionCall():
                return self.call(node)
            case LayerCall(layer, args):
                return Call(self.child(layer), tuple(self.text(arg) for arg in args))

    def operand(self, node: Expression, level: int) -> str:
        """Return an operand, in parentheses if it binds less than ``level``."""
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
        """Return the text that reaches a child from self."""
        parts = (f"[{part}]" if is_position(part) else f".{part}" for part in name.split("."))
        return f"self{''.join(parts)}"

    def call(self, node: FunctionCall) -> Text:
        op = OPS.get(node.function) or PACKED_OPS[node.function]
        given = dict(node.kwargs)
        if op.spelling in ("[]", "[:]"):
            inside = self.slice(given) if op.spelling == "[:]" else self.indices(given)
            return f"{self.operand(given['x'], _ATOM)}[{inside}]"
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
            args.append(Keyword(param.torch_name, value) if named else value)
        return Call(head, tuple(args), breaks)

    def indices(self, given: dict[str, Expression]) -> str:
        """Return the text between the brackets of an op that indexes."""
        indices = given["indices"]
        assert isinstance(indices, Tuple)
        return ", ".join(str(self.text(item)) for item in indices.items)

    def slice(self, given: dict[str, Expression]) -> str:
        """Return the text between the brackets of an op that slices."""
        dim = given["dim"]
        assert isinstance(dim, Literal)
        assert isinstance(dim.value, int)
        start, end, step = (
            "" if given.get(name, free) in (free, Literal(None)) else self.bound(given[name])
            for name, free in (("start", Literal(0)), ("end", Literal(None)), ("step", Literal(1)))
        )
        part = f"{start}:{end}:{step}" if step else f"{start}:{end}"
        if dim.value >= 0:
            return ", ".join([*[":"] * dim.value, part])
        return ", ".join(["...", part, *[":"] * (-1 - dim.value)])

    def bound(self, value: Expression) -> str:
        """Return one end of a slice; an operator or a sign stands in parentheses."""
        return self.operand(value, _ATOM)

    def argument(self, param: OpParam, value: Expression) -> Text:
        if param.kind == "layers" and isinstance(value, Literal):
            return self.child(str(value.value))
        if param.kind == "dtype" and isinstance(value, Literal):
            return f"torch.{value.value}"
        if param.kind == "device":
            return f"{self.operand(value, _ATOM)}.device"
        if param.kind == "value" and isinstance(value, Literal) and isinstance(value.value, str):
            return f'float("{value.value}")'
        if isinstance(value, Literal) and isinstance(value.value, str):
            return f'"{value.value}"'
        return self.text(value)


def number(value: object) -> str:
    """Return a number, bool or None as ruff would write it."""
    return repr(value).replace("e+", "e")


def _is_simple(node: Expression) -> bool:
    """Return whether ruff hugs ``**`` beside an operand: a name, or a number without a sign."""
    if isinstance(node, Literal):
        return not number(node.value).startswith("-")
    return isinstance(node, Identifier)


def _parts(
    node: Expression, above: tuple[int, ...] = ()
) -> Iterator[tuple[tuple[int, ...], Expression]]:
    """Yield the parts of a value that may be statements of their own, by their path in it."""
    for i, part in enumerate(parts(node)):
        if isinstance(part, Tuple):
            yield from _parts(part, (*above, i))
        elif not isinstance(part, Identifier | Literal):
            yield (*above, i), part
