"""The nodes of a model and of all graphs inside it, with names that mean one value each."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto

from tpack.errors import InputError

#: Tensors that a model may have.
MAX_TENSORS = 50_000


@dataclass(eq=False)
class Node:
    """A node of a graph.

    Attributes:
        proto: as the model has it; two graphs inside one may use one name for two values.
        inputs: the values that it takes, each by a name of its own; ``""`` for one left out.
        outputs: the values that it makes, likewise.
    """

    proto: NodeProto
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def op(self) -> str:
        """Name of the op; of one with a domain of its own too."""
        return str(self.proto.op_type)

    def attribute(self, name: str, default: Any) -> Any:
        """Return a number, text or list among the attributes, of the type of its default.

        Raises:
            InputError: it is of another type.
        """
        for one in self.proto.attribute:
            if one.name != name:
                continue
            found: Any = {
                AttributeProto.INT: one.i,
                AttributeProto.FLOAT: one.f,
                AttributeProto.STRING: one.s.decode("utf-8", "replace"),
                AttributeProto.INTS: list(one.ints),
            }.get(one.type)
            if type(found) is not type(default):
                raise InputError(
                    f"is used by {self.op!r:.60}, whose attribute {name} is of another type than "
                    "ONNX has. Export the model again."
                )
            return found
        return default


@dataclass
class Nodes:
    """All nodes of a model, in an order in which values are made before they are used.

    Attributes:
        nodes: of the main graph, of graphs inside its nodes, and of its functions.
        stored: the initializers of all graphs, by name.
        constants: tensors of Constant nodes, by the name of the value that they make.
        sparse: names of initializers that are stored as their values other than 0.
        made_by: the node that makes a value.
        users: the nodes that take a value, each with the place among their inputs.
        inputs: names of what the main graph takes, without its initializers.
        outputs: names of what it gives.
    """

    nodes: list[Node] = field(default_factory=list)
    stored: dict[str, TensorProto] = field(default_factory=dict)
    constants: dict[str, TensorProto] = field(default_factory=dict)
    sparse: list[str] = field(default_factory=list)
    made_by: dict[str, Node] = field(default_factory=dict)
    users: dict[str, list[tuple[Node, int]]] = field(default_factory=dict)
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()

    @classmethod
    def of(cls, model: ModelProto) -> Nodes:
        """Collect the nodes of a model.

        Example:
            >>> from onnx import helper
            >>> node = helper.make_node("Relu", ["x"], ["y"])
            >>> found = Nodes.of(helper.make_model(helper.make_graph([node], "g", [], [])))
            >>> found.made_by["y"].inputs
            ('x',)
        """
        found = cls()
        found._add(model.graph, {}, "")
        for function in model.functions:
            place = f"{function.name}."
            found._add_nodes(function.node, {name: place + name for name in function.input}, place)
        found.inputs = tuple(v.name for v in model.graph.input if v.name not in found.stored)
        found.outputs = tuple(v.name for v in model.graph.output)
        return found

    def value(self, name: str) -> TensorProto | None:
        """Return the tensor that a value always is, if it is stored."""
        return self.stored.get(name) or self.constants.get(name)

    def of_all(self) -> Iterator[tuple[str, TensorProto]]:
        """Yield stored tensors, then constants."""
        yield from self.stored.items()
        yield from self.constants.items()

    def _add(self, graph: GraphProto, outer: Mapping[str, str], place: str) -> None:
        scope: ChainMap[str, str] = ChainMap({}, outer)  # type: ignore[arg-type]  # only read
        for tensor in graph.initializer:
            self.stored[self._define(scope, tensor.name, place)] = tensor
        for sparse in graph.sparse_initializer:
            self.sparse.append(self._define(scope, sparse.values.name, place))
        for value in graph.input:
            if value.name not in scope.maps[0]:
                self._define(scope, value.name, place)
        self._add_nodes(graph.node, scope, place)

    def _add_nodes(self, nodes: Any, outer: Mapping[str, str], place: str) -> None:
        scope: ChainMap[str, str] = ChainMap({}, outer)  # type: ignore[arg-type]
        for number, proto in enumerate(nodes):
            inputs = tuple(scope.get(name, name) for name in proto.input)
            outputs = tuple(
                self._define(scope, name, place) if name else "" for name in proto.output
            )
            for attribute in proto.attribute:
                inside = f"{place}{proto.name or f'{proto.op_type}_{number}'}."
                for graph in (
                    *attribute.graphs,
                    *([attribute.g] if attribute.HasField("g") else ()),
                ):
                    self._add(graph, scope, f"{inside}{attribute.name}.")
                if proto.op_type == "Constant" and outputs and attribute.name == "value":
                    self.constants[outputs[0]] = attribute.t
            node = Node(proto, inputs, outputs)
            self.nodes.append(node)
            for name in outputs:
                self.made_by[name] = node
            for at, name in enumerate(inputs):
                self.users.setdefault(name, []).append((node, at))

    def _define(self, scope: ChainMap[str, str], name: str, place: str) -> str:
        """Give a value its name, after the place of its graph if another value has the name.

        Raises:
            InputError: two values of one graph have it; there are too many tensors.
        """
        if len(self.stored) > MAX_TENSORS:
            raise InputError(
                f"has more than {MAX_TENSORS} tensors. tpack reads no more of one file."
            )
        unique = name
        if place and (name in self.made_by or self.value(name) is not None):
            unique = f"{place}{name}"
        if unique in self.made_by or self.value(unique) is not None:
            raise InputError(
                "is the name of two tensors of the graph. Export the model again.",
                tensor=unique[:200],
            )
        scope[name] = unique
        return unique
