"""A module that computes an ONNX graph, node by node, for torch.export to trace."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.nn import functional as F
from torch.utils._python_dispatch import _disable_current_modes

from tpack.capturing.onnx_graphs.arguments import Arguments, Array, Known, Stored, outside
from tpack.capturing.onnx_graphs.numbers import known_results
from tpack.capturing.onnx_graphs.rows import ROWS
from tpack.capturing.onnx_graphs.scopes import calls_of
from tpack.errors import LayerDefError, TpackError
from tpack.sources.onnx_files import OnnxGraph
from tpack.sources.onnx_files.nodes import Node
from tpack.sources.onnx_files.quantized import read_as

#: Key in ``meta["custom"]`` of a traced op for the calls of modules that it belongs to.
_CALLS = "tpack_calls"
#: The most numbers that one result may have as the graph is traced.
MOST = 1 << 27
#: Nodes that only give a weight another form, which is stored as it becomes.
_FORMS = ("DequantizeLinear", "Quant", "IntQuant", "Mul", "Div")
_STANDARD = ("", "ai.onnx")


def row_name(node: Node) -> str:
    """Return the name of a node's op as the table has it: with the domain, if it has one."""
    domain = str(node.proto.domain)
    return node.op if domain in _STANDARD else f"{domain}::{node.op}"


class GraphModule(nn.Module):
    """Computes what a graph computes.

    Attributes:
        constants: known numbers that ops take as tensors.
    """

    def __init__(
        self,
        graph: OnnxGraph,
        tensors: Mapping[str, Tensor],
        inputs: Mapping[str, str],
    ) -> None:
        """Make the module.

        Args:
            tensors: those of the source, by name.
            inputs: names of the arguments of forward, by their names in the graph.
        """
        super().__init__()
        self.graph, self.inputs = graph, inputs
        self.opset = graph.opset
        self.tensors = tensors
        self.constants = Constants()
        statistics = {
            name
            for node in graph.nodes.nodes
            if node.op == "BatchNormalization"
            for name in node.inputs[3:5]
        }
        for name, source_name in graph.names.items():
            buffer = name in statistics or not tensors[source_name].dtype.is_floating_point
            _store(self, source_name, tensors[source_name], buffer=buffer)
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        params = [inspect.Parameter(name, kind) for name in inputs.values()]

        def forward(*args: Tensor) -> Any:
            return self.compute(args)

        forward.__signature__ = inspect.Signature(params)  # type: ignore[attr-defined]
        self.forward = forward
        self.eval()

    def compute(self, args: Sequence[Tensor]) -> Any:
        """Run the nodes in order; return one tensor, or several in a tuple."""
        nodes = self.graph.nodes
        values: dict[str, Known] = dict(zip(self.inputs, args, strict=True))
        for node in nodes.nodes:
            for name in node.inputs:
                if name and name not in values:
                    values[name] = self.stored(name, node)
            try:
                made = self.results(node, [values[name] if name else None for name in node.inputs])
            except TpackError:
                raise
            except Exception as error:  # torch may raise anything
                first = (str(error).splitlines() or [type(error).__name__])[0]
                raise outside(node, f"({first[:120]})") from error
            _mark(node)
            if any(isinstance(one, Tensor) and _count(one) > MOST for one in made):
                raise outside(node, "makes a tensor too large to try it")
            values.update(pair for pair in zip(node.outputs, made, strict=False) if pair[0])
        found = [self.returned(name, values) for name in nodes.outputs]
        return found[0] if len(found) == 1 else tuple(found)

    def returned(self, name: str, values: Mapping[str, Known]) -> Tensor:
        value = values.get(name)
        if isinstance(value, Stored):
            return value.tensor
        if not isinstance(value, Tensor):
            raise LayerDefError(f"returns {name!r:.60}, which no input of the graph changes.")
        return value

    def stored(self, name: str, node: Node) -> Known:
        """Return a tensor of the source, or known numbers."""
        if (stored := self.graph.names.get(name)) is not None:
            return Stored(stored, self.get(stored), partial(self.graph.array, name))
        if name not in self.graph.found:
            raise outside(node, f"takes {name!r:.60}, which is not stored")
        return self.graph.array(name)

    def get(self, path: str) -> Tensor:
        owner, _, last = path.rpartition(".")
        found: Tensor = getattr(self.get_submodule(owner), last)
        return found

    def results(self, node: Node, values: Sequence[Known | None]) -> Sequence[Known]:
        """Compute a node."""
        if node.op == "Constant" and node.outputs[0] in self.graph.found:
            return (self.stored(node.outputs[0], node),)
        found = read_as(node, self.graph.stored)
        if found is not None and (found[1] in self.graph.weights or row_name(node) not in ROWS):
            return (self.unpacked(node, values, found[1]),)
        args = Arguments(node, values, self.opset, self.constant)
        if (known := known_results(args)) is not None:
            return known
        compute = ROWS.get(row_name(node))
        if compute is None:
            raise outside(node, "is an op")
        made = compute(args)
        args.check_read()
        return made if isinstance(made, tuple) else (made,)

    def unpacked(self, node: Node, values: Sequence[Known | None], codes: str) -> Known:
        """Compute a node that makes a weight of codes, with the weight as the source has it."""
        if codes not in self.graph.weights or codes not in self.graph.names:
            raise outside(node, "makes what is not a ternary weight")
        name = self.graph.names[codes]
        weight = self.get(name)
        if codes in self.graph.turned:
            weight = weight.transpose(0, 1)
        elif node.op in _FORMS:
            return Stored(name, weight, partial(self.graph.array, codes))
        args = Arguments(node, values, self.opset, self.constant)
        if node.op == "MatMulNBits":
            return F.linear(args.tensor(0), weight, args.optional(5))
        if node.op == "GatherBlockQuantized":
            return F.embedding(args.tensor(1), weight)
        if node.op in _FORMS:
            return weight
        raise outside(node, "is a product of integers")

    def constant(self, node: Node, value: Array) -> Tensor:
        """Keep known numbers as a buffer that is in no state dict, in the module of a node."""
        calls = calls_of(node.proto)
        owner = calls[-1][0] if calls else ""
        path = self.constants.keep(owner, value)
        try:
            return self.get(path)
        except AttributeError:  # kept now: a buffer before it is traced again
            return self.constants.kept[path]

    def register_constants(self) -> int:
        """Register what was kept since the last time as buffers; return how many there are."""
        for path, tensor in self.constants.kept.items():
            _store(self, path, tensor, buffer=True, saved=False)
        return len(self.constants.kept)


