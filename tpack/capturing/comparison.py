"""Run a captured program and its source, and measure how far their results differ."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import sympy
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from tpack.build import build_module
from tpack.capturing.failures import explained
from tpack.capturing.graph import Graph, Value
from tpack.container import Piece
from tpack.dtypes import BY_NAME
from tpack.errors import LayerDefError
from tpack.layerdef import Program
from tpack.nn import KeyValueCache

#: Difference that rounding activations to int8 explains: one between two levels falls to either.
LEVEL = 1 / 32
#: Sizes at which blocks of usual sizes are full.
_FAR = (33, 64, 65, 128, 129, 256, 257, 513)


@dataclass(frozen=True)
class Example:
    """The source of a capture, and arguments that it takes.

    Attributes:
        original: a module, or an exported program as one.
        args, kwargs: its arguments.
        ranges: the smallest and largest value of each free size.
        called: what messages call the original.
        guards: what was true of the free sizes wherever the trace depends on them.
        chosen: whether the ranges are what the user asked for.
    """

    original: nn.Module
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    ranges: Mapping[sympy.Symbol, Any]
    called: str = "the module"
    guards: tuple[sympy.Basic, ...] = ()
    chosen: bool = False

    def run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Run the original with other tensors in the arguments; return its tensors.

        Raises:
            LayerDefError: the original fails.
        """
        leaves, tree = pytree.tree_flatten((self.args, dict(self.kwargs)))
        given = iter(inputs)
        leaves = [next(given) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        args, kwargs = pytree.tree_unflatten(leaves, tree)
        try:
            return tensors_in(self.original(*args, **kwargs))
        except Exception as error:  # code of others may raise anything
            shapes = ", ".join(str(tuple(tensor.shape)) for tensor in inputs)
            raise LayerDefError(
                f"{self.called} does not run on inputs of shape {shapes}: {explained(error)}"
            ) from error

    def inputs(self, graph: Graph) -> Iterator[tuple[str, list[Tensor]]]:
        """Yield the example's tensors, and those of one other size if sizes are free."""
        given = tensors_in((self.args, dict(self.kwargs)))
        yield "", given
        sizes = _sizes(graph, given)
        for times, more in ((1, 1), (2, 0), (1, -1)):
            wished = {size: times * found + more for size, found in sizes.items()}
            other = {size: self.within(size, wished[size], found) for size, found in sizes.items()}
            if other == sizes:
                continue
            resized = [
                _resized(tensor, [_evaluated(size, other) for size in value.shape])
                for value, tensor in zip(_tensors(graph), given, strict=True)
            ]
            try:
                self.run(resized)
            except Exception:  # noqa: BLE001, S112  # a size that the original does not take
                continue
            named = (f"{graph.sizes[size]} {count}" for size, count in other.items())
            yield f" of {', '.join(named)}", resized
            return

    def outside(self, graph: Graph) -> Iterator[tuple[str, list[Tensor]]]:
        """Yield tensors of sizes that the module takes, and that the trace was not made for.

        A loop over the blocks of a sequence is traced as so many steps as the example has blocks.
        """
        given = tensors_in((self.args, dict(self.kwargs)))
        sizes = _sizes(graph, given)
        for size, count in self.beyond(sizes):
            resized = [
                _resized(tensor, [_evaluated(one, sizes | {size: count}) for one in value.shape])
                for value, tensor in zip(_tensors(graph), given, strict=True)
            ]
            try:
                self.run(resized)
            except Exception:  # noqa: BLE001, S112  # a size that the original does not take
                continue
            yield f"{graph.sizes[size]} {count}", resized

    def check_unrun(self, graph: Graph) -> None:
        """Refuse a trace that depends on its sizes, where nothing can be run to compare.

        Raises:
            LayerDefError: it does.
        """
        given = tensors_in((self.args, dict(self.kwargs)))
        for size, count in self.beyond(_sizes(graph, given)):
            raise LayerDefError(
                "the steps of the module depend on its sizes: what was captured from the example "
                f"may give other results at {graph.sizes[size]} {count}. Capture a module that "
                "has values, or give dynamic_shapes={} to capture the sizes of the example only."
            )

    def beyond(self, sizes: dict[sympy.Symbol, int]) -> Iterator[tuple[sympy.Symbol, int]]:
        """Yield the nearest sizes below and above the example's that break a guard."""
        for size, found in sizes.items():
            limits = self.ranges.get(size) if self.chosen else None
            known = [guard for guard in self.guards if size in guard.free_symbols]
            below = range(found - 1, 1, -1)
            above = (*range(found + 1, 2 * found + 10), *(n for n in _FAR if n > 2 * found + 9))
            for counts in (below, above) if known else ():
                for count in counts:
                    if limits is not None and not limits.lower <= count <= limits.upper:
                        break
                    if any(guard.subs(sizes | {size: count}) == sympy.false for guard in known):
                        yield size, count
                        break

    def within(self, size: sympy.Symbol, wish: int, found: int) -> int:
        limits = self.ranges.get(size)
        return wish if limits is None or limits.lower <= wish <= limits.upper else found


@dataclass(frozen=True)
class Difference:
    """The largest difference between two results.

    Attributes:
        largest: absolute; infinite where shapes, dtypes or integers differ.
        relative: to the largest number of the results.
    """

    largest: float = 0.0
    relative: float = 0.0

    def __str__(self) -> str:
        if not self.largest:
            return "no difference, to the bit"
        return f"largest difference {self.largest:.1e}, {self.relative:.1e} of the largest number"


def tensors_in(tree: Any) -> list[Tensor]:
    """Return the tensors of a nest of results, in order."""
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def built(program: Program, tensors: Mapping[str, Tensor]) -> nn.Module:
    """Build the module of a program on tensors as they are, without copies."""
    module = build_module(program, device="meta")
    module.load_state_dict(dict(tensors), strict=True, assign=True)
    device = next((t.device for t in tensors.values()), torch.device("cpu"))
    return module.to(device)


def tensor_of(piece: Piece) -> Tensor:
    """Read the tensor of a piece into memory."""
    data = bytearray().join(piece.chunks())
    dtype: torch.dtype = getattr(torch, BY_NAME[piece.dtype].held)
    shape = BY_NAME[piece.dtype].held_shape(piece.shape)
    if not data:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(data, dtype=dtype).view(shape)


def difference(found: Sequence[Tensor], expected: Sequence[Tensor]) -> Difference:
    """Return how far results differ. NaN equals NaN, and infinity equals itself."""
    if [(t.shape, t.dtype) for t in found] != [(t.shape, t.dtype) for t in expected]:
        return Difference(math.inf, math.inf)
    every = [_pair(*pair) for pair in zip(found, expected, strict=True)]
    return max(every, key=lambda one: one.relative, default=Difference())


def _pair(found: Tensor, expected: Tensor) -> Difference:
    if torch.equal(found, expected):
        return Difference()
    if not found.dtype.is_floating_point:
        return Difference(math.inf, math.inf)
    least = torch.finfo(expected.dtype).eps  # numbers that small may be what cancels out
    found, expected = found.double(), expected.double()
    finite = found.isfinite() & expected.isfinite()
    same = (found == expected) | (found.isnan() & expected.isnan())
    if not bool((finite | same).all()):
        return Difference(math.inf, math.inf)
    apart = torch.where(finite, (found - expected).abs(), 0).max().item()
    size = torch.where(finite, expected.abs(), 0).max().item()
    return Difference(apart, apart / max(size, least))


def float_rounding(graph: Graph) -> float:
    """Return the largest relative difference that the order of computing explains.

    Half the digits of the coarsest float that the computation goes through: 3.5e-4 of float32,
    3e-2 of float16, 9e-2 of bfloat16.
    """
    values = [value.dtype for value in (*graph.inputs, *graph.values)]
    floats = {dtype for dtype in values if dtype.is_floating_point}
    return max((math.sqrt(torch.finfo(dtype).eps) for dtype in floats), default=0.0)


@torch.no_grad()
def compare(
    module: nn.Module, example: Example, graph: Graph, *, limit: float | None = None
) -> Difference:
    """Return the largest difference between a module and the original.

    They run on the example, and on inputs of one other size if sizes are free.

    Args:
        limit: the largest relative difference that is accepted; None accepts any.

    Raises:
        LayerDefError: they differ by more. Names the first layer that does.
    """
    largest = Difference()
    for sizes, inputs in example.inputs(graph):
        expected = example.run(inputs)
        try:
            found = tensors_in(module(*inputs))
        except Exception as error:  # an op may raise anything for a size that it does not take
            raise LayerDefError(
                f"the captured program does not run on inputs{sizes}, which the module takes: "
                f"{str(error).rstrip('.')}. "
                "Give dynamic_shapes={} to capture the sizes of the example only."
            ) from error
        one = difference(found, expected)
        if limit is not None and one.relative > limit:
            raise _refused(module, example, inputs, sizes, limit, one)
        largest = max(largest, one, key=lambda each: each.relative)
    if limit is not None:
        check_outside(module, example, graph, limit)
    return largest


@torch.no_grad()
def compare_decoding(
    module: nn.Module, example: Example, graph: Graph, past: Callable[[nn.Module], Any]
) -> None:
    """Check that a program with a cache decodes as the original with its own cache does.

    It takes the tokens of the example and more, in steps: a prompt, one token, and three at once.

    Args:
        past: makes an empty cache of the original.

    Raises:
        LayerDefError: a step differs by more than float rounding explains.
    """
    (tokens,) = tensors_in((example.args, dict(example.kwargs)))
    length = tokens.shape[1]
    index = torch.arange(length + 4, device=tokens.device) % length
    tokens = tokens.index_select(1, index)
    ours, theirs = KeyValueCache(), past(example.original)
    limit = float_rounding(graph)
    for step in tokens.split([length, 1, 3], 1):
        more = replace(example, kwargs={**example.kwargs, "past_key_values": theirs})
        expected = more.run([step])
        one = difference(tensors_in(module(step, ours)), expected)
        if one.relative > limit:
            raise LayerDefError(
                f"with a cache the program gives other results than the module, by "
                f"{one.relative:.2g} of their size."
            )


def check_outside(module: nn.Module, example: Example, graph: Graph, limit: float) -> None:
    """Refuse a program that gives other results at sizes that the trace was not made for.

    Raises:
        LayerDefError: it runs there, and differs by more than ``limit``.
    """
    for size, inputs in example.outside(graph):
        expected = example.run(inputs)
        try:
            found = tensors_in(module(*inputs))
        except Exception:  # noqa: BLE001, S112  # nobody takes it for a result
            continue
        if difference(found, expected).relative > limit:
            raise LayerDefError(
                f"the steps of the module depend on its sizes: what was captured from the example "
                f"gives other results at {size}, which the module takes. "
                "Give dynamic_shapes={} to capture the sizes of the example only."
            )


def _refused(
    module: nn.Module,
    example: Example,
    inputs: Sequence[Tensor],
    sizes: str,
    limit: float,
    found: Difference,
) -> LayerDefError:
    """Return the error for a capture that differs."""
    again = difference(example.run(inputs), example.run(inputs))
    if again.relative > limit:
        return LayerDefError(
            "gives other results each time that it is called with the same arguments, so that no "
            "capture can equal it. Take out what is random or counts its calls."
        )
    place, agreed = _layers(module, example, inputs, limit)
    much = f"by {found.relative:.2g} of their size"
    much = much if math.isfinite(found.relative) else "in shape, dtype, integers or infinities"
    where = f" on inputs{sizes}" if sizes else ""
    last = f" The layers up to {agreed!r} agree." if agreed else ""
    way = (
        "Give dynamic_shapes={} to capture the sizes of the example only."
        if sizes
        else "Write forward with other ops, or convert the state dict with a LayerDef of your own."
    )
    return LayerDefError(
        f"the captured program gives other results than the module{where}: they differ "
        f"{much}, and float rounding explains {limit:.2g}.{last} {way}",
        node=place or None,
    )


def _layers(
    module: nn.Module, example: Example, inputs: Sequence[Tensor], limit: float
) -> tuple[str, str]:
    """Find the first layer whose results differ, and the last before it whose results agree.

    Either is empty if not found: layers without tensors may have been written out.
    """
    expected = _results(example.original, lambda: example.run(inputs))
    found = _results(module, lambda: module(*inputs))
    agreed = ""
    for path, results in expected.items():
        other = found.get(path, [])
        if not path or [t.shape for t in results] != [t.shape for t in other]:
            continue
        if difference(other, results).relative > limit:
            return path, agreed
        agreed = path
    return "", agreed


def _results(module: nn.Module, run: Callable[[], Any]) -> dict[str, list[Tensor]]:
    """Return the results of the first call of each layer, in the order in which calls end."""
    results: dict[str, list[Tensor]] = {}

    def noting(path: str) -> Callable[[nn.Module, Any, Any], None]:
        def note(_: nn.Module, __: Any, result: Any) -> None:
            results.setdefault(path, tensors_in(result))

        return note

    handles = [m.register_forward_hook(noting(path)) for path, m in module.named_modules()]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return results


def _tensors(graph: Graph) -> list[Value]:
    """Return the inputs that are tensors: a cache is none."""
    return [value for value in graph.inputs if not value.is_cache]


def _sizes(graph: Graph, given: Sequence[Tensor]) -> dict[sympy.Symbol, int]:
    """Return the free sizes of tensors that are given for the inputs."""
    return {
        size: found
        for value, tensor in zip(_tensors(graph), given, strict=True)
        for size, found in zip(value.shape, tensor.shape, strict=True)
        if isinstance(size, sympy.Symbol)
    }


def _evaluated(size: Any, sizes: Mapping[sympy.Symbol, int]) -> int:
    return int(size.subs(sizes)) if isinstance(size, sympy.Expr) else int(size)


def _resized(tensor: Tensor, shape: Iterable[int]) -> Tensor:
    """Grow a tensor by repeating it from its start, or cut it."""
    for dim, size in enumerate(shape):
        if size != tensor.shape[dim]:
            index = torch.arange(size, device=tensor.device) % tensor.shape[dim]
            tensor = tensor.index_select(dim, index)
    return tensor
