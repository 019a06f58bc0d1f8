"""One forward: what it does while it runs, its arguments, and its result."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tpack.readback.layers import children_of
from tpack.readback.values import Cache, Device, Memory, Node, Shape, Size


class Frame:
    """One forward while it runs, and what is known of it afterwards.

    Attributes:
        code, docstring: of its function.
        nodes: what it does, in order.
        inputs: its arguments, by name: Tensor or Cache.
        inner: whether another forward calls it: then only that sees the form of its result.
        result: what it returns, with nodes for values.
        shares: for each of them whose memory it shares: that of an argument, or "".
        known: whether there is a forward.
        changes: the arguments that it changes in place, with the line.
    """

    def __init__(
        self, module: nn.Module, function: Callable[..., Any], *, inner: bool = True
    ) -> None:
        self.module, self.inner = module, inner
        plain = inspect.unwrap(getattr(function, "__func__", function))
        self.code, self.docstring = plain.__code__, plain.__doc__
        self.nodes: list[Node] = []
        self.inputs: dict[str, str] = {}
        self.result: Any = None
        self.known = True
        self.changes: dict[str, str] = {}
        self.shares: list[str] = []
        self.key: Any = None
        self.stored: dict[str, Node] = {}
        self.constants: dict[str, Tensor] = {}
        self.children = {id(child): name for name, child in reversed([*children_of(module)])}
        self.below = {id(child) for child in module.modules()}
        held: list[tuple[str, Tensor]] = [*module.named_parameters(remove_duplicate=False)]
        held += module.named_buffers(remove_duplicate=False)
        self.tensors = {id(tensor): name for name, tensor in reversed(held)}


def is_size(node: Node) -> bool:
    """Return whether a node is a size of a tensor."""
    return node.kind == "op" and node.target == "size"


def leaves_of(result: Any) -> Iterable[Node]:
    """Yield the values in a result, in order."""
    if isinstance(result, Node):
        yield result
    elif isinstance(result, dict):
        for item in result.values():
            yield from leaves_of(item)
    elif isinstance(result, tuple):
        for item in result:
            yield from leaves_of(item)


class Arguments:
    """The arguments of a call: those that are values, and those that are fixed."""

    def __init__(self, tracer: Any) -> None:
        self.tracer = tracer
        self.given: list[Any] = []
        self.by_name: dict[str, Any] = {}
        self.key: list[Any] = []

    def take_all(self, bound: inspect.BoundArguments) -> None:
        for name, value in bound.arguments.items():
            self.take(name, value)

    def take(self, name: str, value: Any) -> None:
        if isinstance(value, Tensor | torch.SymInt) or type(value) is Cache:
            kind = "Cache" if type(value) is Cache else type(value).__mro__[-2].__name__
            self.key.append((name, kind, isinstance(value, Tensor)))
            self.given.append(value)
            self.by_name[name] = value
        elif isinstance(value, tuple | list):
            for i, item in enumerate(value):
                self.take(f"{name}{i}", item)
            self.key.append((name, len(value)))
        elif isinstance(value, dict):
            for key, item in value.items():
                self.take(f"{name}_{key}" if name != "kwargs" else str(key), item)
            self.key.append((name, tuple(value)))
        elif type(value) is Shape or type(value) is Device:
            self.tracer.argument(value)
            self.tracer.refuse("passes a device to a layer", "Pass the tensor instead.")
        else:
            self.key.append((name, type(value), value))

    def stand_ins(self, bound: inspect.BoundArguments) -> dict[str, Any]:
        return {name: self.stand_in(name, value) for name, value in bound.arguments.items()}

    def stand_in(self, name: str, value: Any) -> Any:
        tracer = self.tracer
        if name in self.by_name:
            frame = tracer.frame
            node = Node("input", name)
            frame.nodes.append(node)
            frame.inputs[name] = "Cache" if type(value) is Cache else "Tensor"
            if type(value) is Cache:
                return Cache(tracer, node)
            if isinstance(value, Tensor):
                return tracer.tensor(node, Memory(f"argument {name}"))
            return Size(tracer, node)
        if isinstance(value, tuple | list):
            return tuple(self.stand_in(f"{name}{i}", item) for i, item in enumerate(value))
        if isinstance(value, dict):
            return {
                key: self.stand_in(f"{name}_{key}" if name != "kwargs" else str(key), item)
                for key, item in value.items()
            }
        return value


@contextmanager
def unchanged(root: nn.Module) -> Iterator[None]:
    """Undo afterwards what forwards store in their modules."""
    held = [(m, dict(vars(m)), dict(m._buffers), dict(m._parameters)) for m in root.modules()]  # noqa: SLF001
    try:
        yield
    finally:
        for module, attributes, buffers, parameters in held:
            vars(module).clear()
            vars(module).update(attributes)
            pairs: Any = ((module._buffers, buffers), (module._parameters, parameters))  # noqa: SLF001
            for now, kept in pairs:
                now.clear()
                now.update(kept)
