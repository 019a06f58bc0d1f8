"""Tell what a weight is that is not ternary: by name, with its numbers."""

from __future__ import annotations

from dataclasses import dataclass

from tpack.quantize.detect import Detected
from tpack.quantize.weight import Weight


@dataclass(frozen=True)
class Recognised:
    """What a weight is that is not ternary, and no ordinary float weight either.

    Attributes:
        kind: a short phrase, the same for all weights of the kind: ``nearly ternary``.
        text: completes "tensor X ...", with the numbers.
        advice: what to do about it, one sentence.
    """

    kind: str
    text: str
    advice: str


def recognise(weight: Weight, detected: Detected) -> Recognised | None:  # noqa: ARG001 -- none yet
    """Tell what a weight is that is not ternary; None for an ordinary float weight."""
    return None
