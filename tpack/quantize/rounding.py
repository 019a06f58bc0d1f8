"""The rule by which a model rounds a weight as it runs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Rounding:
    """How a model makes a float weight ternary in its own forward.

    Such a weight is a master: the model computes with what the rule makes of it, so the rule
    decides its scale, also where the values already are ternary. ``absmean`` of ``{-s, 0, +s}``
    keeps the trits and gives another scale than s.

    Attributes:
        method: a quantizer of ``tpack.quantize.METHODS``.
        scale: its granularity, as ``Scale.parse`` takes it.
    """

    method: str
    scale: str = "tensor"
