"""A traced module: its program with any choice of packed weights, its roles, and its proof."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from types import MappingProxyType

from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from tpack.capturing.caches import past_cache
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
from tpack.capturing.graph import Graph
from tpack.capturing.layers import make_program
from tpack.capturing.packed import with_whole_ops
from tpack.capturing.roles import find_roles
from tpack.capturing.rounding import measured_weights, rounded_weights, with_packed
from tpack.capturing.simplification import simplify
from tpack.container import Piece
from tpack.layerdef import Program
from tpack.quantize import Rounding
from tpack.sources.packed_modules import PackedWeight

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
        found = compare(self.rebuilt(), self.example, self.graph, limit=float_rounding(self.graph))
        return f"the captured program equals {self.example.called}: {found}"

    def check_decoding(self) -> None:
        """Compare a program that takes a cache with the source and its own cache, step by step.

        Raises:
            LayerDefError: they differ.
        """
        assert self.example is not None
        compare_decoding(self.rebuilt(), self.example, self.graph, past_cache)

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

    def rebuilt(self) -> nn.Module:
        """Build the module of the program on the tensors of the source: what it packs, packed."""
        tensors: dict[str, Tensor] = {}
        for name, tensor in self.graph.stored.items():
            if (weight := self.packed.get(name)) is None:
                tensors[name] = tensor
            else:
                tensors |= {f"{name}_packed": weight.packed, f"{name}_scale": weight.scale.detach()}
        return built(self.program(self.packed), tensors)

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
