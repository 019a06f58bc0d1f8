"""The forward of a generated class: its symbolic trace, read as statements."""

from __future__ import annotations

import inspect
from collections.abc import Collection
from itertools import pairwise
from pathlib import Path
from typing import Any

from torch import fx, nn

from tpack.build import op_function
from tpack.errors import LayerDefError
from tpack.layerdef import (
    Param,
    Statement,
    Unspecified,
)
from tpack.layerdef.ops import OPS, PACKED_OPS, Op
from tpack.readback.body import Body
from tpack.readback.locals import Tracer, is_no_cache, line_of
from tpack.wording import spell


class Forward:
    """The trace of one forward.

    Args:
        given: arguments with a default that its callers give all the same.

    Attributes:
        ops: the ops that it may call, by spelling and by function.
        caches: its arguments that are caches.
        fixed: its arguments that nobody gives, with their defaults, which it always has.

    Raises:
        LayerDefError: it does something that LayerDef cannot express.
    """

    def __init__(self, module: nn.Module, given: Collection[str] = ()) -> None:
        self.name = type(module).__name__
        self.module = module
        if "forward" in vars(module):
            raise LayerDefError(
                "has another forward than its class, set on the instance. Write it into the class.",
                node=self.name,
            )
        arguments = inspect.signature(module.forward).parameters
        self.caches = {name for name, one in arguments.items() if is_no_cache(one.default)}
        self.arguments = tuple(arguments)
        self.fixed = {
            name: one.default
            for name, one in arguments.items()
            if one.default is not one.empty and name not in {*self.caches, *given}
        }
        names: dict[str, Any] = type(module).forward.__globals__
        ops: dict[Any, Op] = {op.spelling: op for op in (OPS | PACKED_OPS).values() if op.spelling}
        # functions of tpack.nn: standalone source defines them itself
        ours = {names[name]: op for name, op in ops.items() if name in names}
        self.ops = ops | {op_function(op): op for op in ops.values()} | ours
        self.code = type(module).forward.__code__
        tracer = Tracer(tuple(ours), self.code)
        try:
            self.nodes = list(tracer.trace(module, dict(self.fixed)).nodes)
        except NotImplementedError:
            self.nodes = []
        except Exception as error:  # the code of a module may raise anything
            what = _untraced(error)
            raise self.refusal(what, line_of(error, self.code)) from error
        self.wishes, self.lines = tracer.wishes, tracer.lines

    def refusal(self, what: str, line: int | None) -> LayerDefError:
        """Return the error for something in the source that LayerDef cannot express."""
        place = f", line {line} of {Path(self.code.co_filename).name}" if line else ""
        return LayerDefError(
            f"{what}. {spell(example_args=...)} lets save trace the module instead.",
            node=f"{self.name}.forward{place}",
        )

    def loops(self, whole: Param) -> list[list[fx.Node]] | None:
        """Return the calls of each loop over a repeated child; None if some calls are no loop."""
        count = whole.repeat or 1
        prefix = f"{whole.name}."
        calls = [
            node
            for node in self.nodes
            if node.op == "call_module" and str(node.target).startswith(prefix)
        ]
        runs = [calls[start : start + count] for start in range(0, len(calls), count)]
        return runs if all(_is_loop(whole.name, run, count) for run in runs) else None

    def given_to(self, path: str) -> frozenset[str]:
        """Return the arguments that all calls of a child give.

        Raises:
            LayerDefError: a call gives one that another leaves at its default.
        """
        child = self.module.get_submodule(path)
        calls = [node for node in self.nodes if node.op == "call_module" and node.target == path]
        named = []
        for node in calls:
            try:
                bound = inspect.signature(child.forward).bind(*node.args, **node.kwargs)
            except TypeError as error:
                what = f"calls {path} with arguments that it does not take"
                raise self.refusal(what, self.lines.get(node)) from error
            named.append(frozenset(bound.arguments))
        if len(set(named)) > 1:
            what = f"calls {path} with an argument that another call leaves out"
            raise self.refusal(what, self.lines.get(calls[-1]))
        return named[0] if named else frozenset()

    def read(self, params: dict[str, Param]) -> tuple[list[Param], tuple[Statement, ...]]:
        """Return the inputs and statements.

        Args:
            params: of the module, by name; repeated children are called in loops only.

        Raises:
            LayerDefError: it does something that LayerDef cannot express.
        """
        if not self.nodes:  # the order of calls is not known
            return [], (Unspecified(),)
        inputs, body = Body(self, params).read()
        kinds = {name: "Cache" if name in self.caches else "Tensor" for name in inputs}
        return [Param(name, kind) for name, kind in kinds.items()], body


def _untraced(error: Exception) -> str:
    """Say in a sentence why a forward cannot be read."""
    text = str(error).partition("\n")[0].rstrip(".") or type(error).__name__
    if "control flow" in text and "iterated" not in text:
        return "chooses by a value or a size what to compute, which LayerDef cannot express"
    if "cannot be iterated" in text:
        return "goes through the parts of a tensor in a loop, which LayerDef cannot express"
    return f"cannot be read: {text}"


def _is_loop(name: str, run: list[fx.Node], repeat: int) -> bool:
    """Return whether calls pass a value through the copies of a child in order."""
    if [str(node.target) for node in run] != [f"{name}.{i}" for i in range(repeat)]:
        return False
    others = [[_shared(arg, i) for arg in node.args[1:]] for i, node in enumerate(run)]
    return all(one == others[0] for one in others) and all(
        after.args[:1] == (before,) and set(before.users) == {after}
        for before, after in pairwise(run)
    )


def _shared(arg: Any, index: int) -> Any:
    """Return what the calls of a loop share: of the part of a cache with an index, the cache."""
    part = isinstance(arg, fx.Node) and (arg.op, arg.target) == ("call_method", "layer")
    return ("layer", arg.args[0]) if part and arg.args[1:] == (index,) else arg
