"""What a captured forward takes and gives otherwise than its module: one tensor after the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from tpack.capturing.graph import Graph


def told(program: ExportedProgram, graph: Graph) -> list[str]:
    """Return notes for the user: on arguments that hold several tensors, and on results of None.

    A LayerDef takes tensors by name and gives tensors, so a dict of tensors becomes arguments of
    their own, and None has no place among the results.
    """
    notes = []
    spec = program.call_spec.in_spec
    args, kwargs = pytree.tree_unflatten(range(spec.num_leaves), spec)
    if any(isinstance(one, Mapping | list | tuple) for one in (*args, *kwargs.values())):
        names = ", ".join(value.name for value in graph.inputs)
        notes.append(
            "an argument of forward holds several tensors: the captured model takes them one by "
            f"one, as {names}"
        )
    outputs = program.graph_signature.output_specs
    found = [getattr(one.arg, "value", one.arg) for one in outputs]
    tree = pytree.tree_unflatten(found, program.call_spec.out_spec)
    if places := list(_nones(tree)):
        notes.append(
            f"forward gives None at {', '.join(places)} of its results: the captured model leaves "
            "it out, so that later results move up"
        )
    return notes


def _nones(tree: Any, place: str = "") -> Iterator[str]:
    """Yield the places of None in tuples; a dict without an item is read by its other names."""
    if isinstance(tree, Mapping):
        for name, item in tree.items():
            if isinstance(item, Mapping | list | tuple):
                yield from _nones(item, f"{place}[{name!r}]")
    elif isinstance(tree, list | tuple):
        for i, item in enumerate(tree):
            if item is None:
                yield f"{place}[{i}]"
            else:
                yield from _nones(item, f"{place}[{i}]")
