"""Inputs and outputs of a program: names, dtypes, and sizes that it runs at.

LayerDefs tell neither the dtypes of inputs nor, without a capture, their shapes: a run without
numbers finds them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch._export.utils import _compiling_state_context
from torch._subclasses.fake_tensor import FakeTensorMode

from tpack.build import program_of
from tpack.errors import LayerDefError
from tpack.layerdef import Param, Program, slots
from tpack.layerdef.nodes import Sizes
from tpack.nn import KeyValueCache

#: Sizes that free dims have in the trace, the first after the batch and the step to the next:
#: different, and none that torch takes for a constant; the larger ones are for images and sound.
_SIZES = ((5, 2), (32, 32), (224, 224), (4096, 1024))
_BATCH = 3

Shapes = dict[str, list[int]]


@dataclass(frozen=True)
class Signature:
    """Inputs and outputs of a graph.

    Attributes:
        inputs: the dtypes of the program's own inputs by name, in order.
        sizes: their shapes, with names for sizes that are free.
        examples: shapes of inputs that the program runs at: those of the trace, then others.
        outputs: names of the program's results.
        cache: the input that is a cache.
        layers: of the cache: the layers that hold keys and values.
        held: shape and dtype of keys and of values of each layer, in the trace.
    """

    inputs: dict[str, torch.dtype]
    sizes: dict[str, Sizes]
    examples: tuple[Shapes, ...]
    outputs: tuple[str, ...]
    cache: str | None = None
    layers: tuple[int, ...] = ()
    held: tuple[tuple[torch.Size, torch.dtype], ...] = ()

    def past(self) -> list[str]:
        """Return the inputs for the cache, as other exporters call them."""
        return self._both("past_key_values")

    def present(self) -> list[str]:
        """Return the outputs for the cache."""
        return self._both("present")

    def _both(self, prefix: str) -> list[str]:
        return [f"{prefix}.{layer}.{kind}" for layer in self.layers for kind in ("key", "value")]


def tensors_of(result: Any) -> list[Tensor]:
    """Return the tensors of a result, in order."""
    if isinstance(result, Mapping):
        return [each for value in result.values() for each in tensors_of(value)]
    if isinstance(result, tuple | list):
        return [each for value in result for each in tensors_of(value)]
    return [result]


def signature_of(module: nn.Module) -> Signature:
    """Find the signature of a loaded module; no numbers are computed.

    Raises:
        LayerDefError: it has no forward, or runs on no inputs.
    """
    program = program_of(module)
    assert program is not None
    params = program.by_name[program.root].params
    inputs = [param for param in params if param.is_input and not param.is_cache]
    cache = next((param.name for param in params if param.is_cache), None)
    failed: Exception | None = None
    for sizes, first, step in _shapes(inputs, program):
        shapes = _sized(sizes, _BATCH, first, step)
        for kinds in product(*(_dtypes(name) for name in sizes)):
            dtypes = dict(zip(sizes, kinds, strict=True))
            try:
                result, held = _run(module, shapes, dtypes, cache)
            except NotImplementedError as error:
                raise LayerDefError(str(error)) from error
            except (RuntimeError, IndexError, TypeError, ValueError) as error:
                failed = failed or error
                continue
            layers = tuple(sorted(held.layers))
            kept = [
                (each.shape, each.dtype)
                for layer in layers
                for each in (held.layers[layer].keys, held.layers[layer].values)
                if each is not None
            ]
            found = Signature(dtypes, sizes, (shapes,), _names(result), cache, layers, tuple(kept))
            return replace(found, examples=tuple(_others(module, found, first, step)))
    raise LayerDefError(f"does not run on inputs of any kind: {failed}") from failed


def _shapes(
    inputs: Sequence[Param], program: Program
) -> Iterator[tuple[dict[str, Sizes], int, int]]:
    """Yield the shapes that inputs may have, and a first size and a step for free ones."""
    known = {param.name: param.sizes for param in inputs}
    widths = sorted({n for slot in slots(program) for n in slot.param.shape or () if n > 1})
    unknown: list[Sizes] = [
        ("batch", "length"),
        *(("batch", n) for n in widths),
        *(("batch", n, "height", "width") for n in [1, *widths]),
        *(("batch", n, "length") for n in [1, *widths]),
    ]
    for first, step in _SIZES:
        for sizes in unknown if None in known.values() else [()]:
            yield {name: sizes if has is None else has for name, has in known.items()}, first, step


def _sized(sizes: Mapping[str, Sizes], batch: int, first: int, step: int) -> Shapes:
    """Return shapes in which a free dim is ``batch`` if it is the first of the first input."""
    free: dict[str, int] = {}
    for each in sizes.values():
        for dim, size in enumerate(each):
            if isinstance(size, str) and size not in free:
                free[size] = batch if dim == 0 and not free else first + step * len(free)
    return {
        name: [size if isinstance(size, int) else free[size] for size in each]
        for name, each in sizes.items()
    }


def _dtypes(name: str) -> tuple[torch.dtype, ...]:
    """Return the dtypes that an input may have, the likeliest first, as its name tells."""
    if name.endswith(("ids", "mask", "position", "positions")):
        return torch.int64, torch.float32, torch.bool
    return torch.float32, torch.int64, torch.bool


def _run(
    module: nn.Module, shapes: Shapes, dtypes: Mapping[str, torch.dtype], cache: str | None
) -> tuple[Any, KeyValueCache]:
    held = KeyValueCache()
    more = {} if cache is None else {cache: held}
    # experts are computed as in the trace, where nobody knows which are chosen
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad(), _compiling_state_context():
        given = {name: torch.zeros(shape, dtype=dtypes[name]) for name, shape in shapes.items()}
        return module(**given, **more), held


def _others(module: nn.Module, found: Signature, first: int, step: int) -> Iterator[Shapes]:
    """Yield the shapes of the trace, and others that the program runs at."""
    yield found.examples[0]
    tried = [found.examples[0]]
    for batch, other, more in ((2, first + 3, step), (1, 1, 0), (1, 2 * first, step)):
        shapes = _sized(found.sizes, batch, other, more)
        if shapes in tried:
            continue
        try:
            _run(module, shapes, found.inputs, found.cache)
        except (RuntimeError, IndexError, TypeError, ValueError):
            continue
        tried.append(shapes)
        yield shapes


def _names(result: Any) -> tuple[str, ...]:
    """Return names for the results: those of a dict, else ``output``, ``output_1`` and so on."""
    if isinstance(result, Mapping) and len(tensors_of(result)) == len(result):
        return tuple(result)
    count = len(tensors_of(result))
    return tuple("output" if i == 0 else f"output_{i}" for i in range(count))
