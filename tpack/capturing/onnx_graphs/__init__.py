"""The graph of an ONNX model as a program of LayerDefs.

A module of torch computes the graph node by node, by the table ``rows`` (``layers``, ``shapes``);
``numbers`` computes what is constant, and sizes. torch.export traces the module, and the trace is
read as that of any other module; ``scopes`` says which modules the nodes came from.
``evaluation`` runs the graph by onnx's own evaluator: the program must give the same.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import Dim, ExportedProgram
from torch.utils.flop_counter import FlopCounterMode

from tpack.capturing import Captured, export, trace
from tpack.capturing.comparison import tensor_of
from tpack.capturing.onnx_graphs.arguments import dtype_of
from tpack.capturing.onnx_graphs.evaluation import MOST as MOST_WORK, Evaluated, NotRunError
from tpack.capturing.onnx_graphs.module import MOST, GraphModule, row_name, with_calls
from tpack.capturing.onnx_graphs.numbers import FOLDED
from tpack.capturing.onnx_graphs.rows import ROWS
from tpack.capturing.onnx_graphs.scopes import root_class
from tpack.capturing.torch_export import fixed_sizes, quiet
from tpack.errors import LayerDefError
from tpack.layerdef.names import is_identifier
from tpack.sources import PackedTensor
from tpack.sources.onnx_files import OnnxGraph
from tpack.sources.onnx_files.quantized import QUANTIZED

__all__ = ["trace_onnx"]

#: Bytes of tensors above which a graph is not run to compare.
LARGEST = 1 << 29
#: Nodes above which a graph is not traced: it would take minutes.
MOST_NODES = 5000
#: Multiplications and additions above which a graph is not run to compare.
LONGEST_WORK = 10**11
#: Sizes that are tried for free dims after the first, until the graph takes them.
_SIZES = (7, 16, 32, 64, 224, 1)


def trace_onnx(graph: OnnxGraph, tensors: Any) -> Captured:
    """Trace a graph and compare the program with it.

    Args:
        graph: of an opened ONNX file.
        tensors: of the source, by name.

    Raises:
        LayerDefError: it has ops that LayerDef does not, or the program gives other results.
    """
    _check_ops(graph)
    if len(graph.nodes.nodes) > MOST_NODES:
        raise LayerDefError(f"the graph has more than {MOST_NODES} nodes, too many to trace.")
    dense = {
        name: one.dense() if isinstance(one, PackedTensor) else one for name, one in tensors.items()
    }
    large = sum(one.nbytes for one in dense.values()) > LARGEST
    held = {name: _tensor(one, large=large) for name, one in dense.items()}
    inputs = _input_names(graph)
    module = GraphModule(graph, held, inputs)
    args, work = _example(graph, module)
    shapes = {
        name: {i: Dim.AUTO for i, size in enumerate(dims) if not isinstance(size, int)}
        for name, (_, dims) in zip(inputs.values(), _infos(graph), strict=True)
    }
    program = _exported(module, args, shapes)
    notes = fixed_sizes(program, module, args, None, shapes)
    with_calls(program, _root_class(graph))
    captured = trace(program, notes)
    if large or work > LONGEST_WORK:
        captured.example = None
        captured.reason = "the captured program was not compared with the graph: it is too large"
    elif captured.example is not None:
        original, called = _original(graph, module, args, work)
        captured.example = replace(captured.example, original=original, called=called)
    return captured


def _exported(module: GraphModule, args: list[Tensor], shapes: Any) -> ExportedProgram:
    """Export the module; again, if it kept constants only when sizes were free."""
    for _ in range(3):
        kept = module.register_constants()
        try:
            program = export(module, args, None, shapes)
        except LayerDefError:
            if len(module.constants.kept) == kept:
                raise
            continue
        if len(module.constants.kept) == kept:
            return program
    raise LayerDefError("the graph computes with other constants each time.")


def _check_ops(graph: OnnxGraph) -> None:
    known = {*ROWS, *FOLDED, *QUANTIZED}
    missing = Counter(
        name
        for node in graph.nodes.nodes
        if (name := row_name(node)) not in known and node.op not in QUANTIZED
    )
    if missing:
        counted = [f"{name} ({count})" for name, count in missing.most_common()]
        raise LayerDefError(f"the graph has ops that LayerDef does not: {', '.join(counted[:20])}.")


def _tensor(one: Any, *, large: bool) -> Tensor:
    if large:
        return torch.empty(one.shape, dtype=getattr(torch, one.dtype), device="meta")
    return tensor_of(one)


def _infos(graph: OnnxGraph) -> Iterator[tuple[torch.dtype, list[int | str]]]:
    """Yield the dtype and the sizes of each input; a free size is a name."""
    infos = {info.name: info for info in graph.model.graph.input}
    for name in graph.nodes.inputs:
        kind = infos[name].type
        if not kind.HasField("tensor_type") or not kind.tensor_type.HasField("shape"):
            raise LayerDefError(f"input {name!r:.60} is not a tensor of a known number of dims.")
        sizes = [
            dim.dim_value if dim.dim_value > 0 else dim.dim_param or f"{name} {i}"
            for i, dim in enumerate(kind.tensor_type.shape.dim)
        ]
        yield dtype_of(kind.tensor_type.elem_type), sizes


def _input_names(graph: OnnxGraph) -> dict[str, str]:
    """Name the arguments of forward after the inputs of the graph."""
    found: dict[str, str] = {}
    for name in graph.nodes.inputs:
        wish = re.sub(r"\W+", "_", name.partition(":")[0], flags=re.ASCII).strip("_")
        wish = wish if is_identifier(wish) else "x"
        number, free = 1, wish
        while free in found.values():
            number += 1
            free = f"{wish}{number}"
        found[name] = free
    return found


def _example(graph: OnnxGraph, module: GraphModule) -> tuple[list[Tensor], int]:
    """Make inputs that the graph takes: of a batch of 2, and of the first sizes that fit.

    Returns:
        The inputs, and how many multiplications and additions the graph makes of them.

    Raises:
        LayerDefError: it takes none that were tried.
    """
    infos = list(_infos(graph))
    batch = {dims[0] for _, dims in infos if dims and not isinstance(dims[0], int)}
    free = {size for _, dims in infos for size in dims if not isinstance(size, int)} - batch
    problem = LayerDefError("the graph takes no input.")
    for size in _SIZES if free else _SIZES[:1]:
        shapes = [
            [one if isinstance(one, int) else 2 if one in batch else size for one in dims]
            for _, dims in infos
        ]
        if any(math.prod(shape) > MOST for shape in shapes):
            raise LayerDefError("the graph takes inputs too large to try it.")
        counted = FlopCounterMode(display=False)
        try:
            with quiet(), FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad(), counted:
                module(*(torch.empty(s, dtype=d) for s, (d, _) in zip(shapes, infos, strict=True)))
        except LayerDefError as error:
            problem = error
            continue
        generator = torch.Generator().manual_seed(0)
        args = [
            torch.randn(shape, generator=generator).to(dtype)
            if dtype.is_floating_point
            else torch.randint(0, 2, shape, generator=generator).to(dtype)
            for shape, (dtype, _) in zip(shapes, infos, strict=True)
        ]
        return args, counted.get_total_flops()
    raise problem


def _original(
    graph: OnnxGraph, module: GraphModule, args: list[Tensor], work: int
) -> tuple[nn.Module, str]:
    """Return what to compare the program with, and what messages call it."""
    try:
        if work > MOST_WORK:
            raise NotRunError("it would take minutes")
        evaluated = Evaluated(graph)
        evaluated(*args)
    except NotRunError as error:
        return module, f"the graph as tpack reads it (onnx's evaluator did not run it: {error})"
    return evaluated, "the graph as onnx's evaluator runs it"


def _root_class(graph: OnnxGraph) -> str:
    names = [root_class(node.proto) for node in graph.nodes.nodes]
    return next((name for name in names if name and is_identifier(name)), "Model")
