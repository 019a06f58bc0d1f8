"""The nodes of a forward, read as statements."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch

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
    Sizes,
    Statement,
    Tuple,
    UnaryOp,
    Unpack,
    Unspecified,
)
from tpack.layerdef.names import is_identifier
from tpack.layerdef.ops import OPS, REQUIRED, has_trait
from tpack.layerdef.walking import parts, results
from tpack.readback.calls import fallback_name
from tpack.readback.frames import Frame, leaves_of
from tpack.readback.shapes import Comments, Several, told
from tpack.readback.values import Node, nodes_in


class Forward:
    """One forward that was traced.

    Attributes:
        nodes: those that the result needs, in order.
    """

    def __init__(self, frame: Frame) -> None:
        self.name = type(frame.module).__name__
        self.frame = frame
        self.result = _returned(frame)
        self.told = told(frame.docstring)
        needed: set[Node] = set()
        waiting = list(nodes_in(self.result))
        while waiting:
            node = waiting.pop()
            if node not in needed:
                needed.add(node)
                waiting += node.inputs()
        self.nodes = [node for node in frame.nodes if node in needed]
        for node in self.nodes:
            node.users.clear()
        for node in self.nodes:
            for part in node.inputs():
                part.users[node] = None

    def loops(self, whole: Param) -> list[list[Node]] | None:
        """Return the calls of each loop over a repeated child; None if some calls are no loop."""
        count = whole.repeat or 1
        prefix = f"{whole.name}."
        calls = [n for n in self.nodes if n.kind == "layer" and n.target.startswith(prefix)]
        runs = [calls[start : start + count] for start in range(0, len(calls), count)]
        return runs if all(_is_loop(whole.name, run, count) for run in runs) else None

    def read(self, params: dict[str, Param]) -> tuple[list[Param], tuple[Statement, ...]]:
        """Return the inputs and statements.

        Args:
            params: of the module, by name; repeated children are called in loops only.

        Raises:
            LayerDefError: it does something that LayerDef cannot express.
        """
        if not self.frame.known:  # the order of calls is not known
            return [], (Unspecified(),)
        kinds = self.frame.inputs
        sizes = self.told.of_inputs([name for name, kind in kinds.items() if kind == "Tensor"])
        inputs = [Param(name, kind, sizes=sizes.get(name)) for name, kind in kinds.items()]
        return inputs, _Body(self, params).read()


class _Body:
    def __init__(self, forward: Forward, params: dict[str, Param]) -> None:
        self.forward = forward
        self.params = params
        self.values: dict[Node, Expression] = {}
        self.statements: list[Statement] = []
        self.last: dict[Node, int] = {}
        self.holders: dict[str, Node] = {}
        self.comments = Comments(forward.frame.code)
        #: Shapes that comments tell, by the value.
        self.shapes: dict[Node, Sizes | None] = {}

    def read(self) -> tuple[Statement, ...]:
        nodes, result = self.forward.nodes, self.forward.result
        for i, node in enumerate(nodes):
            for part in node.inputs():
                self.last[part] = i
        for node in nodes_in(result):
            self.last[node] = len(nodes)
            node.users[_RESULT] = None
        for name in self.forward.frame.inputs:
            found = (n for n in nodes if n.kind == "input" and n.target == name)
            self.holders[name] = next(found, Node("input", name))
        for node in nodes:
            if node.kind in ("input", "stored"):
                self.values[node] = Identifier(str(node.target))
        wholes = [param for param in self.params.values() if param.repeat is not None]
        loops = [run for whole in wholes for run in self.forward.loops(whole) or ()]
        run_of = {node: run for run in loops for node in run}
        for i, node in enumerate(nodes):
            if node.kind in ("input", "stored", "device", "item") or node in self.values:
                continue
            run = run_of.get(node, [node])
            if node is run[-1]:  # the last call of a loop stands for all
                self.take(node, self.node(run[0]), i)
        value = self.value(result)
        self.statements.append(Return(value, self.returned(value)))
        return tuple(self.statements)

    def returned(self, value: Expression) -> Several | None:
        """Return the shapes of the results that the docstring tells."""
        names = [name for name, _ in results(value)]
        known = [self.shapes.get(node) for node in leaves_of(self.forward.result)]
        told = self.forward.told
        return told.of_results(names, known) if len(names) == len(known) else None

    def take(self, node: Node, value: Expression, at: int) -> None:
        """Put the value of a node into a statement, or let it wait for the one that uses it."""
        if items := [user for user in node.users if user.kind == "item"]:
            self.unpack(items, value, at)
            return
        users = sum(list(nodes_in(user.args)).count(node) for user in node.users if user.args)
        users += list(nodes_in(self.forward.result)).count(node)
        alone = users <= 1 and _depth(value) < _DEEP
        if isinstance(value, Identifier) or (not node.wish and alone):
            self.values[node] = value
            return
        name = self.hold(node.wish or fallback_name(node), node, at)
        shapes = self.comments.of(node.place, [node.wish])
        self.shapes[node] = shapes[0] if shapes else None
        self.statements.append(Assignment(name, value, self.shapes[node]))

    def unpack(self, items: list[Node], value: Expression, at: int) -> None:
        """Add a statement for a call with several results."""
        source = items[0].args[0]
        every = [n for n in self.forward.frame.nodes if n.kind == "item" and n.args[0] is source]
        targets = ["_"] * len(every)
        for item in items:
            targets[item.target] = self.hold(item.wish or f"value{item.target + 1}", item, at)
        wishes = ["_" if target == "_" else "" for target in targets]
        for item in items:
            wishes[item.target] = item.wish
        shapes = self.comments.of(items[0].place, wishes)
        if shapes is not None:
            self.shapes |= {item: shapes[item.target] for item in items}
        self.statements.append(Unpack(targets, value, shapes))

    def hold(self, wish: str, node: Node, at: int) -> str:
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

    def give(self, name: str, node: Node) -> None:
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

    def node(self, node: Node) -> Expression:
        if node.kind == "layer":
            child = self.child(str(node.target))
            given = [self.value(arg) for arg in node.args]
            if child != node.target:  # the loop gives each copy its part of a cache
                given = [_whole(part) for part in given]
            return LayerCall(child, given)
        if node.kind == "binary":
            left, right = map(self.value, node.args)
            return BinaryOp(node.target, left, right)
        if node.kind == "unary":
            return UnaryOp(node.target, self.value(node.args[0]))
        if node.kind == "op":
            return self.call(node)
        raise LayerDefError(
            f"{self.forward.name} computes with {node.target}, which the input decides. Write it "
            "for one number of dims.",
            node=node.place or self.forward.name,
        )

    def child(self, path: str) -> str:
        """Return the parameter that describes a module, itself or as one of its copies."""
        return path if path in self.params else path.rpartition(".")[0]

    def call(self, node: Node) -> Expression:
        op = OPS[node.target]
        values = {name: self.value(arg) for name, arg in node.args.items()}
        first = [p.name for p in op.params if p.default is REQUIRED and not p.keyword]
        args = [values.pop(name) for name in first]
        defaults = {param.name: param.default for param in op.params}
        kept = {k: v for k, v in values.items() if v != Literal(defaults[k])}
        order = [param.name for param in op.params]
        return FunctionCall(op.name, args, sorted(kept.items(), key=lambda it: order.index(it[0])))

    def value(self, arg: Any) -> Expression:
        if isinstance(arg, Node):
            if arg.kind == "device":  # the op that takes a device takes its tensor
                return self.value(arg.args[0])
            return self.values[arg] if arg in self.values else self.node(arg)
        if isinstance(arg, tuple | list):
            return Tuple([self.value(item) for item in arg])
        if isinstance(arg, dict):
            return Dict({name: self.value(item) for name, item in arg.items()})
        if isinstance(arg, float) and math.isinf(arg):
            return Literal("inf" if arg > 0 else "-inf")
        if isinstance(arg, torch.dtype):
            return Literal(str(arg).removeprefix("torch."))
        return Literal(arg)


def _returned(frame: Frame) -> Any:
    """Return the result of a forward, in the form that its caller sees: without None.

    What another forward calls returns its values in a row.
    """
    if not frame.inner:
        return _without_none(frame.result)
    leaves = tuple(leaves_of(frame.result))
    return leaves[0] if len(leaves) == 1 else leaves


def _without_none(result: Any) -> Any:
    if isinstance(result, dict):
        return {key: _without_none(one) for key, one in result.items() if one is not None}
    if isinstance(result, tuple):
        return tuple(_without_none(one) for one in result if one is not None)
    return result


#: Stands for the return in the users of a node.
_RESULT = Node("result", "")
#: Nested operations that a reader can still follow in one statement.
_DEEP = 16


def _depth(node: Expression) -> int:
    return 1 + max(map(_depth, parts(node)), default=0)


def _is_loop(name: str, run: list[Node], repeat: int) -> bool:
    """Return whether calls pass a value through the copies of a child in order."""
    if [str(node.target) for node in run] != [f"{name}.{i}" for i in range(repeat)]:
        return False
    others = [[_shared(arg, i) for arg in node.args[1:]] for i, node in enumerate(run)]
    return all(one == others[0] for one in others) and all(
        after.args[:1] == (before,)
        and set(before.users) == {after}
        and before not in after.args[1:]
        for before, after in pairwise(run)
    )


def _shared(arg: Any, index: int) -> Any:
    """Return what the calls of a loop share: of the part of a cache with an index, the cache."""
    part = isinstance(arg, Node) and arg.kind == "op" and has_trait(arg.target, "part")
    return ("layer", arg.args["cache"]) if part and arg.args["index"] == index else arg


def _whole(value: Expression) -> Expression:
    """Return the cache that a layer has a part of; another value as it is."""
    if isinstance(value, FunctionCall) and has_trait(value.function, "part"):
        return value.args[0]
    return value
