"""An ONNX graph run by onnx's own evaluator, in bounded time, to compare a program with."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from onnx import helper
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

from tpack.sources.onnx_files import OnnxGraph

#: Seconds that one run may take.
LONGEST = 5.0
#: Multiplications and additions above which it is not tried: the evaluator is made to be read.
MOST = 200_000_000


class NotRunError(Exception):
    """onnx's evaluator cannot run a graph; the text says why."""


class Evaluated(nn.Module):
    """A graph as a module, which onnx's evaluator computes."""

    def __init__(self, graph: OnnxGraph) -> None:
        super().__init__()
        self.graph = graph
        self.arrays = {name: graph.array(name) for name in graph.found}
        self.known: dict[tuple[Any, ...], Any] = {}
        self.eval()

    def forward(self, *args: Tensor) -> Any:
        """Return what the graph gives; of the same inputs, it is computed once."""
        key = tuple((tuple(arg.shape), arg.numpy().tobytes()) for arg in args)
        if key not in self.known:
            self.known[key] = self.computed(args)
        return self.known[key]

    def computed(self, args: Sequence[Tensor]) -> Any:
        """Run all nodes.

        Raises:
            NotRunError: it takes too long, or the evaluator cannot run a node.
        """
        nodes, deadline = self.graph.nodes, time.monotonic() + LONGEST
        values: dict[str, Any] = {"": None, **self.arrays}
        values |= {name: arg.numpy() for name, arg in zip(nodes.inputs, args, strict=True)}
        imports = list(self.graph.model.proto.opset_import)
        for node in nodes.nodes:
            if time.monotonic() > deadline:
                raise NotRunError(f"it takes longer than {LONGEST:.0f} seconds")
            if node.outputs[0] in self.arrays:
                continue
            names = [f"o{i}" if name else "" for i, name in enumerate(node.outputs)]
            given = {f"i{i}": values[name] for i, name in enumerate(node.inputs) if name}
            alone = helper.make_node(
                node.op,
                [f"i{i}" if name else "" for i, name in enumerate(node.inputs)],
                names,
                domain=node.proto.domain,
            )
            alone.attribute.extend(node.proto.attribute)
            infos = [
                helper.make_value_info(name, helper.make_tensor_type_proto(1, None))
                for name in names
                if name
            ]
            model = helper.make_model(
                helper.make_graph([alone], "g", [], infos), opset_imports=imports
            )
            try:
                with np.errstate(all="ignore"):
                    found = iter(ReferenceEvaluator(model).run(None, given))
            except Exception as error:  # numpy raises what it likes
                raise NotRunError(f"it cannot run {node.op}: {error!s:.80}") from error
            for name in node.outputs:
                if name:
                    values[name] = np.asarray(next(found))
        results = tuple(torch.from_numpy(np.array(values[name])) for name in nodes.outputs)
        return results[0] if len(results) == 1 else results
