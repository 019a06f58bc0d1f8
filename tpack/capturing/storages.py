"""Which values share memory, and which of them an op that changes its argument leaves behind.

The graph of values is functional: the former content of a changed tensor stays a value of its own.
A value that shared memory with it shows the change in torch, but not here: reading it from then
on is refused.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence

import sympy
import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor

from tpack.capturing.graph import CONSTANT, INPUT, STORED, Arg, Value, values_in
from tpack.errors import LayerDefError


class Storages:
    """The values of a graph by the memory that they may share.

    Attributes:
        groups: the values that may share memory with each value, itself among them.
        behind: values whose memory has been changed since, with the name of the op that did.
    """

    def __init__(self) -> None:
        self.groups: dict[Value, set[Value]] = {}
        self.behind: dict[Value, str] = {}

    def group(self, value: Value) -> set[Value]:
        """Return the values that may share memory with a value."""
        return self.groups.setdefault(value, {value})

    def share(self, value: Value, others: Iterable[Value]) -> None:
        """Note that a new value may share memory with others."""
        whole = self.group(value).union(*map(self.group, others))
        self.groups.update(dict.fromkeys(whole, whole))

    def change(self, old: Value, new: Value, op: str, place: str) -> None:
        """Replace ``old``, whose memory an op has changed, by ``new``.

        Raises:
            LayerDefError: the memory outlives forward: that of an input or a stored tensor. Or
                the op reads it while it changes: then torch computes with some of the new numbers.
        """
        group = self.group(old)
        read = values_in(tuple(new.args.values()))
        # of a copy, torch itself refuses that it reads elements which it has written
        if new.op != "copy" and any(one in group and one is not old for one in read):
            raise LayerDefError(
                f"{op} changes a tensor while it reads it through a view. Compute a new tensor "
                "instead.",
                node=place,
            )
        for member in group:
            if member.op in (STORED, CONSTANT):
                raise LayerDefError(
                    f"changes its tensor {member.name!r} in forward, which LayerDef cannot "
                    "express. Compute a new tensor instead.",
                    node=place,
                )
            if member.op == INPUT:
                raise LayerDefError(
                    f"{op} changes the input {member.name!r} or a view of it. Compute a new "
                    "tensor instead.",
                    node=place,
                )
        self.behind.update(dict.fromkeys(group, op))
        self.share(new, [old])

    def check(self, value: Value, place: str) -> None:
        """Refuse to read a value that was left behind.

        Raises:
            LayerDefError: it shows a change in torch that the graph does not have.
        """
        if (op := self.behind.get(value)) is not None:
            raise LayerDefError(
                f"{op} changes a tensor that other values are views of, and one of them is used "
                "later. Compute a new tensor instead.",
                node=place,
            )


def identity(tensor: torch.Tensor) -> Hashable:
    """Return a key that a tensor shares with its other names; without memory, the object counts."""
    if tensor.is_meta or isinstance(tensor, FakeTensor):
        return id(tensor)
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride()


def shared_arguments(
    node: fx.Node, untold: Iterable[str], dtype: torch.dtype | None
) -> list[fx.Node]:
    """Return the arguments that results of an op may share memory with.

    Args:
        untold: names of those that the schema of torch does not mark: dropout does nothing in
            eval mode, einsum of one tensor may only move its dims.
        dtype: of the result. One of another dtype never shares memory.
    """
    schema = node.target._schema.arguments  # type: ignore[union-attr]  # noqa: SLF001
    given = dict(zip((item.name for item in schema), node.args, strict=False)) | node.kwargs
    names = {item.name for item in schema if item.alias_info is not None}
    found = [given.get(name) for name in names.union(untold)]
    several = isinstance(node.meta.get("val"), list | tuple)  # one result for each of a list
    lists = [one for one in found if isinstance(one, Sequence) and (several or len(one) == 1)]
    found += [one for part in lists for one in part]
    return [one for one in found if isinstance(one, fx.Node) and _dtype(one) in (dtype, None)]


def _dtype(node: fx.Node) -> torch.dtype | None:
    return getattr(node.meta.get("val"), "dtype", None)


def computed_dtype(name: str, args: Sequence[Arg], kwargs: Mapping[str, Arg]) -> torch.dtype:
    """Return the dtype of the result of an op of ATen, by running it on elements without values.

    Args:
        name: overload, such as ``add.Tensor``.
        args: as the node has them, values for tensors.
    """
    base, _, overload = name.partition(".")
    op = getattr(getattr(torch.ops.aten, base), overload)
    result: torch.Tensor = op(*map(_one, args), **{key: _one(arg) for key, arg in kwargs.items()})
    return result.dtype


def _one(arg: Arg) -> Arg:
    """Put a tensor of one element on meta for each value, and 1 for each free size."""
    if isinstance(arg, Value):
        return torch.ones((1,) * len(arg.shape), dtype=arg.dtype, device="meta")
    if isinstance(arg, tuple):
        return [_one(item) for item in arg]
    return 1 if isinstance(arg, sympy.Expr) else arg
