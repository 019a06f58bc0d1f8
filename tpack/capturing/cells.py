"""Recurrent cells, for which torch has an op and LayerDef does not: written out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tpack.capturing.graph import ITEM, Size, Value


def lstm_cell(cell: Value, place: Value) -> tuple[Value, Value]:
    """Return the two results of an LSTM cell, hidden and cell state, by its definition.

    Args:
        cell: the call of torch's op.
        place: one of its results, for the shape.

    Source: Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000.
    """
    hidden, state = cell.args["hx"]
    gates = _Gates(cell, place, 4)
    total = gates.sum(gates.linear("x", "w_ih", "b_ih"), gates.linear(hidden, "w_hh", "b_hh"))
    write, forget, new, out = gates.parts(total)
    kept = gates.product(gates.made("sigmoid", x=forget), state)
    added = gates.product(gates.made("sigmoid", x=write), gates.made("tanh", x=new))
    state = gates.sum(kept, added)
    return gates.product(gates.made("sigmoid", x=out), gates.made("tanh", x=state)), state


def gru_cell(cell: Value) -> Value:
    """Return the result of a gated recurrent unit by its definition.

    Source: Cho et al. 2014, with the reset gate after the product, as torch has it.
    """
    hidden = cell.args["hx"]
    gates = _Gates(cell, cell, 3)
    reset, update, new = gates.parts(gates.linear("x", "w_ih", "b_ih"))
    reset2, update2, new2 = gates.parts(gates.linear(hidden, "w_hh", "b_hh"))
    reset = gates.made("sigmoid", x=gates.sum(reset, reset2))
    update = gates.made("sigmoid", x=gates.sum(update, update2))
    new = gates.made("tanh", x=gates.sum(new, gates.product(reset, new2)))
    return gates.sum(new, gates.product(update, gates.made("-", x=hidden, y=new)))


def rnn_cell(cell: Value) -> Value:
    """Return the result of the simplest cell: tanh or relu of two products."""
    gates = _Gates(cell, cell, 1)
    hidden = cell.args["hx"]
    total = gates.sum(gates.linear("x", "w_ih", "b_ih"), gates.linear(hidden, "w_hh", "b_hh"))
    return cell.like("tanh" if cell.op == "rnn_tanh_cell" else "relu", {"x": total})


@dataclass(frozen=True)
class _Gates:
    """Makes the values of a cell.

    Attributes:
        cell: the call of torch's op.
        place: one of its results, for the shape.
        count: gates that one product gives.
    """

    cell: Value
    place: Value
    count: int

    def made(self, op: str, size: Size | None = None, **args: Any) -> Value:
        shape = self.place.shape if size is None else (*self.place.shape[:-1], size)
        return self.cell.like(op, args, shape=shape, dtype=self.place.dtype, asked={})

    def linear(self, x: Value | str, weight: str, bias: str) -> Value:
        args = self.cell.args
        given = {"x": args[x] if isinstance(x, str) else x, "weight": args[weight]}
        if args.get(bias) is not None:
            given["bias"] = args[bias]
        return self.made("linear", self.count * self.place.shape[-1], **given)

    def sum(self, x: Value, y: Value) -> Value:
        return self.made("+", x.shape[-1], x=x, y=y)

    def product(self, x: Value, y: Value) -> Value:
        return self.made("*", x=x, y=y)

    def parts(self, total: Value) -> list[Value]:
        """Return the part of each gate."""
        given = {"x": total, "chunks": self.count, "dim": -1, "count": self.count}
        whole = self.made("chunk", total.shape[-1], **given)
        return [self.made(ITEM, x=whole, index=i) for i in range(self.count)]
