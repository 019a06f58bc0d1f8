"""Masks and position ids rewritten by their values at an index, not by how they were computed.

A tensor of integers or bools that follows from sizes alone is a formula over its indices:
``arange(n)`` is ``i``, a causal mask is ``key <= query``. Such tensors are read as formulas,
simplified by sympy, and written again in their shortest form: two dozen nodes that build a
mask become one comparison, and a causal one a flag of the attention.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import sympy
import torch
from sympy.core.function import AppliedUndef
from sympy.logic.boolalg import BooleanFalse, BooleanTrue

from tpack.capturing.formulas import INDICES, Formulas
from tpack.capturing.graph import Graph, Size, Value, same_size, same_sizes, values_in
from tpack.layerdef.ops import BINARY, has_trait, takes_device

_WRITTEN = {sympy.Le: "<=", sympy.Lt: "<", sympy.Ge: ">=", sympy.Gt: ">"}
_WRITTEN |= {sympy.Eq: "==", sympy.Ne: "!="}


def rewrite_positions(graph: Graph) -> None:
    """Rewrite tensors that follow from sizes alone in their shortest form."""
    reader = Formulas()
    users, returned = graph.users(), set(values_in(graph.result))
    formulas = {value: reader.read(value) for value in graph.values}
    tolerant = dict.fromkeys(returned, False)

    def may_shrink(value: Value) -> bool:
        """Return whether every user accepts size 1 in dims that the value does not depend on."""
        if value not in tolerant:
            tolerant[value] = all(
                _broadcasts(user) and (_grows(user, value, formulas) or may_shrink(user))
                for user in users.get(value, [])
            )
        return tolerant[value]

    def change(value: Value) -> Value | None:
        if value.op == "scaled_dot_product_attention":
            return _attention(value, reader)
        formula = formulas.get(value)
        if formula is None and _broadcasts(value):
            value.shape = _broadcast(values_in(tuple(value.args.values())))
        if formula is None or takes_device(value.op) or _moves_positions(value, formula):
            return None
        return _Writer(value, reader.leaves, whole=not may_shrink(value)).write(formula)

    graph.rewrite(change)


def _broadcasts(value: Value) -> bool:
    """Return whether an op broadcasts: its operands need not be expanded."""
    return value.op in BINARY or has_trait(value.op, "broadcasts")


def _grows(user: Value, value: Value, formulas: Mapping[Value, Any]) -> bool:
    """Return whether the other operands alone give ``user`` its shape."""
    if user.op == "scaled_dot_product_attention":
        return True
    parts = values_in(tuple(user.args.values()))
    others = [part for part in parts if part is not value and formulas.get(part) is None]
    return same_sizes(_broadcast(others), user.shape)


def _broadcast(values: Iterable[Value]) -> tuple[Size, ...]:
    """Return the shape that values broadcast to."""
    shapes = [value.shape for value in values]
    rank = max(map(len, shapes), default=0)
    aligned = [(1,) * (rank - len(shape)) + shape for shape in shapes]
    return tuple(next((s for s in sizes if s != 1), 1) for sizes in zip(*aligned, strict=True))


def _attention(value: Value, reader: Formulas) -> Value | None:
    """Simplify attention with a mask that is causal, or lets everything pass."""
    mask = value.args.get("attn_mask")
    formula = reader.read(mask) if isinstance(mask, Value) else None
    rest = {name: arg for name, arg in value.args.items() if name != "attn_mask"}
    if formula is True or isinstance(formula, BooleanTrue):
        return value.like(value.op, rest)
    if formula is None or not isinstance(mask, Value):
        return None
    query, key = INDICES[len(mask.shape) - 2], INDICES[len(mask.shape) - 1]
    past = value.args["key"].shape[-2] - value.args["query"].shape[-2]
    if not _is_order(formula, key - query - past):
        return None
    if same_size(past, 0):
        return value.like(value.op, rest | {"is_causal": True})
    rest.pop("is_causal", None)
    return value.like("causal_attention", rest)


def _is_order(formula: sympy.Basic, left: sympy.Expr) -> bool:
    """Return whether a formula says that ``left`` is 0 or less."""
    if isinstance(formula, sympy.Le):
        return bool(sympy.expand(formula.lhs - formula.rhs - left) == 0)
    if isinstance(formula, sympy.Ge):
        return bool(sympy.expand(formula.rhs - formula.lhs - left) == 0)
    return False


def _moves_positions(value: Value, formula: sympy.Basic) -> bool:
    """Return whether a value only moves positions that the caller of its module computed.

    Those depend on the past, which the caller knows.
    """
    x = value.args.get("x")
    if value.op not in ("unsqueeze", "to") or not isinstance(x, Value):
        return False
    outside = len(x.calls) < len(value.calls) and value.calls[: len(x.calls)] == x.calls
    return outside and not formula.free_symbols <= {*INDICES}


class _UnwritableError(Exception):
    """A formula, or a part of it, that no op computes."""


class _Writer:
    """Writes a formula as new values in the place of an old one.

    Args:
        whole: give the full shape; else dims that the formula does not depend on may be 1.
    """

    def __init__(self, place: Value, leaves: Mapping[str, Value], *, whole: bool) -> None:
        self.place = place
        self.leaves = leaves
        self.whole = whole
        self.indices: dict[int, Value] = {}

    def write(self, formula: sympy.Basic) -> Value | None:
        if isinstance(formula, BooleanTrue | BooleanFalse | sympy.Integer):
            return self.filled(formula)
        try:
            made = self.term(formula)
        except _UnwritableError:
            return None
        if not isinstance(made, Value):
            return None
        return self.grown(made) if self.whole else made

    def grown(self, made: Value) -> Value:
        """Expand a value to the full shape."""
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

    def term(self, formula: sympy.Basic) -> Value | Size:
        if formula in INDICES:
            return self.index(INDICES.index(formula))
        if isinstance(formula, sympy.Symbol):  # a free size
            return formula
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
        if isinstance(formula, AppliedUndef):
            return self.leaf(formula)
        left = formula.args[0] if formula.args else None
        if isinstance(left, AppliedUndef) and self.leaves[left.name].dtype == torch.bool:
            found = self.leaf(left)  # a bool compared with 0 is itself, or its inverse
            return (
                found if isinstance(formula, sympy.Ne) else self.made("~", {"x": found}, torch.bool)
            )
        comparison = _WRITTEN.get(type(formula))
        if comparison is None:
            raise _UnwritableError
        sides = {"x": self.term(formula.args[0]), "y": self.term(formula.args[1])}
        return self.made(comparison, sides, torch.bool)

    def sum(self, formula: sympy.Add) -> Value:
        """Write a sum: positive terms first, then those that are subtracted."""
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

    def made(self, op: str, args: dict[str, Value | Size], dtype: torch.dtype) -> Value:
        parts = [arg for arg in args.values() if isinstance(arg, Value)]
        if not parts:
            raise _UnwritableError
        return self.place.like(op, dict(args), shape=_broadcast(parts), dtype=dtype, asked={})

    def leaf(self, formula: AppliedUndef) -> Value:
        """Write an input with its dims where the formula has them."""
        made = self.leaves[formula.name]
        dims = [INDICES.index(arg) if arg in INDICES else -1 for arg in formula.args]
        if -1 in dims or dims != sorted(set(dims)):
            raise _UnwritableError
        rank = len(self.place.shape)
        for position, dim in enumerate(range(dims[0], rank)):
            if dim not in dims:
                shape = (*made.shape[:position], 1, *made.shape[position:])
                args = {"x": made, "dim": position}
                made = self.place.like("unsqueeze", args, shape=shape, dtype=made.dtype, asked={})
        return made

    def index(self, dim: int) -> Value:
        """Write ``arange`` along one dim; leading dims are left to broadcasting."""
        if dim not in self.indices:
            size = self.place.shape[dim]
            plain = {"dtype": torch.int64, "asked": {}}
            made = self.place.like("arange", {"end": size}, shape=(size,), **plain)
            for i in range(len(self.place.shape) - 1 - dim):
                shape = (size, *(1,) * (i + 1))
                made = self.place.like("unsqueeze", {"x": made, "dim": -1}, shape=shape, **plain)
            self.indices[dim] = made
        return self.indices[dim]
