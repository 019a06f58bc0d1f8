"""Decoders of transformers with a cache: one trace for prompts and for what follows them.

While torch.export traces, the past is a vector whose length is free, and the cache of the model is
one of ours, whose ``update`` is one op. In the graph the vector becomes the cache, an argument
of forward, and the op ``cache_extend``.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import sympy
import torch
from torch import Tensor, nn

from tpack.capturing.aten import parse_row
from tpack.capturing.graph import CACHE, INPUT, Call, Graph, Value
from tpack.capturing.marks import MARKS

#: The argument of transformers' models that takes a cache.
PAST = "past_key_values"
#: The ops of tpack in a trace, with their rows: one stands for ``update``.
OURS = {"tpack.cache_extend.default": parse_row("cache_extend", "past~ keys values layer")} | MARKS
#: Arguments beside which a decoder can be traced with a cache: of one token each.
_TOKENS = ("input_ids", "inputs_embeds")


@torch.library.custom_op("tpack::cache_extend", mutates_args=())
def _extend(past: Tensor, keys: Tensor, values: Tensor, layer: int) -> tuple[Tensor, Tensor]:
    raise NotImplementedError  # it is only traced


@_extend.register_fake
def _(past: Tensor, keys: Tensor, values: Tensor, layer: int) -> tuple[Tensor, Tensor]:  # noqa: ARG001
    def longer(new: Tensor) -> Tensor:
        return new.new_empty((*new.shape[:-2], past.shape[0] + new.shape[-2], new.shape[-1]))

    return longer(keys), longer(values)


def makes_cache(module: nn.Module, kwargs: Mapping[str, Any]) -> bool:
    """Return whether a module is a model of transformers that would return a cache."""
    library = sys.modules.get("transformers")
    if library is None or not isinstance(module, library.PreTrainedModel):
        return False
    asked = kwargs.get("use_cache")
    if asked is None:
        asked = getattr(module.config.get_text_config(decoder=True), "use_cache", False)
    return bool(asked) and PAST in inspect.signature(module.forward).parameters


def uncachable(module: nn.Module, given: Mapping[str, Any], dynamic_shapes: Any) -> str:
    """Return the reason why a model cannot be traced with a cache; empty if nothing forbids it.

    Args:
        given: its arguments by name.
    """
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    config = module.config
    if getattr(config, "is_encoder_decoder", False):
        return "its decoder also attends to what an encoder gives"
    tensors = [name for name, value in given.items() if isinstance(value, Tensor)]
    if PAST in given or len(tensors) != 1 or tensors[0] not in _TOKENS:
        return f"the example gives {', '.join(sorted(given))}, and only input_ids has a past"
    if dynamic_shapes is not None:
        return "dynamic_shapes was given"
    if given[tensors[0]].shape[1] < 2:
        return "the example has one token, and two are needed"
    try:
        layers = DynamicCache(config=config).layers
    except Exception:  # noqa: BLE001  # code of a model
        layers = [None]
    if any(type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers):
        return "it keeps more than keys and values"
    return ""


def past_of(tokens: Tensor) -> Tensor:
    """Make the vector that stands for the past: its length differs from that of the example."""
    return tokens.new_zeros(7 if tokens.shape[1] != 7 else 5, dtype=torch.int64)


@contextmanager
def traced(module: nn.Module) -> Iterator[None]:
    """While tracing, let the model take the vector of the past as a cache, and return none."""
    from transformers import Cache, DynamicCache

    class TracedCache(DynamicCache):  # type: ignore[misc]
        """A cache whose length is that of a vector, and whose update is one op."""

        def __init__(self, past: Tensor) -> None:
            super().__init__()
            self.past = past

        def update(
            self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
        ) -> tuple[Tensor, Tensor]:
            made: tuple[Tensor, Tensor] = _extend(self.past, key_states, value_states, layer_idx)
            return made

        def get_seq_length(self, layer_idx: int = 0) -> int:  # noqa: ARG002
            return self.past.shape[0]

        def get_query_offset(self, layer_idx: int = 0) -> int:  # noqa: ARG002
            return self.past.shape[0]

        def get_mask_sizes(self, query_length: Any, layer_idx: int) -> tuple[int, int]:  # noqa: ARG002
            length = query_length.shape[0] if isinstance(query_length, Tensor) else query_length
            return self.past.shape[0] + length, 0

        @property
        def is_sliding(self) -> list[bool]:
            return [False]

        @property
        def is_compileable(self) -> bool:
            return False

    def before(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        return args, kwargs | {PAST: TracedCache(kwargs[PAST])}

    def after(_: nn.Module, __: Any, result: Any) -> Any:
        if isinstance(result, tuple):
            return tuple(item for item in result if not isinstance(item, Cache))
        if isinstance(result, Mapping) and isinstance(result.get(PAST), Cache):
            kept = {name: item for name, item in result.items() if name != PAST}
            return type(result)(**kept)
        return result

    handles = [
        module.register_forward_pre_hook(before, with_kwargs=True, prepend=True),
        module.register_forward_hook(after),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def without(module: nn.Module) -> Iterator[None]:
    """Let a model of transformers make no cache, unless its arguments ask for one."""
    config = module.config.get_text_config(decoder=True)  # type: ignore[union-attr, operator]
    before, config.use_cache = getattr(config, "use_cache", None), False
    try:
        yield
    finally:
        config.use_cache = before


def past_cache(module: nn.Module) -> Any:
    """Return an empty cache of transformers for a model."""
    from transformers import DynamicCache

    return DynamicCache(config=module.config)


def place_cache(graph: Graph) -> int:
    """Make the cache of a graph out of the vector that stands for the past.

    Returns:
        How many layers keep keys and values in it.
    """
    past = next(value for value in graph.inputs if value.op == INPUT and value.name == PAST)
    graph.inputs.remove(past)
    extending = [value for value in graph.values if value.op == "cache_extend"]
    if not extending:
        return 0
    graph.inputs.append(past)
    past.op, past.name, past.asked = CACHE, "cache", {}
    (size,) = past.shape
    if isinstance(size, sympy.Symbol):
        graph.sizes[size] = "past_length"
    parts: dict[tuple[int, tuple[Call, ...]], Value] = {}
    for value in extending:
        index, calls = value.args.pop("layer"), _above_layers(value.calls)
        part = parts.get((index, calls))
        if part is None:
            args = {"cache": past, "index": index}
            part = Value("cache_layer", args, past.shape, past.dtype, calls=calls)
            parts[index, calls] = part
            graph.values.insert(graph.values.index(value), part)
        value.args["cache"] = part
    return len({index for index, _ in parts})


def _above_layers(calls: Sequence[Call]) -> tuple[Call, ...]:
    """Return the calls around the list of layers: those before the first one in a list."""
    for i, call in enumerate(calls):
        if any(part.isdecimal() for part in call.path.split(".")):
            return tuple(calls[: max(i, 1)])
    return tuple(calls[:-1]) or tuple(calls)
