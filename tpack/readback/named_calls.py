"""Calls of torch that have rules of their own: shapes, dtypes, brackets and a few functions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tpack.layerdef.ops import OPS
from tpack.readback.binding import BindingError
from tpack.readback.indexing import indexed
from tpack.readback.values import Device, Node, Rank, Shape, Traced


class NamedCalls:
    """Takes a call by the name of the function: ``take_size`` that of ``size``."""

    def __init__(self, tracer: Any) -> None:
        self.tracer = tracer

    def op(self, op: str, given: dict[str, Any], x: Any = None) -> Any:
        """Note an op with one result."""
        raise NotImplementedError

    def same(self, x: Any) -> Any:
        """Return the same value as another object."""
        raise NotImplementedError

    def take_shape(self, args: Any, _: Any) -> Any:
        """Return the shape of a tensor that only the input knows."""
        return Shape(self.tracer, args[0])

    def take_size(self, args: Any, kwargs: Any) -> Any:
        """Return a size, or the whole shape."""
        dim = args[1] if len(args) > 1 else kwargs.get("dim")
        if isinstance(dim, int):
            return self.tracer.size(args[0], dim)
        return Shape(self.tracer, args[0])

    def take_dim(self, *_: Any) -> Any:
        """Return a number of dims that is not known."""
        return Rank(self.tracer, Node("static", "the number of dims"))

    take_ndim = take_ndimension = take_dim

    def take_device(self, args: Any, _: Any) -> Any:
        """Return a stand-in for the device."""
        made = Device("cpu")
        made.tracer, made.node = (
            self.tracer,
            self.tracer.note("device", "", (self.tracer.argument(args[0]),)),
        )
        return made

    def take_dtype(self, *_: Any) -> Any:
        """Refuse: the dtype of a tensor is not known."""
        return self.tracer.refuse(
            "reads the dtype of a tensor that the input decides",
            "Name the dtype, such as x.to(torch.float32).",
        )

    def take_getitem(self, args: Any, _: Any) -> Any:
        """Note an index."""
        return indexed(self, args[0], args[1])

    def take_T(self, args: Any, _: Any) -> Any:  # noqa: N802
        """Note a transposition of a stored matrix."""
        if not isinstance(args[0], Traced) and args[0].dim() == 2:
            return self.op("transpose", {"x": args[0], "dim0": 0, "dim1": 1}, args[0])
        raise BindingError("reads .T")

    def take_mT(self, args: Any, _: Any) -> Any:  # noqa: N802
        """Note a transposition of the last dims."""
        return self.op("transpose", {"x": args[0], "dim0": -2, "dim1": -1}, args[0])

    def take_to(self, args: Any, kwargs: Any) -> Any:
        """Note a change of dtype; a device changes no value."""
        x, *rest = args
        given = [*rest, *kwargs.values()]
        if any(isinstance(one, Tensor) for one in given):
            raise BindingError("takes the dtype of another tensor")
        dtype = next((one for one in given if isinstance(one, torch.dtype)), None)
        return self.same(x) if dtype is None else self.op("to", {"x": x, "dtype": dtype}, x)

    def take_type(self, args: Any, kwargs: Any) -> Any:
        """Note a change of dtype."""
        if len(args) != 2 or not isinstance(args[1], torch.dtype) or kwargs:
            raise BindingError("calls type")
        return self.take_to(args, kwargs)

    def take_einsum(self, args: Any, _: Any) -> Any:
        """Note sums of products."""
        tensors = args[1] if isinstance(args[1], tuple | list) else args[1:]
        return self.op("einsum", {"equation": args[0], "tensors": tuple(tensors)}, tensors[0])

    def take_arange(self, args: Any, kwargs: Any) -> Any:
        """Note a row of integers; one that does not start at 0 is moved."""
        names = dict(
            zip(("end",) if len(args) == 1 else ("start", "end", "step"), args, strict=False)
        )
        given = names | kwargs
        start, step = given.pop("start", 0), given.pop("step", 1)
        given.pop("requires_grad", None)
        for_float = [one for one in (start, given.get("end"), step) if isinstance(one, float)]
        if for_float or not (isinstance(step, int) and step == 1):
            raise BindingError("calls arange with a step or floats")
        moved = type(start) is not int or start != 0
        if moved:
            given["end"] = given["end"] - start
        if type(given.get("device")) is not Device:
            given.pop("device", None)
        row = OPS["arange"]
        made = self.op("arange", {p.name: given[p.name] for p in row.params if p.name in given})
        return self.tracer.binary("+", made, start) if moved else made

    def take_bool(self, args: Any, _: Any) -> Any:
        """Note a change of dtype, or answer a condition."""
        return self.op("to", {"x": args[0], "dtype": torch.bool}, args[0])

    def take_format(self, *_: Any) -> str:
        """Return what a message shows of a tensor."""
        return "tensor(...)"

    take_repr = take_str = take_format

    def take_setitem(self, *_: Any) -> Any:
        """Refuse an assignment to a part of a tensor."""
        return self.tracer.refuse(
            "assigns to a part of a tensor", "Use torch.where, masked_fill or torch.cat."
        )
