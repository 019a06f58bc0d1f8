"""Products of activations with packed weights, in both orientations."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from tpack.kernels import reference, selection
from tpack.kernels.arrays import (
    CODES,
    as_float32,
    check_floats,
    check_packed,
    check_scale,
    check_threads,
    from_float32,
)
from tpack.kernels.reference import COLUMN, TENSOR, Array, Floats

Bytes = npt.NDArray[np.uint8]
Definition = Callable[[Floats, npt.NDArray[np.int8], Floats, int, Floats | None], Floats]

MOST_COLUMNS = 1 << 23  # beyond, integer sums could leave 32 bits


def linear(
    x: Array,
    packed: Bytes,
    scale: Array,
    bias: Array | None = None,
    group: int = 0,
    *,
    threads: int | None = None,
) -> Array:
    """Multiply by the weight ``(out_features, in_features)``: ``x @ (scale * trits).T + bias``.

    Args:
        x: ``(tokens, in_features)`` float32, float16 or uint16 (bfloat16 bits); sums are float32.
        packed: ``(out_features, ceil(in_features / 4))``.
        scale: ``(1,)`` for group 0, ``(out_features, 1)`` for group 1, ``(1, in_features)`` for
            group 2, else ``(out_features, groups)``.
        bias: ``(out_features,)``.

    Returns:
        ``(tokens, out_features)``, the dtype of x.
    """
    return _multiply("linear", reference.linear, x, packed, scale, bias, group, threads)


def bit_linear(
    x: Array,
    packed: Bytes,
    scale: Array,
    bias: Array | None = None,
    group: int = 0,
    *,
    threads: int | None = None,
) -> Array:
    """Multiply as ``linear`` does, by int8 activations: the same bits from every variant.

    Each token is quantized by 127 / max|x|, and the sums are of integers. With a scale per column
    they are sums of floats, equal to rounding.

    Source: Ma et al. 2024, "The Era of 1-bit LLMs".
    """
    return _multiply("bit_linear", reference.bit_linear, x, packed, scale, bias, group, threads)


def linear_columns(
    x: Array,
    packed: Bytes,
    columns: int,
    scale: Array,
    bias: Array | None = None,
    group: int = 0,
    *,
    threads: int | None = None,
) -> Array:
    """Multiply by the weight ``(in_features, out_features)``, packed along its columns: ``x @ W``.

    Args:
        x: ``(tokens, in_features)``.
        packed: ``(in_features, ceil(columns / 4))``, where columns is out_features.
        scale: as in ``linear``, where a row is one of the in_features, and a column an output.
    """
    return _multiply(
        "linear_columns", reference.linear_columns, x, packed, scale, bias, group, threads, columns
    )


def bit_linear_columns(
    x: Array,
    packed: Bytes,
    columns: int,
    scale: Array,
    bias: Array | None = None,
    *,
    threads: int | None = None,
) -> Array:
    """Multiply as ``linear_columns`` does, by int8 activations: the same bits from every variant.

    Args:
        scale: ``(1,)``, or ``(1, columns)``: one for each output.
    """

    def definition(
        x: Floats, trits: npt.NDArray[np.int8], scale: Floats, _group: int, bias: Floats | None
    ) -> Floats:
        return reference.bit_linear_columns(x, trits, scale, bias)

    group = TENSOR if scale.ndim == 1 else COLUMN
    return _multiply(
        "bit_linear_columns", definition, x, packed, scale, bias, group, threads, columns
    )


def _multiply(
    name: str,
    definition: Definition,
    x: Array,
    packed: Bytes,
    scale: Array,
    bias: Array | None,
    group: int,
    threads: int | None,
    columns: int | None = None,
) -> Array:
    """Check, then call the extension's function ``name`` or its definition in numpy.

    columns is None where a packed row is an output; otherwise it is an input, and holds so many.
    """
    x, threads = check_floats(x, "x"), check_threads(threads)
    if x.ndim != 2:
        raise ValueError(f"x: shape {x.shape}, expected (tokens, in_features).")
    tokens, inputs = x.shape
    packed = check_packed(packed, inputs if columns is None else columns)
    rows = len(packed)
    if columns is not None and rows != inputs:
        raise ValueError(
            f"x: {inputs} features, expected {rows} for packed of shape {packed.shape}."
        )
    outputs, width = (rows, inputs) if columns is None else (columns, columns)
    if inputs > MOST_COLUMNS and name.startswith("bit_"):
        raise ValueError(f"x: {inputs} features, expected at most {MOST_COLUMNS}.")
    scale = check_scale(scale, rows, width, group)
    if bias is not None:
        bias = check_floats(bias, "bias")
        if bias.shape != (outputs,):
            raise ValueError(f"bias: shape {bias.shape}, expected ({outputs},).")
    if not (native := selection.native):
        trits = reference.unpack(packed, width)[0]
        added = None if bias is None else as_float32(bias)
        return from_float32(
            definition(as_float32(x), trits, as_float32(scale), group, added), x.dtype
        )
    out = np.empty((tokens, outputs), x.dtype)
    getattr(native, name)(
        x.ctypes.data, CODES[x.dtype], tokens,
        packed.ctypes.data, rows, width,
        scale.ctypes.data, CODES[scale.dtype], group,
        0 if bias is None else bias.ctypes.data, 0 if bias is None else CODES[bias.dtype],
        out.ctypes.data, threads,
    )  # fmt: skip
    return out
