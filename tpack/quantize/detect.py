"""Find out whether a weight is ternary, and quantize it where it is not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tpack.codec import Scale
from tpack.errors import NotTernaryError
from tpack.quantize import exact
from tpack.quantize.fit import Fit
from tpack.quantize.methods import method_named
from tpack.quantize.pieces import Piece, in_pieces
from tpack.quantize.statistics import Statistics, measure
from tpack.quantize.weight import Weight, widen

_TENSOR = Scale.parse("tensor")

#: Fewer values that agree with one before them under the same scale may be a coincidence.
EVIDENCE = 8


@dataclass(frozen=True)
class Detected:
    """What one pass over a weight tells.

    Attributes:
        wanted: the granularity that was asked for; None for any.
        fit: where the weight is ternary: ``exact``, or ``mse`` where its scale must be rounded
            (float64); None where it is not.
        statistics: what quantizers start from.
        by_chance: it is ternary, but so are many weights of models that are not: it is all
            zero, or constant, or has values of one sign, or hardly any that share a scale.
        zero: all values are zero.
    """

    wanted: Scale | None
    fit: Fit | None
    statistics: Statistics
    by_chance: bool = False
    zero: bool = False


def detect(weight: Weight, scale: str = "auto") -> Detected:
    """Find out whether a weight is ternary, in one pass.

    Args:
        weight: the values.
        scale: what should share a scale: ``auto`` for the coarsest granularity at which the
            weight is ternary, or ``tensor``, ``row`` or ``group:N``.

    Raises:
        InputError: NaN or infinity, with its index.
        UsageError: unknown scale.
    """
    wanted = None if scale == "auto" else Scale.parse(scale)
    statistics = measure(weight, wanted or _TENSOR)
    fit = exact.fit_exact(weight, statistics, wanted)
    if fit is None:
        return Detected(wanted, None, statistics)
    nonzero, signs = _evidence(weight, fit)
    # a constant of both signs is binary: that is ternary indeed
    chance = signs < 2 or nonzero < EVIDENCE + np.count_nonzero(widen(fit.scale, fit.dtype))
    return Detected(wanted, fit, statistics, by_chance=bool(chance), zero=not signs)


def quantize(weight: Weight, method: str, scale: str, detected: Detected) -> Fit:
    """Round a weight by a method, also where it is ternary.

    Args:
        method: ``auto`` (absmean), ``absmean``, ``twn`` or ``mse``.
        scale: what shares a scale: ``auto`` (the tensor), ``tensor``, ``row`` or ``group:N``.
        detected: of this weight.

    Raises:
        InputError: a scale that its dtype cannot hold.
        UsageError: unknown method or scale.
    """
    rule = method_named(method)
    granularity = _TENSOR if scale == "auto" else Scale.parse(scale)
    statistics = detected.statistics
    if statistics.granularity != granularity:
        statistics = measure(weight, granularity)
    return rule(weight, granularity, statistics)


def refuse(weight: Weight, detected: Detected) -> NotTernaryError:
    """The error that names the first value of a weight which no scale explains."""
    return exact.refuse(weight, detected.statistics, detected.wanted)


#: How many of the four codes of a byte are 0, and how many are 2.
_NEGATIVE, _POSITIVE = (
    (((np.arange(256)[:, None] >> np.arange(0, 8, 2)) & 3) == code).sum(axis=1) for code in (0, 2)
)


def _evidence(weight: Weight, fit: Fit) -> tuple[int, int]:
    """How many values are not zero, and how many signs they have; as far as must be read."""
    enough = EVIDENCE + fit.scale.size
    negative = positive = 0
    for below, above in _packed_signs(fit) if fit.packed else in_pieces(weight, _TENSOR, _signs):
        negative, positive = negative + below, positive + above
        if negative and positive and negative + positive >= enough:
            break
    return negative + positive, (negative > 0) + (positive > 0)


def _signs(piece: Piece) -> tuple[int, int]:
    return int((piece.values < 0).sum()), int((piece.values > 0).sum())


def _packed_signs(fit: Fit) -> Iterator[tuple[int, int]]:
    for packed, _ in fit.packed or ():
        counts = np.bincount(packed.reshape(-1), minlength=256)
        yield int(counts @ _NEGATIVE), int(counts @ _POSITIVE)
