"""Scopes → LayerDefs: modules of the same structure become one, runs of them a loop."""

from __future__ import annotations

import builtins
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import reduce
from types import MappingProxyType
from typing import Any

from tpack.capturing.annotations import Annotations, annotated
from tpack.capturing.experts import find_lists, holders
from tpack.capturing.graph import CONSTANT, Graph, Value, values_in
from tpack.capturing.known import builtin_layer, constant_param
from tpack.capturing.loops import applied_in_order, chained
from tpack.capturing.names import free_name, is_loop
from tpack.capturing.scopes import NoLayerError, Scope, make_scopes
from tpack.capturing.statements import Child, Item, write_body
from tpack.capturing.variables import Body
from tpack.dtypes import SCALE_DTYPES, elements_of
from tpack.errors import LayerDefError
from tpack.layerdef import (
    LayerDef,
    Param,
    Program,
    Unspecified,
    validate,
)
from tpack.layerdef.from_names import class_name
from tpack.layerdef.members import collapsed
from tpack.layerdef.names import is_identifier
from tpack.layerdef.tensors import kept_param, ternary_param
from tpack.sources.packed_modules import PackedWeight


def make_program(
    graph: Graph,
    ternary: Collection[str],
    stacks: Collection[str] = (),
    packed: Mapping[str, PackedWeight] = MappingProxyType({}),
) -> Program:
    """Make the LayerDefs of a graph.

    Args:
        ternary: names of the weights that are packed; the graph does not round them again.
        stacks: names of weights that are stacks of matrices, whose rows have a scale.
        packed: the weights that come packed, by name: they keep their layout and scales.

    Raises:
        LayerDefError: LayerDef cannot express a name or the structure.
    """
    dissolved = holders(graph)
    while True:
        try:
            root = make_scopes(graph, dissolved)
            maker = _Maker(graph, root, {*ternary}, {*stacks}, packed)
            name = maker.draft("", whole=True).layer
            break
        except NoLayerError as error:
            if not error.path:  # the root is always a layer
                raise LayerDefError("is called in ways that differ.") from error
            dissolved.add(error.path)
    layers = [annotated(one, maker.notes[one.name]) for one in maker.layers.values()]
    program = Program(layers, name)
    validate(program)
    return program


@dataclass(frozen=True)
class _Draft:
    """A module as a child of another: the fields of its Param without the name.

    Attributes:
        layer: a LayerDef or built-in layer.
        args: of a built-in layer.
        repeat: copies, where the module is a list that is applied in order.
        outputs: names of its results.
    """

    layer: str
    args: tuple[tuple[str, Any], ...] = ()
    repeat: int | None = None
    outputs: tuple[str, ...] = ()

    def param(self, name: str) -> Param:
        return Param(name, "Layer", layer=self.layer, args=self.args, repeat=self.repeat)


