"""Indexing of one tensor, ``x[:n, None, -1]``, as ops that cut one dim each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tpack.layerdef import Expression, FunctionCall, Literal


def cut(x: Expression, items: Sequence[Any], value: Callable[[Any], Expression]) -> Expression:
    """Return the ops that index a value does.

    Args:
        items: slices, integers, None and at most one ellipsis.
        value: gives the expression of a bound of a slice.

    Example:
        >>> from tpack.layerdef import Identifier
        >>> found = cut(Identifier("x"), (..., slice(None, 2)), Literal)
        >>> found.function, found.args[1], dict(found.kwargs)["end"]
        ('slice', Literal(value=-1), Literal(value=2))
    """
    at = next((i for i, item in enumerate(items) if item is ...), len(items))
    dim = 0
    for item in items[:at]:
        x = _step(x, item, dim, value)
        dim += not isinstance(item, int)
    dim = -1
    for item in reversed(items[at + 1 :]):
        x = _step(x, item, dim, value)
        dim -= not isinstance(item, int)
    return x


def _step(x: Expression, item: Any, dim: int, value: Callable[[Any], Expression]) -> Expression:
    """Return the op of one item, on the dim where its result lies."""
    if item is None:
        return FunctionCall("unsqueeze", [x, Literal(dim)])
    if isinstance(item, int):
        return FunctionCall("select", [x, Literal(dim), Literal(item)])
    bounds = {"start": item.start, "end": item.stop, "step": item.step}
    given = {name: value(one) for name, one in bounds.items() if one is not None}
    return FunctionCall("slice", [x, Literal(dim)], given) if given else x
