"""The graph between torch.export and LayerDefs: values, and the module calls they belong to.

A value names the op of LayerDef that makes it, and the values it is made from. Sizes are integers
or sympy expressions over the free sizes of the inputs; they are not values.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import sympy
import torch

#: An integer, or a sympy expression over the free sizes of the inputs.
Size: TypeAlias = Any
#: An argument of a value: values, sizes, numbers, words, None and tuples of these.
Arg: TypeAlias = Any

#: Ops of values that the table of LayerDef does not name.
INPUT, STORED, CONSTANT, ITEM = "input", "stored", "constant", "item"
#: The cache of keys and values that forward takes: its only size is the length of the past.
CACHE = "cache"


@dataclass(frozen=True)
class Call:
    """One call of a module.

    Attributes:
        path: of the module, such as ``model.layers.0``; empty for the root.
        number: 0 for the first call of it, and so on.
        kind: its class, with the module that defines it.
    """

    path: str
    number: int
    kind: str

    @property
    def class_name(self) -> str:
        """Name of the class of the module."""
        return self.kind.rpartition(".")[2]


@dataclass(eq=False)
class Value:
    """One tensor of the graph, or several as one result.

    Attributes:
        op: of LayerDef, an operator, a word of ``aten.PSEUDO``, or one of the above.
        args: by the names of the op's parameters; x and y for an operator.
        shape: its sizes.
        dtype: as torch calls it.
        calls: the module calls it is computed in, the root first.
        lines: the source line of each of these calls, where it is known.
        name: of an input, a stored tensor or a constant.
        data: of a constant.
        asked: its names in calls of modules: path of the module → argument; and ``>`` with the
            path → its position in the result of the module.
    """

    op: str
    args: dict[str, Arg]
    shape: tuple[Size, ...]
    dtype: torch.dtype
    calls: tuple[Call, ...] = ()
    lines: tuple[str, ...] = ()
    name: str = ""
    data: torch.Tensor | None = None
    asked: dict[str, str] = field(default_factory=dict)

    def like(self, op: str, args: dict[str, Arg], **changes: Any) -> Value:
        """Make another value in the place of this one."""
        given: dict[str, Any] = {"shape": self.shape, "dtype": self.dtype}
        given |= {"asked": dict(self.asked)} | changes
        return Value(op, args, calls=self.calls, lines=self.lines, **given)

    @property
    def is_leaf(self) -> bool:
        """Whether no op computes it."""
        return self.op in (INPUT, STORED, CONSTANT, CACHE)

    @property
    def is_cache(self) -> bool:
        """Whether it is a cache of keys and values, or the part of one layer, and no tensor."""
        return self.op in (CACHE, "cache_layer")


@dataclass
class Graph:
    """A computation in order.

    Attributes:
        inputs: the arguments of the root.
        values: computed ones; each after those it is made from.
        result: of the root: a value, or a tuple or dict of results.
        stored: tensors of the state dict by name, aliases left out.
        aliases: other names of stored tensors.
        kinds: classes of the modules by path.
        sizes: names of the free sizes.
    """

    inputs: list[Value]
    values: list[Value]
    result: Any
    stored: dict[str, torch.Tensor]
    buffers: frozenset[str]
    kinds: dict[str, str]
    sizes: dict[sympy.Symbol, str]
    aliases: dict[str, str] = field(default_factory=dict)

    def rewrite(self, change: Callable[[Value], Value | None]) -> bool:
        """Replace values, in order; ``change`` gets each with its arguments already replaced.

        The value that ``change`` returns replaces it from then on; new values that it is made
        from are put before it.

        Returns:
            Whether a value was replaced.
        """
        known: dict[Value, Value] = {}
        done: dict[Value, None] = {}

        def renew(arg: Arg) -> Arg:
            return map_values(arg, lambda value: known.get(value, value))

        def place(value: Value) -> None:
            if value.is_leaf or value in done:
                return
            for part in values_in(tuple(value.args.values())):
                place(part)
            done[value] = None

        for value in self.values:
            value.args = {name: renew(arg) for name, arg in value.args.items()}
            new = change(value)
            if new is not None and new is not value:
                known[value] = new
                for path, argument in value.asked.items():
                    new.asked.setdefault(path, argument)
                place(new)
            else:
                done[value] = None
        self.result = renew(self.result)
        self.values = list(done)
        self.prune()
        return bool(known)

    def merge_equal(self) -> None:
        """Merge values that one module call computes twice."""
        first: dict[Hashable, Value] = {}

        def merged(value: Value) -> Value:
            return first.setdefault((value.op, value.calls, value.dtype, _key(value.args)), value)

        self.rewrite(merged)

    def prune(self) -> None:
        """Drop values that nothing uses."""
        used = set(values_in(self.result))
        kept = []
        for value in reversed(self.values):
            if value in used:
                used.update(values_in(tuple(value.args.values())))
                kept.append(value)
        self.values = kept[::-1]

    def users(self) -> dict[Value, list[Value]]:
        """Return the values that are made from each value."""
        found: dict[Value, list[Value]] = {}
        for value in self.values:
            for part in dict.fromkeys(values_in(tuple(value.args.values()))):
                found.setdefault(part, []).append(value)
        return found


def values_in(arg: Arg) -> Iterator[Value]:
    """Yield the values in an argument."""
    if isinstance(arg, Value):
        yield arg
    elif isinstance(arg, dict):
        yield from values_in(tuple(arg.values()))
    elif isinstance(arg, Sequence) and not isinstance(arg, str):
        for item in arg:
            yield from values_in(item)


def map_values(arg: Arg, change: Callable[[Value], Arg]) -> Arg:
    """Change the values in an argument."""
    if isinstance(arg, Value):
        return change(arg)
    if isinstance(arg, tuple | list):
        return tuple(map_values(item, change) for item in arg)
    if isinstance(arg, dict):
        return {name: map_values(item, change) for name, item in arg.items()}
    return arg


def _key(arg: Arg) -> Hashable:
    """Return a key that equal arguments share."""
    if isinstance(arg, dict):
        return tuple((name, _key(item)) for name, item in sorted(arg.items()))
    if isinstance(arg, tuple):
        return tuple(map(_key, arg))
    return id(arg) if isinstance(arg, Value) else (type(arg), arg)


def same_size(first: Size, second: Size) -> bool:
    """Return whether two sizes are equal whatever the free sizes are."""
    return bool(first == second or sympy.sympify(first - second).expand() == 0)


def same_sizes(first: Sequence[Size], second: Sequence[Size]) -> bool:
    """Return whether two shapes are equal whatever the free sizes are."""
    return len(first) == len(second) and all(map(same_size, first, second))
