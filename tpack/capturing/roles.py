"""The role of each stored tensor in its model, read from the ops that use it.

A weight is followed through its forms (transposed, cut, scaled, rounded, gathered from a stack)
to the op that uses it. Names are never read.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from tpack.capturing.graph import (
    INPUT,
    ITEM,
    STORED,
    Graph,
    Value,
    same_size,
    same_sizes,
    values_in,
)
from tpack.layerdef.ops import has_trait

#: Of several roles the first counts: an embedding that is the head too is an embedding.
ORDER = (
    "embedding",
    "output head",
    "router",
    "depthwise",
    "conv",
    "linear",
    "norm",
    "other",
)


def find_roles(graph: Graph) -> dict[str, str]:
    """Return the role of each stored tensor that is used, as in ``Captured.roles``."""
    return _Roles(graph).all()


class _Roles:
    """One reading of a graph.

    Attributes:
        found: all roles of each tensor.
        origins: the stored tensors that a value is a form of.
        inputs: values that depend on an input.
        weighted: values that an op with a weight makes.
        layers: values that come after a layer: an embedding, a matrix or a convolution.
        uses: values made by a linear weight, with the names of the weights.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.users = graph.users()
        self.found: dict[str, set[str]] = {}
        self.origins: dict[Value, frozenset[str]] = {}
        self.inputs: set[Value] = set()
        self.layers: set[Value] = set()
        self.weighted: set[Value] = set()
        self.uses: dict[Value, frozenset[str]] = {}

    def all(self) -> dict[str, str]:
        for value in self.graph.values:
            self.visit(value)
        ends = self.ends()
        for value, names in self.uses.items():
            if value in ends and self.is_head(value):
                self.note("output head", names)
        named = {name: min(roles, key=ORDER.index) for name, roles in self.found.items()}
        aliases = {
            alias: named[name] for alias, name in self.graph.aliases.items() if name in named
        }
        return named | aliases

    def note(self, role: str, names: Iterable[str]) -> None:
        for name in names:
            self.found.setdefault(name, set()).add(role)

    def origin(self, value: Value) -> frozenset[str]:
        """Return the stored tensors that a value is a form of."""
        if value.op == STORED:
            return frozenset({value.name})
        return self.origins.get(value, frozenset())

    # ---- one value

    def visit(self, value: Value) -> None:
        parts = list(dict.fromkeys(values_in(tuple(value.args.values()))))
        if any(part.op == INPUT or part in self.inputs for part in parts):
            self.inputs.add(value)
        if any(part in self.layers for part in parts):
            self.layers.add(value)
        weights = self.weights(value, parts)
        for part, role in weights.items():
            self.note(role, self.origin(part))
            self.weighted.add(value)
            if role in ("linear", "conv", "embedding", "depthwise"):
                self.layers.add(value)
        for part in parts:
            if part in weights or not self.origin(part):
                continue
            if self.is_form(value, part, parts):
                self.origins[value] = self.origins.get(value, frozenset()) | self.origin(part)
            else:
                self.note("other", self.origin(part))

    def weights(self, value: Value, parts: list[Value]) -> Mapping[Value, str]:
        """Return the operands that are weights of an op, with their roles."""
        args = value.args
        if value.op in ("linear", "bit_linear") or has_trait(value.op, "experts"):
            return {args["weight"]: self.product(value, args["weight"], args["x"])}
        if has_trait(value.op, "conv"):
            return {args["weight"]: self.convolution(value)}
        if has_trait(value.op, "recurrent"):
            return {one: "linear" for one in args["weights"] if len(one.shape) == 2}
        if has_trait(value.op, "norm"):
            return dict.fromkeys((p for p in parts if p is not args["x"]), "norm")
        if has_trait(value.op, "lookup"):
            table = args["weight" if value.op == "embedding" else "x"]
            # one matrix of a stack is picked: its use decides its role
            return {} if value.op != "embedding" and len(table.shape) > 2 else {table: "embedding"}
        if value.op in ("matmul", "einsum"):
            stored = [part for part in parts if self.origin(part)]
            others = [part for part in parts if not self.origin(part)]
            return {one: self.product(value, one, others[0]) for one in stored if others}
        return {}

    def product(self, value: Value, weight: Value, x: Value) -> str:
        if _is_one_hot(x):
            return "embedding"
        self.uses[value] = self.uses.get(value, frozenset()) | self.origin(weight)
        return "router" if self.is_router(value) else "linear"

    def convolution(self, value: Value) -> str:
        weight, kernel = value.args["weight"], value.args["weight"].shape[2:]
        if value.args.get("groups", 1) > 1 and weight.shape[1] == 1:
            return "depthwise"
        if all(size == 1 for size in kernel):
            self.uses[value] = self.origin(weight)
            return "conv"
        stride = value.args.get("stride", 1)
        stride = stride if isinstance(stride, tuple) else (stride,)
        patches = {*stride} == {*kernel} if len(stride) == 1 else tuple(stride) == kernel
        patches = patches and not has_trait(value.op, "spreads")
        return "embedding" if patches and value not in self.layers else "conv"

    def is_form(self, value: Value, part: Value, parts: list[Value]) -> bool:
        """Return whether a value is a weight, or part of one, in another form."""
        if value.op == ITEM or has_trait(value.op, "moves"):
            return True
        if has_trait(value.op, "lookup") and part is value.args.get("x"):
            return True
        if value in self.inputs and len(parts) > 1:
            return False
        if value.op == "matmul":  # of two weights: an adapter
            return True
        return same_size(math.prod(part.shape), math.prod(value.shape))

    # ---- what comes after

    def is_router(self, value: Value) -> bool:
        """Return whether ``topk`` picks among scores computed from ``value``."""
        at, seen = [value], {value}
        while at:
            for user in self.users.get(at.pop(), []):
                if user.op == "topk":
                    return True
                # a product of scores is not a score
                if user not in seen and not has_trait(user.op, "product"):
                    seen.add(user)
                    at.append(user)
        return False

    def ends(self) -> set[Value]:
        """Return the values that no op with a weight comes after."""
        before: set[Value] = set()
        for value in reversed(self.graph.values):
            after = self.users.get(value, [])
            if any(user in self.weighted or user in before for user in after):
                before.add(value)
        return set(self.graph.values) - before

    def is_head(self, value: Value) -> bool:
        """Return whether a product of a weight, with no weight after it, is the model's answer.

        There are layers before it, no other input is mixed in on its way to the result, and the
        model does not return the shape that it takes, as a block of layers does.
        """
        x = [part for part in values_in(tuple(value.args.values())) if part in self.layers]
        if not x:
            return False
        if any(
            one.dtype.is_floating_point and same_sizes(one.shape, value.shape)
            for one in self.graph.inputs
        ):
            return False
        own, at = {value}, [value]
        while at:
            for user in self.users.get(at.pop(), []):
                if user not in own:
                    own.add(user)
                    at.append(user)
        return all(
            part in own or (part not in self.inputs and part.op != INPUT)
            for user in own - {value}
            for part in values_in(tuple(user.args.values()))
        )


def _is_one_hot(value: Value) -> bool:
    while value.op == "to":
        value = value.args["x"]
    return value.op == "one_hot"
