"""Stored numbers that say how nodes work, such as the shape of a Reshape: no tensors of a model."""

from __future__ import annotations

from collections.abc import Mapping

from tpack.sources.onnx_files.names import is_made_up
from tpack.sources.onnx_files.nodes import Nodes
from tpack.sources.source import SourceTensor

#: Inputs of nodes that say how they work.
_NUMBERS: dict[str, tuple[int, ...]] = {
    "Reshape": (1,), "Expand": (1,), "Tile": (1,), "Squeeze": (1,), "Unsqueeze": (1,),
    "Slice": (1, 2, 3, 4), "Split": (1,), "Pad": (1, 2, 3), "ConstantOfShape": (0,),
    "Range": (0, 1, 2), "Resize": (1, 2, 3), "Upsample": (1,), "TopK": (1,), "OneHot": (1, 2),
    "Trilu": (1,), "CumSum": (1,), "Clip": (1, 2), "Dropout": (1, 2),
    "ReduceSum": (1,), "ReduceMean": (1,), "ReduceMax": (1,), "ReduceMin": (1,),
    "ReduceProd": (1,), "ReduceL1": (1,), "ReduceL2": (1,), "ReduceSumSquare": (1,),
    "ReduceLogSumExp": (1,),
}  # fmt: skip
#: Nodes that make such numbers of others.
_CARRYING = frozenset(
    [
        "Add",
        "Cast",
        "Concat",
        "Div",
        "Equal",
        "Gather",
        "Identity",
        "Max",
        "Min",
        "Mul",
        "Neg",
        "Slice",
        "Sub",
        "Squeeze",
        "Unsqueeze",
        "Where",
        "Reshape",
        "ReduceProd",
    ]  # words read better than quoted strings
)
_INTEGERS = ("int64", "int32", "bool")
#: The most numbers that are said in one place.
_MOST = 64


def numbers_in(nodes: Nodes, found: Mapping[str, SourceTensor]) -> frozenset[str]:
    """Return the names of stored tensors that are numbers of nodes.

    They are integers that only lead to shapes, axes and the like, and single numbers that an
    exporter of torch named.
    """
    numbers: set[str] = set()

    def only_numbers(name: str) -> bool:
        users = nodes.users.get(name, ())
        return (
            bool(users)
            and name not in nodes.outputs
            and all(
                place in _NUMBERS.get(node.op, ())
                or (node.op in _CARRYING and all(out in numbers for out in node.outputs))
                for node, place in users
            )
        )

    for node in reversed(nodes.nodes):
        numbers.update(out for out in node.outputs if only_numbers(out))
    return frozenset(
        name
        for name, tensor in found.items()
        if (tensor.dtype in _INTEGERS and tensor.numel <= _MOST and only_numbers(name))
        or (tensor.numel == 1 and is_made_up(name))
    )
