"""The forward of a generated class: its symbolic trace, read as statements."""

from __future__ import annotations

import inspect
import math
import operator
from itertools import pairwise
from typing import Any

import torch
from torch import fx, nn

from tpack.build import BINARY, UNARY, op_function
from tpack.errors import LayerDefError
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
    Unspecified,
)
from tpack.layerdef.names import is_identifier
from tpack.layerdef.ops import OPS, PACKED_OPS, REQUIRED, Op, PackedOp, has_trait
from tpack.layerdef.walking import parts
from tpack.readback.locals import Tracer, is_no_cache

_BINARY = {function: symbol for symbol, function in BINARY.items()}
_UNARY = {function: symbol for symbol, function in UNARY.items()}


class Forward:
    """The trace of one forward.

    Attributes:
        ops: the ops that it may call, by spelling and by function.
        caches: its arguments that are caches.

    Raises:
        LayerDefError: it does something that LayerDef cannot express.
    """

    def __init__(self, module: nn.Module) -> None:
        self.name = type(module).__name__
        arguments = inspect.signature(module.forward).parameters
        self.caches = {name for name, one in arguments.items() if is_no_cache(one.default)}
        names: dict[str, Any] = type(module).forward.__globals__
        ops: dict[Any, Op] = {op.spelling: op for op in (OPS | PACKED_OPS).values() if op.spelling}
        # functions of tpack.nn: standalone source defines them itself
        ours = {names[name]: op for name, op in ops.items() if name in names}
        self.ops = ops | {op_function(op): op for op in ops.values()} | ours
        tracer = Tracer(tuple(ours), type(module).forward.__code__)
        try:
            self.nodes = list(tracer.trace(module).nodes)
        except NotImplementedError:
            self.nodes = []
        except (fx.proxy.TraceError, TypeError, ValueError, RuntimeError) as error:
            raise LayerDefError(
                f"forward does what LayerDef cannot express: {error}. Give save a layerdef.",
                node=self.name,
            ) from error
        self.wishes = tracer.wishes

    def loops(self, whole: Param) -> list[list[fx.Node]] | None:
        """Return the calls of each loop over a repeated child; None if some calls are no loop."""
        count = whole.repeat or 1
        prefix = f"{whole.name}."
        calls = [
            node
            for node in self.nodes
            if node.op == "call_module" and str(node.target).startswith(prefix)
        ]
        runs = [calls[start : start + count] for start in range(0, len(calls), count)]
        return runs if all(_is_loop(whole.name, run, count) for run in runs) else None

    def read(self, params: dict[str, Param]) -> tuple[list[Param], tuple[Statement, ...]]:
        """Return the inputs and statements.

        Args:
            params: of the module, by name; repeated children are called in loops only.

        Raises:
            LayerDefError: it does something that LayerDef cannot express.
        """
        if not self.nodes:  # the order of calls is not known
            return [], (Unspecified(),)
        inputs, body = _Body(self, params).read()
        kinds = {name: "Cache" if name in self.caches else "Tensor" for name in inputs}
        return [Param(name, kind) for name, kind in kinds.items()], body


