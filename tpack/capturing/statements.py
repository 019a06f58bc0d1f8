"""The statements of one forward: which values get a name, and which stand inside others.

A person's source has one statement for each step. If the lines of the original are known, the
values of one line stay one statement, under the name in that line.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import sympy

from tpack.capturing.expressions import Named, expression, size_expression
from tpack.capturing.graph import INPUT, ITEM, Size, Value, values_in
from tpack.capturing.names import free_name, keeps_name, targets
from tpack.capturing.scopes import Scope, sizes_in
from tpack.capturing.variables import Body, Step, name_variables, variable
from tpack.capturing.widths import fits, width
from tpack.layerdef import (
    Dict,
    Expression,
    FunctionCall,
    Identifier,
    LayerCall,
    Literal,
    Return,
    Tuple,
)

#: Columns of a statement that stands in a forward.
_COLUMNS = 80


@dataclass(frozen=True)
class Child:
    """A layer inside a layer.

    Attributes:
        name: of its parameter.
        inputs: values of the call, in the order of its forward.
        outputs: names of its results.
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


def write_body(
    scope: Scope,
    items: Sequence[Item],
    result: Any,
    taken: set[str],
    sizes: Mapping[sympy.Symbol, str],
) -> Body:
    """Write the statements of a scope.

    Args:
        items: its steps, in order.
        result: a value, or a tuple or dict of results.
        taken: names of its parameters.
        sizes: names of the free sizes.
    """
    return _Writer(scope, items, result, taken, sizes).write()


class _Writer:
    """Decides which items stand inside the statements of others, and what variables are called.

    Attributes:
        inlined: items that are part of the statement that uses them; an item leaves if it is too
            wide, or if another step needs a size of its result.
        guesses: names of variables, about as long as the ones that they will get.
    """

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

    def guess(self, value: Value) -> str:
        """Guess the name of a value that no line names; only its length counts."""
        while variable(value) not in self.guesses and keeps_name(value.op):
            value = value.args["x"]
        return self.guesses.get(variable(value), "hidden")

    def may_stand_inside(self, item: Item) -> bool:
        """Return whether an item may be part of the statement that uses it."""
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
        attempt = self.settled({})
        if any(map(attempt.deserves_name, attempt.asked)):
            attempt = self.settled(attempt.asked)
        inputs = {value: self.input_name(value) for value in self.scope.inputs}
        return name_variables(attempt.steps, inputs, self.taken)

    def settled(self, counts: Mapping[Size, int]) -> _Attempt:
        """Write the statements again until no part of one must stand alone."""
        while True:
            attempt = _Attempt(self, counts)
            apart = attempt.write()
            if apart is None:
                return attempt
            self.inlined.discard(apart)

    def part(self, value: Value) -> Item | None:
        """Return the inlined item that makes a value; None if no inlined item does."""
        item = self.home.get(value)
        return item if item in self.inlined else None

    def parts(self, values: Iterable[Value]) -> Iterator[Item]:
        """Yield the items inside a statement that uses some values."""
        for value in values:
            item = self.part(value)
            if item is not None:
                yield from self.parts(item.uses)
                yield item

    def input_name(self, value: Value) -> str:
        if value.is_cache:
            return value.name or "past"
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
        """Return the name in the line that computes a value; "" if there is none."""
        while not (own := targets(value.lines[-1] if value.lines else "")):
            inner = value.args.get("x")
            if not keeps_name(value.op) or not isinstance(inner, Value):
                return ""
            value = inner
        return own[0] if len(own) == 1 else ""

    def is_inside(self, path: str) -> bool:
        return not self.scope.path or path.startswith(f"{self.scope.path}.")


