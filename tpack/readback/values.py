"""What a forward computes on while it is read: stand-ins for tensors, sizes and caches.

They have no numbers. Each names the node that makes it, so that what is done with it is noted;
what needs a number is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

#: The one element-free tensor that all stand-ins for tensors are views of.
_BLANK = torch.empty(0)


@dataclass(eq=False)
class Node:
    """One step of a forward.

    Attributes:
        kind: input, stored, constant, op, binary, unary, layer, item, device or static.
        target: the name of what it reads, calls or computes.
        args: by name for an op, else in order.
        wish: the variable that its value is assigned to, if it is.
        place: the file and line.
    """

    kind: str
    target: Any
    args: Any = ()
    wish: str = ""
    place: str = ""
    users: dict[Node, None] = field(default_factory=dict)

    def inputs(self) -> Iterator[Node]:
        """Yield the nodes among the arguments."""
        yield from nodes_in(self.args)


def nodes_in(value: Any) -> Iterator[Node]:
    """Yield the nodes in an argument, however deep."""
    if isinstance(value, Node):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from nodes_in(item)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from nodes_in(item)
    elif isinstance(value, slice):
        yield from nodes_in((value.start, value.stop, value.step))


@dataclass(eq=False)
class Memory:
    """The elements that a tensor and its views share.

    Attributes:
        owner: what may change them: the forward that made them, or a name for people of who else
            sees the change.
        version: how often they were changed in place.
        changed: where that was last.
    """

    owner: str = ""
    version: int = 0
    changed: str = ""


class Sized:
    """Has a node, and a tracer that notes what is done with it."""

    tracer: Any
    node: Node


def _operator(symbol: str, *, turned: bool = False) -> Callable[[Any, Any], Any]:
    def method(self: Any, other: Any) -> Any:
        if not isinstance(other, Tensor | torch.SymInt | int | float):
            return NotImplemented
        pair = (other, self) if turned else (self, other)
        return self.tracer.binary(symbol, *pair)

    return method


#: Methods of Python for the operators of LayerDef.
_NAMES = {
    "+": "add",
    "-": "sub",
    "*": "mul",
    "/": "truediv",
    "//": "floordiv",
    "%": "mod",
    "**": "pow",
    "@": "matmul",
    "&": "and",
    "|": "or",
}
_COMPARED = {"==": "eq", "!=": "ne", "<": "lt", "<=": "le", ">": "gt", ">=": "ge"}


class Traced(Tensor):
    """Stands for a tensor."""

    node: Node
    memory: Memory
    seen: int
    tracer: Any

    @classmethod
    def make(cls, tracer: Any, node: Node, memory: Memory | None = None) -> Traced:
        """Return the stand-in for the value of a node."""
        made: Any = Tensor._make_subclass(cls, _BLANK)  # noqa: SLF001
        made.tracer, made.node, made.memory = tracer, node, memory or Memory()
        made.seen = made.memory.version
        return made  # type: ignore[no-any-return]

    def __bool__(self) -> bool:
        return self.tracer.decide()  # type: ignore[no-any-return]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.tracer.several("unbind", {"x": self, "dim": 0}))

    def __neg__(self) -> Any:
        return self.tracer.unary("-", self)

    def __invert__(self) -> Any:
        return self.tracer.unary("~", self)

    def __repr__(self, *_: Any, **__: Any) -> str:  # type: ignore[override]
        return "tensor(...)"

    def __format__(self, _: str) -> str:
        return "tensor(...)"

    __str__ = __repr__
    __hash__ = object.__hash__


class Size(torch.SymInt):
    """Stands for a size, or for a number that is computed from sizes."""

    node: Node
    tracer: Any

    def __init__(self, tracer: Any, node: Node) -> None:
        self.tracer, self.node = tracer, node

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return int

    def __neg__(self) -> Any:
        return self.tracer.unary("-", self)

    def __repr__(self) -> str:
        return "size"

    def __format__(self, _: str) -> str:
        return "size"

    __str__ = __repr__
    __hash__ = object.__hash__

    def _refuse(self, *_: Any) -> Any:
        self.tracer.refuse("needs a size as a plain number, which the input decides")

    __int__ = __index__ = __float__ = __round__ = __trunc__ = __floor__ = __ceil__ = _refuse
    __bool__ = __divmod__ = __abs__ = _refuse


for _symbol, _name in _NAMES.items():
    for _class in (Traced, Size):
        setattr(_class, f"__{_name}__", _operator(_symbol))
        setattr(_class, f"__r{_name}__", _operator(_symbol, turned=True))
for _symbol, _name in _COMPARED.items():
    setattr(Traced, f"__{_name}__", _operator(_symbol))


class Question:
    """The answer to a comparison of sizes, which is not known."""

    def __init__(self, tracer: Any) -> None:
        self.tracer = tracer

    def __bool__(self) -> bool:
        return self.tracer.decide()  # type: ignore[no-any-return]


def _asks(self: Any, other: Any) -> Any:  # noqa: ARG001
    return Question(self.tracer)


for _name in _COMPARED.values():
    setattr(Size, f"__{_name}__", _asks)


class Rank(Size):
    """Stands for a number of dims, which may be compared in an assert only."""


class Device(str):
    """Stands for the device of a tensor."""

    __slots__ = ("node", "tracer")
    node: Node
    tracer: Any

    def _refuse(self, *_: Any) -> Any:
        self.tracer.refuse("looks at a device")

    @property
    def type(self) -> Any:
        """Refuse: what is computed may not depend on it."""
        return self._refuse()

    index = type  # noqa: A003
    __eq__ = __ne__ = _refuse
    __hash__ = str.__hash__


class Shape:
    """Stands for the shape of a tensor, whose length is not known."""

    def __init__(self, tracer: Any, tensor: Any) -> None:
        self.tracer, self.tensor = tracer, tensor

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, int) and not isinstance(index, bool):
            return self.tracer.size(self.tensor, index)
        if isinstance(index, slice) and index.step in (None, 1):
            start, stop = index.start or 0, index.stop
            if start >= 0 and stop is not None and stop >= 0:
                return tuple(self[i] for i in range(start, stop))
            if start < 0 and (stop is None or stop < 0):
                return tuple(self[i] for i in range(start, stop or 0))
        return self.tracer.refuse(
            "takes a part of a shape whose length depends on the input",
            "Name the sizes, such as batch, length, width = x.shape, or use unflatten.",
        )

    def __iter__(self) -> Iterator[Any]:
        return iter([self[i] for i in range(self.tracer.wanted())])

    def __eq__(self, _: object) -> Any:
        return Question(self.tracer)

    __ne__ = __eq__
    __hash__ = object.__hash__

    def __len__(self) -> int:
        return self.tracer.refuse("counts the dims of a tensor")  # type: ignore[no-any-return]


class Pair(tuple[Any, ...]):
    """Values and indices, as max and topk give them."""

    __slots__ = ()

    @property
    def values(self) -> Any:
        """The first."""
        return self[0]

    @property
    def indices(self) -> Any:
        """The second."""
        return self[1]


class Several:
    """Stands for several results whose number is not known until they are unpacked."""

    def __init__(self, tracer: Any, take: Callable[[int], Any], one: Callable[[int], Any]) -> None:
        self.tracer, self.take, self.one = tracer, take, one

    def __iter__(self) -> Iterator[Any]:
        return iter(self.take(self.tracer.wanted()))

    def __getitem__(self, index: int) -> Any:
        return self.one(index)

    def __len__(self) -> int:
        return self.tracer.refuse("counts the results of a split")  # type: ignore[no-any-return]


class Cache:
    """Stands for a cache of keys and values."""

    def __init__(self, tracer: Any, node: Node) -> None:
        self.tracer, self.node = tracer, node

    def __getattr__(self, name: str) -> Any:
        return lambda *args: self.tracer.method(self, name, args)
