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
layers. ``comparison`` runs the result and the module, and compares what they return.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.export import ExportedProgram

from tpack.capturing import caches, torch_export
from tpack.capturing.arguments import as_arguments, as_keywords, unwrapped
from tpack.capturing.built import named_layers, unchanged_program
from tpack.capturing.comparison import (
    LEVEL,
    Example,
    built,
    compare,
    compare_decoding,
    float_rounding,
    tensor_of,
    tensors_in,
)
from tpack.capturing.from_fx import read_graph
from tpack.capturing.graph import Graph
from tpack.capturing.layers import make_program
from tpack.capturing.packed import as_floats, with_whole_ops
from tpack.capturing.patterns import find_patterns
from tpack.capturing.positions import rewrite_positions
from tpack.capturing.roles import find_roles
from tpack.capturing.rounding import measured_weights, rounded_weights, with_packed
from tpack.capturing.simplification import simplify
from tpack.capturing.torch_export import bound_arguments, export, fixed_sizes
from tpack.container import Piece
from tpack.errors import LayerDefError
from tpack.layerdef import Program
from tpack.quantize import Rounding
from tpack.sources.packed_modules import PackedWeight

__all__ = ["Captured", "capture", "export", "trace", "trace_module"]

#: Roles of weights that multiply as a matrix does, or a stack of them.
MATRICES = ("linear", "output head", "router")


