"""From a LayerDef to what is left to do: the step that build and codegen share.

Lowering fills in an empty body, expands composite ops, and replaces every use of a
TernaryTensor by an op on its packed bytes. After it each Identifier is a local value or the
name of a stored tensor, and each FunctionCall names a row of ``OPS`` or ``PACKED_OPS`` with
its arguments in the order of that row.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from tpack.codec import Scale
from tpack.errors import LayerDefError
from tpack.layerdef.affine import affine_body, input_names
from tpack.layerdef.nodes import (
    BinaryOp,
    Expression,
    FunctionCall,
    Identifier,
    LayerCall,
    LayerDef,
    Literal,
    Param,
    Statement,
    Tuple,
    UnaryOp,
    Unspecified,
)
from tpack.layerdef.ops import OPS
from tpack.layerdef.validate import bind


@dataclass(frozen=True)
class Lowered:
    """A layer ready to be built or printed.

    Attributes:
        name: of the LayerDef.
        inputs: arguments of forward.
        stored: parameters that hold tensors, in order.
        children: parameters that hold layers, in order.
        body: lowered statements; empty where the computation is not known.
    """

    name: str
    inputs: tuple[str, ...]
    stored: tuple[Param, ...]
    children: tuple[Param, ...]
    body: tuple[Statement, ...]


def lower(layer: LayerDef) -> Lowered:
    """Lower one layer of a validated program.

    Raises:
        LayerDefError: the natural affine map does not fit, or an op does not take its weight.
    """
    body: tuple[Statement, ...] = ()
    if not (layer.body and isinstance(layer.body[0], Unspecified)):
        lowering = _Lowering(layer)
        body = tuple(lowering.statement(item) for item in layer.body or affine_body(layer))
    return Lowered(
        layer.name,
        input_names(layer),
        tuple(param for param in layer.params if param.is_stored),
        tuple(param for param in layer.params if param.param_type == "Layer"),
        body,
    )


class _Lowering:
    def __init__(self, layer: LayerDef) -> None:
        self.name = layer.name
        self.ternary = {p.name: p for p in layer.params if p.param_type == "TernaryTensor"}

    def statement(self, statement: Statement) -> Statement:
        if isinstance(statement, Unspecified):
            return statement
        return replace(statement, value=self.expression(statement.value))

    def expression(self, node: Expression, like: Expression | None = None) -> Expression:
        """Lower a value; ``like`` gives the dtype for a TernaryTensor used as a plain one."""
        match node:
            case Identifier(name) if name in self.ternary:
                return self.dequantize(self.ternary[name], like)
            case Identifier() | Literal():
                return node
            case Tuple(items):
                return Tuple([self.expression(item, like) for item in items])
            case UnaryOp(operator, operand):
                return UnaryOp(operator, self.expression(operand))
            case BinaryOp("@", left, right):
                return self.call(FunctionCall("matmul", (left, right)))
            case BinaryOp(operator, left, right):
                peer = self.plain(left, right)
                return BinaryOp(operator, self.expression(left, peer), self.expression(right, peer))
            case FunctionCall():
                return self.call(node)
            case LayerCall(layer, args):
                return LayerCall(layer, [self.expression(arg) for arg in args])

    def call(self, node: FunctionCall) -> Expression:
        given = {param.name: value for param, value in bind(OPS[node.function], node, self.name)}
        if node.function == "dropout":
            return self.expression(given["x"])
        if node.function == "relu_squared":
            positive = FunctionCall("relu", (), {"x": self.expression(given["x"])})
            return FunctionCall("square", (), {"x": positive})
        weight = given.get("y" if node.function == "matmul" else "weight")
        if isinstance(weight, Identifier) and weight.name in self.ternary:
            packed = self.packed_call(node.function, self.ternary[weight.name], given)
            if packed is not None:
                return packed
        values = list(given.values())
        peer = self.plain(*values)
        return FunctionCall(
            node.function, (), {name: self.expression(v, peer) for name, v in given.items()}
        )

    def packed_call(
        self, function: str, param: Param, given: dict[str, Expression]
    ) -> Expression | None:
        """The op on packed bytes for a call whose weight is ternary, if there is one."""
        rank = _RANKS.get(function)
        shape = param.shape or ()
        if rank is None:
            return None
        if len(shape) != rank:
            if function == "matmul":
                return None
            raise LayerDefError(
                f"{function} takes a weight of {rank} dims, found shape {shape}.",
                node=f"{self.name}.{param.name}",
            )
        if param.rows_split != 1:
            return None
        first = "ids" if function == "embedding" else "x"
        arguments = {first: self.expression(given[first])} | self.stored(param)
        if function not in ("linear", "bit_linear"):
            arguments["shape"] = _sizes(shape)
        for name, value in given.items():
            if name not in (first, "weight", "y"):
                arguments[name] = self.expression(value, self.plain(given[first]))
        return FunctionCall(f"ternary_{function}", (), arguments | _layout(param))

    def dequantize(self, param: Param, like: Expression | None) -> Expression:
        arguments = self.stored(param) | {"shape": _sizes(param.shape or ())}
        if like is not None:
            arguments["like"] = like
        return FunctionCall("dequantize", (), arguments | _layout(param))

    def stored(self, param: Param) -> dict[str, Expression]:
        return {
            "packed": Identifier(f"{param.name}_packed"),
            "scale": Identifier(f"{param.name}_scale"),
        }

    def plain(self, *values: Expression) -> Expression | None:
        """The first operand that is a name and not ternary: what a ternary one adapts to."""
        for value in values:
            if isinstance(value, Identifier) and value.name not in self.ternary:
                return value
        return None


#: Dims of the weight that the op on packed bytes takes.
_RANKS = {"linear": 2, "bit_linear": 2, "matmul": 2, "embedding": 2, "conv1d": 3, "conv2d": 4}


def _sizes(shape: tuple[int, ...]) -> Tuple:
    return Tuple([Literal(size) for size in shape])


def _layout(param: Param) -> dict[str, Expression]:
    """What the shapes of the stored tensors do not tell, where it is not the default."""
    options: dict[str, Expression] = {}
    if param.layout != "t2":
        options["layout"] = Literal(param.layout)
    if group_size := Scale.parse(param.scale).group_size:
        options["group_size"] = Literal(group_size)
    return options
