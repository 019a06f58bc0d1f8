"""Tensors of integers and bools as formulas over their indices, if only sizes decide them.

``arange(n)`` is ``i0``, a causal mask is ``i3 <= i2``; the formulas are those of sympy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import sympy
import torch
from sympy.core.relational import Relational
from sympy.logic.boolalg import BooleanAtom, BooleanFunction

from tpack.capturing.graph import CONSTANT, Value

#: The index of each dim.
INDICES = [sympy.Symbol(f"i{n}", integer=True, nonnegative=True) for n in range(16)]
_TRUTHS = (BooleanAtom, BooleanFunction, Relational)
_COMPARE = {
    "==": sympy.Eq,
    "!=": sympy.Ne,
    "<": sympy.Lt,
    "<=": sympy.Le,
    ">": sympy.Gt,
    ">=": sympy.Ge,
}


class Formulas:
    """Reads a value as a formula over its indices; None if it is not one."""

    def __init__(self) -> None:
        self.known: dict[Value, sympy.Basic | None] = {}
        self.leaves: dict[str, Value] = {}

    def read(self, value: Value) -> sympy.Basic | None:
        if value not in self.known:
            self.known[value] = self.formula(value)
        return self.known[value]

    def formula(self, value: Value) -> sympy.Basic | None:
        if value.dtype not in (torch.int64, torch.int32, torch.bool):
            return None
        if value.op == CONSTANT:
            return _of_data(value)
        rule = _READ.get(value.op)
        if value.op in _COMPARE or value.op in ("+", "-", "*", "&", "|"):
            return self.binary(value)
        return None if rule is None else rule(self, value)

    def leaf(self, value: Value) -> sympy.Basic | None:
        """Return the formula for an element of an input, such as a mask of padding."""
        if value.dtype not in (torch.int64, torch.int32, torch.bool):
            return None
        name = f"leaf{id(value)}"
        self.leaves[name] = value
        indices = [
            sympy.Integer(0) if n == 1 else i for n, i in zip(value.shape, INDICES, strict=False)
        ]
        found = sympy.Function(name, integer=True)(*indices)
        return sympy.Ne(found, 0) if value.dtype == torch.bool else found

    def inner(self, value: Value, moved: Sequence[sympy.Basic]) -> sympy.Basic | None:
        """Return the formula of the operand x, at other indices."""
        return self.at(value.args["x"], moved)

    def at(self, value: Value, indices: Sequence[sympy.Basic]) -> sympy.Basic | None:
        return self.moved(value, self.read(value), indices)

    def moved(
        self, value: Value, formula: sympy.Basic | None, indices: Sequence[sympy.Basic]
    ) -> sympy.Basic | None:
        """Return a formula of a value, at other indices."""
        if formula is None:
            return None
        pairs = [
            (INDICES[i], 0 if value.shape[i] == 1 else index) for i, index in enumerate(indices)
        ]
        return formula.subs(pairs, simultaneous=True)

    def operand(self, arg: object, rank: int) -> sympy.Basic | None:
        if isinstance(arg, bool):
            return sympy.true if arg else sympy.false
        if isinstance(arg, int | sympy.Basic):
            return sympy.sympify(arg)
        if not isinstance(arg, Value):
            return None
        more = rank - len(arg.shape)
        return self.at(arg, [INDICES[more + i] for i in range(len(arg.shape))])

    def binary(self, value: Value) -> sympy.Basic | None:
        rank = len(value.shape)
        x, y = (self.operand(value.args[name], rank) for name in "xy")
        if x is None or y is None:
            return None
        if value.op in ("&", "|"):
            x, y = (_truth(one) for one in (x, y))
            return sympy.And(x, y) if value.op == "&" else sympy.Or(x, y)
        if value.op in _COMPARE:
            if any(isinstance(one, _TRUTHS) for one in (x, y)):
                return None
            return _COMPARE[value.op](x, y)
        if value.dtype == torch.bool:
            return None
        return {"+": x + y, "-": x - y, "*": x * y}[value.op]


def _truth(formula: sympy.Basic) -> sympy.Basic:
    if formula in (0, 1):
        return sympy.true if formula == 1 else sympy.false
    return formula


def _of_data(value: Value) -> sympy.Basic | None:
    """Read a constant that counts along its last dim, or is the same everywhere."""
    data = value.data
    if data is None or not data.numel() or data.is_meta:
        return None
    first = data.reshape(-1)[0].item()
    if bool((data == first).all()):
        return sympy.sympify(first)
    count = torch.arange(data.shape[-1], dtype=data.dtype) if data.dtype != torch.bool else None
    if count is not None and bool((data == count).all()):
        return INDICES[data.dim() - 1]
    return None


_Rule = Callable[[Formulas, Value], "sympy.Basic | None"]


def _arange(_: Formulas, __: Value) -> sympy.Basic:
    return INDICES[0]


def _ones(_: Formulas, value: Value) -> sympy.Basic:
    return sympy.true if value.dtype == torch.bool else sympy.Integer(1)


def _zeros(_: Formulas, value: Value) -> sympy.Basic:
    return sympy.false if value.dtype == torch.bool else sympy.Integer(0)


def _unsqueeze(reader: Formulas, value: Value) -> sympy.Basic | None:
    dim = value.args["dim"] % len(value.shape)
    return reader.inner(value, [i for n, i in enumerate(INDICES[: len(value.shape)]) if n != dim])


def _squeeze(reader: Formulas, value: Value) -> sympy.Basic | None:
    rank = len(value.args["x"].shape)
    kept = list(INDICES[: rank - 1])
    kept.insert(value.args["dim"] % rank, sympy.Integer(0))
    return reader.inner(value, kept)


def _expand(reader: Formulas, value: Value) -> sympy.Basic | None:
    more = len(value.shape) - len(value.args["x"].shape)
    return reader.inner(value, INDICES[more : len(value.shape)])


def _slice(reader: Formulas, value: Value) -> sympy.Basic | None:
    dim, start, step = value.args["dim"], value.args["start"], value.args["step"]
    if not isinstance(start, int) or start < 0:
        return None
    moved = list(INDICES[: len(value.shape)])
    moved[dim] = start + step * moved[dim]
    return reader.inner(value, moved)


def _select(reader: Formulas, value: Value) -> sympy.Basic | None:
    index = value.args["index"]
    if not isinstance(index, int) or index < 0:
        return None
    moved = list(INDICES[: len(value.shape)])
    moved.insert(value.args["dim"] % (len(value.shape) + 1), sympy.Integer(index))
    return reader.inner(value, moved)


def _transpose(reader: Formulas, value: Value) -> sympy.Basic | None:
    moved = list(INDICES[: len(value.shape)])
    first, second = value.args["dim0"], value.args["dim1"]
    moved[first], moved[second] = moved[second], moved[first]
    return reader.inner(value, moved)


def _invert(reader: Formulas, value: Value) -> sympy.Basic | None:
    formula = reader.inner(value, INDICES[: len(value.shape)])
    return None if formula is None or value.dtype != torch.bool else sympy.Not(_truth(formula))


def _neg(reader: Formulas, value: Value) -> sympy.Basic | None:
    formula = reader.inner(value, INDICES[: len(value.shape)])
    return None if formula is None else -formula


def _diff(reader: Formulas, value: Value) -> sympy.Basic | None:
    """Read differences that are the same everywhere, also that to what is prepended."""
    x, before = value.args["x"], value.args.get("prepend")
    if before is None or value.args.get("dim", -1) not in (-1, len(value.shape) - 1):
        return None
    formula, head = reader.read(x), reader.read(before)
    if formula is None or head is None:
        return None
    last = INDICES[len(value.shape) - 1]
    steps = sympy.expand(formula - formula.subs(last, last - 1))
    first = sympy.expand(formula.subs(last, 0) - head.subs(last, 0))
    return steps if steps == first and not steps.has(*INDICES) else None


def _cumsum(reader: Formulas, value: Value) -> sympy.Basic | None:
    formula = reader.read(value.args["x"])
    return sympy.Integer(0) if formula in (sympy.false, 0) else None


def _index(reader: Formulas, value: Value) -> sympy.Basic | None:
    indices = value.args["indices"]
    if None in indices or len(indices) != len(value.args["x"].shape):
        return None
    rank = len(value.shape)
    moved = [reader.operand(index, rank) for index in indices]
    if None in moved:
        return None
    x = value.args["x"]
    formula = reader.read(x)
    return reader.moved(x, reader.leaf(x) if formula is None else formula, moved)


def _gather(reader: Formulas, value: Value) -> sympy.Basic | None:
    formula = reader.read(value.args["x"])
    return formula if formula is not None and not formula.has(*INDICES) else None


def _to(reader: Formulas, value: Value) -> sympy.Basic | None:
    formula = reader.read(value.args["x"])
    if formula is None or value.dtype == torch.bool:
        return None
    return None if isinstance(formula, _TRUTHS) else formula


_READ: dict[str, _Rule] = {
    "arange": _arange,
    "ones": _ones,
    "zeros": _zeros,
    "unsqueeze": _unsqueeze,
    "squeeze": _squeeze,
    "expand": _expand,
    "slice": _slice,
    "select": _select,
    "transpose": _transpose,
    "~": _invert,
    "neg": _neg,
    "diff": _diff,
    "cumsum": _cumsum,
    "index": _index,
    "gather": _gather,
    "to": _to,
}
