"""Nodes of a graph that make a weight of codes and scales, a row each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tpack.codec import Scale
from tpack.dtypes import SCALE_DTYPES
from tpack.errors import InputError, UnsupportedError
from tpack.quantize import widen
from tpack.sources.levels import Levels, Lie
from tpack.sources.onnx_files.nodes import Node, Nodes
from tpack.sources.onnx_files.tensors import DTYPES, SUB_BYTE, unpack_bits
from tpack.sources.source import SourceTensor

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Graph:
    """The nodes of a model, and the tensors that it stores, by name."""

    nodes: Nodes
    stored: Mapping[str, SourceTensor]


@dataclass(frozen=True)
class Quantized:
    """A node that has a weight as codes, and where among its inputs codes and scales are.

    Attributes:
        system: what it is called in messages.
        codes: the place of the codes.
        read: gives the weight. It raises UnsupportedError, as "it …", for what is not read, and
            InputError for what is damaged.
        of_floats: whether the codes are made of floats, which are stored.
    """

    system: str
    codes: int
    read: Callable[[Node, Graph, str], Levels]
    of_floats: bool = False


def _operand(node: Node, place: int, graph: Graph) -> SourceTensor | None:
    """Return an input that may be left out."""
    if place >= len(node.inputs) or not node.inputs[place]:
        return None
    tensor = graph.stored.get(node.inputs[place])
    if tensor is None:
        raise UnsupportedError(f"it has scales or zero points that {node.op} takes from the graph")
    return tensor


def _stored(node: Node, place: int, graph: Graph) -> SourceTensor:
    tensor = _operand(node, place, graph)
    if tensor is None:
        raise InputError(f"lacks input {place} of {node.op}. Export the model again.")
    return tensor


def _all(tensor: SourceTensor) -> Array:
    return tensor.read(0, tensor.numel)


def _scale(tensor: SourceTensor) -> Array:
    if tensor.dtype not in SCALE_DTYPES:
        raise UnsupportedError(f"it has scales in {tensor.dtype}")
    return _all(tensor)


def _zero_points(values: Array, dtype: str, lie: Lie, shape: tuple[int, ...]) -> Array | None:
    """Return zero points as int16 in the shape of their granularity; None if all are 0."""
    numbers = widen(values, dtype) if dtype in SCALE_DTYPES else values
    whole = numbers.astype(np.int16)
    if not np.array_equal(whole, numbers):
        raise UnsupportedError("it has zero points that are not whole numbers")
    split = len(shape) - lie.column_dims
    return whole.reshape(lie.granularity.shape(shape, split)) if whole.any() else None


def _linear(scale: int | None, zero: int, axis: int | None) -> Callable[[Node, Graph, str], Levels]:
    """Return a reader of codes with a scale for the tensor, an axis, or blocks along one.

    Args:
        scale: the place of the scale; None where the product is multiplied with it.
        zero: that of the zero points.
        axis: along which scales differ; None where the node says so.
    """

    def read(node: Node, graph: Graph, name: str) -> Levels:
        row = QUANTIZED[node.op]
        codes = _stored(node, row.codes, graph)
        scales = _scale_after(node, graph) if scale is None else _stored(node, scale, graph)
        if codes.dtype not in ("int8", "uint8", "int16", "int32"):
            raise UnsupportedError(f"it has codes in {codes.dtype}")
        shape = codes.shape
        along = node.attribute("axis", 1) if axis is None else axis
        block = node.attribute("block_size", 0) if axis is None else 0
        rank = max(len(shape), 1)
        if not -rank <= along < rank or block < 0:
            if scales.numel != 1:
                raise InputError(f"has axis {along} or block size {block}, which it cannot have.")
            along = 0
        lie = Lie.of(scales.shape, shape or (1,), along % rank, block)
        zeros = _operand(node, zero, graph)
        if zeros is not None and zeros.numel != scales.numel:
            raise InputError(
                f"has {zeros.numel} zero points and {scales.numel} scales. Export the model again."
            )
        parts = [part for part in (codes, scales, zeros) if part is not None]
        stored = _scale(scales)
        points = np.zeros(1, np.int16) if zeros is None else _all(zeros)
        if lie.turned:
            stored = stored.reshape(scales.shape).T
            points = points if zeros is None else points.reshape(scales.shape).T
            shape = (shape[1], shape[0])
        found = Levels(
            name,
            codes.shape or (1,),
            codes.read,
            stored,
            scales.dtype,
            DTYPES.get(node.attribute("output_dtype", 0), scales.dtype),
            lie,
            tuple(part.name for part in parts),
            row.system,
            sum(part.nbytes for part in parts),
            None if zeros is None else _zero_points(points, zeros.dtype, lie, shape),
        )
        return found.turned() if lie.turned else found

    return read


def _blocks_of_rows(
    node: Node,
    graph: Graph,
    name: str,
    shape: tuple[int, int],
    row_bytes: int,
) -> Levels:
    """Read codes packed in rows of bytes, with a scale for each block of a row."""
    row = QUANTIZED[node.op]
    bits, block = node.attribute("bits", 4), node.attribute("block_size", 0)
    if bits not in (2, 4, 8) or block < 1:
        raise UnsupportedError(f"it has {bits} bits in blocks of {block}")
    codes = _stored(node, row.codes, graph)
    scales = _stored(node, 2, graph)
    zeros = _operand(node, 3, graph)
    rows, columns = shape
    blocks = -(-columns // block)
    if codes.dtype != "uint8" or codes.numel != rows * row_bytes or row_bytes * 8 < columns * bits:
        raise InputError(
            f"holds {codes.dtype} {codes.shape}, expected {rows} rows of {columns} codes of {bits} "
            "bits. Export the model again."
        )
    if scales.numel != rows * blocks:
        raise InputError(
            f"has {scales.numel} scales, expected {rows} rows of {blocks}. Export the model again."
        )
    lie = Lie(Scale.parse(f"group:{block}" if blocks > 1 else "row"))
    points: Array = np.full((rows, blocks), 1 << bits - 1, np.int16)
    if zeros is not None:
        points = _all(zeros)
        if zeros.dtype == "uint8":
            wide = -(-blocks * bits // 8)
            if zeros.numel != rows * wide:
                raise InputError(
                    f"has {zeros.numel} bytes of zero points, expected {rows} rows of {wide}. "
                    "Export the model again."
                )
            points = unpack_bits(points.reshape(rows, wide), bits)[:, :blocks]
        elif zeros.numel != rows * blocks:
            raise InputError(f"has {zeros.numel} zero points, expected {rows} rows of {blocks}.")

    def read(start: int, stop: int) -> Array:
        first, last = start // columns, stop // columns
        data = codes.read(first * row_bytes, last * row_bytes).reshape(last - first, row_bytes)
        return unpack_bits(data, bits)[:, :columns].reshape(-1)

    parts = [part for part in (codes, scales, zeros) if part is not None]
    return Levels(
        name,
        shape,
        read,
        _scale(scales),
        scales.dtype,
        scales.dtype,
        lie,
        tuple(part.name for part in parts),
        row.system,
        sum(part.nbytes for part in parts),
        _zero_points(points, "" if zeros is None else zeros.dtype, lie, shape),
    )


def _matmul_n_bits(node: Node, graph: Graph, name: str) -> Levels:
    """Read ``[N, blocks, bytes of a block]``: a row for each output, as torch has it."""
    if len(node.inputs) > 4 and node.inputs[4]:
        raise UnsupportedError("it has its columns in another order, by g_idx")
    rows, columns = node.attribute("N", 0), node.attribute("K", 0)
    bits, block = node.attribute("bits", 4), node.attribute("block_size", 0)
    if rows < 1 or columns < 1 or block < 1:
        raise InputError("has no N, K or block_size in MatMulNBits. Export the model again.")
    row_bytes = -(-columns // block) * (block * bits // 8)
    return _blocks_of_rows(node, graph, name, (rows, columns), row_bytes)


def _gather_block(node: Node, graph: Graph, name: str) -> Levels:
    """Read the table of an embedding, ``[V, bytes of a row]`` or typed codes ``[V, D]``."""
    data = _stored(node, 0, graph)
    last = len(data.shape) - 1
    if last != 1 or node.attribute("gather_axis", 0) != 0:
        raise UnsupportedError(f"it gathers along another axis than the first of {data.shape}")
    if node.attribute("quantize_axis", 1) not in (1, -1):
        raise UnsupportedError("it has blocks along another axis than its last")
    value = graph.nodes.value(node.inputs[0])
    if value is not None and value.data_type in SUB_BYTE:
        return _linear(2, 3, None)(node, graph, name)
    bits = node.attribute("bits", 4)
    if data.dtype != "uint8" or bits not in (2, 4, 8):
        raise UnsupportedError(f"it has {bits} bits in {data.dtype}")
    shape = (data.shape[0], data.shape[1] * 8 // bits)
    return _blocks_of_rows(node, graph, name, shape, data.shape[1])


def _scale_after(node: Node, graph: Graph) -> SourceTensor:
    """Find the scale by which a product of integers is multiplied: ``Cast``, then ``Mul``.

    The product is also multiplied by the scale of its other factor: where that does not stand
    beside it, one number may be both.

    Raises:
        UnsupportedError: it is not stored, or may be the product of two scales.
    """
    maker, at = graph.nodes.made_by.get(node.inputs[0]), node
    other = {"DynamicQuantizeLinear": maker.outputs, "QuantizeLinear": maker.inputs}.get(
        maker.op, ()
    )[1:2] if maker else ()  # fmt: skip
    factors: set[str] = set()
    for _ in range(3):
        users = [user for out in at.outputs for user, _ in graph.nodes.users.get(out, ())]
        if len(users) != 1 or users[0].op not in ("Cast", "Mul"):
            break
        before, at = at, users[0]
        if at.op == "Mul":
            factors.update(set(at.inputs) - set(before.outputs))
            made = [graph.nodes.made_by.get(name) for name in at.inputs if name in factors]
            factors.update(name for one in made if one and one.op == "Mul" for name in one.inputs)
            found = [name for name in factors - {*other} if name in graph.stored]
            if len(found) == 1 and factors & {*other}:
                return graph.stored[found[0]]
    raise UnsupportedError(f"it is used by {node.op}, without a scale of its own that is stored")


def _applied(node: Node, graph: Graph, name: str) -> Levels:
    """Read codes that are cast to floats, and multiplied with scales or divided by them."""
    cast = _codes_of(node, graph)
    assert cast is not None  # else the node would not be read as a weight
    codes, scales = graph.stored[cast], graph.stored[_other(node, graph)]
    lie = _broadcast(scales.shape, codes.shape)
    return Levels(
        name,
        codes.shape,
        codes.read,
        _scale(scales),
        scales.dtype,
        scales.dtype,
        lie,
        (codes.name, scales.name),
        QUANTIZED[node.op].system,
        codes.nbytes + scales.nbytes,
        divides=node.op == "Div",
    )


def _codes_of(node: Node, graph: Graph) -> str | None:
    """Return the stored bytes that a Mul or Div scales, if they serve nothing else."""
    cast = graph.nodes.made_by.get(node.inputs[0]) if len(node.inputs) == 2 else None
    if node.op == "Mul" and (cast is None or cast.op != "Cast"):
        cast = graph.nodes.made_by.get(node.inputs[-1])
    if cast is None or cast.op != "Cast" or _other(node, graph) not in graph.stored:
        return None
    codes, users = cast.inputs[0], graph.nodes.users
    alone = len(users.get(codes, ())) == len(users.get(cast.outputs[0], ())) == 1
    stored = graph.stored.get(codes)
    whole = stored is not None and stored.dtype in ("int8", "uint8") and len(stored.shape) > 1
    return codes if alone and whole else None


def _other(node: Node, graph: Graph) -> str:
    """Return the operand of a Mul or Div that is not made by a Cast."""
    first = graph.nodes.made_by.get(node.inputs[0])
    return node.inputs[1] if first is not None and first.op == "Cast" else node.inputs[0]


def _broadcast(found: tuple[int, ...], shape: tuple[int, ...]) -> Lie:
    """Find how scales lie that are broadcast over a weight."""
    whole = (1,) * (len(shape) - len(found)) + found
    long = [axis for axis, size in enumerate(whole) if size > 1]
    if len(whole) != len(shape) or len(long) > 1:
        raise UnsupportedError(f"it has scales of shape {found}")
    axis = long[0] if long else 0
    return Lie.of(whole[axis : axis + 1], shape, axis)


def _quant(node: Node, graph: Graph, name: str) -> Levels:
    """Round a float weight as QONNX and Brevitas do: only to three values."""
    weight = _stored(node, 0, graph)
    scales, zero, width = (_stored(node, place, graph) for place in (1, 2, 3))
    if scales.dtype != "float32" or weight.dtype != "float32":
        raise UnsupportedError(f"it is {weight.dtype} with scales in {scales.dtype}")
    numbers = [widen(_all(one), one.dtype) for one in (zero, width)]
    if any(one.numel != 1 for one in (zero, width)):
        raise UnsupportedError("it has more than one zero point or bit width")
    point, bits = (float(one.reshape(-1)[0]) for one in numbers)
    signed, narrow = node.attribute("signed", 1), node.attribute("narrow", 0)
    mode = str(node.attribute("rounding_mode", "ROUND")).upper()
    if bits != 2 or not signed or point != 0 or mode not in ROUNDING:
        raise UnsupportedError(
            f"it is rounded by Quant to {bits:g} bits, signed {signed}, zero point {point:g}, "
            f"{mode[:20]}"
        )
    least, turn = (-1 if narrow else -2), ROUNDING[mode]
    lie = _broadcast(scales.shape, weight.shape)
    shape = (1,) * (len(weight.shape) - len(scales.shape)) + scales.shape
    axis = next((axis for axis, size in enumerate(shape) if size > 1), 0)
    values = _all(scales)
    if not (np.isfinite(values) & (values != 0)).all():
        raise InputError("has a scale that is 0, NaN or infinite. Export the model again.")
    each = values.reshape(shape)

    def read(start: int, stop: int) -> Array:
        part = weight.read(start, stop)
        place = np.unravel_index(np.arange(start, stop), weight.shape)[axis]
        scaled = part / each.reshape(-1)[place % each.size]
        return turn(np.clip(scaled, np.float32(least), np.float32(1))).astype(np.int16)

    return Levels(
        name,
        weight.shape,
        read,
        values,
        "float32",
        "float32",
        lie,
        tuple(one.name for one in (weight, scales, zero, width)),
        QUANTIZED["Quant"].system,
        weight.nbytes,
    )


#: How Quant rounds, by the name of the mode.
ROUNDING: dict[str, Callable[[Array], Array]] = {
    "ROUND": np.round,
    "HALF_EVEN": np.round,
    "CEIL": np.ceil,
    "FLOOR": np.floor,
    "ROUND_TO_ZERO": np.trunc,
    "DOWN": np.trunc,
    "UP": lambda x: np.copysign(np.ceil(np.abs(x)), x),
    "HALF_UP": lambda x: np.copysign(np.floor(np.abs(x) + np.float32(0.5)), x),
    "HALF_DOWN": lambda x: np.copysign(np.ceil(np.abs(x) - np.float32(0.5)), x),
}

#: Every node that is read, by its op.
QUANTIZED = {
    "DequantizeLinear": Quantized("ONNX's DequantizeLinear", 0, _linear(1, 2, None)),
    "QLinearMatMul": Quantized("ONNX's QLinearMatMul", 3, _linear(4, 5, -1)),
    "QLinearConv": Quantized("ONNX's QLinearConv", 3, _linear(4, 5, 0)),
    "MatMulIntegerToFloat": Quantized("ONNX Runtime's MatMulIntegerToFloat", 1, _linear(3, 5, -1)),
    "DynamicQuantizeMatMul": Quantized(
        "ONNX Runtime's DynamicQuantizeMatMul", 1, _linear(2, 3, -1)
    ),
    "MatMulNBits": Quantized("ONNX Runtime's MatMulNBits", 1, _matmul_n_bits),
    "GatherBlockQuantized": Quantized("ONNX Runtime's GatherBlockQuantized", 0, _gather_block),
    "MatMulInteger": Quantized("ONNX's MatMulInteger", 1, _linear(None, 3, -1)),
    "ConvInteger": Quantized("ONNX's ConvInteger", 1, _linear(None, 3, 0)),
    "Mul": Quantized("ONNX's Cast and Mul", 0, _applied),
    "Div": Quantized("ONNX's Cast and Div", 0, _applied),
    "Quant": Quantized("QONNX's Quant", 0, _quant, of_floats=True),
    "IntQuant": Quantized("QONNX's Quant", 0, _quant, of_floats=True),
}


def read_as(node: Node, graph: Graph) -> tuple[Quantized, str] | None:
    """Return how a node makes a weight of codes, and their name; None if it makes none."""
    row = QUANTIZED.get(node.op)
    if row is None or len(node.inputs) <= row.codes:
        return None
    name = _codes_of(node, graph) if row.read is _applied else node.inputs[row.codes]
    return None if name is None else (row, name)
