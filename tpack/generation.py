"""Tokens from a decoder, one after the other: greedy, or sampled from its logits.

Example:
    >>> import torch, tpack
    >>> def count(ids):  # a model that counts: the next token is the last one plus 1
    ...     return torch.nn.functional.one_hot(ids + 1, 10).float()
    >>> tpack.generate(count, torch.tensor([[1, 2, 3]]), max_new_tokens=2).tolist()
    [[1, 2, 3, 4, 5]]
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tpack.build import program_of
from tpack.errors import UsageError
from tpack.nn import KeyValueCache
from tpack.nn.caching import is_no_cache

__all__ = ["generate", "tokens"]


def generate(model: Callable[..., Any], ids: Any, **options: Any) -> Tensor:
    """Continue prompts, and return them with what was generated.

    Args:
        model: as for ``tokens``.
        ids: (batch, length) prompts.
        options: of ``tokens``: max_new_tokens, eos_token_id, temperature, top_k, top_p, seed,
            generator.

    Returns:
        int64 (batch, length + new tokens). All prompts get as many tokens as the longest
        continuation; what follows the end of another repeats its last token, eos.

    Raises:
        UsageError: as ``tokens``.
    """
    prompt = _prompts(ids)
    new = [token.unsqueeze(-1) for token in tokens(model, prompt, **options)]
    return torch.cat([prompt, *new], -1)


def tokens(
    model: Callable[..., Any],
    ids: Any,
    *,
    max_new_tokens: int,
    eos_token_id: int | Collection[int] | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    generator: torch.Generator | None = None,
) -> Iterator[Tensor]:
    """Yield the tokens that continue prompts, one at a time, as they are computed.

    A model that takes a cache of keys and values is called with the new tokens only; another
    one with all tokens each time.

    Args:
        model: from ``tpack.load``, or an instance of a generated class: takes ids (batch,
            length), and gives logits (batch, length, vocabulary), alone, first in a tuple, or as
            "logits" in a dict.
        ids: int64 (batch, length), a list of prompts, or one prompt as a list of numbers. All
            prompts have the same length: there is no padding.
        max_new_tokens: how many tokens to yield at most.
        eos_token_id: a token, or several, that end a continuation. After its end a prompt
            of a batch repeats it; when all have ended, no more tokens are yielded.
        temperature: divides the logits before sampling. If it, top_k and top_p are not given, or
            if it is 0, the most probable token is taken.
        top_k: sample from that many of the most probable tokens only.
        top_p: sample from the fewest most probable tokens that together have this probability.
        seed: of a new generator, for the same samples each time.
        generator: takes the samples; on the device of the model.

    Yields:
        int64 (batch,).

    Raises:
        UsageError: a prompt is empty, prompts differ in length, or an option is out of range.
    """
    prompt = _prompts(ids)
    pick = _picker(temperature, top_k, top_p)
    if type(max_new_tokens) is not int or max_new_tokens < 0:
        raise UsageError(f"max_new_tokens is {max_new_tokens!r:.40}, expected an integer from 0.")
    if seed is not None and generator is not None:
        raise UsageError("seed and generator exclude each other. Give one of them.")
    device = next((t.device for t in _tensors(model)), prompt.device)
    if seed is not None:
        generator = torch.Generator(device).manual_seed(seed)
    ends = (eos_token_id,) if isinstance(eos_token_id, int) else tuple(eos_token_id or ())
    return _run(model, prompt.to(device), max_new_tokens, ends, pick, generator)


#: Chooses a token of each row of logits (batch, vocabulary).
_Pick = Callable[[Tensor, "torch.Generator | None"], Tensor]


def _run(
    model: Callable[..., Any],
    prompt: Tensor,
    count: int,
    ends: Sequence[int],
    pick: _Pick,
    generator: torch.Generator | None,
) -> Iterator[Tensor]:
    name = _cache_argument(model)
    options = {} if name is None else {name: KeyValueCache()}
    stops = torch.tensor(ends, dtype=torch.int64, device=prompt.device)
    ended = torch.zeros(len(prompt), dtype=torch.bool, device=prompt.device)
    given, last = prompt, prompt[:, -1]
    for _ in range(count):
        with torch.no_grad():
            logits = _logits(model(given, **options))[:, -1]
            token = torch.where(ended, last, pick(logits, generator))
        yield token
        ended = ended | torch.isin(token, stops)
        if ends and bool(ended.all()):
            return
        last, new = token, token.unsqueeze(-1)
        given = new if options else torch.cat((given, new), -1)


def _prompts(ids: Any) -> Tensor:
    """Return prompts as int64 (batch, length)."""
    if not isinstance(ids, Tensor):
        rows = [ids] if ids and isinstance(ids[0], int) else list(ids)
        lengths = sorted({len(row) for row in rows})
        if len(lengths) > 1:
            raise UsageError(
                f"prompts have {lengths[0]} to {lengths[-1]} tokens, expected the same number. "
                "Generate from prompts of different lengths one by one."
            )
        ids = torch.tensor(rows, dtype=torch.int64)
    ids = ids.unsqueeze(0) if ids.dim() == 1 else ids
    if ids.dim() != 2 or not ids.numel() or ids.is_floating_point():
        raise UsageError(
            f"prompts are {ids.dtype} {tuple(ids.shape)}, expected integers (batch, length), "
            "neither of them 0."
        )
    made: Tensor = ids.long()
    return made


def _picker(temperature: float | None, top_k: int | None, top_p: float | None) -> _Pick:
    """Return the function that chooses a token from logits."""
    if temperature is not None and not 0 <= temperature < float("inf"):
        raise UsageError(f"temperature is {temperature}, expected a number from 0.")
    if top_k is not None and (type(top_k) is not int or top_k < 1):
        raise UsageError(f"top_k is {top_k!r:.40}, expected an integer from 1.")
    if top_p is not None and not 0 < top_p <= 1:
        raise UsageError(f"top_p is {top_p}, expected a number above 0, up to 1.")
    if temperature == 0 or (temperature is None and top_k is None and top_p is None):
        return lambda logits, _: logits.argmax(-1)

    def pick(logits: Tensor, generator: torch.Generator | None) -> Tensor:
        logits = logits.float() / (temperature or 1.0)
        if top_k is not None:
            least = logits.topk(min(top_k, logits.size(-1))).values[:, -1:]
            logits = logits.masked_fill(logits < least, -torch.inf)
        if top_p is not None:
            ordered, indices = logits.sort(-1)
            few = ordered.softmax(-1).cumsum(-1) <= 1 - top_p
            few[:, -1] = False  # the most probable one stays
            logits = logits.masked_fill(few.scatter(-1, indices, few), -torch.inf)
        return torch.multinomial(logits.softmax(-1), 1, generator=generator).squeeze(-1)

    return pick


def _tensors(model: Callable[..., Any]) -> Iterator[Tensor]:
    if isinstance(model, nn.Module):
        yield from model.parameters()
        yield from model.buffers()


def _cache_argument(model: Callable[..., Any]) -> str | None:
    """Return the name of the argument that takes the cache; None if the model takes none."""
    program = program_of(model) if isinstance(model, nn.Module) else None
    if program is not None:
        params = program.by_name[program.root].params
        return next((param.name for param in params if param.is_cache), None)
    called = model.forward if isinstance(model, nn.Module) else model
    for name, argument in inspect.signature(called).parameters.items():
        if is_no_cache(argument.default):
            return name
    return None


def _logits(result: Any) -> Tensor:
    if isinstance(result, Mapping):
        found = result.get("logits", next(iter(result.values())) if len(result) == 1 else None)
    else:
        found = result[0] if isinstance(result, tuple | list) else result
    if not isinstance(found, Tensor) or found.dim() != 3:
        raise UsageError(
            "the model gives no logits (batch, length, vocabulary). generate takes a decoder with "
            "its output head, such as LlamaForCausalLM."
        )
    return found
