"""Whole models as LayerDefs: what a module computes, read from its trace by torch.export.

``export`` traces, ``reading`` makes a graph of values, ``simplify``, ``positions`` and
``patterns`` say it the way a person would, ``scopes`` and ``layers`` give it back its modules.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from typing import Any

from torch import nn
from torch.export import ExportedProgram

from tpack.layerdef import Program
from tpack.quantize import Rounding
from tpack.tracing.export import export, fixed_sizes
from tpack.tracing.graph import Graph
from tpack.tracing.layers import make_program
from tpack.tracing.patterns import find_patterns
from tpack.tracing.positions import rewrite_positions
from tpack.tracing.reading import read_graph
from tpack.tracing.roles import find_roles
from tpack.tracing.rounding import measured_weights, rounded_weights, with_packed
from tpack.tracing.simplify import merge_equal, simplify

__all__ = ["Captured", "capture", "export", "trace", "trace_module"]


class Captured:
    """A traced module, whose weights may be described as packed or not.

    Attributes:
        notes: what a user should know of the trace.
    """

    def __init__(self, graph: Graph, notes: Sequence[str] = ()) -> None:
        self.graph = graph
        self.notes = tuple(notes)

    def program(self, ternary: Collection[str] | None = None) -> Program:
        """The LayerDefs, with the weights named as ternary ones.

        Args:
            ternary: weights that are packed: their layers do not round them again. If not
                given: those that the model rounds as it runs.

        Raises:
            LayerDefError: a name or structure that no LayerDef says.
        """
        packed = self.rounded if ternary is None else ternary
        graph = with_packed(self.graph, packed)
        simplify(graph)
        merge_equal(graph)
        return make_program(graph, packed)

    @cached_property
    def rounded(self) -> Mapping[str, Rounding]:
        """The weights that the model rounds to trits wherever it uses them, with the rule."""
        return rounded_weights(self.graph)

    @cached_property
    def measured(self) -> frozenset[str]:
        """Weights that the model rounds or measures by another rule: they have to stay floats."""
        return measured_weights(self.graph)

    def roles(self) -> Mapping[str, str]:
        """What each stored tensor is to the model, by what the graph does with it.

        Names decide nothing here. A tensor that is never used is left out: only its name can
        tell what it is. Several names of one tensor have the same role.

        Returns:
            Name in the state dict → the first of these that it is:

            - ``embedding``: a table that rows are taken from, or the patches of a picture or a
              signal: a convolution of the input, at strides of its kernel. Tied to the output
              head, it still is an embedding.
            - ``output head``: the last linear weight (or convolution with a kernel of 1), whose
              product is what the model returns: nothing but functions of it alone come after.
              A module of one layer has none, and so has one that returns the shape it takes.
            - ``router``: a linear weight whose largest products choose experts.
            - ``depthwise``: of a convolution that keeps channels apart.
            - ``conv``, ``linear``: any other weight of a convolution or of a matrix product.
            - ``norm``: of a normalization, or its statistics.
            - ``other``: added, compared or multiplied elementwise; biases.
        """
        return find_roles(self.graph)


def trace(program: ExportedProgram, notes: Sequence[str] = ()) -> Captured:
    """Read an exported program.

    Args:
        notes: what is known of it already.

    Raises:
        LayerDefError: it computes something that no LayerDef says.
    """
    graph = read_graph(program)
    simplify(graph)
    rewrite_positions(graph)
    simplify(graph)
    merge_equal(graph)
    find_patterns(graph)
    simplify(graph)
    merge_equal(graph)
    return Captured(graph, notes)


def trace_module(
    module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any] | None, dynamic_shapes: Any
) -> Captured:
    """Export a live module and read it; arguments as those of ``capture``."""
    program = export(module, args, kwargs, dynamic_shapes)
    return trace(program, fixed_sizes(program, module, args, kwargs, dynamic_shapes))


def capture(
    module: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
) -> Program:
    """The LayerDefs of a live module: its layers, and what their forwards compute.

    Args:
        module: in eval mode.
        args: example arguments of its forward.
        kwargs: example keyword arguments.
        dynamic_shapes: which sizes are free, as ``torch.export.export`` takes it; of a dict,
            arguments may be left out. If not given: the first dim of each tensor, and the
            second of matrices of integers. A size that was to be free and cannot be is warned
            of.

    Raises:
        LayerDefError: it computes something that no LayerDef says; names the op, the module
            and how to add the op.
        UsageError: the module is in training mode, or arguments do not fit its forward.
    """
    captured = trace_module(module, args, kwargs, dynamic_shapes)
    for note in captured.notes:
        warnings.warn(note, stacklevel=2)
    return captured.program()
