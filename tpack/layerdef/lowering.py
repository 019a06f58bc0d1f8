"""From a LayerDef to calls of ops on stored tensors: the step that build and codegen share.

Lowering fills in an empty body, expands composite ops, and replaces every use of a
TernaryTensor by an op on its packed bytes. After it each Identifier is a local value or the
name of a stored tensor, and each FunctionCall names a row of ``OPS`` or ``PACKED_OPS`` with
its arguments in the order of that row.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from tpack.codec import Scale
from tpack.errors import LayerDefError
from tpack.layerdef.affine import affine_body, input_names
from tpack.layerdef.nodes import (
    Assignment,
    BinaryOp,
    Dict,
    Expression,
    FunctionCall,
    Identifier,
    LayerCall,
    LayerDef,
    Literal,
    Param,
    Program,
    Statement,
    Tuple,
    UnaryOp,
    Unpack,
    Unspecified,
)
from tpack.layerdef.ops import OPS, PACKED_OPS, Op
from tpack.layerdef.tensors import tensor_of
from tpack.layerdef.validation import bind
from tpack.layerdef.walking import identifiers, with_parts


@dataclass(frozen=True)
class Lowered:
    """A layer ready to be built or printed.

    Attributes:
        name: of the LayerDef.
        inputs: arguments of forward.
        caches: those of them that are caches, and may be left out.
        stored: parameters that hold tensors, in order; constants too.
        children: parameters that hold layers, in order.
        body: lowered statements; empty where the computation is not known.
    """

    name: str
    inputs: tuple[str, ...]
    caches: frozenset[str]
    stored: tuple[Param, ...]
    children: tuple[Param, ...]
    body: tuple[Statement, ...]


def lower(layer: LayerDef, program: Program) -> Lowered:
    """Lower one layer of a validated program.

    Raises:
        LayerDefError: the natural affine map does not fit, or an op does not take its weight.
    """
    body: tuple[Statement, ...] = ()
    if not (layer.body and isinstance(layer.body[0], Unspecified)):
        statements = layer.body or affine_body(layer)
        body = _alive(_Lowering(layer, statements, program).statements(statements))
    return Lowered(
        layer.name,
        input_names(layer),
        frozenset(param.name for param in layer.params if param.is_cache),
        tuple(p for p in layer.params if p.is_stored or p.param_type == "Constant"),
        tuple(param for param in layer.params if param.param_type == "Layer"),
        body,
    )


class _Lowering:
    def __init__(self, layer: LayerDef, statements: Sequence[Statement], program: Program) -> None:
        self.name = layer.name
        values = [item.value for item in statements if not isinstance(item, Unspecified)]
        dotted = {name for value in values for name in identifiers(value) if "." in name}
        below = [tensor_of(layer, name, program.by_name) for name in sorted(dotted)]
        tensors = [*layer.params, *(param for param in below if param is not None)]
        self.ternary = {p.name: p for p in tensors if p.param_type == "TernaryTensor"}
        self.taken = {param.name.partition(".")[0] for param in layer.params}
        self.taken |= {name for p in self.ternary for name in (f"{p}_packed", f"{p}_scale")}
        self.taken |= {item.target for item in statements if isinstance(item, Assignment)}
        self.taken |= {n for item in statements if isinstance(item, Unpack) for n in item.targets}
        self.taken.add("x")
        self.before: list[Statement] = []

    def statements(self, statements: Sequence[Statement]) -> Iterator[Statement]:
        for statement in statements:
            assert not isinstance(statement, Unspecified)
            lowered = replace(statement, value=self.expression(statement.value))
            yield from self.before
            self.before = []
            yield lowered

    def expression(self, node: Expression, like: Expression | None = None) -> Expression:
        """Lower a value; ``like`` gives the dtype for a TernaryTensor used as a plain one."""
        match node:
            case Identifier(name) if name in self.ternary:
                return self.dequantize(self.ternary[name], like)
            case Identifier() | Literal():
                return node
            case Tuple(items):
                return Tuple([self.expression(item, like) for item in items])
            case Dict(pairs):
                return Dict([(name, self.expression(item)) for name, item in pairs])
            case UnaryOp("-", UnaryOp("-", operand)):
                return self.expression(operand, like)
            case UnaryOp(operator, operand):
                return UnaryOp(operator, self.expression(operand))
            case BinaryOp("@", left, right):
                product = self.call(FunctionCall("matmul", (left, right)))
                if isinstance(product, FunctionCall) and product.function == "matmul":
                    return BinaryOp("@", *(value for _, value in product.kwargs))
                return product
            case BinaryOp(operator, left, right):
                operands = self.operands({"left": left, "right": right})
                return BinaryOp(operator, operands["left"], operands["right"])
            case FunctionCall():
                return self.call(node)
            case LayerCall(layer, args):
                return LayerCall(layer, [self.expression(arg) for arg in args])

    def call(self, node: FunctionCall) -> Expression:
        op = OPS[node.function]
        given = {param.name: value for param, value in bind(op, node, self.name)}
        if op.expansion is not None:
            defaults = {param.name: Literal(param.default) for param in op.params}
            return self.expression(_filled(op.expansion, defaults | given))
        return self.packed_call(op, given) or FunctionCall(op.name, (), self.operands(given))

    def operands(self, given: Mapping[str, Expression]) -> dict[str, Expression]:
        """Lower the operands of one op; a ternary one takes the dtype of another."""
        if not any(map(self.has_ternary, given.values())):
            return {name: self.expression(value) for name, value in given.items()}
        values, peer = self.named(given)
        return {
            name: value if value is peer else self.expression(value, peer)
            for name, value in values.items()
        }

    def packed_call(self, op: Op, given: dict[str, Expression]) -> Expression | None:
        """Return the op on packed bytes for a call with a ternary weight; None if there is none."""
        packed = next((one for one in PACKED_OPS.values() if one.plain == op.name), None)
        weight = given[packed.weight] if packed else None
        if packed is None or not (isinstance(weight, Identifier) and weight.name in self.ternary):
            return None
        param = self.ternary[weight.name]
        shape = param.shape or ()
        if len(shape) != packed.rank and op.name != "matmul":
            raise LayerDefError(
                f"{op.name} takes a weight of {packed.rank} dims, found shape {shape}.",
                node=f"{self.name}.{param.name}",
            )
        if len(shape) != packed.rank or param.rows_split != (2 if packed.of_stack else 1):
            return None
        others = {name: value for name, value in given.items() if name != packed.weight}
        arguments = self.operands(others)
        arguments |= self.stored(param) | {"shape": _sizes(shape)} | _layout(param)
        ordered = [(p.name, arguments[p.name]) for p in packed.params if p.name in arguments]
        return FunctionCall(packed.name, (), ordered)

    def dequantize(self, param: Param, like: Expression | None) -> Expression:
        arguments = self.stored(param) | {"shape": _sizes(param.shape or ())}
        if like is not None and like != Literal(None):
            arguments["like"] = like
        return FunctionCall("dequantize", (), arguments | _layout(param))

    def stored(self, param: Param) -> dict[str, Expression]:
        return {
            "packed": Identifier(f"{param.name}_packed"),
            "scale": Identifier(f"{param.name}_scale"),
        }

    def is_ternary(self, value: Expression) -> bool:
        return isinstance(value, Identifier) and value.name in self.ternary

    def has_ternary(self, value: Expression) -> bool:
        """Return whether a value is a ternary one, or lists one among others."""
        if isinstance(value, Tuple):
            return any(map(self.has_ternary, value.items))
        return self.is_ternary(value)

    def named(self, values: Mapping[str, Expression]) -> tuple[dict[str, Expression], Expression]:
        """Return the operands, and the one that gives a ternary operand its dtype.

        That operand is used twice: unless it is a name already, it is computed before and named.
        """
        lowered: dict[str, Expression] = dict(values)
        for name, value in values.items():
            if self.is_ternary(value) or isinstance(value, Literal | Tuple):
                continue
            peer = self.expression(value)
            if not isinstance(peer, Identifier):
                target, number = "value", 1
                while target in self.taken:
                    number += 1
                    target = f"value{number}"
                self.taken.add(target)
                self.before.append(Assignment(target, peer))
                peer = Identifier(target)
            lowered[name] = peer
            return lowered, peer
        return lowered, Literal(None)


def _alive(statements: Iterable[Statement]) -> tuple[Statement, ...]:
    """Drop assignments that nothing reads: ops have no side effects."""
    kept: list[Statement] = []
    read: set[str] = set()
    for statement in reversed(list(statements)):
        if isinstance(statement, Assignment):
            if statement.target not in read or statement.value == Identifier(statement.target):
                continue
            read.discard(statement.target)
        if isinstance(statement, Unpack):
            kept_names = ["_" if name not in read else name for name in statement.targets]
            if not set(kept_names) - {"_"}:
                continue
            read -= set(kept_names)
            statement = replace(statement, targets=tuple(kept_names))  # noqa: PLW2901
        assert not isinstance(statement, Unspecified)
        read |= set(identifiers(statement.value))
        kept.append(statement)
    return tuple(reversed(kept))


def _filled(node: Expression, given: Mapping[str, Expression]) -> Expression:
    """Return the expansion of a composite with arguments in the place of parameters."""
    if isinstance(node, Identifier):
        return given[node.name]
    return with_parts(node, lambda part: _filled(part, given))


def _sizes(shape: tuple[int, ...]) -> Tuple:
    return Tuple([Literal(size) for size in shape])


def _layout(param: Param) -> dict[str, Expression]:
    """Return layout and group size, which the shapes of the stored tensors do not show.

    Defaults are left out.
    """
    options: dict[str, Expression] = {}
    if param.layout != "t2":
        options["layout"] = Literal(param.layout)
    if group_size := Scale.parse(param.scale).group_size:
        options["group_size"] = Literal(group_size)
    return options
