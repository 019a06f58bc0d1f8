"""The module calls of a graph that become calls of layers, with their inputs and outputs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field

import sympy

from tpack.capturing.graph import (
    CONSTANT,
    INPUT,
    STORED,
    Arg,
    Call,
    Graph,
    Size,
    Value,
    values_in,
)
from tpack.capturing.torch_export import RESULT
from tpack.layerdef.ops import takes_device

#: Values that a module without tensors must compute to be a layer of its own.
_WORTH = 4


@dataclass(eq=False)
class Scope:
    """One call of a module that is a layer.

    Attributes:
        calls: the call and those around it, the root first.
        items: its own values and the calls inside it, in order.
        inputs: values from outside, in the order of use.
        outputs: values that are used outside.
    """

    calls: tuple[Call, ...]
    items: list[Value | Scope] = field(default_factory=list)
    inputs: list[Value] = field(default_factory=list)
    outputs: list[Value] = field(default_factory=list)

    @property
    def call(self) -> Call:
        """The call itself."""
        return self.calls[-1]

    @property
    def path(self) -> str:
        """Path of the module."""
        return self.call.path

    def owns(self, value: Value) -> bool:
        """Return whether a tensor is stored in the module or below it."""
        inside = not self.path or value.name.startswith(f"{self.path}.")
        return value.op in (STORED, CONSTANT) and inside

    def values(self) -> Iterable[Value]:
        """Yield all values computed inside."""
        for item in self.items:
            if isinstance(item, Scope):
                yield from item.values()
            else:
                yield item


class NoLayerError(Exception):
    """A module cannot be one layer: its calls are to be written out where they happen.

    They compute different things, or need results of each other.

    Attributes:
        path: of the module.
    """

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.path = path


def make_scopes(graph: Graph, dissolved: Collection[str] = ()) -> Scope:
    """Make the scope of the root, with those inside it.

    Args:
        dissolved: paths of modules whose calls are written out where they happen.

    Raises:
        NoLayerError: calls of one module need results of each other.
    """
    keep = _kept(graph, dissolved)
    root_call = next((v.calls[0] for v in graph.values if v.calls), Call("", 0, "Model"))
    root = Scope((root_call,))
    scopes: dict[tuple[Call, ...], Scope] = {root.calls: root}
    for value in graph.values:
        calls = tuple(call for i, call in enumerate(value.calls) if i == 0 or keep(value, i))
        for depth in range(2, len(calls) + 1):
            if calls[:depth] not in scopes:
                scope = Scope(calls[:depth])
                scopes[calls[:depth]] = scope
                scopes[calls[: depth - 1]].items.append(scope)
        scopes[calls or root.calls].items.append(value)
    _order(root)
    _connect(root, graph)
    return root


def _kept(graph: Graph, dissolved: Collection[str]) -> Callable[[Value, int], bool]:
    """Return a test of which calls become layers: those of modules with tensors or much work."""
    used = {
        part.name
        for value in graph.values
        for part in values_in(tuple(value.args.values()))
        if part.op == CONSTANT
    }
    owners: set[str] = set()
    for name in (*graph.stored, *used):
        parts = name.split(".")
        owners |= {".".join(parts[:i]) for i in range(1, len(parts))}
    counts: dict[Call, int] = {}
    for value in graph.values:
        for call in value.calls:
            counts[call] = counts.get(call, 0) + 1

    def keep(value: Value, position: int) -> bool:
        call = value.calls[position]
        if call.path in dissolved or (call.path not in owners and counts[call] < _WORTH):
            return False
        above = [c for i, c in enumerate(value.calls[:position]) if i == 0 or keep(value, i)]
        parent = above[-1].path
        return call.path.startswith(f"{parent}.") if parent else bool(call.path)

    return keep


def _order(scope: Scope) -> None:
    """Put the items in an order in which each comes after what it needs."""
    home = {value: item for item in scope.items for value in _inside(item)}
    done: dict[Value | Scope, None] = {}
    waiting: set[Value | Scope] = set()

    def place(item: Value | Scope) -> None:
        if item in done:
            return
        if item in waiting:
            assert isinstance(item, Scope)
            raise NoLayerError(item.path)
        waiting.add(item)
        for value in _inside(item):
            for part in values_in(tuple(value.args.values())):
                if part in home and home[part] is not item:
                    place(home[part])
        waiting.discard(item)
        done[item] = None

    for item in scope.items:
        if isinstance(item, Scope):
            _order(item)
        place(item)
    scope.items = list(done)


def _inside(item: Value | Scope) -> Iterable[Value]:
    return item.values() if isinstance(item, Scope) else (item,)


def _connect(root: Scope, graph: Graph) -> None:
    """Find the inputs and outputs of each scope."""
    users = graph.users()
    returned = set(values_in(graph.result))
    everything = [*graph.inputs, *graph.values]

    def visit(scope: Scope) -> set[Value]:
        inside: set[Value] = set()
        needed: dict[Value, None] = {}
        for item in scope.items:
            if isinstance(item, Scope):
                inside |= visit(item)
                needed.update(dict.fromkeys(item.inputs))
            else:
                inside.add(item)
                needed.update(dict.fromkeys(values_in(tuple(item.args.values()))))
        needed = {value: None for value in needed if value not in inside and not scope.owns(value)}
        for value in _carriers(scope, list(needed), everything):
            needed[value] = None
        scope.inputs = list(needed)
        scope.outputs = [
            value
            for item in scope.items
            for value in (item.outputs if isinstance(item, Scope) else [item])
            if value in returned or any(user not in inside for user in users.get(value, []))
        ]
        key = f"{RESULT}{scope.path}"
        scope.outputs.sort(key=lambda value: int(value.asked.get(key, 99)))
        scope.inputs.sort(key=lambda value: (value.is_cache, value.op in (STORED, CONSTANT)))
        return inside

    visit(root)
    root.inputs = list(graph.inputs)


def _carriers(scope: Scope, given: list[Value], everything: list[Value]) -> list[Value]:
    """Find the tensors that a scope takes only for their sizes, or for their device.

    Args:
        given: the tensors that it takes anyway.
        everything: the values of the model, in order.
    """
    inside = set(scope.values())
    outside = [value for value in everything if value.shape and value not in inside]
    # preferred: arguments of the module, then inputs of the model
    outside.sort(key=lambda value: (scope.path in value.asked, value.op == INPUT), reverse=True)
    found: list[Value] = []
    known: set[Size] = {size for value in given for size in value.shape}
    for item in scope.items:
        for size in sizes_in(item.args) if isinstance(item, Value) else ():
            while size not in known and (missing := size.free_symbols - known):
                carrier = next((one for one in outside if missing & {*one.shape}), None)
                if carrier is None:  # size_expression refuses it later
                    break
                found.append(carrier)
                known |= {*carrier.shape}
        results = [item] if isinstance(item, Value) else item.outputs
        known |= {size for value in results for size in value.shape}
    first = next(iter(scope.items), None)
    told = any(not one.is_cache and one.op not in (STORED, CONSTANT) for one in (*found, *given))
    if isinstance(first, Value) and takes_device(first.op) and not told:
        found += [value for value in outside if not value.is_cache][:1]
    return found


def sizes_in(arg: Arg) -> Iterable[sympy.Expr]:
    """Yield the sizes in an argument that are not numbers."""
    if isinstance(arg, sympy.Expr):
        yield arg
    elif isinstance(arg, dict):
        yield from sizes_in(tuple(arg.values()))
    elif isinstance(arg, tuple):
        for item in arg:
            yield from sizes_in(item)