class _Maker:
    def __init__(
        self,
        graph: Graph,
        root: Scope,
        ternary: set[str],
        stacks: set[str],
        packed: Mapping[str, PackedWeight],
    ) -> None:
        self.graph = graph
        self.packed = packed
        self.ternary = ternary
        self.stacks = stacks
        self.layers: dict[str, LayerDef] = {}
        self.notes: dict[str, Annotations] = {}
        self.known: dict[tuple[Any, ...], str] = {}
        self.scopes: dict[str, list[Scope]] = {}
        self.gather(root)
        self.check_places()
        self.below: dict[str | None, list[str]] = {}
        for path in self.scopes:
            self.below.setdefault(self.above(path), []).append(path)
        self.first: dict[str, int] = {}
        for i, name in enumerate(graph.stored):
            for end in re.finditer(r"\.", name):
                self.first.setdefault(name[: end.start()], i)
        self.tensors: dict[str, list[str]] = {path: [] for path in self.scopes}
        for name in graph.stored:
            self.tensors[self.home(name)].append(name)
        self.constants = self.place_constants(root)
        self.drafts: dict[str, _Draft] = {}

    def gather(self, scope: Scope) -> None:
        self.scopes.setdefault(scope.path, []).append(scope)
        for item in scope.items:
            if isinstance(item, Scope):
                self.gather(item)

    def check_places(self) -> None:
        """Refuse a module whose child is called from outside it to be a layer.

        Raises:
            NoLayerError: the child belongs to the module that calls it.
        """
        for scopes in self.scopes.values():
            for scope in scopes:
                for item in scope.items:
                    if isinstance(item, Scope) and self.above(item.path) != scope.path:
                        raise NoLayerError(self.above(item.path) or "")

    def home(self, name: str) -> str:
        """Find the deepest module with a layer of its own that holds a tensor."""
        parts = name.split(".")[:-1]
        while ".".join(parts) not in self.scopes:
            parts.pop()
        return ".".join(parts)

    def place_constants(self, root: Scope) -> dict[str, list[Value]]:
        """Find the constants that each module with a layer of its own holds."""
        found: dict[str, list[Value]] = {}

        def visit(scope: Scope) -> None:
            for item in scope.items:
                if isinstance(item, Scope):
                    visit(item)
                    continue
                for value in values_in(tuple(item.args.values())):
                    if value.op == CONSTANT and scope.owns(value):
                        home = self.home(value.name)
                        known = found.setdefault(home, [])
                        if value not in known:
                            self.name_constant(value, home, known)
                            known.append(value)

        visit(root)
        return found

    def name_constant(self, value: Value, home: str, others: list[Value]) -> None:
        """Let a constant of a module that is written out be an attribute of its caller."""
        relative = self.relative(value.name, home)
        if "." in relative:
            names = (*self.graph.stored, *(other.name for other in others))
            taken = {self.relative(name, home).partition(".")[0] for name in names}
            wish = free_name(relative.replace(".", "_"), taken)
            value.name = f"{home}.{wish}" if home else wish

    # ---- one module

    def draft(self, path: str, *, whole: bool = False) -> _Draft:
        """Make the draft of a module from all its calls, children first."""
        if path not in self.drafts:
            below = self.in_order(self.below.get(path, []))
            children = {self.relative(p, path): self.draft(p) for p in below}
            self.drafts[path] = self.made(path, children, whole=whole)
        return self.drafts[path]

    def in_order(self, paths: list[str]) -> list[str]:
        """Sort children by the order of their tensors in the state dict."""
        return sorted(paths, key=lambda path: self.first.get(path, len(self.graph.stored)))

    def above(self, path: str) -> str | None:
        """Return the module that a module is a child of."""
        parts = path.split(".")[:-1]
        while ".".join(parts) not in self.scopes:
            parts.pop()
        return ".".join(parts) if path else None

    def relative(self, path: str, above: str) -> str:
        return path[len(above) + 1 :] if above else path

    def made(self, path: str, children: dict[str, _Draft], *, whole: bool) -> _Draft:
        params = self.stored(path)
        listed = [draft.param(name) for name, draft in children.items()]
        uncalled = self.uncalled(path)
        taken = {p.name for p in params} | {n.partition(".")[0] for n in (*children, *uncalled)}
        scopes = self.scopes[path]
        steps = {scope: self.items(scope, path, children) for scope in scopes}
        for loop in chained(listed, list(steps.values())):
            listed = collapsed(listed, loop)
        listed = find_lists(listed, steps)
        bodies = []
        for scope in scopes:
            result = self.graph.result if whole else _result(scope)
            body = write_body(scope, steps[scope], result, taken, self.graph.sizes)
            bodies.append(body)
        if any(body != bodies[0] for body in bodies):
            raise NoLayerError(path)
        if not bodies[0].inputs:
            if path:  # such as a parametrization
                raise NoLayerError(path)
            raise LayerDefError(
                "forward takes no tensor, expected at least one. Give it a tensor as an argument, "
                "or make what it computes a parameter or buffer.",
                node="module",
            )
        every = [*params, *uncalled.values(), *listed]
        notes = reduce(
            Annotations.agreed,
            (
                Annotations.of(scope.inputs, body.values, self.graph.sizes)
                for scope, body in zip(scopes, bodies, strict=True)
            ),
        )
        return self.named(path, every, bodies[0], notes, whole=whole)

    def named(
        self, path: str, params: list[Param], body: Body, notes: Annotations, *, whole: bool
    ) -> _Draft:
        """Make the draft of a finished layer: a built-in one, a list, or a LayerDef."""
        if not whole:
            found = builtin_layer(params, body, self.scopes[path][0])
            if found is not None:
                return _Draft(found[0], tuple(found[1].items()), outputs=body.outputs)
            if (loop := applied_in_order(params, body)) is not None:
                return _Draft(str(loop.layer), loop.args, loop.repeat, body.outputs)
        given = zip(body.inputs, self.scopes[path][0].inputs, strict=True)
        inputs = [Param(name, "Cache" if one.is_cache else "Tensor") for name, one in given]
        key = (tuple(params), tuple(inputs), tuple(body.statements))
        if key not in self.known:
            name = self.class_name(path)
            self.known[key] = name
            self.layers[name] = LayerDef(name, [*params, *inputs], body.statements)
        name = self.known[key]
        self.notes[name] = self.notes.get(name, notes).agreed(notes)
        return _Draft(name, outputs=body.outputs)

    def class_name(self, path: str) -> str:
        """Name a new class after the class of the module, or after its path if that is torch's."""
        wish = self.scopes[path][0].call.class_name
        if self.graph.kinds.get(path, "").startswith("torch.nn.") and path:
            wish = class_name(path)
        if not is_identifier(wish) or hasattr(builtins, wish):
            wish = f"{wish}Layer" if is_identifier(f"{wish}Layer") else "Layer"
        return free_name(wish, self.reserved(path))

    def reserved(self, path: str) -> set[str]:
        """Return names of classes that are taken; the root's is reserved for the root."""
        root = self.scopes[""][0].call.class_name
        return {*self.layers, *([root] if path else [])}

    # ---- parameters

    def stored(self, path: str) -> list[Param]:
        """Describe the tensors and constants that a module itself holds."""
        found = [
            self.param(name, self.relative(name, path))
            for name in self.tensors[path]
            if "." not in self.relative(name, path)
        ]
        for value in self.constants.get(path, []):
            assert value.data is not None
            constant = constant_param(value.data, value.name)
            found.append(replace(constant, name=self.relative(value.name, path)))
        return found

    def param(self, name: str, relative: str) -> Param:
        tensor = self.graph.stored[name]
        dtype = str(tensor.dtype).removeprefix("torch.")
        if name in self.ternary and (one := self.packed.get(name)) is not None:
            return ternary_param(
                relative, one.shape, one.dtype, one.granularity, one.layout, one.split
            )
        if name in self.ternary:
            split = 2 if name in self.stacks else None
            held = dtype if dtype in SCALE_DTYPES else "float32"  # the scale of int8 trits
            return Param(relative, "TernaryTensor", tuple(tensor.shape), dtype=held, split=split)
        trained = name not in self.graph.buffers
        dtype, shape = elements_of(dtype, tuple(tensor.shape))
        return kept_param(relative, shape, dtype, trained=trained)

    def uncalled(self, path: str) -> dict[str, Param]:
        """Describe modules that are never called, but hold tensors."""
        owners: dict[str, list[str]] = {}
        for name in self.tensors[path]:
            owner, _, _ = self.relative(name, path).rpartition(".")
            if owner:
                owners.setdefault(owner, []).append(name)
        found: dict[str, Param] = {}
        inside: dict[str, list[str]] = {owner: [] for owner in owners}
        for owner in owners:
            for end in re.finditer(r"\.", owner):
                if (outer := owner[: end.start()]) in inside:
                    inside[outer].append(owner)
        tables = {
            value.args["weight"].name for value in self.graph.values if value.op == "embedding"
        }
        for owner in sorted(owners, key=lambda one: len(inside[one])):  # inner ones first
            names = owners[owner]
            params = [self.param(name, name.rpartition(".")[2]) for name in names]
            inner = [(o, found.pop(o)) for o in inside[owner] if o in found]
            params += [replace(param, name=o[len(owner) + 1 :]) for o, param in inner]
            body = Body([], [Unspecified()])
            is_table = not tables.isdisjoint(names)
            leaf = builtin_layer(params, body, None, embedding=is_table)
            if leaf is not None:
                found[owner] = Param(owner, "Layer", layer=leaf[0], args=leaf[1])
                continue
            key = (tuple(params), (), tuple(body.statements))
            if key not in self.known:
                wish = class_name(f"{path}.{owner}")
                name = free_name(wish if is_identifier(wish) else "Layer", self.reserved(owner))
                self.known[key] = name
                self.layers[name] = LayerDef(name, params, body.statements)
                self.notes[name] = Annotations()
            found[owner] = Param(owner, "Layer", layer=self.known[key])
        return found

    # ---- what a scope computes

    def items(self, scope: Scope, path: str, children: dict[str, _Draft]) -> list[Item]:
        made = []
        parts: dict[Value, list[Value]] = {}
        for one in scope.items:
            if isinstance(one, Value) and one.op == "item":
                parts.setdefault(one.args["x"], []).append(one)
        for one in scope.items:
            if isinstance(one, Scope):
                name = self.relative(one.path, path)
                child = Child(name, tuple(one.inputs), children[name].outputs)
                line = _line(next(iter(one.values())), scope)
                alone = children[name].repeat is not None
                made.append(Item(list(one.outputs), list(one.inputs), line, child, alone=alone))
                continue
            if one.op == "item":
                continue
            uses = [v for v in values_in(tuple(one.args.values())) if not scope.owns(v)]
            results = [one]
            if "count" in one.args:
                results = [one] * one.args["count"]
                for part in parts.get(one, []):
                    results[part.args["index"]] = part
                results = [
                    one.like("item", {"x": one, "index": i}) if part is one else part
                    for i, part in enumerate(results)
                ]
            made.append(Item(results, uses, _line(one, scope), value=one))
        return made


def _result(scope: Scope) -> Any:
    return scope.outputs[0] if len(scope.outputs) == 1 else tuple(scope.outputs)


def _line(value: Value, scope: Scope) -> str:
    """Return the line of a scope's forward that computed a value."""
    position = value.calls.index(scope.call)
    line = value.lines[position] if position < len(value.lines) else ""
    return "" if is_loop(line) else line
