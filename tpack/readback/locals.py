"""Trace a forward, and note the name of each value in its source."""

from __future__ import annotations

import dis
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import CodeType
from typing import Any, NoReturn

from torch import fx, nn

from tpack.nn import NoCache


class Tracer(fx.Tracer):
    """A symbolic tracer that knows the names of local variables.

    Attributes:
        wishes: node → the variable that its value is assigned to, if it is.
        lines: node → the line of the forward that makes it.
    """

    proxy_buffer_attributes = True

    def __init__(self, functions: tuple[Callable[..., Any], ...], code: CodeType) -> None:
        super().__init__(autowrap_functions=functions)
        self.code = code
        self.wishes: dict[fx.Node, str] = {}
        self.lines: dict[fx.Node, int] = {}

    def to_bool(self, obj: fx.Proxy) -> bool:
        """Let an assert pass, whose values are not known here; refuse any other choice."""
        frame: Any = sys._getframe(1)  # noqa: SLF001
        while frame is not None and "torch" in Path(frame.f_code.co_filename).parts:
            frame = frame.f_back
        if frame is not None and _asserts(frame.f_code, frame.f_lasti):
            return True
        return super().to_bool(obj)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """Return the stand-in for a value, which cannot be changed in place."""
        return Unchanged(node, self)

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
        if frame is not None:
            self.lines[node] = frame.f_lineno
        if frame is not None and node.op.startswith("call"):
            position = node.args[1] if _is_item(node) else 0
            names = _stores(self.code, frame.f_lasti)
            if isinstance(position, int) and 0 <= position < len(names):
                self.wishes[node] = names[position]
        return node


def _asserts(code: CodeType, offset: int) -> bool:
    """Return whether the value that is tested at an offset is that of an assert."""
    later = [
        one
        for one in dis.get_instructions(code)
        if one.offset >= offset and one.opname not in ("CACHE", "TO_BOOL")
    ]
    jump, after = later[0], later[1:]
    to = next((one for one in after if one.offset == jump.argval), None)
    fails = to if "IF_FALSE" in jump.opname else after[0] if after else None
    return fails is not None and fails.opname == "LOAD_ASSERTION_ERROR"


class Unchanged(fx.Proxy):
    """Refuses to be changed in place: whoever else holds the value would not be told."""

    def _refuse(self, *_: Any) -> NoReturn:
        raise TypeError("it changes a value in place. Write x = x + y for x += y")

    __iadd__ = __isub__ = __imul__ = __itruediv__ = __ifloordiv__ = __imatmul__ = _refuse
    __ipow__ = __imod__ = __iand__ = __ior__ = __ixor__ = __setitem__ = __delitem__ = _refuse


def line_of(error: BaseException, code: CodeType) -> int | None:
    """Return the line of some code where an error came from; None if it came from elsewhere."""
    lines = [at for frame, at in traceback.walk_tb(error.__traceback__) if frame.f_code is code]
    return lines[-1] if lines else None


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
