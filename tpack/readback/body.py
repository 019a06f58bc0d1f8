"""The statements of a forward, from the nodes of its trace."""

from __future__ import annotations

import inspect
import math
import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from tpack.build import BINARY, UNARY
from tpack.layerdef import (
    Assignment,
    BinaryOp,
    Dict,
    Expression,
    FunctionCall,
    Identifier,
    LayerCall,
    Literal,
    Param,
    Return,
    Statement,
    Tuple,
    UnaryOp,
    Unpack,
)
from tpack.layerdef.names import is_identifier
from tpack.layerdef.ops import OPS, REQUIRED, Op, PackedOp, has_trait
from tpack.layerdef.walking import parts
from tpack.readback.indexing import cut
from tpack.readback.spellings import (
    bound,
    called,
    cast_of,
    dropped,
    is_idle_dropout,
    keeps_values,
    op_of,
    operator_of,
    passes_on,
)

if TYPE_CHECKING:
    from tpack.readback.forward import Forward

_BINARY = {function: symbol for symbol, function in BINARY.items()}
_UNARY = {function: symbol for symbol, function in UNARY.items()}


class Body:
    """The statements of a forward, and the names of its values.

    Args:
        params: of the module, by name; repeated children are called in loops only.
    """

    def __init__(self, forward: Forward, params: dict[str, Param]) -> None:
        self.forward = forward
        self.name = forward.name
        self.params = params
        self.ops = forward.ops
        self.wishes = forward.wishes
        self.values: dict[fx.Node, Expression] = {}
        self.statements: list[Statement] = []
        self.last: dict[fx.Node, int] = {}
        self.holders: dict[str, fx.Node] = {}

    def read(self) -> tuple[tuple[str, ...], tuple[Statement, ...]]:
        nodes = self.forward.nodes
        needed = _needed(nodes)
        for i, node in enumerate(nodes):
            for part in node.all_input_nodes:
                self.last[part] = i
        places = [node for node in nodes if node.op == "placeholder"]
        named = list(zip(self.forward.arguments, places, strict=True))
        inputs = [node for name, node in named if name not in self.forward.fixed]
        self.holders = {str(node.target): node for node in inputs}
        self.values = {node: Identifier(str(node.target)) for node in inputs}
        wholes = [param for param in self.params.values() if param.repeat is not None]
        loops = [run for whole in wholes for run in self.forward.loops(whole) or ()]
        run_of = {node: run for run in loops for node in run}
        for i, node in enumerate(nodes):
            if node.op == "output":
                self.statements.append(Return(self.value(node.args[0])))
            elif node.op != "placeholder" and node in needed and node not in self.values:
                run = run_of.get(node, [node])
                if node is run[-1]:  # the last call of a loop stands for all
                    try:
                        self.take(node, self.node(run[0]), i)
                    except _Outside as error:
                        line = self.forward.lines.get(node)
                        raise self.forward.refusal(str(error), line) from None
        return tuple(str(node.target) for node in inputs), tuple(self.statements)

    def take(self, node: fx.Node, value: Expression, at: int) -> None:
        """Put the value of a node into a statement, or let it wait for the one that uses it."""
        items = [user for user in node.users if _position(user) is not None]
        if items and _gives_several(value):
            self.unpack(items, value, at)
            return
        wish = self.wishes.get(node)
        alone = len(node.users) == 1 and _depth(value) < _DEEP
        if isinstance(value, Identifier) or (wish is None and alone):
            self.values[node] = value
            return
        name = self.hold(wish or node.name, node, at)
        self.statements.append(Assignment(name, value))

    def unpack(self, items: list[fx.Node], value: Expression, at: int) -> None:
        """Add a statement for a call with several results."""
        targets = ["_"] * (1 + max(_position(item) or 0 for item in items))
        for item in items:
            if item.users:
                targets[_position(item) or 0] = self.hold(
                    self.wishes.get(item, item.name), item, at
                )
        self.statements.append(Unpack(targets, value))

    def hold(self, wish: str, node: fx.Node, at: int) -> str:
        """Give the value of a node its name in the source.

        Where a value of that name is still needed, the source kept it under another one, which
        leaves no trace: it moves to ``residual``.
        """
        old = self.holders.get(wish)
        if old is not None and not self.is_free(wish, at):
            other = self.free("residual", at)
            self.statements.append(Assignment(other, Identifier(wish)))
            self.give(other, old)
            del self.holders[wish]
        name = self.free(wish, at)
        self.give(name, node)
        return name

    def give(self, name: str, node: fx.Node) -> None:
        self.holders[name] = node
        self.values[node] = Identifier(name)

    def free(self, wish: str, at: int) -> str:
        name, number = wish, 1
        while not self.is_free(name, at):
            number += 1
            name = f"{wish}{number}" if is_identifier(wish) else f"hidden{number}"
        return name

    def is_free(self, name: str, at: int) -> bool:
        if name in self.params or not is_identifier(name):
            return False
        return name not in self.holders or self.last.get(self.holders[name], -1) <= at

    # ---- expressions

    def node(self, node: fx.Node) -> Expression:
        if node.op == "get_attr":
            return Identifier(str(node.target))
        if node.op == "call_module":
            return self.layer_call(node)
        target = node.target
        if node.op == "call_method" and f".{target}" in self.ops:
            return self.call(self.ops[f".{target}"], node)
        if node.op == "call_function" and callable(target):
            if target in _BINARY:
                left, right = (self.value(arg) for arg in node.args)
                return BinaryOp(_BINARY[target], left, right)
            if target in _UNARY:
                return UnaryOp(_UNARY[target], self.value(node.args[0]))
            if target is operator.getitem:
                return self.item(node)
            if target is getattr and node.args[1] == "device":
                return self.value(node.args[0])  # the op that takes a device takes its tensor
            if (op := self.ops.get(target)) is not None:
                if isinstance(op, PackedOp):
                    return self.packed_call(op, node)
                return self.call(op, node)
        return self.other_spelling(node)

    def other_spelling(self, node: fx.Node) -> Expression:
        """Read a call by another name than generated source has for it."""
        target, args = node.target, node.args
        if keeps_values(target):
            return self.value(args[0])
        given = bound(target, args, node.kwargs)
        if given is not None and is_idle_dropout(target, given):
            return self.value(args[0])
        if (symbol := operator_of(target)) is not None and len(args) in (1, 2) and not node.kwargs:
            values = [self.value(arg) for arg in args]
            return UnaryOp(symbol, values[0]) if len(args) == 1 else BinaryOp(symbol, *values)
        if (dtype := cast_of(target)) is not None and len(args) == 1 and not node.kwargs:
            return FunctionCall("to", [self.value(args[0]), Literal(dtype)])
        op = op_of(target)
        if op is not None and given is None and op.name == "reshape" and not node.kwargs:
            return self.call(op, node)  # view, whose sizes may be given one by one
        if isinstance(target, str) and target.endswith("_") and not target.endswith("__"):
            raise _Outside(f"{target} changes a value in place; write {target.rstrip('_')}")
        if op is None or given is None:
            raise _Outside(f"{called(target, args)} is not an op of LayerDef")
        names = {param.torch_name or param.name: param.name for param in op.params}
        names["input"] = op.params[0].name
        if unknown := [name for name in given if name not in names]:
            raise _Outside(f"{op.name} has no {unknown[0]} in LayerDef")
        return self.called(op, {names[name]: self.value(arg) for name, arg in given.items()})

    def layer_call(self, node: fx.Node) -> Expression:
        """Read the call of a child."""
        path = str(node.target)
        module = self.forward.module.get_submodule(path)
        if passes_on(module):
            return self.value(node.args[0])
        child = self.child(path)
        given = inspect.signature(module.forward).bind(*node.args, **node.kwargs).arguments
        parts_ = [self.value(arg) for arg in given.values()]
        if child != path:  # the loop gives each copy its part of a cache
            parts_ = [_whole(part) for part in parts_]
        return LayerCall(child, parts_)

    def child(self, path: str) -> str:
        """Return the parameter that describes a module, itself or as one of its copies."""
        return path if path in self.params else path.rpartition(".")[0]

    def item(self, node: fx.Node) -> Expression:
        """Read ``x.shape[1]``, ``x[:, 1:3]`` and ``x[rows, columns]``."""
        x, index = node.args
        if isinstance(x, fx.Node) and _is_shape(x):
            if not isinstance(index, int):
                raise _Outside("takes several sizes of a shape at once; take them one by one")
            return FunctionCall("size", [self.value(x.args[0]), Literal(index)])
        items = index if isinstance(index, tuple | list) else (index,)
        plain = (slice, int, type(None), type(...))
        if all(isinstance(item, plain) and not isinstance(item, bool) for item in items):
            return cut(self.value(x), items, self.value)
        if all(isinstance(item, fx.Node | int) and not isinstance(item, bool) for item in items):
            return FunctionCall(self.ops["[]"].name, [self.value(x), self.value(tuple(items))])
        raise _Outside("indexes a tensor by tensors and slices at once, or by a mask")

    def bound(self, op: Op, node: fx.Node) -> dict[str, Any]:
        names = {param.torch_name: param.name for param in op.params}
        given = {p.name: arg for p, arg in zip(op.params, node.args, strict=False)}
        if len(node.args) > len(op.params):  # sizes given one by one
            given[op.params[-1].name] = node.args[len(op.params) - 1 :]
        others = {key: arg for key, arg in node.kwargs.items() if key not in names}
        if (name := dropped(node.target, others)) is not None:
            raise _Outside(f"{op.name} has no {name} in LayerDef")
        named = {names[key]: arg for key, arg in node.kwargs.items() if key in names}
        return given | named

    def call(self, op: Op, node: fx.Node) -> Expression:
        return self.called(
            op, {name: self.value(arg) for name, arg in self.bound(op, node).items()}
        )

    def called(self, op: Op, values: dict[str, Expression]) -> Expression:
        """Return the call of an op with arguments by the names of its row."""
        defaults = {param.name: param.default for param in op.params}
        first = [p.name for p in op.params if p.default is REQUIRED and not p.keyword]
        args = [values.pop(name) for name in first]
        kept = {k: v for k, v in values.items() if v != Literal(defaults[k])}
        return FunctionCall(op.name, args, kept)

    def packed_call(self, op: PackedOp, node: fx.Node) -> Expression:
        """Read an op on packed bytes as the op on the weight that it stands for."""
        given = self.bound(op, node)
        weight = self.value(given.pop("packed"))
        assert isinstance(weight, Identifier)
        weight = Identifier(weight.name.removesuffix("_packed"))
        size = given.pop("group_size", 0)
        param = self.params.get(weight.name)  # None: a tensor of a child
        if size and param is not None and param.scale != f"group:{size}":
            raise _Outside(f"the shapes of {weight.name} do not show its group size {size}")
        if not op.plain:
            return weight
        taken = {name: self.value(arg) for name, arg in given.items() if arg is not None}
        taken[op.weight] = weight
        row = [one for one in OPS[op.plain].params if one.name in taken]
        args = [taken[one.name] for one in row if not one.keyword]
        kwargs = {one.name: taken[one.name] for one in row if one.keyword}
        return FunctionCall(op.plain, args, kwargs)

    def value(self, arg: Any) -> Expression:
        if isinstance(arg, fx.Node):
            return self.values[arg]
        if isinstance(arg, tuple | list):
            return Tuple([self.value(item) for item in arg])
        if isinstance(arg, dict):
            return Dict({name: self.value(item) for name, item in arg.items()})
        if isinstance(arg, float) and math.isinf(arg):
            return Literal("inf" if arg > 0 else "-inf")
        if isinstance(arg, torch.dtype):
            return Literal(str(arg).removeprefix("torch."))
        if arg is None or isinstance(arg, bool | int | float | str):
            return Literal(arg)
        raise _Outside(f"a {type(arg).__name__} is not a value of LayerDef")


