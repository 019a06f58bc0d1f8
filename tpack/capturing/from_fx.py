"""Exported programs → graphs: nodes of torch.fx read through the table of ATen ops."""

from __future__ import annotations

import operator
import re
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.utils import _pytree as pytree

from tpack.capturing.annotations import size_names
from tpack.capturing.aten import ATEN, CHECKS, Row, functional
from tpack.capturing.caches import OURS
from tpack.capturing.graph import (
    CONSTANT,
    INPUT,
    ITEM,
    STORED,
    Arg,
    Call,
    Graph,
    Size,
    Value,
    values_in,
)
from tpack.capturing.storages import Storages, computed_dtype, identity, shared_arguments
from tpack.capturing.torch_export import NOTES, RESULT
from tpack.capturing.views import written
from tpack.errors import LayerDefError
from tpack.layerdef.names import is_identifier

_INPUTS = {
    InputKind.PARAMETER: STORED,
    InputKind.BUFFER: STORED,
    InputKind.CONSTANT_TENSOR: CONSTANT,
    InputKind.USER_INPUT: INPUT,
}


def read_graph(program: ExportedProgram) -> Graph:
    """Read the graph of an exported program.

    Raises:
        LayerDefError: the table does not have an op; the error names the module that uses it.
    """
    return _Reader(program).read()


