"""Brackets behind a tensor, as slices, selections and new dims."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tpack.readback.binding import BindingError


def indexed(calls: Any, x: Any, index: Any) -> Any:
    """Note ``x[:, 1:3]``, ``x[..., 0]``, ``x[:, None]`` or ``x[rows, columns]``.

    Raises:
        BindingError: it mixes tensors with other indices, or has a list or a truth value.
    """
    items = list(index) if isinstance(index, tuple) else [index]
    if any(isinstance(item, Tensor) for item in items):
        if not all(isinstance(item, Tensor) for item in items):
            raise BindingError("indexes by a tensor beside other indices")
        return calls.op("index", {"x": x, "indices": tuple(items)}, x)
    if any(isinstance(item, bool | list | tuple) for item in items):
        raise BindingError("indexes by a list or a truth value")
    at = next((i for i, item in enumerate(items) if item is Ellipsis), len(items))
    dim = 0
    for item in items[:at]:
        x, kept = _one(calls, x, item, dim)
        dim += kept
    dim = -1
    for item in reversed(items[at + 1 :]):
        x, kept = _one(calls, x, item, dim)
        dim -= kept
    return calls.same(x)


def _one(calls: Any, x: Any, item: Any, dim: int) -> tuple[Any, int]:
    """Apply one index to a dim; return also how many dims of the result it takes."""
    if item is None:
        return calls.op("unsqueeze", {"x": x, "dim": dim}, x), 1
    if isinstance(item, slice):
        bounds = {"start": item.start, "end": item.stop, "step": item.step}
        given = {name: one for name, one in bounds.items() if one is not None}
        if not given:
            return x, 1
        if not all(isinstance(one, int | torch.SymInt) for one in given.values()):
            raise BindingError("slices by something that is not a size")
        return calls.op("slice", {"x": x, "dim": dim, **given}, x), 1
    if isinstance(item, int | torch.SymInt):
        return calls.op("select", {"x": x, "dim": dim, "index": item}, x), 0
    raise BindingError(f"indexes by an object of class {type(item).__name__}")
