"""Rows that go through the layer of a list that their ids name: ``by_expert``.

torch traces it as all layers of the list on all rows, and picks for each row the result of one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tpack.capturing.graph import STORED, Graph, Value, map_values, same_size
from tpack.capturing.scopes import Scope
from tpack.capturing.statements import Item
from tpack.capturing.torch_export import RESULT
from tpack.layerdef import Param
from tpack.layerdef.members import collapsed, repeats


def picked(value: Value) -> tuple[tuple[Value, ...], Value] | None:
    """Match ``stack(parts)[ids, arange(n)]``; return the parts and the ids."""
    if value.op != "index" or len(value.args["indices"]) != 2:
        return None
    (ids, rows), every = value.args["indices"], value.args["x"]
    if every.op != "stack" or every.args.get("dim", 0) != 0 or rows.op != "arange":
        return None
    whole = len(ids.shape) == len(rows.shape) == 1 and same_size(ids.shape[0], rows.shape[0])
    return (tuple(every.args["tensors"]), ids) if whole else None


def holders(graph: Graph) -> set[str]:
    """Return the paths of modules that are such a list, and choose in it themselves.

    The module around each of them is to choose: only a list that has a name can be called.
    """
    found = set()
    for value in graph.values:
        match = picked(value)
        path = value.calls[-1].path if value.calls else ""
        if match is not None and path:
            inside = {call.path for call in match[0][0].calls}
            found |= {path} & {one.removesuffix(".0") for one in inside if one.endswith(".0")}
    return found


def find_lists(params: list[Param], calls: Mapping[Scope, list[Item]]) -> list[Param]:
    """Put one call of ``by_expert`` in the place of the calls of all layers of a list.

    Args:
        params: the children of a layer.
        calls: the calls of the layer, with their items, which are changed.

    Returns:
        The children, with a list of equal ones as a repeated child.
    """
    found: set[str] = set()
    for scope, items in calls.items():
        home = {value: item for item in items for value in item.results}
        for item in [one for one in items if one.value is not None]:
            assert item.value is not None
            match = picked(item.value)
            if match is None:
                continue
            parts, ids = match
            layers = [home[part] for part in parts if part in home]
            name = _list_of(layers)
            gone = {*parts, item.value.args["x"]}
            if not name or len(layers) < len(parts) or not gone.isdisjoint(scope.outputs):
                continue
            if sum(not gone.isdisjoint(one.uses) for one in items) != 2:  # the stack, and this
                continue
            assert layers[0].child is not None
            (x,) = layers[0].child.inputs
            item.value = item.value.like("by_expert", {"layers": name, "x": x, "ids": ids})
            item.uses = [x, ids]
            _drop(items, gone)
            found.add(name)
    for name, whole in repeats(params).items():
        members = {f"{name}.{i}" for i in range(whole.repeat or 0)}
        if name in found and not any(
            item.child.name in members for items in calls.values() for item in items if item.child
        ):
            params = collapsed(params, whole)
    return params


def _list_of(layers: list[Item]) -> str | None:
    """Return the name of the list whose layers are called, each once with the same rows."""
    children = [layer.child for layer in layers if layer.child is not None]
    if len(children) < len(layers) or not children:
        return None
    above, _, last = children[0].name.rpartition(".")
    names = [f"{above}.{i}" if above else str(i) for i in range(len(children))]
    same = all(one.inputs == children[0].inputs and len(one.inputs) == 1 for one in children)
    same = same and all(len(layer.results) == 1 for layer in layers)
    return above if same and last == "0" and [one.name for one in children] == names else None


def _drop(items: list[Item], gone: set[Value]) -> None:
    """Remove the items that make values, and positions that nothing uses any more."""
    for item in list(items):
        if not gone.isdisjoint(item.results):
            items.remove(item)
    used = {value for item in items for value in item.uses}
    for item in [one for one in items if one.value is not None and one.value.op == "arange"]:
        if used.isdisjoint(item.results):
            items.remove(item)


# ---- a trace of the first layer alone


def complete_lists(graph: Graph, lists: dict[str, int]) -> None:
    """Let the other layers of lists compute what the first does, each with its own tensors.

    Args:
        graph: is changed: in it, ``by_expert`` of each list takes the first layer alone. The calls
            of the modules that hold the lists are left out.
        lists: path of the module → number of layers.
    """
    for value in (*graph.inputs, *graph.values):
        left = {i for i, call in enumerate(value.calls) if call.path in lists}
        if len(value.lines) == len(value.calls):  # its own lines stay, not that of its call
            value.lines = tuple(one for i, one in enumerate(value.lines) if i + 1 not in left)
        value.calls = tuple(one for i, one in enumerate(value.calls) if i not in left)
    inside: dict[str, list[Value]] = {f"{path}.0": [] for path in lists}
    for value in graph.values:
        for call in value.calls:
            if call.path in inside:
                inside[call.path].append(value)
    after: dict[Value, list[Value]] = {}
    for first, some in inside.items():
        path = first.removesuffix(".0")
        if not some:
            continue
        copies: list[Value] = []
        results: dict[Value, list[Value]] = {one: [one] for one in some}
        for i in range(1, lists[path]):
            for one, copy in _copied(some, first, f"{path}.{i}").items():
                results[one].append(copy)
                copies.append(copy)
        after[some[-1]] = copies
        for value in graph.values:
            if value.op == "stack" and value.args["tensors"][0] in results:
                value.args["tensors"] = tuple(results[value.args["tensors"][0]])
                value.shape = (lists[path], *value.shape[1:])
    graph.values = [each for value in graph.values for each in (value, *after.get(value, ()))]


def _copied(values: list[Value], before: str, path: str) -> dict[Value, Value]:
    """Copy the values of one module for another module, which stores its own tensors."""
    known: dict[Value, Value] = {}

    def own(value: Value) -> Value:
        if value.op == STORED and value.name.startswith(f"{before}.") and value not in known:
            known[value] = replace(value, name=f"{path}.{value.name[len(before) + 1 :]}")
        return known.get(value, value)

    def moved(name: str) -> str:
        mark = RESULT if name.startswith(RESULT) else ""
        inner = f"{name}.".startswith(f"{mark}{before}.")
        return f"{mark}{path}{name[len(mark) + len(before) :]}" if inner else name

    for value in values:
        args: dict[str, Any] = {name: map_values(arg, own) for name, arg in value.args.items()}
        known[value] = replace(
            value,
            args=args,
            calls=tuple(replace(call, path=moved(call.path)) for call in value.calls),
            asked={moved(name): argument for name, argument in value.asked.items()},
        )
    return {value: known[value] for value in values}
