"""Names of variables, given last, when it is known how long each variable lives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tpack.capturing.graph import Value
from tpack.capturing.names import free_name, keeps_name, noun, targets
from tpack.layerdef import (
    Assignment,
    Expression,
    FunctionCall,
    Identifier,
    LayerCall,
    Return,
    Statement,
    Tuple,
    Unpack,
)
from tpack.layerdef.walking import identifiers, renamed


def variable(key: Any) -> str:
    """Return the mark that stands for a variable until it has a name; not an identifier."""
    return f"%{id(key) if isinstance(key, Value) else key}"


@dataclass(eq=False)
class Step:
    """A statement whose variables are marks.

    Attributes:
        value: an expression, or the Return.
        marks: the variables that take its results.
        line: of the source.
        names: of the results, if the line has none.
        results: the values behind the marks.
        child: the layer that it calls; None if it calls none.
        alone: whether it is a loop, which cannot stand inside another statement.
    """

    value: Expression | Return
    marks: tuple[str, ...]
    line: str
    names: tuple[str, ...]
    results: tuple[Value, ...] = ()
    child: Any = None
    alone: bool = False


@dataclass
class Body:
    """A finished forward.

    Attributes:
        inputs: names of its arguments, one for each input of the scope.
        statements: of the LayerDef.
        outputs: names of its results; "" for one without a name.
        values: the results of each statement, for their shapes; two bodies that differ only in
            these are equal.
    """

    inputs: list[str]
    statements: list[Statement]
    outputs: tuple[str, ...] = ()
    values: list[tuple[Value | None, ...]] = field(default_factory=list, compare=False)


def name_variables(steps: list[Step], inputs: Mapping[Value, str], taken: set[str]) -> Body:
    """Give the inputs and the variables of statements their names.

    A name may be used again once its variable is not needed any more. Where a line of the
    source takes a name whose variable is still needed, that variable moves to ``residual``.
    """
    return _Namer(steps, inputs, taken).run()


class _Namer:
    def __init__(self, steps: list[Step], inputs: Mapping[Value, str], taken: set[str]) -> None:
        self.steps = steps
        self.taken = taken
        self.last: dict[str, int] = {}
        self.uses: dict[str, set[str]] = {}
        for i, step in enumerate(steps):
            for name in identifiers(
                step.value.value if isinstance(step.value, Return) else step.value
            ):
                if name.startswith("%"):
                    self.last[name] = i
                    self.uses.setdefault(name, set()).add(step.line)
        self.names: dict[str, str] = {}
        self.holders: dict[str, str] = {}
        self.body = Body([], [])
        for value, wish in inputs.items():
            name = free_name(wish, self.taken | set(self.holders))
            self.take(name, variable(value))
            self.body.inputs.append(name)
        self.behind: dict[str, Value | None] = {variable(value): value for value in inputs}
        self.wishes = self.by_lines()

    def by_lines(self) -> dict[str, str]:
        """Return the names that lines of the source give to variables used after them."""
        lines: dict[str, list[str]] = {}
        for step in self.steps:
            for mark in step.marks:
                if step.line and self.uses.get(mark, set()) - {step.line}:
                    lines.setdefault(step.line, []).append(mark)
        wishes: dict[str, str] = {}
        several = {mark for step in self.steps if len(step.marks) > 1 for mark in step.marks}
        for step in self.steps:
            if len(step.marks) > 1 and len(targets(step.line)) == len(step.marks):
                wishes.update(zip(step.marks, targets(step.line), strict=True))
        for line, marks in lines.items():
            names = [name for name in targets(line) if name != "_"]
            if len(names) == 1:
                if marks[-1] not in several:
                    wishes[marks[-1]] = names[0]
            elif len(marks) <= len(names) and not several & set(marks):
                wishes.update(zip(marks, names, strict=False))
        return wishes

    def run(self) -> Body:
        for i, step in enumerate(self.steps):
            if isinstance(step.value, Return):
                value = renamed(step.value.value, self.names)
                self.body.outputs = self.results(step.value.value)
                self.state(Return(value), step.results)
                break
            wishes = [self.choose(step, j, mark, i) for j, mark in enumerate(step.marks)]
            value = renamed(step.value, self.names)
            names = self.settle(wishes, step, i)
            behind = step.results or (None,) * len(names)  # a size is not a Value
            self.behind |= dict(zip(step.marks, behind, strict=True))
            if len(names) == 1:
                self.state(Assignment(names[0], value), behind)
            else:
                used = [mark in self.last for mark in step.marks]
                kept = [name if use else "_" for name, use in zip(names, used, strict=True)]
                told = [one if use else None for one, use in zip(behind, used, strict=True)]
                self.state(Unpack(kept, value), told)
        return self.body

    def state(self, statement: Statement, values: Sequence[Value | None]) -> None:
        """Add a statement, with its results."""
        self.body.statements.append(statement)
        self.body.values.append(tuple(values))

    def choose(self, step: Step, position: int, mark: str, index: int) -> tuple[str, bool]:
        """Choose a name for a result; return also whether the source gave it."""
        wish = self.wishes.get(mark)
        if wish == "_":
            wish = None
        if (
            wish is not None
            and len(step.marks) > 1
            and len(set(self.marks_wishes(step))) < len(step.marks)
        ):
            wish = None  # one name of the source for several results
        given = wish is not None
        if wish is None:
            wish = step.names[position] if position < len(step.names) else ""
            wish = wish or self.going_on(step, index) or self.by_kind(step, position)
        if wish in self.taken:
            wish = f"{wish.removesuffix('_proj')}_out" if wish.endswith("_proj") else f"{wish}_out"
        return wish, given

    def going_on(self, step: Step, index: int) -> str:
        """Return the name of the first argument of a loop, if that is not needed later; else ""."""
        first = step.value.args[0] if isinstance(step.value, LayerCall) else None
        if not step.alone or not isinstance(first, Identifier):
            return ""
        return self.names.get(first.name, "") if self.last[first.name] == index else ""

    def marks_wishes(self, step: Step) -> list[str]:
        return [self.wishes.get(mark, mark) for mark in step.marks]

    def by_kind(self, step: Step, position: int) -> str:
        if step.child is not None:
            parts = [part for part in step.child.name.split(".") if not part.isdigit()]
            return parts[-1].removesuffix("_proj") if parts else "hidden"
        inner = step.value
        while isinstance(inner, FunctionCall) and keeps_name(inner.function):
            inner = inner.args[0]
            if isinstance(inner, Identifier) and inner.name in self.names:
                return self.names[inner.name]
        return noun(step.results[position]) if step.results else "hidden"

    def settle(self, wishes: list[tuple[str, bool]], step: Step, index: int) -> list[str]:
        """Give the results their names, moving variables that are still needed."""
        names: list[str] = []
        for mark, (wish, given) in zip(step.marks, wishes, strict=True):
            fresh = set(names)
            holder = self.holders.get(wish)
            busy = holder is not None and self.last.get(holder, -1) > index
            if busy and given and wish not in fresh and holder is not None:
                # it moves before the step, which may still need the variables of other names
                other = free_name("residual", self.taken | self.live(index - 1) | fresh)
                self.state(Assignment(other, Identifier(wish)), [self.behind.get(holder)])
                self.take(other, holder)
                name = wish
            else:
                name = free_name(wish, self.taken | self.live(index) | fresh)
            names.append(name)
            self.take(name, mark)
        return names

    def live(self, index: int) -> set[str]:
        """Return the names whose variables are needed after a step."""
        return {name for name, mark in self.holders.items() if self.last.get(mark, -1) > index}

    def take(self, name: str, mark: str) -> None:
        old = self.names.get(mark)
        if old is not None and self.holders.get(old) == mark:
            del self.holders[old]
        self.names[mark] = name
        self.holders[name] = mark

    def results(self, value: Expression) -> tuple[str, ...]:
        """Return the names of the results; "" for one without a name."""
        items = value.items if isinstance(value, Tuple) else (value,)
        return tuple(
            self.names.get(item.name, "") if isinstance(item, Identifier) else "" for item in items
        )
