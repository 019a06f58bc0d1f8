"""Trace a forward, and note the name of each value in its source."""

from __future__ import annotations

import dis
import sys
from collections.abc import Callable
from types import CodeType
from typing import Any

from torch import fx, nn

from tpack.nn import NoCache


class Tracer(fx.Tracer):
    """A symbolic tracer that knows the names of local variables.

    Attributes:
        wishes: node → the variable that its value is assigned to, if it is.
    """

    proxy_buffer_attributes = True

    def __init__(self, functions: tuple[Callable[..., Any], ...], code: CodeType) -> None:
        super().__init__(autowrap_functions=functions)
        self.code = code
        self.wishes: dict[fx.Node, str] = {}

    def create_arg(self, a: Any) -> Any:
        """Return an argument as nodes take it; the default of a cache is left out."""
        return None if is_no_cache(a) else super().create_arg(a)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:  # noqa: ARG002
        """Return True: a call of a child is one node."""
        return True

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        """Make a node, and note the variable that its value is assigned to."""
        node = super().create_node(*args, **kwargs)
        frame: Any = sys._getframe(1)  # noqa: SLF001
        while frame is not None and frame.f_code is not self.code:
            frame = frame.f_back
        if frame is not None and node.op.startswith("call"):
            position = node.args[1] if _is_item(node) else 0
            names = _stores(self.code, frame.f_lasti)
            if isinstance(position, int) and position < len(names):
                self.wishes[node] = names[position]
        return node


def is_no_cache(value: object) -> bool:
    """Return whether a value is the default of a cache; standalone source has its own class."""
    return type(value).__name__ == NoCache.__name__


def _is_item(node: fx.Node) -> bool:
    return node.op == "call_function" and getattr(node.target, "__name__", "") == "getitem"


def _stores(code: CodeType, offset: int) -> list[str]:
    """Return the variables that the instructions right after an offset store to."""
    names: list[str] = []
    for instruction in dis.get_instructions(code):
        if instruction.offset <= offset or instruction.opname == "CACHE":
            continue
        if instruction.opname == "UNPACK_SEQUENCE" and not names:
            continue
        if not instruction.opname.startswith("STORE_FAST"):
            break
        several = isinstance(instruction.argval, tuple)  # two in one, from Python 3.13 on
        stored = instruction.argval if several else (instruction.argval,)
        names += stored[:1] if instruction.opname.endswith("LOAD_FAST") else stored
    return names
