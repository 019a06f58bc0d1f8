"""Give the tensors and modules of a graph the names that a checkpoint has for them.

A module keeps its place in the tree if all its tensors lie in one module of the checkpoint, some
under the names that it has for them. Any other module is left out: what it computes, the module
around it computes. So the names of a checkpoint that was saved from the base model lack
``transformer.``, and the calls of that module are part of the whole.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace

from tpack.architectures.matching import Match
from tpack.capturing.graph import CONSTANT, STORED, Graph, Value, values_in
from tpack.capturing.torch_export import RESULT
from tpack.errors import LayerDefError


def renamed(graph: Graph, found: Match) -> Graph:
    """Return a graph under the names of the checkpoint; its values are changed.

    Raises:
        LayerDefError: two tensors would have one name.
    """
    if all(name == new for name, new in found.names.items()):
        return graph
    called = {call.path for value in graph.values for call in value.calls}
    asked = {
        key.removeprefix(RESULT) for value in (*graph.inputs, *graph.values) for key in value.asked
    }
    paths = _Paths(found.names, called | asked)
    leaves = {
        part
        for value in graph.values
        for part in values_in(tuple(value.args.values()))
        if part.op in (STORED, CONSTANT)
    }
    names = {leaf.name: paths.tensor(leaf.name) for leaf in leaves}
    if len(set(names.values())) < len(names):
        raise LayerDefError("the names of its tensors and of the modules of the model clash.")
    for leaf in leaves:
        leaf.name = names[leaf.name]
    for value in (*graph.inputs, *graph.values):
        places = [i for i, call in enumerate(value.calls) if paths.keeps(call.path)]
        if len(value.lines) == len(value.calls):
            value.lines = tuple(value.lines[i] for i in places)
        calls = (value.calls[i] for i in places)
        value.calls = tuple(replace(call, path=paths.module(call.path)) for call in calls)
        value.asked = _asked(value, paths)
    return replace(
        graph,
        stored={paths.tensor(name): tensor for name, tensor in graph.stored.items()},
        buffers=frozenset(map(paths.tensor, graph.buffers)),
        kinds={paths.module(p): kind for p, kind in graph.kinds.items() if paths.keeps(p)},
        aliases={paths.tensor(a): paths.tensor(name) for a, name in graph.aliases.items()},
    )


def _asked(value: Value, paths: _Paths) -> dict[str, str]:
    found = {}
    for key, name in value.asked.items():
        path = key.removeprefix(RESULT)
        if paths.keeps(path):
            found[f"{RESULT if key.startswith(RESULT) else ''}{paths.module(path)}"] = name
    return found


class _Paths:
    """Where modules of a model are in a checkpoint.

    Args:
        names: of tensors in the checkpoint, by those in the model.
        called: paths of modules.
    """

    def __init__(self, names: Mapping[str, str], called: Iterable[str]) -> None:
        self.names = names
        places: dict[str, set[str]] = {}
        others: dict[str, list[str]] = {}  # tensors of a module that have another name in it
        for name, new in names.items():
            parts = name.split(".")
            for depth in range(1, len(parts)):
                path, rest = ".".join(parts[:depth]), f".{'.'.join(parts[depth:])}"
                kept = places.setdefault(path, set())
                if new.endswith(rest):
                    kept.add(new.removesuffix(rest))
                else:
                    others.setdefault(path, []).append(new)
        found = {path: next(iter(one)) for path, one in places.items() if len(one) == 1}
        found = {
            path: place
            for path, place in found.items()
            if all(new.startswith(f"{place}.") for new in others.get(path, ()))
        }
        taken = Counter(found.values())
        #: The new path of each module; empty for one that is left out.
        self.places = dict.fromkeys(places, "") | {
            path: place for path, place in found.items() if taken[place] == 1
        }
        for path in sorted(called, key=lambda one: one.count(".")):
            if path and path not in self.places:  # it has no tensors
                self.places[path] = self.below(path)
        self.places[""] = ""

    def below(self, name: str) -> str:
        """Return a name in the module around it."""
        above, _, last = name.rpartition(".")
        while above and not self.places.get(above):
            above = above.rpartition(".")[0]
        return f"{self.places[above]}.{last}" if above else last

    def keeps(self, path: str) -> bool:
        return not path or bool(self.places.get(path))

    def module(self, path: str) -> str:
        return self.places[path]

    def tensor(self, name: str) -> str:
        return self.names.get(name) or self.below(name)
