"""Whole models as LayerDefs: what a module computes, read from its trace by torch.export.

A forward becomes a LayerDef in three passes, with eight kinds of thing:

1. The trace becomes a graph. A ``Value`` is one tensor: the op that makes it, from which values,
   inside which calls. A ``Call`` is one call of a module.
2. The calls become layers. A ``Scope`` is a call that is a layer of its own, with the values and
   scopes in it; another call, such as that of a ReLU, is written out where it happens.
3. A scope becomes statements. An ``Item`` is what it computes in one step: an op, or the call of
   a ``Child``, a layer in this one. A ``Step`` is a statement of one or several items whose
   variables have no names yet, a ``Body`` the finished forward with names. A ``Draft`` is what
   the scope is to the layer around it: a child with its class and arguments.

Example:
    >>> import torch
    >>> from tpack.capturing.scopes import Scope, make_scopes
    >>> from tpack.codegen import generate_pytorch_code
    >>> model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    >>> captured = trace_module(model, [torch.zeros(2, 4)], None, None)
    >>> for value in captured.graph.values:
    ...     print(value.op, "inside", [call.path for call in value.calls])
    linear inside ['', '0']
    relu inside ['', '1']
    linear inside ['', '2']
    >>> root = make_scopes(captured.graph)
    >>> [item.path if isinstance(item, Scope) else item.op for item in root.items]
    ['0', 'relu', '2']
    >>> (layer,) = captured.program().layers  # both linear layers are drafts of built-in ones
    >>> [(param.name, param.layer) for param in layer.params]
    [('0', 'Linear'), ('2', 'Linear'), ('input', None)]
    >>> print(generate_pytorch_code(layer).splitlines()[-1].strip())  # three items in one step
    return self[2](F.relu(self[0](input)))

Pass 1: ``torch_export`` traces (``failures`` says what went wrong); ``from_fx`` reads the trace
into a ``graph`` by the table ``aten`` (``storages``: which values share memory).
``simplification`` (with ``cells`` and ``shapes``), ``positions`` (with ``formulas``) and
``patterns`` rewrite it the way a person would say it; ``rounding`` finds the weights that it
rounds, ``roles`` what each weight is for. Pass 2: ``scopes``. Pass 3: ``layers``, from the
innermost: ``loops`` joins runs of equal layers; ``statements`` writes, with ``expressions``,
``widths``, ``names`` and ``variables``; ``annotations`` notes shapes; ``known`` finds built-in
layers. ``captured`` has the program, with any choice of packed weights; ``comparison`` runs it
and the module, and compares what they return.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn
from torch.export import ExportedProgram

from tpack.capturing import caches, structures, torch_export
from tpack.capturing.arguments import as_arguments, as_keywords, unwrapped
from tpack.capturing.built import named_layers, unchanged_program
from tpack.capturing.captured import Captured
from tpack.capturing.comparison import Example
from tpack.capturing.from_fx import read_graph
from tpack.capturing.graph import Graph
from tpack.capturing.packed import as_floats
from tpack.capturing.patterns import find_patterns
from tpack.capturing.positions import rewrite_positions
from tpack.capturing.simplification import simplify
from tpack.capturing.torch_export import bound_arguments, export, fixed_sizes
from tpack.errors import LayerDefError
from tpack.layerdef import Program
from tpack.sources.packed_modules import PackedWeight

__all__ = ["Captured", "capture", "export", "trace", "trace_module"]


def trace(
    program: ExportedProgram,
    notes: Sequence[str] = (),
    original: nn.Module | None = None,
    packed: Mapping[str, PackedWeight] = MappingProxyType({}),
    *,
    chosen: bool = True,
) -> Captured:
    """Read an exported program.

    Args:
        notes: sentences for the user that are known already.
        original: the module that it was exported from, to compare with; if not given, the
            program itself.
        packed: the weights that the module has packed, by name.
        chosen: whether the user chose the ranges of free sizes.

    Raises:
        LayerDefError: it computes something that LayerDef cannot express.
    """
    graph = _simple(read_graph(program))
    notes = [*notes, *structures.told(program, graph)]
    example = None
    if program.example_inputs is not None:
        args, kwargs = program.example_inputs
        example = Example(
            original or program.module(),
            args,
            kwargs,
            program.range_constraints,
            guards=torch_export.guards(program),
            chosen=chosen,
        )
    return Captured(graph, notes, example, packed)


def _simple(graph: Graph) -> Graph:
    """Rewrite a graph the way a person would say it."""
    simplify(graph)
    rewrite_positions(graph)
    simplify(graph)
    graph.merge_equal()
    find_patterns(graph)
    simplify(graph)
    graph.merge_equal()
    return graph


def trace_module(
    module: nn.Module, args: Any, kwargs: Mapping[str, Any] | None, dynamic_shapes: Any
) -> Captured:
    """Export a live module and read it; arguments as those of ``capture``.

    A decoder of transformers is traced with a cache of keys and values, if it can be.
    """
    module, args, given = unwrapped(module), as_arguments(args), as_keywords(kwargs)
    if not caches.makes_cache(module, given):
        return _without_cache(module, args, given, dynamic_shapes)
    try:
        return _with_cache(module, args, given, dynamic_shapes)
    except LayerDefError as error:
        reason = str(error).rstrip(".")
    given |= {"use_cache": False} if "use_cache" in given else {}
    with caches.without(module):
        found = _without_cache(module, args, given, dynamic_shapes)
    found.notes = (*found.notes, f"captured without a cache of keys and values: {reason}")
    return found


def _without_cache(
    module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], dynamic_shapes: Any
) -> Captured:
    """Trace any module."""
    with as_floats(module) as packed, named_layers(module):
        program = export(module, args, kwargs, dynamic_shapes)
        notes = fixed_sizes(program, module, args, kwargs, dynamic_shapes)
    return trace(program, notes, module, packed, chosen=torch_export.has_ranges(dynamic_shapes))


def _with_cache(
    module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], dynamic_shapes: Any
) -> Captured:
    """Trace a decoder of transformers with a cache.

    Raises:
        LayerDefError: it cannot be traced so, or does not decode as the module does.
    """
    given = bound_arguments(module, args, kwargs)
    if reason := caches.uncachable(module, given, dynamic_shapes):
        raise LayerDefError(f"{reason}.")
    (tokens,) = (value for value in given.values() if isinstance(value, Tensor))
    more = {**kwargs, caches.PAST: caches.past_of(tokens)}
    with as_floats(module) as packed, named_layers(module), caches.traced(module):
        program = export(module, args, more, None)
        notes = fixed_sizes(program, module, args, more, None)
    graph = read_graph(program)
    count, wanted = caches.place_cache(graph), len(caches.past_cache(module).layers)
    if count != wanted:
        raise LayerDefError(f"{count} of {wanted} layers keep keys and values of their own.")
    example = Example(
        module, tuple(args), kwargs, program.range_constraints, guards=torch_export.guards(program)
    )
    captured = Captured(_simple(graph), notes, example, packed)
    if captured.untold is None:
        captured.check_decoding()
    return captured


def capture(
    module: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
) -> Program:
    """Capture the LayerDefs of a live module: its layers, and what their forwards compute.

    The captured program is run and compared with the module; other results are refused. Packed
    layers stay packed, as they are. A module that was built from LayerDefs, as those that ``load``
    returns, has these already; they are returned as long as nothing in it was changed.

    Args:
        module: in eval mode.
        args: example arguments of its forward; a tensor alone is one argument.
        kwargs: example keyword arguments.
        dynamic_shapes: which sizes are free, as ``torch.export.export`` takes it; of a dict,
            arguments may be left out. If not given: the first dim of each tensor, and the
            second of matrices of integers. A warning names each that cannot be free.

    Raises:
        LayerDefError: it computes something that LayerDef cannot express; the error names the
            op and the module. Or the program gives other results than the module.
        UsageError: the module is in training mode, or arguments do not fit its forward.
    """
    module = unwrapped(module)
    if dynamic_shapes is None and (own := unchanged_program(module)) is not None:
        return own
    captured = trace_module(module, args, kwargs, dynamic_shapes)
    captured.compare()
    for note in captured.notes:
        warnings.warn(note, stacklevel=2)
    return captured.program()
