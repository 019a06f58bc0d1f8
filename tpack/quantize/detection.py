"""Find out whether a weight is ternary, and quantize it where it is not."""

from __future__ import annotations

from dataclasses import dataclass

from tpack.codec import Scale
from tpack.quantize.exact import Found, find, fit_exact
from tpack.quantize.fitting import Fit
from tpack.quantize.methods import method_named
from tpack.quantize.statistics import Statistics, measure
from tpack.quantize.weight import Weight

_TENSOR = Scale.parse("tensor")


@dataclass(frozen=True)
class Detected:
    """What one pass over a weight found.

    Attributes:
        wanted: the granularity that was asked for; None for any.
        found: at which granularity the weight is ternary; None where it is not.
        fit: where the weight is ternary: ``exact``, or ``mse`` where its scale must be rounded
            (float64); None where it is not, or where a file cannot hold its scale.
        statistics: what quantizers start from.
        by_chance: it is ternary, but so are many weights of models that are not: it is all
            zero, or constant, or has values of one sign, or hardly any that share a scale.
        zero: all values are zero.
    """

    wanted: Scale | None
    found: Found | None
    fit: Fit | None
    statistics: Statistics
    by_chance: bool = False
    zero: bool = False


def detect(weight: Weight, scale: str = "auto") -> Detected:
    """Find out whether a weight is ternary, in one pass.

    Args:
        weight: the values.
        scale: what should share a scale: ``auto`` for the coarsest granularity at which the
            weight is ternary, or ``tensor``, ``row``, ``column`` or ``group:N``.

    Raises:
        InputError: NaN or infinity, with its index.
        UsageError: unknown scale.
    """
    wanted = None if scale == "auto" else Scale.parse(scale)
    statistics = measure(weight, wanted or _TENSOR, wanted)
    found = find(weight, statistics, wanted)
    if found is None:
        return Detected(wanted, None, None, statistics)
    fit = fit_exact(weight, statistics, found)
    return Detected(wanted, found, fit, statistics, found.by_chance, not found.signs)


def quantize(weight: Weight, method: str, scale: str, detected: Detected) -> Fit:
    """Round a weight by a method, also where it is ternary.

    Args:
        method: ``auto`` (absmean), ``absmean``, ``twn`` or ``mse``.
        scale: what shares a scale: ``auto`` (the tensor), ``tensor``, ``row``,
            ``column`` or ``group:N``.
        detected: of this weight.

    Raises:
        InputError: a scale that its dtype cannot hold.
        UsageError: unknown method or scale.
    """
    rule = method_named(method)
    granularity = _TENSOR if scale == "auto" else Scale.parse(scale)
    statistics = detected.statistics
    if statistics.granularity != granularity:
        statistics = measure(weight, granularity, granularity)
    return rule(weight, granularity, statistics)
