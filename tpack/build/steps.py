"""Statements of a lowered LayerDef → closures that compute them, without running text.

A forward computes in a table of values: its arguments and the results of statements under their
names, and what the module owns under ``self.`` and its name. What is constant is worked out here,
once. The closures are Python's own: ``torch.compile`` does not trace those of ``operator``.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tpack.nn
from tpack.layerdef import (
    Assignment,
    BinaryOp,
    Dict,
    Expression,
    FunctionCall,
    Identifier,
    LayerCall,
    Literal,
    Lowered,
    Return,
    Statement,
    Tuple,
    UnaryOp,
    Unpack,
)
from tpack.layerdef.ops import OPS, PACKED_OPS, Op, OpParam
from tpack.nn.caching import KeyValueCache

#: The table of values of one call.
Values = dict[str | tuple[str, ...], Any]
#: Computes an expression, or a statement, from the table.
Step = Callable[[Values], Any]

#: Symbols of binary operators → what they compute.
BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "//": operator.floordiv,
    "%": operator.mod,
    "**": operator.pow,
    "@": operator.matmul,
    "&": operator.and_,
    "|": operator.or_,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
#: Symbols of unary operators → what they compute.
UNARY: dict[str, Callable[[Any], Any]] = {"-": operator.neg, "~": operator.invert}
#: Where the result of a forward stands in the table; not an identifier.
RESULT = "return"


class Steps(NamedTuple):
    """A compiled forward.

    Attributes:
        inputs: names of its arguments.
        caches: those of them that are caches.
        owned: key and name of what a call takes from its module, once.
        body: key and step of each statement; None where the computation is not known. The step of
            several results writes them itself.
    """

    inputs: tuple[str, ...]
    caches: frozenset[str]
    owned: tuple[tuple[str, str], ...]
    body: tuple[tuple[Any, Step], ...] | None


def compile_steps(lowered: Lowered) -> Steps:
    """Compile the body of a lowered layer."""
    stored = {
        name
        for param in lowered.stored
        for name in (param.name, f"{param.name}_packed", f"{param.name}_scale")
    }
    lists = {child.name for child in lowered.children if child.repeat is not None}
    compiler = _Compiler(stored, lists)
    body = tuple(compiler.statement(item) for item in lowered.body)
    owned = tuple((f"self.{name}", name) for name in compiler.owned)
    return Steps(lowered.inputs, lowered.caches, owned, body or None)


class _Key(NamedTuple):
    """An operand that stands in the table."""

    at: str


class _Constant(NamedTuple):
    """An operand that is known now."""

    value: Any


#: What an expression becomes: a place in the table, a constant, or a step.
_Operand = _Key | _Constant | Step


class _Compiler:
    def __init__(self, stored: set[str], lists: set[str]) -> None:
        self.stored = stored
        self.lists = lists
        self.owned: dict[str, None] = {}

    def statement(self, statement: Statement) -> tuple[Any, Step]:
        if isinstance(statement, Unpack):
            return statement.targets, _unpack(
                statement.targets, _step(self.expression(statement.value))
            )
        assert isinstance(statement, Assignment | Return)
        target = statement.target if isinstance(statement, Assignment) else RESULT
        return target, _step(self.expression(statement.value))

    def own(self, path: str) -> _Operand:
        name, *others = path.split(".")
        self.owned[name] = None
        key = f"self.{name}"
        return _call(partial(_inside, others), [_Key(key)]) if others else _Key(key)

    def expression(self, node: Expression) -> _Operand:
        match node:
            case Identifier(name):
                return self.own(name) if name in self.stored or "." in name else _Key(name)
            case Literal(value):
                return _Constant(value)
            case Tuple(items) if all(isinstance(item, Literal) for item in items):
                return _Constant(_constant(node))
            case Tuple(items):
                return _tuple([self.expression(item) for item in items])
            case Dict(pairs):
                named = [(name, _step(self.expression(item))) for name, item in pairs]
                return lambda values: {name: step(values) for name, step in named}
            case UnaryOp(symbol, operand):
                return _call(UNARY[symbol], [self.expression(operand)])
            case BinaryOp(symbol, left, right):
                return _call(BINARY[symbol], [self.expression(left), self.expression(right)])
            case LayerCall(layer, args):
                run = _in_order if layer in self.lists else None
                return _layer(self.own(layer), [self.expression(arg) for arg in args], run)
            case FunctionCall():
                return self.function_call(node)

    def function_call(self, node: FunctionCall) -> _Operand:
        op = OPS.get(node.function) or PACKED_OPS[node.function]
        given = dict(node.kwargs)
        positional: list[_Operand] = []
        named: dict[str, _Operand] = {}
        for param in op.params:
            value = given.get(param.name, Literal(param.default))
            if value == Literal(param.default):
                continue
            operand = self.argument(param, value)
            if param.keyword or len(positional) < op.params.index(param):
                named[param.torch_name] = operand
            else:
                positional.append(operand)
        return self.op_call(op, positional, named)

    def op_call(self, op: Op, positional: list[_Operand], named: dict[str, _Operand]) -> _Operand:
        if not _are_constant(named.values()):  # a keyword that is computed
            function, names = op_function(op), tuple(named)
            take = _tuple([*positional, *named.values()])
            return lambda values: _with_names(function, names, take(values))
        options = {name: one.value for name, one in named.items() if isinstance(one, _Constant)}
        args = [one.value for one in positional[1:] if isinstance(one, _Constant)]
        if len(args) == len(positional) - 1:
            if op.spelling.startswith("."):  # called on the tensor, as op_function says
                return _method(op.spelling[1:], positional[0], args, options)
            if op.spelling == "[:]":
                return _call(
                    operator.getitem, [positional[0], _Constant(slice_index(*args, **options))]
                )
        function = op_function(op)
        return _call(partial(function, **options) if options else function, positional)

    def argument(self, param: OpParam, value: Expression) -> _Operand:
        """Compile an argument of an op: words are dtypes or infinity, a tensor gives its device."""
        match param.kind, value:
            case "layers", Literal(str(word)):
                return self.own(word)
            case "dtype", Literal(str(word)):
                return _Constant(getattr(torch, word))
            case "value", Literal(str(word)):
                return _Constant(float(word))
            case "device", _:
                return _call(_device, [self.expression(value)])
            case _:
                return self.expression(value)


def _constant(node: Tuple) -> tuple[Any, ...]:
    return tuple(item.value for item in node.items if isinstance(item, Literal))


# ---- operands → one step


def _are_constant(operands: Iterable[_Operand]) -> bool:
    return all(isinstance(operand, _Constant) for operand in operands)


def _step(operand: _Operand) -> Step:
    match operand:
        case _Key(key):
            return lambda values: values[key]
        case _Constant(value):
            return lambda _: value
        case _:
            return operand


def _tuple(operands: Sequence[_Operand]) -> Step:
    """Make a step of several values."""
    keys = [operand.at for operand in operands if isinstance(operand, _Key)]
    if len(keys) == len(operands):
        return lambda values: tuple([values[key] for key in keys])
    steps = [_step(operand) for operand in operands]
    return lambda values: tuple([step(values) for step in steps])


def _call(function: Callable[..., Any], operands: Sequence[_Operand]) -> Step:
    """Make the step that calls a function; what occurs most has a form of its own."""
    match operands:
        case [_Key(a)]:
            return lambda values: function(values[a])
        case [_Key(a), _Key(b)]:
            return lambda values: function(values[a], values[b])
        case [_Key(a), _Key(b), _Key(c)]:
            return lambda values: function(values[a], values[b], values[c])
        case [_Key(a), *others] if _are_constant(others):
            rest = [one.value for one in others if isinstance(one, _Constant)]
            return lambda values: function(values[a], *rest)
        case [operand]:
            step = _step(operand)
            return lambda values: function(step(values))
        case [_Key(a), operand]:
            step = _step(operand)
            return lambda values: function(values[a], step(values))
        case [one, two]:
            first, second = _step(one), _step(two)
            return lambda values: function(first(values), second(values))
    take = _tuple(operands)
    return lambda values: function(*take(values))


def _method(name: str, operand: _Operand, args: list[Any], options: dict[str, Any]) -> Step:
    """Make the step that calls a method with constants."""
    if isinstance(operand, _Key) and not options:
        key = operand.at
        return lambda values: getattr(values[key], name)(*args)
    step = _step(operand)
    return lambda values: getattr(step(values), name)(*args, **options)


def _layer(child: _Operand, operands: Sequence[_Operand], run: Callable[..., Any] | None) -> Step:
    """Make the step that calls a child, or hands it to ``run``."""
    if run is not None:
        return _call(run, [child, *operands])
    match child, operands:
        case _Key(key), [_Key(a)]:
            return lambda values: values[key](values[a])
        case _Key(key), [operand]:
            step = _step(operand)
            return lambda values: values[key](step(values))
    find, take = _step(child), _tuple(operands)
    return lambda values: find(values)(*take(values))


def _unpack(targets: tuple[str, ...], step: Step) -> Step:
    def write(values: Values) -> None:
        values.update(zip(targets, step(values), strict=True))

    return write


def _inside(path: Sequence[str], owner: Any) -> Any:
    for name in path:
        owner = getattr(owner, name)
    return owner


def _device(x: Tensor) -> torch.device:
    return x.device


def _with_names(function: Callable[..., Any], names: Sequence[str], given: Sequence[Any]) -> Any:
    count = len(given) - len(names)
    return function(*given[:count], **dict(zip(names, given[count:], strict=True)))


def _in_order(layers: nn.ModuleList, first: Any, *others: Any) -> Any:
    """Call the copies of a repeated layer, each with the result of the one before."""
    for i, copy in enumerate(layers):
        first = copy(first, *[_part(other, i) for other in others])
    return first


def _part(value: Any, index: int) -> Any:
    """Return what the copy of a repeated layer takes: of a cache, the part of that layer."""
    return value.layer(index) if isinstance(value, KeyValueCache) else value


# ---- ops → functions


def slice_index(dim: int, start: int = 0, end: int | None = None, step: int = 1) -> tuple[Any, ...]:
    """Return what stands in the brackets of ``x[…, start:end:step, …]``."""
    part = slice(start, end, step)
    if dim >= 0:
        return (*[slice(None)] * dim, part)
    return (..., part, *[slice(None)] * (-1 - dim))


def _slice(x: Tensor, *args: Any, **options: Any) -> Tensor:
    return x[slice_index(*args, **options)]


def _index(x: Tensor, indices: tuple[Tensor, ...]) -> Tensor:
    """Return ``x[first, second]``."""
    return x[indices]


_BRACKETS: dict[str, Callable[..., Any]] = {"[]": _index, "[:]": _slice}


def op_function(op: Op) -> Callable[..., Any]:
    """Return the function that a spelling of the table means."""
    if op.spelling in _BRACKETS:
        return _BRACKETS[op.spelling]
    home, _, name = op.spelling.rpartition(".")
    if op.spelling.startswith("."):
        # some methods of the class itself are wrappers that call super()
        return lambda x, *args, **options: getattr(x, name)(*args, **options)
    if not home:
        return getattr(tpack.nn, name)  # type: ignore[no-any-return]
    return getattr({"F": F, "torch": torch}[home], name)  # type: ignore[no-any-return]
