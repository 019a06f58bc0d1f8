"""Where two models that should be one part, and how far their logits are apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tpack.errors import UnsupportedError
from tpack.generation import tokens as generated
from tpack.running.models import check_model, open_model
from tpack.running.prompts import Prompt, read_prompt
from tpack.running.report import Choice, RunComparison

#: Positions that are compared at a time: a vocabulary of 150,000 takes 40 MB for them.
_BLOCK = 64


def compare(
    path: str | Path, source: str | Path, prompt: str | Sequence[int], *, max_new_tokens: int = 100
) -> RunComparison:
    """Let a model and its source continue a text, and compare what they compute.

    Both take the likeliest token each time. Then both are given the prompt with the tokens of the
    source, without a cache, and their logits are compared. One model is in memory at a time.

    Args:
        path: a packed file or folder, or a folder of transformers, with its tokenizer.
        source: another one, such as the folder that it was converted from.
        prompt: the text, or numbers of tokens.
        max_new_tokens: how many tokens each writes at most.

    Raises:
        UnsupportedError: the two have vocabularies of different sizes; or as ``run``.
        UsageError, InputError, LayerDefError: as ``run``.
    """
    for model in (path, source):
        check_model(model)
    given = read_prompt(path, prompt)
    most = given.room(max_new_tokens)
    theirs, theirs_chose, logits = _written(source, given, most)
    shared = [*given.ids, *theirs[:-1]]  # after the last token nothing is chosen
    theirs_logits = logits(shared)
    del logits
    ours, ours_chose, logits = _written(path, given, most)
    ours_logits = logits(shared)
    del logits
    if ours_logits.shape != theirs_logits.shape:
        raise UnsupportedError(
            f"gives logits for {ours_logits.shape[-1]} tokens, and {source} for "
            f"{theirs_logits.shape[-1]}, expected models with the same vocabulary.",
            file=path,
        )
    pairs = enumerate(zip(ours, theirs, strict=False))
    first = next((i for i, (one, other) in pairs if one != other), None)
    same = len(given.ids) + (len(theirs) - 1 if first is None else first)
    choices = None
    if first is not None:
        before = [*given.ids, *theirs[:first]]
        choices = (
            _choice(given, before, ours[first], theirs[first], ours_chose[first]),
            _choice(given, before, theirs[first], ours[first], theirs_chose[first]),
        )
    found = _Differences.of(ours_logits, theirs_logits)
    return RunComparison(
        str(path),
        str(source),
        given.text,
        tuple(given.ids),
        tuple(ours),
        tuple(theirs),
        (given.after(ours), given.after(theirs)),
        first,
        choices,
        float(found.largest[:same].max()),
        float(found.mean.mean()),
        float(found.largest.max()),
        float(found.divergence.mean()),
        float(found.divergence.max()),
        int(found.agrees.sum()),
        len(shared),
        float(theirs_logits.std()),
    )


def _written(
    path: str | Path, given: Prompt, most: int
) -> tuple[list[int], list[Tensor], Callable[[Sequence[int]], Tensor]]:
    """Let a model write; return its tokens, the logits that chose each, and what gives others."""
    model = open_model(path)
    chose: list[Tensor] = []

    def forward(*args: Any, **options: Any) -> Tensor:
        logits = model.forward(*args, **options)
        chose.append(logits[0, -1].float())
        return logits

    ids, ends = torch.tensor([given.ids]), sorted(given.settings.ends)
    called = wraps(model.forward)(forward)  # with the argument that takes a cache, if it has one
    made = generated(called, ids, max_new_tokens=most, eos_token_id=ends)
    return [int(token) for token in made], chose, model.logits


def _choice(given: Prompt, before: Sequence[int], token: int, other: int, logits: Tensor) -> Choice:
    text = "" if given.tokenizer is None else given.tokenizer.show(before, token)
    return Choice(token, text, float(logits[token] - logits[other]))


@dataclass(frozen=True)
class _Differences:
    """How far logits are apart at each position: tensors of its length.

    Attributes:
        mean, largest: of the difference of a logit.
        divergence: Kullback-Leibler, in nats.
        agrees: whether the likeliest token is the same.
    """

    mean: Tensor
    largest: Tensor
    divergence: Tensor
    agrees: Tensor

    @classmethod
    def of(cls, ours: Tensor, theirs: Tensor) -> _Differences:
        """Compare logits (length, vocabulary)."""
        pairs = zip(ours.split(_BLOCK), theirs.split(_BLOCK), strict=True)
        blocks = [_differences(one.double(), other.double()) for one, other in pairs]
        return cls(*(torch.cat(parts) for parts in zip(*blocks, strict=True)))


def _differences(ours: Tensor, theirs: Tensor) -> tuple[Tensor, ...]:
    apart = torch.where(ours == theirs, 0.0, ours - theirs).abs()  # equal infinities are not apart
    log_ours, log_theirs = ours.log_softmax(-1), theirs.log_softmax(-1)
    shares = log_theirs.exp()
    terms = torch.where(shares == 0, 0.0, shares * (log_theirs - log_ours))
    agrees = ours.argmax(-1) == theirs.argmax(-1)
    return apart.mean(-1), apart.amax(-1), terms.sum(-1).clamp(min=0.0), agrees
