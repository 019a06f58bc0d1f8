"""Runs of equal layers, each applied to the result of the one before: a loop."""

from __future__ import annotations

from itertools import pairwise

from tpack.capturing.graph import Value
from tpack.capturing.statements import Child, Item
from tpack.capturing.variables import Body
from tpack.layerdef import Identifier, LayerCall, Param, Return, Unspecified
from tpack.layerdef.members import members_of, repeated, repeats


def chained(params: list[Param], calls: list[list[Item]]) -> list[Param]:
    """Find the lists of equal layers that are only applied in order; return repeated children.

    Args:
        params: the children of a layer.
        calls: the items of each call of the layer; the calls of a found list become one item.
    """
    found = []
    for name, whole in repeats(params).items():
        members = [f"{name}.{i}" for i in range(whole.repeat or 0)]
        runs = [_run(members, items) for items in calls] if len(members) > 1 else [None]
        if all(run is not None for run in runs):
            for items, run in zip(calls, runs, strict=True):
                assert run is not None
                _collapse(name, items, run)
            found.append(whole)
    return found


def _run(members: list[str], items: list[Item]) -> list[Item] | None:
    """Return the calls of the members, if each passes its result only to the next."""
    calls = [item for item in items if item.child is not None and item.child.name in members]
    if [item.child.name for item in calls if item.child] != members:
        return None
    users: dict[Value, int] = {}
    for item in items:
        for value in item.uses:
            users[value] = users.get(value, 0) + 1
    rest = _shared(calls[0], 0)
    for i, (before, after) in enumerate(pairwise(calls)):
        assert after.child is not None
        if len(before.results) != 1 or not after.child.inputs:
            return None
        first = after.child.inputs[0]
        if first is not before.results[0] or _shared(after, i + 1) != rest or users[first] != 1:
            return None
    return calls if len(calls[-1].results) == 1 else None


def _shared(item: Item, index: int) -> tuple[Value, ...]:
    """Return what the calls of a loop share: of the part of a cache at an index, the cache."""
    inputs = item.child.inputs[1:] if item.child else ()
    return tuple(
        value.args["cache"] if value.is_cache and value.args.get("index") == index else value
        for value in inputs
    )


def _collapse(name: str, items: list[Item], run: list[Item]) -> None:
    """Put one item in the place of a run."""
    first, last = run[0], run[-1]
    assert first.child is not None
    inputs = (*first.child.inputs[:1], *_shared(first, 0))
    child = Child(name, inputs, first.child.outputs)
    whole = Item(last.results, list(inputs), first.line, child, alone=True)
    items[items.index(first)] = whole
    for item in run[1:]:
        items.remove(item)
    used = {value for item in items for value in item.uses}
    for item in [one for one in items if one.value is not None and one.value.is_cache]:
        if not used & {*item.results}:
            items.remove(item)


def applied_in_order(params: list[Param], body: Body) -> Param | None:
    """Return the repeated child for a module that only applies equal members in order."""
    tree = members_of(params)
    whole = repeated("", tree.places)
    if whole is None or not len(params) == len(tree.listed) > 1 or len(body.inputs) != 1:
        return None
    at = Identifier(body.inputs[0])
    calls = []
    for statement in body.statements:
        value = statement.value if not isinstance(statement, Unspecified) else None
        chain = []
        while isinstance(value, LayerCall) and len(value.args) == 1:
            chain.append(value.layer)
            value = value.args[0]
        if value != at:
            return None
        calls += chain[::-1]
        if isinstance(statement, Return):
            break
        at = Identifier(getattr(statement, "target", ""))
    return whole if calls == [str(i) for i in range(len(params))] else None
