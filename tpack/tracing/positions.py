"""Masks and position ids by what they say of an index, not by how they were computed.

A tensor of integers or truths that follows from sizes alone is a formula over its indices:
``arange(n)`` is ``i``, a causal mask is ``key <= query``. Such tensors are read as formulas,
simplified by sympy, and written again in their shortest form: two dozen nodes that build a
mask become one comparison, and a causal one a flag of the attention.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import sympy
import torch
from sympy.core.relational import Relational
from sympy.logic.boolalg import BooleanAtom, BooleanFalse, BooleanFunction, BooleanTrue

from tpack.layerdef.ops import BINARY
from tpack.tracing.graph import CONSTANT, Graph, Value, same_size, same_sizes

_INDICES = [sympy.Symbol(f"i{n}", integer=True, nonnegative=True) for n in range(16)]
_TRUTHS = (BooleanAtom, BooleanFunction, Relational)
_COMPARE = {
    "==": sympy.Eq,
    "!=": sympy.Ne,
    "<": sympy.Lt,
    "<=": sympy.Le,
    ">": sympy.Gt,
    ">=": sympy.Ge,
}
_WRITTEN = {sympy.Le: "<=", sympy.Lt: "<", sympy.Ge: ">=", sympy.Gt: ">"}
_WRITTEN |= {sympy.Eq: "==", sympy.Ne: "!="}
#: Ops that broadcast: their operands need not be expanded.
_BROADCAST = frozenset({*BINARY, "where", "masked_fill", "scaled_dot_product_attention"})


def rewrite_positions(graph: Graph) -> None:
    """Write tensors that follow from sizes in their shortest form."""
    reader = _Formulas()
    users = graph.users()
    formulas = {value: reader.read(value) for value in graph.values}

    def change(value: Value) -> Value | None:
        if value.op == "scaled_dot_product_attention":
            return _attention(value, reader)
        formula = formulas.get(value)
        if formula is None or value.op in ("arange", "zeros", "ones", "full"):
            return None
        tolerant = all(user.op in _BROADCAST for user in users.get(value, []))
        return _Writer(value, whole=not tolerant).write(formula)

    graph.rewrite(change)


def _attention(value: Value, reader: _Formulas) -> Value | None:
    """Attention whose mask is causal, or lets everything pass."""
    mask = value.args.get("attn_mask")
    formula = reader.read(mask) if isinstance(mask, Value) else None
    rest = {name: arg for name, arg in value.args.items() if name != "attn_mask"}
    if formula is True or isinstance(formula, BooleanTrue):
        return value.like(value.op, rest)
    if formula is None or not isinstance(mask, Value):
        return None
    query, key = _INDICES[len(mask.shape) - 2], _INDICES[len(mask.shape) - 1]
    square = same_size(value.args["query"].shape[-2], value.args["key"].shape[-2])
    if square and formula in (sympy.Le(key, query), sympy.Ge(query, key)):
        return value.like(value.op, rest | {"is_causal": True})
    return None


class _Formulas:
    """Reads values as formulas over their indices; None for what is none."""

    def __init__(self) -> None:
        self.known: dict[Value, sympy.Basic | None] = {}
        self.leaves: dict[sympy.Function, Value] = {}

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

    def inner(self, value: Value, moved: Sequence[sympy.Basic]) -> sympy.Basic | None:
        """The formula of the operand x, at other indices."""
        return self.at(value.args["x"], moved)

    def at(self, value: Value, indices: Sequence[sympy.Basic]) -> sympy.Basic | None:
        formula = self.read(value)
        if formula is None:
            return None
        pairs = [
            (_INDICES[i], 0 if value.shape[i] == 1 else index) for i, index in enumerate(indices)
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
        return self.at(arg, [_INDICES[more + i] for i in range(len(arg.shape))])

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
    """A constant that counts along its last dim, or is the same everywhere."""
    data = value.data
    if data is None or not data.numel() or data.is_meta:
        return None
    first = data.reshape(-1)[0].item()
    if bool((data == first).all()):
        return sympy.sympify(first)
    count = torch.arange(data.shape[-1], dtype=data.dtype) if data.dtype != torch.bool else None
    if count is not None and bool((data == count).all()):
        return _INDICES[data.dim() - 1]
    return None


_Rule = Callable[[_Formulas, Value], "sympy.Basic | None"]


def _arange(_: _Formulas, __: Value) -> sympy.Basic:
    return _INDICES[0]


def _ones(_: _Formulas, value: Value) -> sympy.Basic:
    return sympy.true if value.dtype == torch.bool else sympy.Integer(1)


def _zeros(_: _Formulas, value: Value) -> sympy.Basic:
    return sympy.false if value.dtype == torch.bool else sympy.Integer(0)


def _unsqueeze(reader: _Formulas, value: Value) -> sympy.Basic | None:
    dim = value.args["dim"] % len(value.shape)
    return reader.inner(value, [i for n, i in enumerate(_INDICES[: len(value.shape)]) if n != dim])


def _squeeze(reader: _Formulas, value: Value) -> sympy.Basic | None:
    rank = len(value.args["x"].shape)
    kept = list(_INDICES[: rank - 1])
    kept.insert(value.args["dim"] % rank, sympy.Integer(0))
    return reader.inner(value, kept)


def _expand(reader: _Formulas, value: Value) -> sympy.Basic | None:
    more = len(value.shape) - len(value.args["x"].shape)
    return reader.inner(value, _INDICES[more : len(value.shape)])


def _slice(reader: _Formulas, value: Value) -> sympy.Basic | None:
    dim, start, step = value.args["dim"], value.args["start"], value.args["step"]
    if not isinstance(start, int) or start < 0:
        return None
    moved = list(_INDICES[: len(value.shape)])
    moved[dim] = start + step * moved[dim]
    return reader.inner(value, moved)


def _select(reader: _Formulas, value: Value) -> sympy.Basic | None:
    index = value.args["index"]
    if not isinstance(index, int) or index < 0:
        return None
    moved = list(_INDICES[: len(value.shape)])
    moved.insert(value.args["dim"] % (len(value.shape) + 1), sympy.Integer(index))
    return reader.inner(value, moved)


def _transpose(reader: _Formulas, value: Value) -> sympy.Basic | None:
    moved = list(_INDICES[: len(value.shape)])
    first, second = value.args["dim0"], value.args["dim1"]
    moved[first], moved[second] = moved[second], moved[first]
    return reader.inner(value, moved)


def _invert(reader: _Formulas, value: Value) -> sympy.Basic | None:
    formula = reader.inner(value, _INDICES[: len(value.shape)])
    return None if formula is None or value.dtype != torch.bool else sympy.Not(_truth(formula))


def _neg(reader: _Formulas, value: Value) -> sympy.Basic | None:
    formula = reader.inner(value, _INDICES[: len(value.shape)])
    return None if formula is None else -formula


def _diff(reader: _Formulas, value: Value) -> sympy.Basic | None:
    """Differences that are the same everywhere, the first from what is put before included."""
    x, before = value.args["x"], value.args.get("prepend")
    if before is None or value.args.get("dim", -1) not in (-1, len(value.shape) - 1):
        return None
    formula, head = reader.read(x), reader.read(before)
    if formula is None or head is None:
        return None
    last = _INDICES[len(value.shape) - 1]
    steps = sympy.expand(formula - formula.subs(last, last - 1))
    first = sympy.expand(formula.subs(last, 0) - head.subs(last, 0))
    return steps if steps == first and not steps.has(*_INDICES) else None


def _cumsum(reader: _Formulas, value: Value) -> sympy.Basic | None:
    formula = reader.read(value.args["x"])
    return sympy.Integer(0) if formula in (sympy.false, 0) else None


def _index(reader: _Formulas, value: Value) -> sympy.Basic | None:
    indices = value.args["indices"]
    if None in indices or len(indices) != len(value.args["x"].shape):
        return None
    rank = len(value.shape)
    moved = [reader.operand(index, rank) for index in indices]
    return None if None in moved else reader.inner(value, moved)


def _gather(reader: _Formulas, value: Value) -> sympy.Basic | None:
    formula = reader.read(value.args["x"])
    return formula if formula is not None and not formula.has(*_INDICES) else None


def _to(reader: _Formulas, value: Value) -> sympy.Basic | None:
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


class _Writer:
    """Writes a formula as values in the place of one.

    Args:
        whole: give the full shape; else dims that the formula does not depend on may be 1.
    """

    def __init__(self, place: Value, *, whole: bool) -> None:
        self.place = place
        self.whole = whole
        self.indices: dict[int, Value] = {}

    def write(self, formula: sympy.Basic) -> Value | None:
        if isinstance(formula, BooleanTrue | BooleanFalse | sympy.Integer):
            return self.filled(formula)
        try:
            made = self.term(formula)
        except KeyError:  # a formula that no op says
            return None
        if not isinstance(made, Value):
            return None
        return self.grown(made) if self.whole else made

    def grown(self, made: Value) -> Value:
        """In the full shape."""
        shape = self.place.shape
        more = len(shape) - len(made.shape)
        if all(size == 1 for size in shape[:more]):
            for _ in range(more):
                args = {"x": made, "dim": 0}
                made = made.like("unsqueeze", args, shape=(1, *made.shape), asked={})
        if same_sizes(made.shape, shape):
            return made
        return self.place.like("expand", {"x": made, "shape": shape})

    def filled(self, formula: sympy.Basic) -> Value:
        shape = self.place.shape if self.whole else ()
        word = "ones" if formula in (sympy.true, 1) else "zeros"
        args = {"shape": shape, "dtype": self.place.dtype}
        if formula not in (sympy.true, sympy.false, 0, 1):
            word, args = "full", args | {"value": int(formula)}
        return self.place.like(word, args, shape=shape)

    def term(self, formula: sympy.Basic) -> Value | int:
        if formula in _INDICES:
            return self.index(_INDICES.index(formula))
        if isinstance(formula, sympy.Integer):
            return int(formula)
        if isinstance(formula, sympy.Add):
            return self.sum(formula)
        if isinstance(formula, sympy.Mul):
            return self.chain("*", formula.args, torch.int64)
        if isinstance(formula, sympy.And | sympy.Or):
            word = "&" if isinstance(formula, sympy.And) else "|"
            return self.chain(word, sorted(formula.args, key=str), torch.bool)
        if isinstance(formula, sympy.Not):
            return self.made("~", {"x": self.term(formula.args[0])}, torch.bool)
        word = _WRITTEN[type(formula)]
        sides = {"x": self.term(formula.args[0]), "y": self.term(formula.args[1])}
        return self.made(word, sides, torch.bool)

    def sum(self, formula: sympy.Add) -> Value:
        """Positive terms first, then what is taken away."""
        terms = sorted(formula.args, key=lambda term: (term.could_extract_minus_sign(), str(term)))
        made = self.term(terms[0])
        for term in terms[1:]:
            minus = term.could_extract_minus_sign()
            sides = {"x": made, "y": self.term(-term if minus else term)}
            made = self.made("-" if minus else "+", sides, torch.int64)
        assert isinstance(made, Value)
        return made

    def chain(self, word: str, terms: Sequence[sympy.Basic], dtype: torch.dtype) -> Value:
        made = self.term(terms[0])
        for term in terms[1:]:
            made = self.made(word, {"x": made, "y": self.term(term)}, dtype)
        assert isinstance(made, Value)
        return made

    def made(self, op: str, args: dict[str, Value | int], dtype: torch.dtype) -> Value:
        parts = [arg for arg in args.values() if isinstance(arg, Value)]
        if not parts:
            raise KeyError(op)
        rank = max(len(part.shape) for part in parts)
        aligned = [(1,) * (rank - len(part.shape)) + part.shape for part in parts]
        dims = zip(*aligned, strict=True)
        shape = tuple(next((size for size in sizes if size != 1), 1) for sizes in dims)
        return self.place.like(op, dict(args), shape=shape, dtype=dtype, asked={})

    def index(self, dim: int) -> Value:
        """``arange`` along one dim; leading dims are left to broadcasting."""
        if dim not in self.indices:
            size = self.place.shape[dim]
            plain = {"dtype": torch.int64, "asked": {}}
            made = self.place.like("arange", {"end": size}, shape=(size,), **plain)
            for i in range(len(self.place.shape) - 1 - dim):
                shape = (size, *(1,) * (i + 1))
                made = self.place.like("unsqueeze", {"x": made, "dim": -1}, shape=shape, **plain)
            self.indices[dim] = made
        return self.indices[dim]
