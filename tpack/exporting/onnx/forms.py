"""How a packed layer computes in ONNX: nodes that take the place of tpack's operators.

Every form is right in a default session of ONNX Runtime. What depends on weights alone (unpacking,
spreading a scale) is computed there once, at load, since all its inputs are constants.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import torch
from onnx_ir.tape import Tape
from onnxscript import ir, values

from tpack.nn import reference

#: Sizes of blocks that the kernels of two bits take, the fastest first. Blocks of 16 and 256 run
#: too, without a fast kernel.
BLOCKS = (128, 64, 32)
#: The value of ``accuracy_level`` for activations in eight bits.
EIGHT_BITS = 4
#: Four codes that mean 0, as padding and as zero points.
ZEROS = 0x55
#: The domain of nodes that stand for tpack's operators, until ``expand`` replaces them.
_DOMAIN = "tpack"
#: The domain of ONNX Runtime's own operators.
_MICROSOFT = "com.microsoft"
#: Where the codes of a byte begin.
_PLACES = np.array([0, 2, 4, 6], np.uint8)


@dataclass(frozen=True)
class Form:
    """One way of computing packed layers.

    Attributes:
        fast: whether activations may be rounded to eight bits, block by block.
        counts: how many layers were written with each kind of node.
    """

    fast: bool = False
    counts: dict[str, int] = field(default_factory=dict, compare=False)

    def expand(self, model: ir.Model) -> None:
        """Replace the nodes that stand for tpack's operators."""
        graph = model.graph
        for node in tuple(graph):
            if node.domain != _DOMAIN:
                continue
            layer = _Layer(node)
            kind, result = _WRITERS[node.op_type](layer, fast=self.fast)
            self.counts[kind] = self.counts.get(kind, 0) + 1
            found = node.outputs[0]
            graph.insert_before(node, layer.tape.nodes)
            found.replace_all_uses_with(result, replace_graph_outputs=True)
            result.name, result.type, result.shape = found.name, found.type, found.shape
            graph.remove(node, safe=True)
        model.opset_imports.pop(_DOMAIN, None)
        if "MatMulNBits" in self.counts:
            model.opset_imports[_MICROSOFT] = 1


def translations() -> dict[Any, Callable[..., Any]]:
    """Return what torch.onnx writes for each operator of ``torch.ops.tpack``: one node."""
    ops, rows = torch.ops.tpack, ("x", "packed", "scale", "bias")
    return {
        ops.linear.default: _rows(_standing_for("linear", rows)),
        ops.bit_linear.default: _rows(_standing_for("bit_linear", rows)),
        ops.matmul.default: _matmul(_standing_for("matmul", rows[:3])),
    }


def _rows(op: Any) -> Callable[..., Any]:
    def rows(x: Any, packed: Any, scale: Any, bias: Any = None, group_size: int = 0) -> Any:
        given = (x, packed, scale) if bias is None else (x, packed, scale, bias)
        return op(*given, group_size=group_size, columns=0)

    return rows


def _matmul(op: Any) -> Callable[..., Any]:
    def matmul(x: Any, packed: Any, scale: Any, columns: int, group_size: int = 0) -> Any:
        return op(x, packed, scale, group_size=group_size, columns=columns)

    return matmul


def _standing_for(name: str, inputs: Sequence[str]) -> Any:
    """Return an op of onnxscript with the inputs of an operator; no registry knows it."""
    schema = onnx.defs.OpSchema
    option, whole = schema.FormalParameterOption, schema.AttrType.INT
    types = {"x": "X", "packed": "tensor(uint8)", "scale": "S", "bias": "X"}
    formal = [
        schema.FormalParameter(
            each, types[each], param_option=option.Optional if each == "bias" else option.Single
        )
        for each in inputs
    ]
    floats = ["tensor(float)", "tensor(double)", "tensor(float16)", "tensor(bfloat16)"]
    described = schema(
        name,
        _DOMAIN,
        1,
        inputs=formal,
        outputs=[schema.FormalParameter("y", "X")],
        type_constraints=[("X", floats, ""), ("S", floats, "")],
        attributes=[
            schema.Attribute(each, whole, "", required=True) for each in ("group_size", "columns")
        ],
    )
    return values.Op(values.Opset(_DOMAIN, 1), name, described)


