"""The statements of one forward: which values get a name, and which stand inside others.

A person's source has one statement for each step. Where the lines of the original are known,
what one line computed stays one statement, under the name that the line gave it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sympy

from tpack.capturing.annotations import Annotations, SizeNames
from tpack.capturing.expressions import expression, size_expression
from tpack.capturing.graph import INPUT, ITEM, Size, Value, values_in
from tpack.capturing.names import KEEPERS, free_name, targets
from tpack.capturing.scopes import MAKERS, Scope
from tpack.capturing.variables import Step, name_variables, variable
from tpack.layerdef import (
    BinaryOp,
    Dict,
    Expression,
    FunctionCall,
    Identifier,
    LayerCall,
    Literal,
    Return,
    Statement,
    Tuple,
    UnaryOp,
)
from tpack.layerdef.ops import OPS
from tpack.layerdef.walking import parts

#: Columns that a statement may take where it cannot break over lines, and where it can.
_WIDE = 150
#: Columns of a statement that stands in a forward.
_COLUMNS = 80


@dataclass(frozen=True)
class Child:
    """A layer inside a layer.

    Attributes:
        name: of its parameter.
        inputs: values of the call, in the order of its forward.
        outputs: what it calls its results.
    """

    name: str
    inputs: tuple[Value, ...]
    outputs: tuple[str, ...]


@dataclass(eq=False)
class Item:
    """Something that is computed in one step: an op, a call of a child, or a loop of calls."""

    results: list[Value]
    uses: list[Value]
    line: str
    child: Child | None = None
    value: Value | None = None
    alone: bool = False


@dataclass
class Body:
    """A finished forward.

    Attributes:
        inputs: names of its arguments, one for each input of the scope.
        statements: of the LayerDef.
        outputs: what its results are called.
        notes: the shapes; forwards that differ in nothing else are equal.
    """

    inputs: list[str]
    statements: list[Statement]
    outputs: tuple[str, ...] = ()
    notes: Annotations = field(default=Annotations(), compare=False)


def write_body(
    scope: Scope,
    items: Sequence[Item],
    result: Any,
    taken: set[str],
    sizes: Mapping[sympy.Symbol, str],
) -> Body:
    """Write the statements of a scope.

    Args:
        items: what it computes, in order.
        result: what it returns: a value, or a tuple or dict of results.
        taken: names of its parameters.
        sizes: names of the free sizes.
    """
    return _Writer(scope, items, result, taken, sizes).write()


class _StandsAloneError(Exception):
    """A part must be a statement of its own."""

    def __init__(self, item: Item) -> None:
        super().__init__()
        self.item = item


class _Writer:
    def __init__(
        self,
        scope: Scope,
        items: Sequence[Item],
        result: Any,
        taken: set[str],
        sizes: Mapping[sympy.Symbol, str],
    ) -> None:
        self.scope = scope
        self.items = list(items)
        self.result = result
        self.taken = taken
        self.sizes = sizes
        self.home = {value: item for item in items for value in item.results}
        self.users: dict[Value, list[Item | None]] = {}
        for item in items:
            for value in item.uses:
                self.users.setdefault(value, []).append(item)
        for value in values_in(result):
            self.users.setdefault(value, []).append(None)
        self.inlined = {item for item in self.items if self.may_stand_inside(item)}
        self.guesses = {variable(value): self.input_name(value) for value in scope.inputs}
        for item in items:
            names = [name for name in targets(item.line) if name != "_"]
            for i, value in enumerate(item.results):
                several = item.child.outputs if item.child and len(item.results) > 1 else ()
                wish = several[i] if i < len(several) else names[0] if len(names) == 1 else ""
                self.guesses[variable(value)] = wish or self.guess(value)
        self.asked: dict[Size, int] = {}
        self.sized: dict[Size, Expression] = {}
        self.seen: list[Value] = []

    def guess(self, value: Value) -> str:
        """What a value that no line names may be called, for its length."""
        while variable(value) not in self.guesses and value.op in KEEPERS:
            value = value.args["x"]
        return self.guesses.get(variable(value), "hidden")

    def may_stand_inside(self, item: Item) -> bool:
        """Whether an item is part of the statement that uses it."""
        if len(item.results) != 1 or item.alone:
            return False
        users = self.users.get(item.results[0], [])
        if len(users) != 1:
            return False
        if users[0] is None:
            return len(list(values_in(self.result))) == 1
        user = users[0]
        if _is_keeper(item) and _is_keeper(user):
            return True
        if not item.line or not user.line:
            return not item.line and not (item.child and user.child)
        both = item.child is not None and user.child is not None
        siblings = both and _container(item.child) == _container(user.child) != ""
        return item.line == user.line and not siblings

    def write(self) -> Body:
        steps = self.settled()
        if any(count > 1 for count in self.asked.values()):  # such sizes get a name
            steps = self.settled()
        inputs = {value: self.input_name(value) for value in self.scope.inputs}
        names, statements, outputs, values = name_variables(steps, inputs, self.taken)
        return Body(names, statements, outputs, self.notes(values))

    def notes(self, values: Sequence[Sequence[Value | None]]) -> Annotations:
        """The shapes of the inputs and of what each statement gives."""
        named = SizeNames(self.sizes)
        return Annotations(
            tuple(named(value.shape) for value in self.scope.inputs),
            tuple(
                tuple(None if value is None else named(value.shape) for value in several)
                for several in values
            ),
        )

    def settled(self) -> list[Step]:
        """The steps, once no statement is too long any more."""
        counts = dict(self.asked)
        while True:
            try:
                return self.steps(counts)
            except _StandsAloneError as error:
                self.inlined.discard(error.item)

    def input_name(self, value: Value) -> str:
        if value.op == INPUT and not self.scope.path:
            return value.name
        wish = value.asked.get(self.scope.path)
        if wish is not None and "." in wish:  # one of several in a tuple
            return self.own_name(value) or wish.replace(".", "_")
        if wish == "input" and self.scope.call.kind.startswith("torch."):
            return "x"
        if wish is None:
            below = (name for path, name in value.asked.items() if self.is_inside(path))
            wish = next(below, "").partition(".")[0]
        return wish or (value.name.rpartition(".")[2] if value.is_leaf else "hidden_states")

    def own_name(self, value: Value) -> str:
        """What the line that computes a value calls it, if it says so."""
        while not (own := targets(value.lines[-1] if value.lines else "")):
            inner = value.args.get("x")
            if value.op not in KEEPERS or not isinstance(inner, Value):
                return ""
            value = inner
        return own[0] if len(own) == 1 else ""

    def is_inside(self, path: str) -> bool:
        return not self.scope.path or path.startswith(f"{self.scope.path}.")

    # ---- statements

    def steps(self, counts: Mapping[Size, int]) -> list[Step]:
        self.asked, self.sized = {}, {}
        self.seen = list(self.scope.inputs)
        steps: list[Step] = self.named_sizes(counts)
        for item in self.items:
            if item not in self.inlined:
                steps.append(self.step(item))
            self.seen += item.results
        value = self.fitting(self.returned, len("return "))
        last = self.home.get(self.result) if isinstance(self.result, Value) else None
        line = last.line if last in self.inlined and last is not None else ""
        steps.append(Step(Return(value), (), line, (), tuple(values_in(self.result))))
        return steps

    def named_sizes(self, counts: Mapping[Size, int]) -> list[Step]:
        """A statement for each size of an input that is used more than once."""
        made = []
        for size, count in counts.items():
            found = self.carrier(size, self.scope.inputs)
            if count > 1 and found is not None and isinstance(size, sympy.Symbol):
                name = free_name(self.sizes.get(size, "size"), self.taken)
                mark = variable(size)
                made.append(Step(found, (mark,), "", (name,)))
                self.sized[size] = Identifier(mark)
        return made

    def step(self, item: Item) -> Step:
        given = [name for name in targets(item.line) if name != "_"] or ["hidden"]
        value = self.fitting(lambda: self.compute(item), len(", ".join(given)) + 3)
        marks = tuple(variable(result) for result in item.results)
        names = item.child.outputs if item.child else ()
        return Step(
            value, marks, item.line, names, tuple(item.results), item.child, alone=item.alone
        )

    def fitting(self, make: Any, before: int) -> Expression:
        """A value, if it fits in a statement; else its widest part must stand alone."""
        self.inside: dict[Item, int] = {}
        value: Expression = make()
        whole, columns = _width(value, self.guesses), _COLUMNS - before
        parts = {item: own for item, own in self.inside.items() if own < whole}
        if _fits(value, columns, self.guesses) or not parts:
            return value
        # the smallest that is enough, else the largest
        enough = [item for item, own in parts.items() if whole - own + 8 <= columns]
        if enough:
            raise _StandsAloneError(min(enough, key=lambda item: parts[item]))
        raise _StandsAloneError(max(parts, key=lambda item: parts[item]))

    def returned(self) -> Expression:
        def build(result: Any) -> Expression:
            if isinstance(result, Value):
                return self.named(result)
            if isinstance(result, dict):
                return Dict([(name, build(item)) for name, item in result.items()])
            return Tuple([build(item) for item in result])

        return build(self.result)

    # ---- expressions

    def named(self, value: Value) -> Expression:
        item = self.home.get(value)
        if item is not None and item in self.inlined:
            made = self.compute(item)
            self.inside[item] = _width(made, self.guesses)
            return made
        if self.scope.owns(value):
            path = self.scope.path
            return Identifier(value.name[len(path) + 1 :] if path else value.name)
        return Identifier(variable(value))

    def compute(self, item: Item) -> Expression:
        if item.child is not None:
            return LayerCall(item.child.name, [self.named(one) for one in item.child.inputs])
        assert item.value is not None
        device = self.device() if item.value.op in MAKERS else None
        return expression(item.value, self.named, self.size, device)

    def size(self, size: Size) -> Expression:
        if isinstance(size, int):
            return Literal(size)
        whole = self.known_size(size)
        if whole is not None:
            return whole
        known = {symbol: self.known_size(symbol) for symbol in size.free_symbols}
        if None in known.values():
            self.give_up_inlining(size)
        return size_expression(size, {k: v for k, v in known.items() if v is not None})

    def give_up_inlining(self, size: Size) -> None:
        """Let a part that has a size stand alone, so that the size can be asked of it."""
        wanted = {size, *getattr(size, "free_symbols", ())}
        for item in self.items:
            if item in self.inlined and wanted & set(item.results[0].shape):
                raise _StandsAloneError(item)

    def known_size(self, size: Size) -> Expression | None:
        found = self.sized.get(size) or self.carrier(size, self.seen)
        if found is not None:
            self.asked[size] = self.asked.get(size, 0) + 1
        return found

    def carrier(self, size: Size, values: Sequence[Value]) -> Expression | None:
        """The size as that of a dim of a value that has it."""
        for value in values:
            item = self.home.get(value)
            if item is not None and item in self.inlined:
                continue
            for dim, own in enumerate(value.shape):
                if own == size:
                    return FunctionCall("size", [Identifier(variable(value)), Literal(dim)])
        return None

    def device(self) -> Expression | None:
        for value in self.seen:
            if self.home.get(value) not in self.inlined and value.op != ITEM:
                return Identifier(variable(value))
        return None


def _is_keeper(item: Item) -> bool:
    """Whether an item gives a thing another shape or dtype: such methods form a chain."""
    return item.value is not None and item.value.op in KEEPERS


def _container(child: Child | None) -> str:
    return "" if child is None else child.name.rpartition(".")[0]


def _width(node: Expression, names: Mapping[str, str]) -> int:
    """About how many columns an expression takes."""
    match node:
        case Identifier(name):
            return len(names.get(name, "hidden")) if name.startswith("%") else len(name) + 5
        case Literal(value):
            return len(str(value))
        case UnaryOp(_, operand):
            return 1 + _width(operand, names)
        case BinaryOp(operator, left, right):
            return _width(left, names) + len(operator) + 2 + _width(right, names)
        case FunctionCall(function, args, kwargs):
            named = sum(len(name) + 1 + _width(value, names) for name, value in kwargs)
            named += 7 * any(name == "device" for name, _ in kwargs)
            inner = named + sum(_width(arg, names) for arg in args)
            commas = 2 * (len(args) + len(kwargs))
            spelling = OPS[function].spelling or function
            return len(spelling) + inner + commas - 2 * spelling.startswith(".")
        case LayerCall(layer, args):
            return len(layer) + 5 + sum(_width(arg, names) + 2 for arg in args)
        case Tuple(items):
            return sum(_width(item, names) + 2 for item in items)
        case Dict(pairs):
            return sum(len(name) + _width(item, names) + 6 for name, item in pairs)


def _breaks(node: Expression) -> bool:
    """Whether an expression may go over several lines."""
    if isinstance(node, FunctionCall):
        spelling = OPS[node.function].spelling
        return not spelling.startswith(".") and spelling != "[]"
    return isinstance(node, LayerCall | Tuple | Dict)


def _fits(node: Expression, columns: int, names: Mapping[str, str]) -> bool:
    """Whether an expression fits, its arguments on lines of their own if need be."""
    if _width(node, names) <= columns:
        return True
    if not _breaks(node) or _width(node, names) > _WIDE:
        return False
    return all(_fits(part, columns - 4, names) for part in parts(node))
