"""Read the LayerDefs of a generated module back off its forward methods.

Generated source uses nothing but the ops of the table, so a symbolic trace of each class
gives its tree again. That is what lets ``save`` describe a module that was made by exec or
import, in standalone form too.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from tpack.build import op_function
from tpack.codec.shapes import Scale, default_split
from tpack.errors import LayerDefError
from tpack.layerdef import (
    Assignment,
    BinaryOp,
    Expression,
    FunctionCall,
    Identifier,
    LayerCall,
    LayerDef,
    Literal,
    Param,
    Program,
    Return,
    Statement,
    Tuple,
    UnaryOp,
    Unspecified,
    as_program,
)
from tpack.layerdef.builtin import BUILTIN
from tpack.layerdef.names import is_identifier
from tpack.layerdef.ops import OPS, PACKED_OPS, REQUIRED, Op, OpParam, torch_name

_BINARY = {
    operator.add: "+",
    operator.sub: "-",
    operator.mul: "*",
    operator.truediv: "/",
    operator.floordiv: "//",
    operator.mod: "%",
    operator.pow: "**",
    operator.matmul: "@",
}
_FUNCTIONS = {op_function(op): op for op in OPS.values() if op.spelling}
_METHODS = {op.spelling[1:]: op for op in OPS.values() if op.spelling.startswith(".")}
_BUILTIN = {row.spelling.removeprefix("nn."): row for row in BUILTIN.values()}


def read_program(module: nn.Module) -> Program:
    """The program of an instance of a generated class.

    Raises:
        LayerDefError: the module does something that no LayerDef says.
    """
    reader = _Reader()
    root = reader.layer(module)
    program = Program(list(reader.layers.values()), root)
    return as_program(program)


class _Reader:
    """Reads modules into LayerDefs, one for each class that differs."""

    def __init__(self) -> None:
        self.layers: dict[str, LayerDef] = {}

    def layer(self, module: nn.Module) -> str:
        """The name of the LayerDef of a module."""
        wish = type(module).__name__
        params = [*_stored(module), *self.children(module)]
        inputs, body = _body(module, {param.name: param for param in params})
        layer = LayerDef(wish, [*params, *(Param(name, "Tensor") for name in inputs)], body)
        number = 1
        while self.layers.setdefault(layer.name, layer) != layer:
            number += 1
            layer = replace_name(layer, f"{wish}{number}")
        return layer.name

    def children(self, module: nn.Module) -> list[Param]:
        found = []
        for name, child in module.named_children():
            if type(child) is nn.ModuleList:
                copies = [self.child(name, item) for item in child]
                if any(copy != copies[0] for copy in copies):
                    raise LayerDefError("holds layers that differ.", node=f"{name} (ModuleList)")
                found.append(replace(copies[0], repeat=len(copies)))
            elif type(child) is not nn.Identity:
                found.append(self.child(name, child))
        return found

    def child(self, name: str, module: nn.Module) -> Param:
        row = _BUILTIN.get(type(module).__name__)
        if row is None:
            return Param(name, "Layer", layer=self.layer(module))
        args = {param.name: _argument(module, param) for param in row.params}
        defaults = {param.name: param.default for param in row.params}
        if args.get("scale_dtype") == args.get("dtype"):
            args.pop("scale_dtype", None)
        kept = {key: value for key, value in args.items() if value != defaults[key]}
        return Param(name, "Layer", layer=row.name, args=kept)


def replace_name(layer: LayerDef, name: str) -> LayerDef:
    """The layer under another name."""
    return LayerDef(name, layer.params, layer.body)


# ---- what a module stores


def _stored(module: nn.Module) -> list[Param]:
    shapes: dict[str, tuple[int, ...]] = getattr(module, "ternary_shapes", {})
    layouts: dict[str, str] = getattr(module, "ternary_layouts", {})
    groups: dict[str, int] = getattr(module, "ternary_groups", {})
    hidden = {f"{name}_{part}" for name in shapes for part in ("packed", "scale")}
    found = []
    for name, shape in shapes.items():
        packed, scale = getattr(module, f"{name}_packed"), getattr(module, f"{name}_scale")
        split = packed.dim() - 1
        found.append(
            Param(
                name,
                "TernaryTensor",
                shape,
                dtype=_dtype(scale),
                scale=str(Scale.of(scale.shape, shape, split, groups.get(name, 0))),
                layout=layouts.get(name, "t2"),
                split=None if split == default_split(len(shape)) else split,
            )
        )
    for kind, tensors in (
        ("Tensor", module.named_parameters(recurse=False)),
        ("Buffer", module.named_buffers(recurse=False)),
    ):
        for name, tensor in tensors:
            if name not in hidden:
                found.append(Param(name, kind, tuple(tensor.shape), dtype=_dtype(tensor)))
    return found


def _argument(module: nn.Module, param: OpParam) -> Any:
    """What a built-in layer was constructed with, read off the instance."""
    if param.name == "bias" and param.kind == "bool":
        return module.bias is not None
    weight = getattr(module, "weight_scale", None)
    bias = getattr(module, "bias", None)
    if param.name == "scale":
        shape = module.shape
        assert isinstance(weight, Tensor)
        size = module.group_size
        return str(Scale.of(weight.shape, shape, len(shape[:1]), size))  # type: ignore[index, arg-type]
    if param.name == "layout":
        return module.ternary_layouts["weight"]  # type: ignore[index]
    if param.name == "scale_dtype":
        return _dtype(weight) if isinstance(weight, Tensor) else None
    if param.name == "dtype":
        first = bias if isinstance(bias, Tensor) else weight
        return _dtype(first if first is not None else module.weight)
    if param.name in ("in_channels", "out_channels", "kernel_size") and weight is not None:
        out, inner, *kernel = module.shape  # type: ignore[misc]
        sizes = {"out_channels": out, "in_channels": inner * module.groups}
        return sizes.get(param.name, _one(tuple(kernel)))
    return _one(getattr(module, param.name))


def _one(value: Any) -> Any:
    """A tuple of equal sizes as one size, the way generated source spells it."""
    if isinstance(value, tuple) and len(set(value)) == 1:
        return value[0]
    return value


def _dtype(tensor: Any) -> str:
    return str(tensor.dtype).removeprefix("torch.")


# ---- what a module computes


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:  # noqa: ARG002
        return True


def _body(
    module: nn.Module, params: dict[str, Param]
) -> tuple[tuple[str, ...], tuple[Statement, ...]]:
    """The inputs and statements of one forward."""
    names: dict[str, Any] = type(module).forward.__globals__
    packed = {names[name]: op for name, op in PACKED_OPS.items() if name in names}
    try:
        graph = _Tracer(autowrap_functions=tuple(packed)).trace(module)
    except NotImplementedError:
        return (), (Unspecified(),)
    except (fx.proxy.TraceError, TypeError, ValueError, RuntimeError) as error:
        raise LayerDefError(
            f"forward does what no LayerDef says: {error}. Give save a layerdef.",
            node=type(module).__name__,
        ) from error
    return _Body(type(module).__name__, params, packed).read(graph)


class _Body:
    def __init__(
        self, name: str, params: dict[str, Param], packed: dict[Callable[..., Any], Op]
    ) -> None:
        self.name = name
        self.params = params
        self.packed = packed
        self.values: dict[fx.Node, Expression] = {}

    def read(self, graph: fx.Graph) -> tuple[tuple[str, ...], tuple[Statement, ...]]:
        inputs = [str(node.target) for node in graph.nodes if node.op == "placeholder"]
        statements: list[Statement] = []
        taken = {*inputs, *self.params}
        for node in graph.nodes:
            if node.op == "placeholder":
                self.values[node] = Identifier(str(node.target))
            elif node.op == "output":
                statements.append(Return(self.value(node.args[0])))
            elif node.users:
                value = self.node(node)
                last = any(user.op == "output" for user in node.users)
                if len(node.users) == 1 and (last or _depth(value) < 4):
                    self.values[node] = value
                else:
                    taken |= {(target := self.fresh(node.name, taken))}
                    statements.append(Assignment(target, value))
                    self.values[node] = Identifier(target)
        return tuple(inputs), tuple(statements)

    def fresh(self, wish: str, taken: set[str]) -> str:
        """A name for a value: the tracer's, where a LayerDef may say it."""
        name, number = wish, 1
        while name in taken or not is_identifier(name):
            name, number = f"hidden{number if number > 1 else ''}", number + 1
        return name

    def node(self, node: fx.Node) -> Expression:
        if node.op == "get_attr":
            return Identifier(str(node.target))
        if node.op == "call_module":
            return self.layer_call(node)
        if node.op == "call_method" and node.target in _METHODS:
            return self.call(_METHODS[str(node.target)], node)
        if node.op == "call_function" and callable(node.target):
            function = node.target
            if function in _BINARY:
                left, right = (self.value(arg) for arg in node.args)
                return BinaryOp(_BINARY[function], left, right)
            if function is operator.neg:
                return UnaryOp("-", self.value(node.args[0]))
            if function in _FUNCTIONS:
                return self.call(_FUNCTIONS[function], node)
            if function in self.packed:
                return self.packed_call(self.packed[function], node)
        raise LayerDefError(f"{node.target} is no op of LayerDef.", node=self.name)

    def layer_call(self, node: fx.Node) -> Expression:
        """A call of a child; the copies of a repeated one become one call."""
        name, _, position = str(node.target).partition(".")
        args = [self.value(arg) for arg in node.args]
        if position and int(position):
            before = args[0]
            if not isinstance(before, LayerCall) or before.layer != name:
                raise LayerDefError(f"{name} is not applied in order.", node=self.name)
            return before
        return LayerCall(name, args)

    def bound(self, op: Op, node: fx.Node) -> dict[str, Any]:
        names = {torch_name(op.name, param.name): param.name for param in op.params}
        given = {p.name: arg for p, arg in zip(op.params, node.args, strict=False)}
        if len(node.args) > len(op.params):  # sizes given one by one
            given[op.params[-1].name] = node.args[len(op.params) - 1 :]
        # torch adds defaults that no row has, such as inplace=False
        named = {names[key]: arg for key, arg in node.kwargs.items() if key in names}
        return given | named

    def call(self, op: Op, node: fx.Node) -> Expression:
        values = {name: self.value(arg) for name, arg in self.bound(op, node).items()}
        defaults = {param.name: param.default for param in op.params}
        first = [p.name for p in op.params if p.default is REQUIRED and not p.keyword]
        args = [values.pop(name) for name in first]
        kept = {k: v for k, v in values.items() if v != Literal(defaults[k])}
        return FunctionCall(op.name, args, kept)

    def packed_call(self, op: Op, node: fx.Node) -> Expression:
        """An op on packed bytes as the op on the weight that it stands for."""
        given = self.bound(op, node)
        weight = self.value(given.pop("packed"))
        assert isinstance(weight, Identifier)
        weight = Identifier(weight.name.removesuffix("_packed"))
        size = given.pop("group_size", 0)
        if size and self.params[weight.name].scale != f"group:{size}":
            raise LayerDefError(
                f"scale of {weight.name} does not tell its group size {size}. Give save a "
                "layerdef.",
                node=self.name,
            )
        if op.name == "dequantize":
            return weight
        rest = {
            name: self.value(arg)
            for name, arg in given.items()
            if name not in ("scale", "shape", "layout")
        }
        first = rest.pop("ids" if op.name == "ternary_embedding" else "x")
        bias = rest.pop("bias", Literal(None))
        args = [first, weight] + ([] if bias == Literal(None) else [bias])
        return FunctionCall(op.name.removeprefix("ternary_"), args, rest)

    def value(self, arg: Any) -> Expression:
        if isinstance(arg, fx.Node):
            return self.values[arg]
        if isinstance(arg, tuple | list):
            return Tuple([self.value(item) for item in arg])
        if isinstance(arg, torch.dtype):
            return Literal(str(arg).removeprefix("torch."))
        if arg is None or isinstance(arg, bool | int | float | str):
            return Literal(arg)
        raise LayerDefError(f"{arg!r:.60} is no value of LayerDef.", node=self.name)


def _depth(node: Expression) -> int:
    match node:
        case FunctionCall(_, args, kwargs):
            parts = [*args, *(value for _, value in kwargs)]
        case LayerCall(_, args) | Tuple(args):
            parts = list(args)
        case BinaryOp(_, left, right):
            parts = [left, right]
        case UnaryOp(_, operand):
            parts = [operand]
        case _:
            return 0
    return 1 + max(map(_depth, parts), default=0)
