"""What running a model, and comparing two, gives."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class RunReport:
    """A text that a model wrote.

    Attributes:
        file: the model.
        runs: what computed it: ``LayerDefs`` or ``transformers``.
        prompt: the text that was given; None if numbers of tokens were.
        text: what the model wrote after it; None without a tokenizer.
        prompt_tokens: the numbers that the model was given.
        tokens: the numbers of the new tokens.
        stopped: ``end`` at a token that ends a text, ``length`` at the most tokens that were asked
            for, ``positions`` at the most that the model takes.
        seed: of the random numbers; None where the likeliest tokens were taken.
        prompt_seconds: from the prompt to the first new token.
        seconds: from the first new token to the last.
        notes: what else is worth knowing.
    """

    file: str
    runs: str
    prompt: str | None
    text: str | None
    prompt_tokens: tuple[int, ...]
    tokens: tuple[int, ...]
    stopped: str
    seed: int | None
    prompt_seconds: float
    seconds: float
    notes: tuple[str, ...] = ()

    @property
    def prompt_speed(self) -> float | None:
        """Tokens of the prompt a second; None if nothing was measured."""
        return _rate(len(self.prompt_tokens), self.prompt_seconds)

    @property
    def speed(self) -> float | None:
        """New tokens a second after the first; None if there is only one."""
        return _rate(len(self.tokens) - 1, self.seconds)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return {
            "file": self.file,
            "runs": self.runs,
            "prompt": self.prompt,
            "text": self.text,
            "prompt_tokens": list(self.prompt_tokens),
            "tokens": list(self.tokens),
            "stopped": self.stopped,
            "seed": self.seed,
            "prompt_tokens_per_second": self.prompt_speed,
            "tokens_per_second": self.speed,
            "notes": list(self.notes),
        }


def _rate(count: int, seconds: float) -> float | None:
    return count / seconds if count > 0 and seconds > 0 else None


@dataclass(frozen=True)
class Choice:
    """The token that a model takes where two models part.

    Attributes:
        token: its number.
        text: as it reads there; empty without a tokenizer.
        lead: how far its logit is above that of the token that the other model takes.
    """

    token: int
    text: str
    lead: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return {"token": self.token, "text": self.text, "lead": number(self.lead)}


@dataclass(frozen=True)
class RunComparison:
    """Two models on one prompt.

    The statistics are over all positions of the prompt and of the tokens that the source takes;
    both models are given these tokens.

    Attributes:
        file, source: the models.
        prompt: the text that was given; None if numbers of tokens were.
        prompt_tokens: the numbers that both were given.
        tokens, source_tokens: what each takes after them, always the likeliest.
        texts: both as text; empty without a tokenizer.
        first: how many new tokens are equal before the first that differs; None if all are.
        choices: what each model, first ``file``, takes there; None if all tokens are equal.
        largest_before: the largest difference of a logit on the prompt and the equal tokens.
        mean, largest: difference of logits, over all positions.
        divergence, largest_divergence: Kullback-Leibler divergence of the source's probabilities
            from those of ``file``, in nats, mean and largest of a position.
        agreeing: at how many positions the likeliest token is the same.
        positions: how many there are.
        spread: standard deviation of the source's logits, to measure differences by.
    """

    file: str
    source: str
    prompt: str | None
    prompt_tokens: tuple[int, ...]
    tokens: tuple[int, ...]
    source_tokens: tuple[int, ...]
    texts: tuple[str, str]
    first: int | None
    choices: tuple[Choice, Choice] | None
    largest_before: float
    mean: float
    largest: float
    divergence: float
    largest_divergence: float
    agreeing: int
    positions: int
    spread: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data."""
        first = None
        if self.choices is not None:
            ours, theirs = self.choices
            first = {"after": self.first, "file": ours.to_dict(), "source": theirs.to_dict()}
        return {
            "file": self.file,
            "source": self.source,
            "prompt": self.prompt,
            "prompt_tokens": list(self.prompt_tokens),
            "tokens": list(self.tokens),
            "source_tokens": list(self.source_tokens),
            "text": self.texts[0],
            "source_text": self.texts[1],
            "equal": self.first is None,
            "first_difference": first,
            "largest_difference_before": number(self.largest_before),
            "mean_difference": number(self.mean),
            "largest_difference": number(self.largest),
            "mean_divergence": number(self.divergence),
            "largest_divergence": number(self.largest_divergence),
            "agreeing": self.agreeing,
            "positions": self.positions,
            "spread": number(self.spread),
        }


def number(value: float) -> float | None:
    """Return a number that JSON has; None for infinity."""
    return value if math.isfinite(value) else None
