"""The two meanings of a scale in Hugging Face's ``bitnet``, and which of them fits a model.

``bitlinear`` computes ``x @ trits / scale + bias``, ``autobitlinear`` (offline) computes
``(x @ trits + bias) * scale``. A model has one of them for all its layers, and a scale is a
number in the model's dtype, so not every checkpoint can be written in either.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from tpack.errors import UnsupportedError
from tpack.quantize import narrow, widen

Array = npt.NDArray[Any]
Convention = Literal["divide", "multiply"]

#: What a config calls them.
SETTINGS: dict[Convention, dict[str, str]] = {
    "divide": {"linear_class": "bitlinear", "quantization_mode": "offline"},
    "multiply": {"linear_class": "autobitlinear", "quantization_mode": "offline"},
}


@dataclass(frozen=True)
class Number:
    """A value, or several, as stored in a dtype (bfloat16 as bits in uint16)."""

    raw: Array
    dtype: str


@dataclass(frozen=True)
class Scaled:
    """The scale of a weight in both conventions.

    Attributes:
        name: of the weight.
        scale: what multiplies the trits.
        divisor: the number that the source divided the trits by, if it did.
        dtype: of the model.
        divide: the number to store for ``divide``; None if none is exact.
        multiply: the number to store for ``multiply``; None if none is exact.
        bias: the bias to store for ``multiply``; None without a bias, or if none is exact.
        has_bias: whether the layer has a bias.
    """

    name: str
    scale: float
    divisor: float | None
    dtype: str
    divide: Number | None
    multiply: Number | None
    bias: Number | None = None
    has_bias: bool = False

    def fits(self, convention: Convention) -> bool:
        """Return whether the weight can be written in a convention."""
        if convention == "divide":
            return self.divide is not None
        return self.multiply is not None and (self.bias is not None or not self.has_bias)


def scaled(
    name: str,
    scale: float,
    divisor: float | None,
    source_dtype: str,
    dtype: str,
    bias: Number | None = None,
) -> Scaled:
    """Compute the numbers that can be stored for a scale.

    Args:
        name: of the weight.
        scale: what multiplies the trits.
        divisor: what the source divided by, if it did; a number in ``source_dtype``.
        source_dtype: of the weight.
        dtype: of the model.
        bias: of the same layer.
    """
    divide: Number | None
    if divisor is not None:
        divide = exact(divisor, dtype) or exact(divisor, source_dtype)
        multiply = exact(1 / divisor, dtype) if _is_power_of_two(divisor) else None
    else:
        divide = exact(1 / scale, dtype) if _is_power_of_two(scale) else None
        multiply = exact(scale, dtype)
    before = None
    if bias is not None and multiply is not None:
        before = _before_scale(bias, scale, dtype)
    return Scaled(name, scale, divisor, dtype, divide, multiply, before, bias is not None)


def choose(weights: Sequence[Scaled]) -> Convention:
    """Choose the convention in which every weight is exact; the source's own, if both are.

    Raises:
        UnsupportedError: no convention is exact for every weight.
    """
    divided = [weight for weight in weights if weight.divisor is not None]
    order: tuple[Convention, Convention] = (
        ("divide", "multiply") if divided else ("multiply", "divide")
    )
    for convention in order:
        if all(weight.fits(convention) for weight in weights):
            return convention
    weight = next(weight for weight in weights if not weight.fits(order[0]))
    if divided:
        raise UnsupportedError(
            f"multiplies by {weight.scale:.9g}, but {divided[0].name!r} divides by "
            f"{divided[0].divisor:.9g}, expected one of the two for all weights of a model. Export "
            "it to gguf, or unpack it.",
            tensor=weight.name,
        )
    if weight.multiply is None:
        raise UnsupportedError(
            f"has the scale {weight.scale:.9g}, which {weight.dtype}, the dtype of the model, "
            'cannot hold exactly. Set "dtype" to "float32" in its config.json, or unpack it.',
            tensor=weight.name,
        )
    raise UnsupportedError(
        f"has a bias that divided by the scale {weight.scale:.9g} is not exact in {weight.dtype}; "
        "the bias would be multiplied by the scale again. Export it to gguf, or unpack it.",
        tensor=weight.name,
    )


def exact(number: float, dtype: str) -> Number | None:
    """Return a number as stored in a dtype; None if that would round it.

    Example:
        >>> exact(0.5, "bfloat16").dtype, exact(0.1, "bfloat16")
        ('bfloat16', None)
    """
    with np.errstate(over="ignore"):  # to inf, which is not the number
        raw = narrow(np.array([number], dtype=np.float32), dtype)
    held = float(widen(raw, dtype)[0])
    return Number(raw, dtype) if held == number and math.isfinite(held) else None


def _is_power_of_two(number: float) -> bool:
    return math.isfinite(number) and abs(math.frexp(number)[0]) == 0.5


def _before_scale(bias: Number, scale: float, dtype: str) -> Number | None:
    """Find the numbers that give the bias when the scale multiplies them; None if not exact."""
    wanted = widen(bias.raw, bias.dtype)
    factor = np.float32(scale)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        near = narrow(wanted / factor, dtype)
        found = widen(near, dtype)
        for step in (-np.inf, np.inf) if dtype == "float32" else ():  # the quotient was rounded
            other = np.nextafter(found, np.float32(step))
            found = np.where(found * factor == wanted, found, other)
        if not np.array_equal(found * factor, wanted):
            return None
    return Number(narrow(found, dtype), dtype)