class _Body:
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
        for i, node in enumerate(nodes):
            for part in node.all_input_nodes:
                self.last[part] = i
        inputs = [node for node in nodes if node.op == "placeholder"]
        self.holders = {str(node.target): node for node in inputs}
        self.values = {node: Identifier(str(node.target)) for node in inputs}
        wholes = [param for param in self.params.values() if param.repeat is not None]
        loops = [run for whole in wholes for run in self.forward.loops(whole) or ()]
        run_of = {node: run for run in loops for node in run}
        for i, node in enumerate(nodes):
            if node.op == "output":
                self.statements.append(Return(self.value(node.args[0])))
            elif node.op != "placeholder" and node.users and node not in self.values:
                run = run_of.get(node, [node])
                if node is run[-1]:  # the last call of a loop stands for all
                    self.take(node, self.node(run[0]), i)
        return tuple(str(node.target) for node in inputs), tuple(self.statements)

    def take(self, node: fx.Node, value: Expression, at: int) -> None:
        """Put the value of a node into a statement, or let it wait for the one that uses it."""
        if items := [user for user in node.users if _position(user) is not None]:
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
            child = self.child(str(node.target))
            parts_ = [self.value(arg) for arg in node.args]
            if child != node.target:  # the loop gives each copy its part of a cache
                parts_ = [_whole(part) for part in parts_]
            return LayerCall(child, parts_)
        if node.op == "call_method" and f".{node.target}" in self.ops:
            return self.call(self.ops[f".{node.target}"], node)
        if node.op == "call_function" and callable(node.target):
            function = node.target
            if function in _BINARY:
                left, right = (self.value(arg) for arg in node.args)
                return BinaryOp(_BINARY[function], left, right)
            if function in _UNARY:
                return UnaryOp(_UNARY[function], self.value(node.args[0]))
            if function is operator.getitem:
                return self.indexed(node)
            if function is getattr and node.args[1] == "device":
                return self.value(node.args[0])  # the op that takes a device takes its tensor
            if (op := self.ops.get(function)) is not None:
                if isinstance(op, PackedOp):
                    return self.packed_call(op, node)
                return self.call(op, node)
        raise LayerDefError(f"{node.target} is not an op of LayerDef.", node=self.name)

    def child(self, path: str) -> str:
        """Return the parameter that describes a module, itself or as one of its copies."""
        return path if path in self.params else path.rpartition(".")[0]

    def indexed(self, node: fx.Node) -> Expression:
        """Read ``x[:, 1:3]`` and ``x[rows, columns]``."""
        x, index = node.args
        items = index if isinstance(index, tuple | list) else (index,)
        parts_ = [item for item in items if item not in (slice(None), ...)]
        if len(parts_) == 1 and isinstance(parts_[0], slice):
            at, part = items.index(parts_[0]), parts_[0]
            dim = at - len(items) if items[0] is ... else at
            bounds = {"start": part.start, "end": part.stop, "step": part.step}
            given = {name: self.value(one) for name, one in bounds.items() if one is not None}
            return FunctionCall(self.ops["[:]"].name, [self.value(x), Literal(dim)], given)
        if len(parts_) == len(items):
            return FunctionCall(self.ops["[]"].name, [self.value(x), self.value(tuple(items))])
        raise LayerDefError(
            f"indexes by {index!r:.60}, which is not an op of LayerDef.", node=self.name
        )

    def bound(self, op: Op, node: fx.Node) -> dict[str, Any]:
        names = {param.torch_name: param.name for param in op.params}
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

    def packed_call(self, op: PackedOp, node: fx.Node) -> Expression:
        """Read an op on packed bytes as the op on the weight that it stands for."""
        given = self.bound(op, node)
        weight = self.value(given.pop("packed"))
        assert isinstance(weight, Identifier)
        weight = Identifier(weight.name.removesuffix("_packed"))
        size = given.pop("group_size", 0)
        param = self.params.get(weight.name)  # None: a tensor of a child
        if size and param is not None and param.scale != f"group:{size}":
            raise LayerDefError(
                f"the shapes of {weight.name} do not show its group size {size}. Give save a "
                "layerdef.",
                node=self.name,
            )
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
        raise LayerDefError(f"{arg!r:.60} is not a value of LayerDef.", node=self.name)


#: Nested operations that a reader can still follow in one statement.
_DEEP = 16


def _depth(node: Expression) -> int:
    return 1 + max(map(_depth, parts(node)), default=0)


def _position(node: fx.Node) -> int | None:
    """Return which of several results a node is; None if it is not one."""
    if node.op != "call_function" or node.target is not operator.getitem:
        return None
    return node.args[1] if isinstance(node.args[1], int) else None


def _is_loop(name: str, run: list[fx.Node], repeat: int) -> bool:
    """Return whether calls pass a value through the copies of a child in order."""
    if [str(node.target) for node in run] != [f"{name}.{i}" for i in range(repeat)]:
        return False
    others = [[_shared(arg, i) for arg in node.args[1:]] for i, node in enumerate(run)]
    return all(one == others[0] for one in others) and all(
        after.args[:1] == (before,) and set(before.users) == {after}
        for before, after in pairwise(run)
    )


def _shared(arg: Any, index: int) -> Any:
    """Return what the calls of a loop share: of the part of a cache with an index, the cache."""
    part = isinstance(arg, fx.Node) and (arg.op, arg.target) == ("call_method", "layer")
    return ("layer", arg.args[0]) if part and arg.args[1:] == (index,) else arg


def _whole(value: Expression) -> Expression:
    """Return the cache that a layer has a part of; another value as it is."""
    if isinstance(value, FunctionCall) and has_trait(value.function, "part"):
        return value.args[0]
    return value
