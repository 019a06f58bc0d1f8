"""Find the trits and scales of a weight: exactly where it already is ternary, else nearest.

A weight is read in pieces. One that is ternary already is packed, and proved to be, in the pass
that finds its scales. Another is read twice: to fit (scales and thresholds; ``twn`` and ``mse``
take another look) and to encode (packed trits, with the error measured). Reading twice costs
less than holding: what was just read of a file still is in the memory of the system. Nothing
here holds a whole float tensor, except ``mse`` per tensor, which sorts one.

Example:
    >>> import numpy as np
    >>> weight = Weight.of(np.float32([[0.5, 0, -0.5], [-0.5, 0.5, 0]]))
    >>> found = fit(weight)
    >>> found.method, str(found.granularity), found.scale
    ('exact', 'tensor', array([0.5], dtype=float32))
    >>> encode(weight, found).packed
    array([[70],
           [88]], dtype=uint8)
"""

from __future__ import annotations

from tpack.quantize.detection import Detected, detect, quantize
from tpack.quantize.encoding import Encoded, encode, encode_blocks
from tpack.quantize.fitting import Fit
from tpack.quantize.methods import METHODS, method_named
from tpack.quantize.recognition import Recognised, recognise
from tpack.quantize.refusals import refuse
from tpack.quantize.rounding import Rounding
from tpack.quantize.weight import Weight, narrow, widen

__all__ = [
    "METHODS",
    "Detected",
    "Encoded",
    "Fit",
    "Recognised",
    "Rounding",
    "Weight",
    "detect",
    "encode",
    "encode_blocks",
    "fit",
    "narrow",
    "quantize",
    "recognise",
    "refuse",
    "widen",
]


def fit(
    weight: Weight, method: str = "auto", scale: str = "auto", *, exact_only: bool = False
) -> Fit:
    """Choose scales and thresholds for a weight.

    A weight that already is ternary is always fitted exactly, whatever the method: absmean
    of ``{-s, 0, +s}`` would keep the trits and change the scale.

    Args:
        weight: the values.
        method: ``auto`` (absmean), ``absmean``, ``twn`` or ``mse``.
        scale: as ``detect`` and ``quantize`` take it.
        exact_only: refuse a weight that is not ternary.

    Raises:
        NotTernaryError: ``exact_only``, naming the first value that does not fit.
        InputError: NaN or infinity, with its index.
        UsageError: unknown method or scale.
    """
    method_named(method)
    detected = detect(weight, scale)
    if exact_only and (detected.fit is None or detected.fit.method != "exact"):
        raise refuse(weight, detected)
    if detected.fit is not None:
        return detected.fit
    return quantize(weight, method, scale, detected)