class _Reader:
    def __init__(self, program: ExportedProgram) -> None:
        self.program = program
        self.values: list[Value] = []
        self.kinds: dict[str, str] = {}
        self.made: dict[fx.Node, Arg] = {}
        self.stored: dict[str, Tensor] = {}
        self.aliases: dict[str, str] = {}
        self.storages = Storages()

    def read(self) -> Graph:
        signature = self.program.graph_signature
        buffers = frozenset(signature.buffers)
        self.take_state(set(signature.non_persistent_buffers))
        inputs = self.take_inputs()
        self.run(self.program.graph_module.graph, self.program.graph_module)
        outputs = []
        for spec in signature.output_specs:
            if spec.kind is OutputKind.USER_OUTPUT:
                outputs.append(self.returned(spec.arg))
            else:
                raise LayerDefError(
                    f"forward changes {spec.target or spec.arg.name!r}, which LayerDef cannot "
                    "express. Capture the module in eval mode."
                )
        if not any(values_in(tuple(outputs))):
            raise LayerDefError("forward returns no tensor, expected one or more.")
        tree = pytree.tree_unflatten(outputs, self.program.call_spec.out_spec)
        return Graph(
            [value for value in inputs if value.op == INPUT],
            self.values,
            _result(tree),
            self.stored,
            buffers,
            self.kinds,
            size_names([value for value in inputs if value.op == INPUT]),
            self.aliases,
        )

    def take_state(self, unsaved: set[str]) -> None:
        """Note the stored tensors; of several names of one tensor, keep the first."""
        owners: dict[Any, str] = {}
        for name, tensor in self.program.state_dict.items():
            if name in unsaved:
                continue
            key = identity(tensor)
            if tensor.numel() and key in owners:
                self.aliases[name] = owners[key]
                continue
            owners[key] = name
            self.stored[name] = tensor.detach()

    def take_inputs(self) -> list[Value]:
        nodes = [node for node in self.program.graph.nodes if node.op == "placeholder"]
        found = []
        for spec, node in zip(self.program.graph_signature.input_specs, nodes, strict=True):
            value = node.meta.get("val")
            if spec.kind not in _INPUTS:
                raise LayerDefError(
                    f"takes a {spec.kind.name.lower()}, which LayerDef cannot express."
                )
            if not isinstance(value, Tensor):
                self.made[node] = _plain(value)
                continue
            op, name = _INPUTS[spec.kind], str(spec.target or node.name)
            data = None
            if op != INPUT and name not in self.program.state_dict:
                op = CONSTANT
            if op == CONSTANT:
                data = self.program.constants.get(name)
                data = self.program.state_dict.get(name) if data is None else data
                assert isinstance(data, Tensor)
            name = self.aliases.get(name, name)
            made = Value(op, {}, _shape(value), value.dtype, name=name, data=data)
            made.asked = _asked(node)
            self.made[node] = made
            found.append(made)
        return found

    def run(self, graph: fx.Graph, owner: fx.GraphModule, above: fx.Node | None = None) -> Any:
        """Read the nodes of a graph; a nested one runs in the place of its call."""
        for node in graph.nodes:
            if node.op == "placeholder":
                continue
            if node.op == "output":
                return node.args[0]
            self.node(node, owner, above)
        return None

    def node(self, node: fx.Node, owner: fx.GraphModule, above: fx.Node | None) -> None:
        if node.op == "get_attr":
            target = operator.attrgetter(str(node.target))(owner)
            if isinstance(target, Tensor):
                self.made[node] = Value(
                    CONSTANT, {}, tuple(target.shape), target.dtype, name=node.name, data=target
                )
            return
        name = _overload(node.target)
        if node.target is operator.getitem and isinstance(node.args[0], fx.Node):
            self.take_item(node, node.args[0], above)
            return
        if name in ("wrap_with_set_grad_enabled", "wrap_with_autocast"):
            self.inline(node, name, owner)
            return
        meta = node.meta.get("val")
        if isinstance(meta, torch.SymInt | torch.SymFloat | torch.SymBool | int | float | bool):
            self.made[node] = _plain(meta)
            return
        if name in CHECKS:
            return
        self.compute(node, name, above)

    def inline(self, node: fx.Node, name: str, owner: fx.GraphModule) -> None:
        """Read the graph that runs without gradients, or without autocast."""
        position = next(i for i, arg in enumerate(node.args) if _is_submodule(arg))
        if name == "wrap_with_autocast" and node.args[2]:
            raise LayerDefError(
                "runs under autocast. Capture it without autocast.", node=_place(node)
            )
        inner = getattr(owner, str(node.args[position].target))  # type: ignore[union-attr]
        holes = [n for n in inner.graph.nodes if n.op == "placeholder"]
        for hole, arg in zip(holes, node.args[position + 1 :], strict=True):
            self.made[hole] = self.passed(arg)
        result = self.run(inner.graph, inner, node)
        self.made[node] = tuple(map(self.passed, result))

    def take_item(self, node: fx.Node, several: fx.Node, above: fx.Node | None) -> None:
        """Read one of several results."""
        whole, index = self.made[several], node.args[1]
        if isinstance(whole, tuple):
            self.made[node] = whole[index]  # type: ignore[index]
            return
        item = self.value(node, ITEM, {"x": self.argument(several), "index": index}, above)
        self.made[node] = item
        if len(self.storages.group(whole)) > 1:  # a view; each other result has memory of its own
            self.storages.share(item, [whole])

    def compute(self, node: fx.Node, name: str, above: fx.Node | None) -> None:
        base = functional(name)
        row = OURS.get(name) or ATEN.get(base)
        if row is None:
            raise LayerDefError(
                f"uses {name or node.target}, which LayerDef cannot express. The manual lists the "
                "ops that capture knows, and says how to add one.",
                node=_place(node),
            )
        args = self.bind(node, row, name)
        if base.startswith("logical_"):  # a number counts as True if it is not 0
            args = {key: self.truth(node, arg, above) for key, arg in args.items()}
        if base != name and row.op != "same":
            self.change(node, base, row.op, args, above)
            return
        value = self.value(node, row.op, args, above)
        self.made[node] = value
        shared = shared_arguments(node, row.shared, value.dtype)
        self.storages.share(value, values_in([self.made[one] for one in shared]))

    def truth(self, node: fx.Node, arg: Arg, above: fx.Node | None) -> Arg:
        if not isinstance(arg, Value) or arg.dtype == torch.bool:
            return arg
        value = self.value(node, "!=", {"x": arg, "y": 0}, above)
        value.shape, value.dtype = arg.shape, torch.bool
        return value

    def change(
        self, node: fx.Node, base: str, op: str, args: dict[str, Arg], above: fx.Node | None
    ) -> None:
        """Let the result of an op that changes its first argument stand for it from there on."""
        target = node.args[0]
        assert isinstance(target, fx.Node)
        old = self.made[target]
        assert isinstance(old, Value)
        value = self.value(node, op, args, above)
        kwargs = {key: self.argument(arg) for key, arg in node.kwargs.items()}
        dtype = computed_dtype(base, [self.argument(arg) for arg in node.args], kwargs)
        self.storages.change(old, value, _overload(node.target), _place(node))
        if dtype != value.dtype:  # what is computed is stored in the dtype that was there
            kept, value.dtype = value.dtype, dtype
            value = self.value(node, "to", {"x": value, "dtype": kept}, above)
            self.storages.share(value, [old])
        self.made[node] = value
        self.replace(old, value)
        if torch.Tag.inplace_view in node.target.tags:  # type: ignore[union-attr]
            return  # what it changes is a shape, and no memory
        while (whole := written(old, value)) is not None:  # a view: the tensor it shows is changed
            old, value = old.args["x"], whole
            self.values.append(value)
            self.storages.share(value, [old])
            self.replace(old, value)

    def replace(self, old: Value, value: Value) -> None:
        """Let a value stand for another from here on."""
        self.made = {key: value if made is old else made for key, made in self.made.items()}

    def bind(self, node: fx.Node, row: Row, name: str) -> dict[str, Arg]:
        """Return the arguments of a node by the names that the row gives them."""
        schema = node.target._schema.arguments  # type: ignore[union-attr]  # noqa: SLF001
        given = dict(zip((item.name for item in schema), node.args, strict=False)) | node.kwargs
        args: dict[str, Arg] = {}
        for item in schema:
            if item.name not in given or item.name in row.ignored:
                continue
            value = self.argument(given[item.name])
            if item.name in row.taken:
                if value is not None or item.name == "size":
                    args[row.taken[item.name]] = value
            elif item.name in row.fixed:
                self.require(node, name, item.name, value, row.fixed[item.name])
            else:
                self.require(node, name, item.name, value, str(item.default_value))
        return {**args, **row.given}

    def require(self, node: fx.Node, name: str, argument: str, value: Arg, wanted: str) -> None:
        if value is not None and str(value) != wanted:
            advice = " Call module.eval() first." if argument in ("train", "training") else ""
            raise LayerDefError(
                f"gives {name} {argument}={_shown(value)}, expected {wanted}.{advice}",
                node=_place(node),
            )

    def argument(self, arg: Any) -> Arg:
        """Return the value of an argument, and check that it may be read now."""
        found = self.passed(arg)
        for value in values_in(found):
            self.storages.check(value, _place(arg) if isinstance(arg, fx.Node) else "module")
        return found

    def passed(self, arg: Any) -> Arg:
        """Return the value of an argument without that check."""
        if isinstance(arg, fx.Node):
            return self.made[arg]
        if isinstance(arg, tuple | list):
            return tuple(self.passed(item) for item in arg)
        return _plain(arg)

    def value(self, node: fx.Node, op: str, args: dict[str, Arg], above: fx.Node | None) -> Value:
        place = above if above is not None and not node.meta.get("nn_module_stack") else node
        calls = _calls(place)
        for call in calls:
            self.kinds.setdefault(call.path, call.kind)
        meta = node.meta.get("val")
        several = isinstance(meta, tuple | list)
        first: Any = meta[0] if isinstance(meta, tuple | list) else meta
        made = Value(
            op,
            args,
            () if several or first is None else _shape(first),
            torch.float32 if first is None else first.dtype,
            calls=calls,
            lines=_lines(node, len(calls)),
            asked=_asked(node),
        )
        if isinstance(meta, tuple | list):
            made.args["count"] = len(meta)
        self.values.append(made)
        return made

    def returned(self, arg: Any) -> Arg:
        """Return the value of one flat output."""
        node = next((n for n in self.made if n.name == getattr(arg, "name", None)), None)
        return self.argument(node) if node is not None else getattr(arg, "value", None)