class _Attempt:
    """The statements of a forward, as long as each part fits where the writer puts it.

    Args:
        counts: how often each size is used, from an earlier attempt; empty in the first.

    Attributes:
        steps: the statements so far.
        known: size → the expression that gives it.
        device: a tensor on the device of the forward.
        asked: how often each size was used.
    """

    def __init__(self, writer: _Writer, counts: Mapping[Size, int]) -> None:
        self.writer = writer
        self.steps: list[Step] = []
        self.known: dict[Size, Expression] = {}
        self.device: Expression | None = None
        self.asked: Counter[Size] = Counter()
        self.see(writer.scope.inputs)
        self.asked.update(counts)
        named = [size for size in counts if self.deserves_name(size)]
        self.asked.clear()
        for size in named:
            if size in self.known and isinstance(size, sympy.Symbol):
                name = free_name(writer.sizes.get(size, "size"), writer.taken)
                self.steps.append(Step(self.known[size], (variable(size),), "", (name,)))
                self.known[size] = Identifier(variable(size))

    def deserves_name(self, size: Size) -> bool:
        """Return whether a size gets a variable: one that is used twice, or that will change."""
        known = self.known.get(size)
        past = isinstance(known, FunctionCall) and known.function == "cache_length"
        return past or self.asked[size] > 1

    def see(self, values: Iterable[Value]) -> None:
        """Note the sizes and the device of values that have a name."""
        for value in values:
            tensor = Identifier(variable(value))
            if value.is_cache:
                self.known.setdefault(value.shape[0], FunctionCall("cache_length", [tensor]))
                continue
            for dim, size in enumerate(value.shape):
                if not isinstance(size, int):
                    self.known.setdefault(size, FunctionCall("size", [tensor, Literal(dim)]))
            if self.device is None and value.op != ITEM:
                self.device = tensor

    def write(self) -> Item | None:
        """Write the statements; stop at an item that must stand alone, and return it."""
        writer = self.writer
        for item in writer.items:
            if item in writer.inlined:
                continue
            given = [name for name in targets(item.line) if name != "_"] or ["hidden"]
            inside = [*writer.parts(item.uses), item]
            columns = _COLUMNS - len(", ".join(given)) - 3
            made = self.fitting(partial(self.compute, item), inside, columns)
            if isinstance(made, Item):
                return made
            marks = tuple(variable(result) for result in item.results)
            names = item.child.outputs if item.child else ()
            results = tuple(item.results)
            self.steps.append(
                Step(made, marks, item.line, names, results, item.child, alone=item.alone)
            )
            self.see(results)
        inside = list(writer.parts(values_in(writer.result)))
        made = self.fitting(partial(_returned, writer.result), inside, _COLUMNS - len("return "))
        if isinstance(made, Item):
            return made
        last = writer.part(writer.result) if isinstance(writer.result, Value) else None
        line = "" if last is None else last.line
        self.steps.append(Step(Return(made), (), line, (), tuple(values_in(writer.result))))
        return None

    def fitting(
        self, make: Callable[[Named], Expression], items: Sequence[Item], columns: int
    ) -> Expression | Item:
        """Make the value of a statement, or return an item that must stand alone first.

        Args:
            make: makes the value, given a function from operands to expressions.
            items: the steps in the statement, in order.
            columns: how many the value may take.
        """
        if (apart := self.asked_of(items)) is not None:
            return apart
        inside: dict[Item, int] = {}
        guesses = self.writer.guesses

        def named(value: Value) -> Expression:
            item = self.writer.part(value)
            if item is None:
                return self.reference(value)
            made = self.compute(item, named)
            inside[item] = width(made, guesses)
            return made

        value = make(named)
        whole = width(value, guesses)
        parts = {item: own for item, own in inside.items() if own < whole}
        if fits(value, columns, guesses) or not parts:
            return value
        # the smallest part that makes room enough, else the largest
        enough = {item: own for item, own in parts.items() if whole - own + 8 <= columns}
        return min(enough, key=parts.__getitem__) if enough else max(parts, key=parts.__getitem__)

    def asked_of(self, items: Iterable[Item]) -> Item | None:
        """Find an inlined item whose result has a size that other items need and none gives."""
        for item in items:
            for size in sizes_in(item.value.args) if item.value is not None else ():
                if size in self.known or size.free_symbols <= self.known.keys():
                    continue
                wanted = {size, *size.free_symbols}
                for other in self.writer.items:
                    if other in self.writer.inlined and wanted & {*other.results[0].shape}:
                        return other
        return None

    # ---- expressions

    def reference(self, value: Value) -> Expression:
        scope = self.writer.scope
        if scope.owns(value):
            return Identifier(value.name[len(scope.path) + 1 :] if scope.path else value.name)
        return Identifier(variable(value))

    def compute(self, item: Item, named: Named) -> Expression:
        if item.child is not None:
            return LayerCall(item.child.name, [named(one) for one in item.child.inputs])
        assert item.value is not None
        return expression(item.value, named, self.size, self.device)

    def size(self, size: Size) -> Expression:
        symbols = sorted(getattr(size, "free_symbols", ()), key=str)
        needed = [size] if size in self.known else symbols
        known = {one: self.known[one] for one in needed if one in self.known}
        self.asked.update(known.keys())
        return size_expression(size, known, self.writer.scope.path)


def _returned(result: Any, named: Named) -> Expression:
    """Return the expression for a value, or for a tuple or dict of results."""
    if isinstance(result, Value):
        return named(result)
    if isinstance(result, dict):
        return Dict([(name, _returned(item, named)) for name, item in result.items()])
    return Tuple([_returned(item, named) for item in result])


def _is_keeper(item: Item) -> bool:
    """Return whether an item only changes shape or dtype: its method may be chained."""
    return item.value is not None and keeps_name(item.value.op)


def _container(child: Child | None) -> str:
    return "" if child is None else child.name.rpartition(".")[0]
