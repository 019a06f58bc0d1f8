"""Keys and values of earlier tokens, and attention to them: how a decoder decodes.

Standalone generated source contains what it needs from this file word for word.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


class KeyValueCache:
    """The keys and values of the tokens that a decoder has seen.

    An empty one goes into the first call of a model, and the same one into each later
    call, whose tokens come after those before::

        cache = KeyValueCache()
        model(prompt, cache)
        model(next_token, cache)

    It holds those of one layer, or a cache for each of several layers.
    """

    def __init__(self) -> None:
        self.layers: dict[int, KeyValueCache] = {}
        self.keys: Tensor | None = None
        self.values: Tensor | None = None
        self.filled = 0

    def layer(self, index: int) -> KeyValueCache:
        """Return the cache of one layer."""
        found = self.layers.get(index)
        if found is None:
            found = self.layers[index] = KeyValueCache()
        return found

    def length(self) -> int:
        """Return how many tokens it holds."""
        if not self.layers:
            return self.filled
        lengths = {layer.length() for layer in self.layers.values()}
        if len(lengths) > 1:
            raise RuntimeError(
                "the layers of a cache hold different numbers of tokens: a forward did "
                "not finish. Make a new cache."
            )
        return lengths.pop()

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add the keys and values of new tokens; return those of all tokens, in order.

        Args:
            keys, values: (batch, heads, tokens, width).
        """
        start, end = self.filled, self.filled + keys.size(-2)
        self.keys = extended(self.keys, keys, start)
        self.values = extended(self.values, values, start)
        self.filled = end
        return self.keys.narrow(-2, 0, end), self.values.narrow(-2, 0, end)


class NoCache(KeyValueCache):
    """Stands for no cache, where a forward sees its own tokens only."""

    def layer(self, index: int) -> KeyValueCache:  # noqa: ARG002
        """Return itself."""
        return self

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return what is given, and keep nothing."""
        return keys, values


#: The cache of a forward that is given none.
NO_CACHE = NoCache()


def is_no_cache(value: object) -> bool:
    """Return whether ``value`` is a NoCache, of this module or of standalone source."""
    return type(value).__name__ == NoCache.__name__


def extended(held: Tensor | None, new: Tensor, start: int) -> Tensor:
    """Write ``new`` behind the first ``start`` tokens; a full buffer doubles."""
    if held is None:
        return new
    sizes = (*held.shape[:-2], held.size(-1))
    if sizes != (*new.shape[:-2], new.size(-1)) or held.dtype != new.dtype:
        raise ValueError(
            f"the cache holds {held.dtype} of batch and heads {tuple(sizes[:-1])}, "
            f"found {new.dtype} of {tuple(new.shape[:-2])}. Give the model the same "
            "batch, or a new cache."
        )
    if new.requires_grad:
        return torch.cat((held.narrow(-2, 0, start), new), -2)
    end = start + new.size(-2)
    if end > held.size(-2):
        larger = new.new_empty((*new.shape[:-2], 2 * end, new.size(-1)))
        larger.narrow(-2, 0, start).copy_(held.narrow(-2, 0, start))
        held = larger
    held.narrow(-2, start, end - start).copy_(new)
    return held


def causal_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Attend from each token to itself and those before it.

    Args:
        query: (batch, heads, length, width) of the last tokens.
        key, value: (batch, heads, tokens, width) of all tokens.
    """
    length, tokens = query.size(-2), key.size(-2)
    mask, alone = None, False
    if length == tokens:
        alone = True
    elif length > 1:
        mask = torch.ones(length, tokens, dtype=torch.bool, device=query.device)
        mask = mask.tril(tokens - length)
    return F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        is_causal=alone,
        scale=scale,
        enable_gqa=enable_gqa,
    )