class _Outside(Exception):  # noqa: N818  # becomes an error with the line
    """Something that LayerDef cannot express, as the beginning of a sentence."""


def _needed(nodes: Sequence[fx.Node]) -> set[fx.Node]:
    """Return the nodes that the result depends on: others, such as those of asserts, are not."""
    needed: set[fx.Node] = set()
    for node in reversed(nodes):
        if node.op == "output" or node in needed:
            needed.update(node.all_input_nodes)
    return {node for node in needed if not _is_shape(node)}


def _is_shape(node: fx.Node) -> bool:
    """Return whether a node gives all sizes of a tensor."""
    if node.op == "call_method":
        return node.target == "size" and len(node.args) == 1 and not node.kwargs
    return node.target is getattr and node.args[1] == "shape"


#: Nested operations that a reader can still follow in one statement.
_DEEP = 16


def _depth(node: Expression) -> int:
    return 1 + max(map(_depth, parts(node)), default=0)


def _gives_several(value: Expression) -> bool:
    if isinstance(value, FunctionCall):
        return has_trait(value.function, "several")
    return isinstance(value, LayerCall)


def _position(node: fx.Node) -> int | None:
    """Return which of several results a node is; None if it is not one."""
    if node.op != "call_function" or node.target is not operator.getitem:
        return None
    whole, index = node.args
    if not isinstance(whole, fx.Node) or _is_shape(whole) or not isinstance(index, int):
        return None
    return index if index >= 0 else None


def _whole(value: Expression) -> Expression:
    """Return the cache that a layer has a part of; another value as it is."""
    if isinstance(value, FunctionCall) and has_trait(value.function, "part"):
        return value.args[0]
    return value