class Constants:
    """Known numbers that ops take as tensors; torch.export does not see into it.

    Attributes:
        kept: the tensors by the paths of their buffers.
    """

    def __init__(self) -> None:
        self.kept: dict[str, Tensor] = {}
        self._paths: dict[tuple[Any, ...], str] = {}

    def keep(self, owner: str, value: Array) -> str:
        """Keep numbers in a module; return the path."""
        key = (owner, value.shape, value.dtype.str, value.tobytes())
        if key not in self._paths:
            number = sum(one[0] == owner for one in self._paths)
            path = self._paths[key] = f"{owner}.constant_{number}".removeprefix(".")
            with _disable_current_modes():
                self.kept[path] = torch.from_numpy(np.array(value))
        return self._paths[key]


def _count(tensor: Tensor) -> int:
    """Return the numbers of a tensor; 0 if its sizes are free."""
    found = tensor.numel()
    return found if isinstance(found, int) else 0


def _store(
    module: nn.Module, path: str, tensor: Tensor, *, buffer: bool, saved: bool = True
) -> None:
    """Register a tensor under a path with dots."""
    *owners, last = path.split(".")
    for owner in owners:
        if owner not in module._modules:  # noqa: SLF001
            module.add_module(owner, nn.Module())
        module = module.get_submodule(owner)
    if buffer:
        module.register_buffer(last, tensor, persistent=saved)
    else:
        module.register_parameter(last, nn.Parameter(tensor, requires_grad=False))


def _mark(node: Node) -> None:
    """Note on the ops that were traced since the last time which node they belong to."""
    mode = get_proxy_mode()
    if mode is None:
        return
    for one in reversed(mode.tracer.graph.nodes):
        custom = one.meta.setdefault("custom", {})
        if _CALLS in custom:
            return
        custom[_CALLS] = calls_of(node.proto)


def with_calls(program: ExportedProgram, name: str) -> ExportedProgram:
    """Give each op of a traced ``GraphModule`` the calls of modules that its node came from.

    Args:
        name: of the class of the root.
    """
    for one in program.graph.nodes:
        if one.op != "call_function":
            continue
        one.meta.pop("stack_trace", None)
        calls = (one.meta.get("custom") or {}).pop(_CALLS, ())
        stack = {"": ("", f"model.{name}")}
        for path, number, kind in calls:
            stack[f"{path}@{number}" if number else path] = (path, kind)
        one.meta["nn_module_stack"] = stack
    return program
