"""Run the forwards of a module on stand-ins, and note what they do."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tpack.errors import LayerDefError
from tpack.nn.caching import is_no_cache
from tpack.readback import code
from tpack.readback.calls import Calls
from tpack.readback.frames import Arguments, Frame, is_size, leaves_of
from tpack.readback.layers import builtin_param, is_inlined, own_functions
from tpack.readback.values import Cache, Device, Memory, Node, Shape, Size, Traced
from tpack.wording import spell

#: Attributes of a module that are set while it is read.
_SET = ("forward", "training", "_compiled_call_impl")


ADVICE = "Write it with the ops that the manual lists, or give {options}."


class Tracer(TorchFunctionMode):
    """Reads all forwards that a call of the root reaches.

    Attributes:
        frames: the forwards by the id of their module.
    """

    def __init__(self, root: nn.Module) -> None:
        super().__init__()
        self.root = root
        self.thread = threading.get_ident()
        self.autocasts = _autocasts()
        self.frames: dict[int, Frame] = {}
        self.open: list[Frame] = []
        self.refused: LayerDefError | None = None
        self.calls = Calls(self)
        self.originals: dict[int, Callable[..., Any]] = {}
        self.builtin = {id(m): builtin_param("", m, m.forward) for m in root.modules()}
        self.everything = {id(t) for t in (*root.parameters(), *root.buffers())}

    @property
    def frame(self) -> Frame:
        """The forward that runs."""
        return self.open[-1]

    def refuse(self, problem: str, advice: str = "") -> Any:
        """Raise an error with the line of the source; it stands even where the source catches it.

        Raises:
            LayerDefError: always.
        """
        kind = type(self.frame.module).__name__ if self.open else type(self.root).__name__
        options = spell(example_args=...)
        advice = advice or ADVICE.format(options=f"save {options}")
        error = LayerDefError(f"{kind} {problem}. {advice}", node=code.place() or None)
        self.refused = self.refused or error
        raise error

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Note a call of a function of torch."""
        return self.calls.call(func, tuple(args), dict(kwargs or {}))

    # ---- nodes

    def note(self, kind: str, target: Any, args: Any = ()) -> Node:
        """Add a node."""
        if _autocasts() != self.autocasts:
            self.refuse("runs under autocast", "Remove it, and cast with .to where it matters.")
        names = code.stored_names(self.frame.code)
        wish = names[0] if names else ""
        node = Node(kind, target, args, wish, code.place())
        self.frame.nodes.append(node)
        return node

    def argument(self, value: Any) -> Any:
        """Return an argument with nodes in the place of stand-ins and stored tensors."""
        if isinstance(value, Traced):
            return self.read(value)
        if type(value) is Cache or type(value) is Device or isinstance(value, torch.SymInt):
            self.check_own(value)
            return value.node
        if isinstance(value, Tensor):
            return self.stored(value)
        if isinstance(value, tuple | list | torch.Size):
            return tuple(self.argument(item) for item in value)
        if isinstance(value, dict):
            return {key: self.argument(item) for key, item in value.items()}
        if value is None or isinstance(value, bool | int | float | str | torch.dtype):
            return value
        if type(value) is Shape:
            return self.refuse("uses the whole shape of a tensor", "Name its sizes one by one.")
        if is_no_cache(value):
            return None
        return self.refuse(f"computes with an object of class {type(value).__name__}")

    def check_own(self, value: Any) -> None:
        """Refuse a stand-in that another call left behind."""
        if value.tracer is not self or value.node not in self.frame.nodes:
            self.refuse(
                "uses a value of another call",
                "Pass it as an argument, and return what a later layer needs.",
            )

    def read(self, value: Traced) -> Node:
        """Return the node of a tensor, unless its memory has changed since."""
        self.check_own(value)
        if value.seen != value.memory.version:
            self.refuse(
                f"uses a tensor that {value.memory.changed} changed in place through another name",
                "Compute a new tensor there, such as x = x + y.",
            )
        return value.node

    def stored(self, tensor: Tensor) -> Node:
        """Return the node of a stored tensor, or of a constant."""
        frame = self.frame
        name = frame.tensors.get(id(tensor))
        if name is None and id(tensor) in self.everything:
            self.refuse("uses a tensor of another layer", "Pass it as an argument.")
        if name is None:
            name = next((n for n, one in frame.constants.items() if one is tensor), None)
            if name is None:
                names = code.stored_names(frame.code)
                stem = names[0] if names else "constant"
                name, number = f"{stem}", 1
                while hasattr(frame.module, name) or name in frame.constants:
                    number += 1
                    name = f"{stem}{number}"
                frame.constants[name] = tensor
        return self.named_tensor(name)

    def named_tensor(self, name: str) -> Node:
        """Return the node of a stored tensor by its name in the layer."""
        frame = self.frame
        if name not in frame.stored:
            frame.stored[name] = Node("stored", name)
            frame.nodes.append(frame.stored[name])
        return frame.stored[name]

    def tensor(self, node: Node, memory: Memory | None = None) -> Traced:
        """Return the stand-in for a tensor."""
        return Traced.make(self, node, memory)

    def binary(self, symbol: str, left: Any, right: Any) -> Any:
        """Note an operator."""
        node = self.note("binary", symbol, (self.argument(left), self.argument(right)))
        if isinstance(left, Tensor) or isinstance(right, Tensor):
            return self.tensor(node)
        return Size(self, node)

    def unary(self, symbol: str, operand: Any) -> Any:
        """Note an operator."""
        node = self.note("unary", symbol, (self.argument(operand),))
        return self.tensor(node) if isinstance(operand, Tensor) else Size(self, node)

    def size(self, tensor: Any, dim: int) -> Size:
        """Note that a size is read."""
        return Size(self, self.note("op", "size", {"x": self.argument(tensor), "dim": dim}))

    def several(self, op: str, args: dict[str, Any]) -> Any:
        """Note an op with as many results as are unpacked."""
        return self.calls.unpacked(op, args, self.wanted())

    def method(self, cache: Cache, name: str, args: tuple[Any, ...]) -> Any:
        """Note a call of a method of a cache."""
        return self.calls.cache_method(cache, name, args)

    def wanted(self) -> int:
        """Return how many values are unpacked."""
        count = code.unpacked_count()
        if count is None:
            self.refuse(
                "iterates over a tensor or a shape whose length the input decides",
                "Unpack it to names, such as first, second = x.unbind(0).",
            )
        return int(count or 0)

    def decide(self) -> bool:
        """Answer a condition on sizes or values, where one answer raises an error."""
        answer = code.raising_branch()
        if answer is None:
            self.refuse("decides by sizes or values of its input what it computes")
        return bool(answer)

    # ---- calls of modules

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Let the forward of each module come here, and the ops of tpack; undo it afterwards."""
        modules = list(self.root.modules())
        before = [(m, {n: vars(m)[n] for n in _SET if n in vars(m)}) for m in modules]
        dicts: list[tuple[dict[str, Any], str, Any]] = []
        try:
            for module in modules:
                self.originals[id(module)] = module.forward
                vars(module)["forward"] = self.watched(module, module.forward)
                vars(module)["training"] = False
                if getattr(module, "_compiled_call_impl", None) is not None:
                    vars(module)["_compiled_call_impl"] = None
            for names, name, function, op in own_functions(modules):
                dicts.append((names, name, function))
                names[name] = self.packed(function, op)
            with ExitStack() as stack:
                stack.enter_context(torch.no_grad())
                stack.enter_context(self)
                yield
        finally:
            for names, name, function in dicts:
                names[name] = function
            for module, attributes in before:
                for name in _SET:
                    vars(module).pop(name, None)
                vars(module).update(attributes)

    def packed(self, function: Callable[..., Any], op: Any) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() != self.thread:
                return function(*args, **kwargs)
            return self.calls.own(op, function, args, kwargs)

        run.__wrapped__ = function  # type: ignore[attr-defined]
        return run

    def watched(self, module: nn.Module, original: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() != self.thread:
                return original(*args, **kwargs)
            return self.called(module, original, args, kwargs)

        return run

    def called(
        self, module: nn.Module, original: Callable[..., Any], args: Any, kwargs: Any
    ) -> Any:
        frame = self.frame
        if module is frame.module or is_inlined(module):
            return original(*args, **kwargs)
        name = frame.children.get(id(module))
        if name is None:
            if id(module) in frame.below:
                return original(*args, **kwargs)
            kind = type(module).__name__
            self.refuse(
                f"calls a {kind} of another layer", "Call it where it belongs, and pass the result."
            )
        assert name is not None
        if self.builtin[id(module)] is not None:
            if kwargs:
                args = (*args, *kwargs.values())
            return self.tensor(self.note("layer", name, self.argument(args)))
        return self.enter(name, module, original, args, kwargs)

    def enter(self, name: str, module: nn.Module, original: Any, args: Any, kwargs: Any) -> Any:
        """Read the forward of a child that is called, or take what is known of it."""
        kind = type(module).__name__
        try:
            bound = inspect.signature(original).bind(*args, **kwargs)
        except TypeError as error:
            self.refuse(f"calls {kind} with other arguments: {error}", "Correct the call.")
        taken = Arguments(self)
        taken.take_all(bound)
        known = self.frames.get(id(module))
        if known is None:
            inner = Frame(module, original)
            inner.key = taken.key
            self.read_frame(inner, original, bound, taken)
            known = inner
        elif known.key != taken.key:
            self.refuse(
                f"calls {name} in two ways", "Give it the same arguments each time, or two layers."
            )
        given = tuple(self.argument(value) for value in taken.given)
        for (argument, where), value in (
            (item, taken.by_name[item[0]]) for item in known.changes.items()
        ):
            self.changed(value, where, f"argument {argument} of {kind}")
        node = self.note("layer", name, given)
        return self.returned(node, known, taken)

    def read_frame(
        self, inner: Frame, original: Any, bound: inspect.BoundArguments, taken: Arguments
    ) -> None:
        """Run a forward on stand-ins of its own."""
        self.open.append(inner)
        try:
            bound.arguments.update(taken.stand_ins(bound))
            try:
                result = original(*bound.args, **bound.kwargs)
            except NotImplementedError:
                inner.known = False
            else:
                inner.result = self.result_of(result)
        finally:
            self.open.pop()
        self.frames[id(inner.module)] = inner

    def result_of(self, result: Any) -> Any:
        """Return what a forward returns, with nodes for its values."""
        shares = self.frame.shares
        if isinstance(result, Traced):
            shares.append(result.memory.owner)
        elif isinstance(result, Tensor | torch.SymInt):
            shares.append("")
        if isinstance(result, dict):
            return {key: self.result_of(item) for key, item in result.items()}
        if isinstance(result, tuple | list):
            return tuple(self.result_of(item) for item in result)
        return self.argument(result)

    def returned(self, node: Node, known: Frame, taken: Arguments) -> Any:
        """Return stand-ins for what a child returns, in its form."""
        leaves = list(leaves_of(known.result)) if known.known else [node]
        items = [node]
        if len(leaves) > 1:
            names = code.stored_names(self.frame.code)
            items = [self.note("item", i, (node,)) for i in range(len(leaves))]
            for item, wish in zip(items, names, strict=False):
                item.wish = wish if len(names) == len(items) else ""
        by_owner = {f"argument {name}": value for name, value in taken.by_name.items()}
        memories = []
        for owner in known.shares or [""]:
            value = by_owner.get(owner)
            memories.append(value.memory if isinstance(value, Traced) else Memory())
        made = iter(zip(items, memories + [Memory()] * len(items), strict=False))

        def build(result: Any) -> Any:
            if isinstance(result, Node):
                item, memory = next(made)
                if result.kind == "size" or is_size(result):
                    return Size(self, item)
                return self.tensor(item, memory)
            if isinstance(result, dict):
                return {key: build(one) for key, one in result.items()}
            return tuple(map(build, result)) if isinstance(result, tuple) else result

        return build(known.result) if known.known else self.tensor(node)

    def changed(self, value: Any, where: str, what: str = "") -> None:
        """Note that a tensor was changed in place."""
        if not isinstance(value, Traced):
            self.refuse("changes a stored tensor in place", "Compute a new tensor instead.")
        memory = value.memory
        if memory.owner.startswith("argument "):
            name = memory.owner.removeprefix("argument ")
            if len(self.open) == 1:
                self.refuse(
                    f"changes its argument {name} in place, which the caller would see",
                    f"Compute a new tensor instead, such as {name} = {name} + y.",
                )
            self.frame.changes.setdefault(name, where)
        elif memory.owner:
            self.refuse("changes a stored tensor in place", "Compute a new tensor instead.")
        memory.version += 1
        memory.changed = f"line {where.rpartition(':')[2]}" + (f" ({what})" if what else "")


def _autocasts() -> tuple[bool, ...]:
    return tuple(torch.is_autocast_enabled(device) for device in ("cpu", "cuda"))
