"""Weights of a graph as the checkpoint stores them.

Half precision becomes float32 where it is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onnxscript import ir

#: A tensor of the checkpoint, in the graph or beside it.
Stored = ir.Tensor[Any] | ir.ExternalTensor


def use_stored(graph: ir.Graph, tensors: Mapping[str, Stored]) -> list[str]:
    """Let initializers be stored tensors.

    Args:
        graph: whose initializers have the names of tensors, and may be wider.
        tensors: what is stored, by name; all become initializers.

    Returns:
        names of those that the graph does not use.
    """
    unused = []
    for name, tensor in tensors.items():
        value = graph.initializers.get(name)
        if value is not None and value.dtype == tensor.dtype:
            value.const_value = tensor
            continue
        stored = ir.Value(
            name=name,
            type=ir.TensorType(tensor.dtype),
            shape=ir.Shape(tensor.shape),
            const_value=tensor,
        )
        if value is None:
            unused.append(name)
        else:
            del graph.initializers[name]
            value.name, value.const_value = f"{name}.float32", None
            _widen(graph, stored, value)
        graph.register_initializer(stored)
    return unused


def _widen(graph: ir.Graph, stored: ir.Value, wide: ir.Value) -> None:
    """Compute a float32 value from a stored one: whole, or only the rows that are looked up."""
    for node, position in tuple(wide.uses()):
        if node.op_type == "Gather" and position == 0:
            rows = ir.Node(
                "", "Gather", [stored, node.inputs[1]], node.attributes.values(), name=node.name
            )
            found = node.outputs[0]
            cast = _cast(rows.outputs[0], ir.Value(shape=found.shape, type=found.type))
            graph.insert_before(node, [rows, cast])
            found.replace_all_uses_with(cast.outputs[0], replace_graph_outputs=True)
            cast.outputs[0].name, rows.outputs[0].name = found.name, f"{found.name}.stored"
            graph.remove(node, safe=True)
    if wide.uses():
        graph.insert_before(graph[0], _cast(stored, wide))


def _cast(narrow: ir.Value, wide: ir.Value) -> ir.Node:
    return ir.Node("", "Cast", [narrow], [ir.AttrInt64("to", ir.DataType.FLOAT)], outputs=[wide])