def _result(tree: Any) -> Any:
    """Return the result of forward; keys of dicts must be identifiers, None items are dropped."""
    if isinstance(tree, Value) or tree is None:
        return tree
    if isinstance(tree, dict):
        items = {name: _result(item) for name, item in tree.items()}
        if not all(isinstance(name, str) and name.isidentifier() for name in items):
            raise LayerDefError("forward returns a dict with keys that are not identifiers.")
        return {name: item for name, item in items.items() if item is not None}
    if isinstance(tree, tuple | list):
        return tuple(item for item in map(_result, tree) if item is not None)
    raise LayerDefError(f"forward returns {type(tree).__name__}, expected tensors.")


def _overload(target: Any) -> str:
    """Return ``add.Tensor`` of an op of ATen; the plain name of another callable."""
    name = str(target)
    if isinstance(target, torch._ops.OpOverload):  # noqa: SLF001
        return name.removeprefix("aten.")  # one of another library has its name before
    return str(getattr(target, "__name__", name))


def _shown(value: Arg) -> str:
    return "a tensor" if any(values_in(value)) else f"{value!s:.40}"


def _is_submodule(arg: Any) -> bool:
    return isinstance(arg, fx.Node) and arg.op == "get_attr"


def _plain(value: Any) -> Arg:
    """Turn symbolic numbers of torch into sizes."""
    if isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool):
        expression = value.node.expr
        return int(expression) if expression.is_Integer else expression
    return value


def _shape(tensor: Tensor) -> tuple[Size, ...]:
    return tuple(_plain(size) for size in tensor.shape)


def _calls(node: fx.Node) -> tuple[Call, ...]:
    """Return the module calls that a node belongs to, from its stack."""
    found = []
    for key, (path, kind) in (node.meta.get("nn_module_stack") or {}).items():
        if path.startswith("_empty_nn_module_stack"):
            continue
        _, _, number = key.partition("@")  # of the second call on
        name = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"
        found.append(Call(path, int(number or 0), name))
    return tuple(found) or (Call("", 0, "Model"),)


def _lines(node: fx.Node, depth: int) -> tuple[str, ...]:
    """Return the source lines of the forwards around a node, one for each module call."""
    text = str(node.meta.get("stack_trace") or "").splitlines()
    lines = [after for line, after in pairwise(text) if _FRAME.match(line)]
    places = [line.strip() for line in text if _FRAME.match(line)]
    frames = [f"{where}\n{line.strip()}" for where, line in zip(places, lines, strict=False)]
    frames = frames[-depth:]
    return ("",) * (depth - len(frames)) + tuple(frames)


_FRAME = re.compile(r'\s*File ".*", line \d+, in ')


def _asked(node: fx.Node) -> dict[str, str]:
    notes = (node.meta.get("custom") or {}).get(NOTES) or {}
    return {
        path: name
        for path, name in notes.items()
        if path.startswith(RESULT) or is_identifier(name.partition(".")[0])
    }


def _place(node: fx.Node) -> str:
    path = _calls(node)[-1].path
    return path or "module"
