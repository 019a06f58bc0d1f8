"""Models of transformers as LayerDefs: built from their config without weights, and captured.

``configs`` reads a config and finds the class, in the code of transformers alone. ``building``
makes the model: its buffers, such as the frequencies of rotary positions, have their values, its
parameters none. ``matching`` finds which tensor of the checkpoint is which of the model (``names``,
``renaming``), ``inputs`` makes arguments, ``rounding`` puts in the layers that round their inputs.
Then the model is traced like any other, whatever its weights weigh.

If the weights are small, transformers loads them too, and the program is compared with that model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import transformers
from torch import Tensor

from tpack.architectures.building import Built, blank, loaded, quiet
from tpack.architectures.configs import classes_of, config_of
from tpack.architectures.experts import take_apart
from tpack.architectures.inputs import example_inputs
from tpack.architectures.matching import Match, check_dtypes, fill, match
from tpack.architectures.renaming import renamed
from tpack.architectures.rounding import with_rounding
from tpack.capturing import Captured, trace_module
from tpack.capturing.experts import complete_lists
from tpack.capturing.failures import explained
from tpack.capturing.graph import Graph
from tpack.errors import LayerDefError, TpackError

__all__ = ["Weights", "trace_architecture"]

#: Bytes of weights up to which transformers loads them too, to compare.
SMALL = 256 << 20


@dataclass(frozen=True)
class Weights:
    """The tensors of a checkpoint, as its model is to have them.

    Attributes:
        tensors: shape and dtype of each.
        aliases: other names of tensors.
        read: returns the values of one, of its shape and dtype; None if they cannot be read.
    """

    tensors: Mapping[str, tuple[tuple[int, ...], torch.dtype]]
    aliases: Mapping[str, str]
    read: Callable[[str], Tensor] | None = None

    @property
    def nbytes(self) -> int:
        """The bytes of all tensors."""
        found = (
            torch.Size(shape).numel() * dtype.itemsize for shape, dtype in self.tensors.values()
        )
        return sum(found)


def trace_architecture(data: Mapping[str, Any], weights: Weights) -> Captured:
    """Trace the model of a folder of transformers, by its config alone.

    Args:
        data: the content of config.json. No code that it names runs, but that of transformers.
        weights: what the checkpoint holds.

    Raises:
        LayerDefError: transformers does not have the architecture, the tensors are not those of
            the model, or LayerDef cannot express what it computes.
    """
    with quiet():
        try:
            return _traced(data, weights)
        except TpackError:
            raise
        except Exception as error:  # a config may say anything, and so what transformers raises
            raise LayerDefError(
                f"transformers {transformers.__version__} cannot build it: {explained(error)}"
            ) from error


def _traced(data: Mapping[str, Any], weights: Weights) -> Captured:
    config = config_of(data)
    dtype = _dtype(config, weights)
    built, found, experts = _fitting(data, config, dtype, weights)
    model = built.model
    check_dtypes(model, found, weights.tensors, dtype)
    fill(model, found, weights.tensors, built.mode)
    model = with_rounding(model, data)
    args, kwargs = example_inputs(model)
    captured = trace_module(model, args, kwargs, None)
    name = type(model).__name__
    if experts:
        complete_lists(captured.graph, experts)
    graph = renamed(captured.graph, found)
    captured.graph = _with_values(graph, weights, values=None)
    captured.reason = (
        f"the captured program was not compared with {name}: its weights take more than "
        f"{SMALL >> 20} MB"
    )
    if weights.read is not None and weights.nbytes <= SMALL:
        values = {each: weights.read(each) for each in weights.tensors}
        original = with_rounding(loaded(type(model), config, dtype, values, weights.aliases), data)
        captured.graph = _with_values(captured.graph, weights, values=values)
        captured.reason = ""
        if captured.example is not None:
            captured.example = replace(
                captured.example, original=original, called=f"{name} of transformers"
            )
            if any(value.is_cache for value in captured.graph.inputs):
                captured.check_decoding()
    about = [f"captured {name} of transformers {transformers.__version__} from config.json"]
    about += [found.unused] if found.unused else []
    wish = getattr(config, "dtype", None)
    if isinstance(wish, torch.dtype) and wish != dtype:
        about.append(f"it computes in {_called(dtype)} as the files, not in {_called(wish)}")
    captured.notes = ("; ".join(about), *captured.notes)
    return captured


def _dtype(config: Any, weights: Weights) -> torch.dtype:
    """Return the dtype of the model: that of the config if tensors have it, else of the first."""
    floats = [dtype for _, dtype in weights.tensors.values() if dtype.is_floating_point]
    if not floats:
        raise LayerDefError(
            "it holds no tensor of floats, which would show the dtype of the model."
        )
    wish = getattr(config, "dtype", None)
    return wish if wish in floats else max(set(floats), key=floats.count)


def _called(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _fitting(
    data: Mapping[str, Any], config: Any, dtype: torch.dtype, weights: Weights
) -> tuple[Built, Match, dict[str, int]]:
    """Build the first class that the tensors fit, with the experts that are apart.

    Raises:
        LayerDefError: they fit none; says why not the first.
    """
    problem: LayerDefError | None = None
    limit = 4 * (len(weights.tensors) + len(weights.aliases)) + 64
    for kind in classes_of(data, config):
        try:
            built = blank(kind, config, dtype, limit)
            experts, dropped = take_apart(built, weights.tensors)
            found = match(built.model, weights.tensors, weights.aliases, dropped)
            return built, found, experts
        except LayerDefError as error:
            problem = problem or error
    assert problem is not None  # there is a class
    raise problem


def _with_values(graph: Graph, weights: Weights, *, values: Mapping[str, Tensor] | None) -> Graph:
    """Return the graph with all tensors of the checkpoint: their values, or their shapes alone."""

    def tensor(name: str) -> Tensor:
        if values is not None:
            return values[name]
        shape, dtype = weights.tensors[name]
        return torch.empty(shape, dtype=dtype, device="meta")

    order = [*graph.stored, *(name for name in weights.tensors if name not in graph.stored)]
    missing = [name for name in order if name not in weights.tensors]
    if missing:
        raise LayerDefError(f"its tensor {missing[0]!r} has another name in the model.")
    return replace(graph, stored={name: tensor(name) for name in order})