class _Layer:
    """One operator, and the nodes that are written for it."""

    def __init__(self, node: ir.Node) -> None:
        self.tape = Tape()
        self.x, self.packed, self.scale = (_known(value) for value in node.inputs[:3])
        self.bias = node.inputs[3] if len(node.inputs) > 3 else None
        self.group_size = node.attributes["group_size"].as_int()
        self.rows = _size(self.packed, 0)
        self.scales = tuple(_size(self.scale, i) for i in range(len(_known(self.scale.shape))))
        self.columns = node.attributes["columns"].as_int() or _size(self.x, -1)

    def op(self, kind: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        """Write a node; return its result."""
        domain = _MICROSOFT if kind == "MatMulNBits" else ""
        return self.tape.op(kind, inputs, attributes, domain=domain)

    def constant(self, value: Any, dtype: Any = np.int64) -> ir.Value:
        """Write a small constant."""
        return self.op("Constant", value=ir.tensor(np.array(value, dtype)))

    @property
    def has_one_scale(self) -> bool:
        """Whether all weights of a row have the same scale."""
        return self.scales[-1] == 1

    @property
    def has_columns(self) -> bool:
        """Whether the scales belong to columns."""
        return self.scales == (1, self.columns) and self.group_size <= 1 < self.columns

    @property
    def group(self) -> int:
        """The number of columns that share a scale, where they lie in groups."""
        return self.group_size or reference.infer_group_size(self.columns, self.scales[-1])

    # ---- what is computed at load

    def codes(self) -> ir.Value:
        """Unpack to uint8 (rows, columns), each a trit + 1."""
        whole = 4 * _size(self.packed, 1)
        apart = self.op("Unsqueeze", self.packed, self.constant([-1]))
        places = self.constant(_PLACES, np.uint8)
        shifted = self.op("BitShift", apart, places, direction="RIGHT")
        codes = self.op("BitwiseAnd", shifted, self.constant(3, np.uint8))
        codes = self.op("Reshape", codes, self.constant([self.rows, whole]))
        return codes if whole == self.columns else self.cut(codes, self.columns)

    def trits(self, dtype: ir.DataType = ir.DataType.FLOAT) -> ir.Value:
        """Unpack to (rows, columns)."""
        one = self.constant(1, dtype.numpy())
        return self.op("Sub", self.op("Cast", self.codes(), to=dtype), one)

    def weight(self) -> ir.Value:
        """Unpack to float32 (rows, columns), with the scale."""
        scale = self.scale
        if not self.has_one_scale and not self.has_columns:
            scale = self.cut(self.repeated(scale, self.group), self.columns)
        return self.op("Mul", self.trits(), scale)

    def repeated(self, scale: ir.Value, count: int) -> ir.Value:
        """Repeat each scale of a row."""
        rows, groups = self.scales
        apart = self.op("Unsqueeze", scale, self.constant([-1]))
        wide = self.op("Expand", apart, self.constant([rows, groups, count]))
        return self.op("Reshape", wide, self.constant([rows, groups * count]))

    def cut(self, value: ir.Value, columns: int) -> ir.Value:
        """Return the first columns."""
        bounds = [self.constant([bound]) for bound in (0, columns, 1)]
        return self.op("Slice", value, *bounds)

    def turned(self, value: ir.Value) -> ir.Value:
        """Transpose a matrix."""
        return self.op("Transpose", value, perm=[1, 0])

    def widened(self, value: ir.Value, rows: int, has: int, columns: int) -> ir.Value:
        """Append bytes that hold zeros."""
        if has == columns:
            return value
        fill = self.op(
            "Expand", self.constant(ZEROS, np.uint8), self.constant([rows, columns - has])
        )
        return self.op("Concat", value, fill, axis=1)

    # ---- what is computed for each x

    def plus_bias(self, y: ir.Value) -> ir.Value:
        """Add the bias, if there is one."""
        return y if self.bias is None else self.op("Add", y, self.bias)

    def blocks(
        self, packed: ir.Value, out: int, scales: ir.Value, block: int, x: ir.Value
    ) -> ir.Value:
        """Multiply x by ``MatMulNBits``, which rounds it to eight bits in blocks of columns.

        Args:
            packed: (out, bytes) of the weight (out, in).
            scales: float32 (out, blocks).
        """
        inner = _size(x, -1)
        count = math.ceil(inner / block)
        packed = self.widened(packed, out, math.ceil(inner / 4), count * block // 4)
        zeros = self.op(
            "Expand", self.constant(ZEROS, np.uint8), self.constant([out, math.ceil(count / 4)])
        )
        return self.op(
            "MatMulNBits",
            x,
            self.op("Reshape", packed, self.constant([out, count, block // 4])),
            scales,
            zeros,
            K=inner,
            N=out,
            bits=2,
            block_size=block,
            accuracy_level=EIGHT_BITS,
        )

    def spread(self, scale: ir.Value, out: int, count: int) -> ir.Value:
        """Give each block a scale: (out, count)."""
        return self.op("Expand", scale, self.constant([out, count]))


def _linear(layer: _Layer, *, fast: bool) -> tuple[str, ir.Value]:
    """Multiply by a weight (out, in)."""
    block = _block(layer) if fast else 0
    if not block:
        y = layer.op("MatMul", layer.x, layer.turned(layer.weight()))
        return "MatMul", layer.plus_bias(y)
    count, x, scale = math.ceil(layer.columns / block), layer.x, layer.scale
    if layer.has_columns:
        row = layer.op("Reshape", scale, layer.constant([-1]))
        x, scale = layer.op("Mul", x, row), layer.constant([[1]], np.float32)
        x.shape = layer.x.shape
    elif not layer.has_one_scale:
        scale = layer.cut(layer.repeated(scale, layer.group // block), count)
    y = layer.blocks(layer.packed, layer.rows, layer.spread(scale, layer.rows, count), block, x)
    return "MatMulNBits", layer.plus_bias(y)


def _block(layer: _Layer) -> int:
    """Return the size of blocks that the scales can be spread over; 0 if there is none."""
    if layer.has_one_scale or layer.has_columns:
        return _largest(layer.columns)
    return next((block for block in BLOCKS if layer.group % block == 0), 0)


def _largest(columns: int) -> int:
    return next((block for block in BLOCKS if block <= columns), BLOCKS[-1])


def _bit_linear(layer: _Layer, *, fast: bool) -> tuple[str, ir.Value]:  # noqa: ARG001
    """Multiply with x in eight bits: the sums are integers, if a row has one scale."""
    small, gain = layer.constant(1e-5, np.float32), layer.constant(127, np.float32)
    largest = layer.op("ReduceMax", layer.op("Abs", layer.x), layer.constant([-1]), keepdims=1)
    gain = layer.op("Div", gain, layer.op("Max", largest, small))
    bounds = [layer.constant(bound, np.float32) for bound in (-128, 127)]
    rounded = layer.op("Clip", layer.op("Round", layer.op("Mul", layer.x, gain)), *bounds)
    if not layer.has_one_scale:
        y = layer.op("MatMul", rounded, layer.turned(layer.weight()))
        return "MatMul", layer.plus_bias(layer.op("Div", y, gain))
    codes = layer.op("Cast", rounded, to=ir.DataType.INT8)
    sums = layer.op("MatMulInteger", codes, layer.turned(layer.trits(ir.DataType.INT8)))
    scale = layer.op("Reshape", layer.scale, layer.constant([-1]))
    y = layer.op("Mul", layer.op("Cast", sums, to=ir.DataType.FLOAT), scale)
    return "MatMulInteger", layer.plus_bias(layer.op("Div", y, gain))


def _columns(layer: _Layer, *, fast: bool) -> tuple[str, ir.Value]:
    """Multiply by a weight (in, out), whose packed rows belong to inputs."""
    if not fast or not (layer.has_columns or layer.scales[-1] == 1):
        return "MatMul", layer.op("MatMul", layer.x, layer.weight())
    inner, out, x = layer.rows, layer.columns, layer.x
    if layer.scales == (inner, 1) and inner > 1:
        x = layer.op("Mul", x, layer.op("Reshape", layer.scale, layer.constant([-1])))
        x.shape = layer.x.shape
        scale = layer.constant([[1]], np.float32)
    else:
        scale = layer.op("Reshape", layer.scale, layer.constant([-1, 1]))
    block = _largest(inner)
    scales = layer.spread(scale, out, math.ceil(inner / block))
    return "MatMulNBits", layer.blocks(_turned_bytes(layer), out, scales, block, x)


def _turned_bytes(layer: _Layer) -> ir.Value:
    """Pack the transpose: (out, ceil(in / 4))."""
    width = math.ceil(layer.rows / 4)
    codes = layer.turned(layer.codes())
    missing = 4 * width - layer.rows
    if missing:
        fill = layer.op(
            "Expand", layer.constant(1, np.uint8), layer.constant([layer.columns, missing])
        )
        codes = layer.op("Concat", codes, fill, axis=1)
    apart = layer.op("Reshape", codes, layer.constant([layer.columns, width, 4]))
    moved = layer.op("BitShift", apart, layer.constant(_PLACES, np.uint8), direction="LEFT")
    parts = [layer.op("Gather", moved, layer.constant(place), axis=2) for place in range(4)]
    return layer.op(
        "BitwiseOr",
        layer.op("BitwiseOr", parts[0], parts[1]),
        layer.op("BitwiseOr", parts[2], parts[3]),
    )


_WRITERS: dict[str, Callable[..., tuple[str, ir.Value]]] = {
    "linear": _linear,
    "bit_linear": _bit_linear,
    "matmul": _columns,
}


def _known(value: Any) -> Any:
    assert value is not None
    return value


def _size(value: ir.Value, dim: int) -> int:
    size = _known(value.shape)[dim]
    assert isinstance(size, int), f"{value.name} has a free size"
    return size
