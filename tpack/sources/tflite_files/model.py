"""What a TFLite model stores: its constants, with their scales, and how operators use them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tpack.errors import InputError
from tpack.sources.archive import AGAIN
from tpack.sources.tflite_files.tables import Bytes, File, Table

#: Tensors of all graphs of a model, and operators.
_MANY = 100_000
_DIMS = 8

#: Types of elements, by number: dtype in a source, and bits; those of less than 8 become int8.
TYPES = {
    0: ("float32", 32), 1: ("float16", 16), 2: ("int32", 32), 3: ("uint8", 8), 4: ("int64", 64),
    6: ("bool", 8), 7: ("int16", 16), 8: ("complex64", 64), 9: ("int8", 8), 10: ("float64", 64),
    12: ("uint64", 64), 15: ("uint32", 32), 16: ("uint16", 16), 17: ("int8", 4),
    18: ("bfloat16", 16), 19: ("int8", 2),
}  # fmt: skip


@dataclass(frozen=True)
class Use:
    """How an operator uses a constant.

    Attributes:
        inputs: the places of its weights among its inputs.
        role: as ``Source.roles`` has it.
        column_dims: how many trailing dims are the columns; 0 for all but the first.
    """

    inputs: tuple[int, ...]
    role: str = "layer"
    column_dims: int = 0


#: Operators that have weights, by number.
USES = {
    3: Use((1,)),  # CONV_2D: (out, height, width, in)
    4: Use((1,), "depthwise", 1),  # DEPTHWISE_CONV_2D: (1, height, width, channels)
    7: Use((1,), "embedding"),  # EMBEDDING_LOOKUP
    9: Use((1,)),  # FULLY_CONNECTED: (out, in)
    36: Use((0,), "embedding"),  # GATHER
    44: Use(tuple(range(1, 9))),  # UNIDIRECTIONAL_SEQUENCE_LSTM
    67: Use((1,)),  # TRANSPOSE_CONV: (out, height, width, in)
    126: Use((0, 1), column_dims=1),  # BATCH_MATMUL
    132: Use((1,), column_dims=1),  # CONV_3D: (depth, height, width, in, out)
}
#: DEQUANTIZE, which stands between float16 weights and their operator.
_CAST = 6


@dataclass(frozen=True)
class Constant:
    """A tensor whose values are in the file.

    Attributes:
        name: in the graph.
        dtype: of the source; bits of an element as stored.
        buffer: number of its buffer.
        place: where its bytes are.
        scales: float32, empty for none.
        zeros: a zero point for each scale, int64.
        axis: along which scales differ.
        other: another form of scales than these, or of values; empty for none.
        use: of the operator that has it as a weight; None for none.
    """

    name: str
    dtype: str
    bits: int
    shape: tuple[int, ...]
    buffer: int
    place: Bytes
    scales: npt.NDArray[np.float32]
    zeros: npt.NDArray[np.int64]
    axis: int
    other: str
    use: Use | None


@dataclass
class Model:
    """The constants of all graphs; names of those of types that no safetensors file can hold."""

    constants: list[Constant]
    unheld: list[str]


def read_model(file: File) -> Model:
    """Read what a model says of its constants.

    Raises:
        InputError: it is damaged, or made to cost time.
    """
    root = file.root()
    codes = [_operator(code) for code in root.tables(1)]
    model, seen = Model([], []), 0
    for graph in root.tables(2):
        uses = _uses(graph, codes)
        for number, tensor in enumerate(graph.tables(0)):
            seen += 1
            if seen > _MANY:
                raise InputError(f"has more than {_MANY} tensors, expected fewer.")
            place = _place(file, root, tensor)
            if not place.length:
                continue
            name = tensor.content(3).decode("utf-8", "replace") or f"tensor_{number}"
            kind = TYPES.get(tensor.number(1, "<b"))
            if kind is None:
                model.unheld.append(name)
                continue
            model.constants.append(_constant(name, kind, tensor, place, uses.get(number)))
    return model


def _operator(code: Table) -> int:
    """Return the number of an operator; those up to 126 may stand in the older field."""
    return max(code.number(0, "<b"), code.number(3, "<i"))


def _uses(graph: Table, codes: list[int]) -> dict[int, Use]:
    """Return how operators use the tensors of a graph as weights, by number."""
    found: dict[int, Use] = {}
    made_of: dict[int, int] = {}
    for count, operator in enumerate(graph.tables(3)):
        if count > _MANY:
            raise InputError(f"has more than {_MANY} operators, expected fewer.")
        number = operator.number(0, "<I")
        if number >= len(codes):
            raise InputError(f"uses operator {number} of {len(codes)}. {AGAIN}")
        inputs, outputs = (
            np.frombuffer(operator.content(field, 4), "<i4").tolist() for field in (1, 2)
        )
        if codes[number] == _CAST and inputs and outputs:
            made_of[outputs[0]] = inputs[0]
        use = USES.get(codes[number])
        for place in use.inputs if use else ():
            if use and place < len(inputs):
                found.setdefault(inputs[place], use)
    return found | {made_of[n]: use for n, use in found.items() if n in made_of}


def _place(file: File, root: Table, tensor: Table) -> Bytes:
    """Return where the values of a tensor are; empty if it is not a constant."""
    buffer = root.element(4, tensor.number(2, "<I"))
    inside = buffer.part(0)
    offset, length = buffer.number(1, "<Q"), buffer.number(2, "<Q")
    if inside.length or offset < 2:  # 0 and 1 stand for none
        return inside
    if offset + length > file.size:
        raise InputError(f"points to byte {offset + length}, but has {file.size}. {AGAIN}")
    return Bytes(offset, length)


def _constant(
    name: str, kind: tuple[str, int], tensor: Table, place: Bytes, use: Use | None
) -> Constant:
    shape = tuple(np.frombuffer(tensor.content(0, 4), "<i4").tolist())
    if len(shape) > _DIMS or any(size < 0 for size in shape):
        raise InputError(f"has shape {shape!s:.60}, expected sizes. {AGAIN}", tensor=name[:200])
    values: dict[int, Any] = {2: np.zeros(0, "<f4"), 3: np.zeros(0, "<i8")}
    axis, other = 0, ""
    if (parameters := tensor.table(4)) is not None:
        values[2] = np.frombuffer(parameters.content(2, 4), "<f4")
        values[3] = np.frombuffer(parameters.content(3, 8), "<i8")
        axis = parameters.number(6, "<i")
        other = "scales of another form" if parameters.number(4, "<B") else ""
    if tensor.table(6) is not None:
        other = "values of which only some are stored"
    return Constant(
        name,
        *kind,
        shape,
        tensor.number(2, "<I"),
        place,
        values[2].astype(np.float32),
        values[3].astype(np.int64),
        axis,
        other,
        use,
    )


def constants(model: Model) -> Iterator[tuple[str, Constant]]:
    """Yield the constants, each with a name of its own."""
    seen: dict[str, int] = {}
    for constant in model.constants:
        name = constant.name
        while name in seen:
            seen[constant.name] += 1
            name = f"{constant.name}_{seen[constant.name]}"
        seen[name] = 0
        yield name, constant
