"""Recurrent cells, for which torch has an op and LayerDef does not: written out."""

from __future__ import annotations

from typing import Any

from tpack.capturing.graph import ITEM, Size, Value


def lstm_cell(cell: Value, place: Value) -> tuple[Value, Value]:
    """Return the two results of an LSTM cell, hidden and cell state, by its definition.

    Args:
        cell: the call of torch's op.
        place: one of its results, for the shape.

    Source: Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000.
    """
    args = cell.args
    hidden, state = args["hx"]
    inner = place.shape[-1]

    def made(op: str, args: dict[str, Any], size: Size = inner) -> Value:
        shape = (*place.shape[:-1], size)
        return cell.like(op, args, shape=shape, dtype=place.dtype, asked={})

    def linear(x: Value, weight: str, bias: str) -> Value:
        given = {"x": x, "weight": args[weight], "bias": args.get(bias)}
        return made("linear", {k: v for k, v in given.items() if v is not None}, 4 * inner)

    sides = {"x": linear(args["x"], "w_ih", "b_ih"), "y": linear(hidden, "w_hh", "b_hh")}
    total = made("+", sides, 4 * inner)
    whole = made("chunk", {"x": total, "chunks": 4, "dim": -1, "count": 4})
    parts = [made(ITEM, {"x": whole, "index": i}) for i in range(4)]
    write, forget, out = (made("sigmoid", {"x": parts[i]}) for i in (0, 1, 3))
    new = made("*", {"x": write, "y": made("tanh", {"x": parts[2]})})
    kept = made("*", {"x": forget, "y": state})
    state = made("+", {"x": kept, "y": new})
    return made("*", {"x": out, "y": made("tanh", {"x": state})}), state