class Captured:
    """A traced module, whose weights may be described as packed or not.

    Attributes:
        notes: sentences for the user about the trace.
        example: the source, with arguments; None if no arguments are known.
        packed: the weights that the source has packed, by name.
        reason: why there is none, as a sentence.
    """

    def __init__(
        self,
        graph: Graph,
        notes: Sequence[str] = (),
        example: Example | None = None,
        packed: Mapping[str, PackedWeight] = MappingProxyType({}),
    ) -> None:
        self.graph = graph
        self.packed = {name: packed[name] for name in graph.stored if name in packed}
        self.notes = tuple(notes)
        self.example = example
        self.reason = ""

    def compare(self) -> str:
        """Compare the program, on the source's own weights, with the source.

        Both run on the example's arguments, and on ones of another size if sizes are free. No
        tensor is copied.

        Returns:
            A note with the largest difference, or with the reason why nothing was compared.

        Raises:
            LayerDefError: they differ by more than float rounding explains.
        """
        if (reason := self.untold) is not None:
            if self.example is not None:
                self.example.check_unrun(self.graph)
            return reason
        assert self.example is not None
        module = built(self.program(self.packed), self.own_tensors())
        found = compare(module, self.example, self.graph, limit=float_rounding(self.graph))
        return f"the captured program equals {self.example.called}: {found}"

    def compare_packed(self, program: Program, pieces: Iterable[Piece], *, lossy: int) -> str:
        """Compare a program of packed weights with the source.

        Args:
            pieces: the tensors of the checkpoint.
            lossy: how many of its weights were rounded by a rule that the source does not have.

        Returns:
            A note with the largest difference; empty if nothing can be compared, because the
            source cannot be run or its floats were cast.

        Raises:
            LayerDefError: no weight was rounded, and yet the results differ.
        """
        if self.untold is not None:
            return ""
        assert self.example is not None
        tensors = dict(self.taken(pieces))
        if any(
            one.dtype != self.graph.stored.get(name, one).dtype for name, one in tensors.items()
        ):
            return ""
        limit = None if lossy else max(float_rounding(self.graph), LEVEL)
        found = compare(built(program, tensors), self.example, self.graph, limit=limit)
        if not lossy:
            return f"the packed model equals {self.example.called}: {found}"
        some = f"{lossy} rounded weights" if lossy > 1 else "1 rounded weight"
        return f"the packed model with {some} differs from {self.example.called}: {found}"

    def taken(self, pieces: Iterable[Piece]) -> Iterator[tuple[str, Tensor]]:
        """Yield the tensors of a checkpoint by name, from the source if it has them."""
        for piece in pieces:
            own = self.graph.stored.get(piece.name)
            same = own is not None and str(own.dtype) == f"torch.{piece.dtype}"
            yield piece.name, own if own is not None and same else tensor_of(piece)

    @property
    def untold(self) -> str | None:
        """The reason why the source cannot be run; None if it can."""
        if self.reason:
            return self.reason
        if self.example is None:
            return (
                "the captured program was not compared with its source: the file has no example "
                "inputs"
            )
        given = tensors_in((self.example.args, dict(self.example.kwargs)))
        if any(
            t.is_meta or isinstance(t, FakeTensor) for t in (*self.graph.stored.values(), *given)
        ):
            return (
                "the captured program was not compared with its source: tensors on the meta "
                "device have no values"
            )
        return None

    def program(self, ternary: Collection[str] | None = None) -> Program:
        """Make the LayerDefs, with some weights as ternary ones.

        Args:
            ternary: names of weights that are packed: their layers do not round them again. If
                not given: those that the model rounds as it runs.

        Raises:
            LayerDefError: LayerDef cannot express a name or the structure.
        """
        packed = {*self.rounded, *self.packed} if ternary is None else ternary
        graph = with_packed(self.graph, packed)
        with_whole_ops(graph, packed)
        simplify(graph)
        graph.merge_equal()
        return make_program(graph, packed, self.stacks, self.packed)

    def own_tensors(self) -> dict[str, Tensor]:
        """Return the tensors of the source as its program stores them."""
        tensors = {}
        for name, tensor in self.graph.stored.items():
            if (weight := self.packed.get(name)) is None:
                tensors[name] = tensor
            else:
                tensors |= {f"{name}_packed": weight.packed, f"{name}_scale": weight.scale.detach()}
        return tensors

    @cached_property
    def rounded(self) -> Mapping[str, Rounding]:
        """The weights that the model rounds to trits in every use, with the rule."""
        return rounded_weights(self.graph)

    @cached_property
    def measured(self) -> frozenset[str]:
        """The weights that the model rounds or measures by other rules: they must stay floats."""
        return measured_weights(self.graph)

    @cached_property
    def stacks(self) -> frozenset[str]:
        """The stacks of matrices, such as those of experts: each matrix has rows of its own."""
        roles, stored = find_roles(self.graph), self.graph.stored
        return frozenset(
            name for name, it in stored.items() if it.dim() == 3 and roles.get(name) in MATRICES
        )

    def roles(self) -> Mapping[str, str]:
        """Find the role of each stored tensor, by what the graph does with it.

        Names decide nothing here. A tensor that is never used is left out, as only its name
        could show its role. Several names of one tensor have the same role.

        Returns:
            Name in the state dict → the first of these roles that it has:

            - ``embedding``: a table that rows are taken from, or the patches of a picture or a
              signal: a convolution of the input, at strides of its kernel. Tied to the output
              head, it still is an embedding.
            - ``output head``: the last linear weight (or convolution with a kernel of 1), whose
              product the model returns, or a function of that product alone. A module of one
              layer has no head, nor has a module that returns the shape it takes.
            - ``router``: a linear weight whose largest products choose experts.
            - ``depthwise``: of a convolution that keeps channels apart.
            - ``conv``, ``linear``: any other weight of a convolution or of a matrix product.
            - ``norm``: of a normalization, or its statistics.
            - ``other``: added, compared or multiplied elementwise; biases.
        """
        return find_roles(self.graph)


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
    module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any] | None, dynamic_shapes: Any
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
        ours = built(captured.program(captured.packed), captured.own_tensors())
        compare_decoding(ours, example, graph, caches.past_cache)
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
    module, args = unwrapped(module), as_arguments(args)
    if dynamic_shapes is None and (own := unchanged_program(module)) is not None:
        return own
    captured = trace_module(module, args, kwargs, dynamic_shapes)
    captured.compare()
    for note in captured.notes:
        warnings.warn(note, stacklevel=2)
    return captured.program()
