"""Find the trits and scales of a weight: exactly where it already is ternary, else nearest.

A weight is read in blocks of rows, twice: once to fit (scales and thresholds), once to
encode (trits, with the error measured). Nothing here holds a whole float tensor, except
``mse`` per tensor, which sorts one.

Example:
    >>> import numpy as np
    >>> weight = Weight.of(np.float32([[0.5, 0, -0.5], [-0.5, 0.5, 0]]))
    >>> found = fit(weight)
    >>> found.method, str(found.granularity), found.scale
    ('exact', 'tensor', array([0.5], dtype=float32))
    >>> encode(weight, found).trits
    array([[ 1,  0, -1],
           [-1,  1,  0]], dtype=int8)
"""

from __future__ import annotations

from tpack.codec import Scale
from tpack.errors import UsageError
from tpack.quantize.encode import Encoded, dequantize_rows, encode, encode_blocks
from tpack.quantize.exact import fit_exact, refuse
from tpack.quantize.fit import Fit
from tpack.quantize.methods import METHODS
from tpack.quantize.weight import Weight, narrow, widen

__all__ = [
    "METHODS",
    "Encoded",
    "Fit",
    "Weight",
    "dequantize_rows",
    "encode",
    "encode_blocks",
    "fit",
    "narrow",
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
        scale: ``auto`` (exact: the coarsest granularity that is exact; otherwise per
            tensor), ``tensor``, ``row`` or ``group:N``.
        exact_only: refuse a weight that is not ternary.

    Raises:
        NotTernaryError: ``exact_only``, naming the first value that does not fit.
        InputError: NaN or infinity, with its index.
        UsageError: unknown method or scale.
    """
    if method != "auto" and method not in METHODS:
        raise UsageError(f"method {method!r} is unknown, expected auto, {', '.join(METHODS)}.")
    wanted = None if scale == "auto" else Scale.parse(scale)
    found, statistics = fit_exact(weight, wanted)
    if exact_only and (found is None or found.method != "exact"):
        raise refuse(weight, statistics, wanted)
    if found is not None:
        return found
    granularity = wanted or Scale.parse("tensor")
    return METHODS["absmean" if method == "auto" else method](weight, granularity)
