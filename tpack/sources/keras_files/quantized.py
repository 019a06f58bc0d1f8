"""Layers that Keras quantized: ternary ones are packed, others keep their codes and scales.

Keras divides codes by a scale for each output; with zero points it multiplies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from tpack.codec import Scale
from tpack.dtypes import SCALE_DTYPES
from tpack.errors import UnsupportedError
from tpack.sources.keras_files.variables import Layer
from tpack.sources.levels import Levels, Lie
from tpack.sources.source import PackedTensor, SourceTensor

Array = npt.NDArray[Any]
Parts = Mapping[str, SourceTensor]


def read_quantized(
    name: str, parts: Parts, layer: Layer, column_dims: int
) -> list[SourceTensor | PackedTensor]:
    """Return what takes the place of a quantized variable and its scales.

    Args:
        name: of the variable.
        parts: by what they add to its name: "" the codes, ``scale``, ``zero`` and ``g_idx``.
        layer: that it belongs to.
        column_dims: of the variable.

    Raises:
        InputError: a scale is 0 or not finite.
    """
    system = f"Keras's {layer.mode}"
    try:
        return [_levels(name, parts, layer, column_dims, system).tensor()]
    except UnsupportedError as error:
        reason = error.message
    names = {what: f"{name}_{what}" for what in parts}
    if "g_idx" in parts:
        names["g_idx"] = f"{name.rpartition('.')[0]}.g_idx"
    beside = tuple(names[what] for what in parts if what)
    codes = replace(parts[""], name=name, coded=reason, system=system, beside=beside)
    return [codes, *(replace(parts[what], name=names[what]) for what in parts if what)]


def _levels(name: str, parts: Parts, layer: Layer, column_dims: int, system: str) -> Levels:
    codes, scale, zero = parts[""], parts["scale"], parts.get("zero")
    shape, read = codes.shape, codes.read
    if codes.dtype != "int8" or scale.dtype not in SCALE_DTYPES:
        raise UnsupportedError(f"it is {codes.dtype} with scales in {scale.dtype}")
    if layer.mode == "int4":
        shape, read = _unpacked(codes, layer)
    scales = tuple(size for size in scale.shape if size > 1)
    outputs = tuple(size for size in shape[len(shape) - column_dims :] if size > 1)
    if layer.kind == "embedding" and scales == shape[:1]:
        lie = Lie(Scale.parse("row"), len(shape) - 1)
    elif scales == outputs:
        lie = Lie(Scale.parse("column"), column_dims)
    else:
        raise UnsupportedError(f"it has scales of shape {scale.shape} for its shape {shape}")
    points = None
    if zero is not None:
        if zero.dtype != "int8" or zero.shape != scale.shape:
            raise UnsupportedError(f"it has zero points {zero.dtype} {zero.shape}")
        split = len(shape) - lie.column_dims
        wanted = lie.granularity.shape(shape, split)
        points = zero.read(0, zero.numel).astype(np.int16).reshape(wanted)
    return Levels(
        name,
        shape,
        read,
        scale.read(0, scale.numel),
        scale.dtype,
        scale.dtype,
        lie,
        tuple(part.name for part in parts.values()),
        system,
        sum(part.nbytes for part in parts.values()),
        points,
        divides=zero is None,
    )


def _unpacked(
    codes: SourceTensor, layer: Layer
) -> tuple[tuple[int, ...], Callable[[int, int], Array]]:
    """Return shape and reader of codes of which two stand in a byte, the first in its low half."""
    width = (layer.config or {}).get("output_dim" if layer.kind == "embedding" else "units")
    if type(width) is not int or len(codes.shape) != 2 or codes.shape[1] != -(-width // 2):
        raise UnsupportedError(f"it has codes of shape {codes.shape} for {width!r:.20} outputs")
    packed = codes.shape[1]

    def read(start: int, stop: int) -> Array:
        first, last = start // width, -(-stop // width)
        data = codes.read(first * packed, last * packed).reshape(last - first, packed)
        both = np.stack([data << 4 >> 4, data >> 4], axis=-1)
        flat = both.reshape(last - first, 2 * packed)[:, :width].reshape(-1)
        return flat[start - first * width : stop - first * width]

    return (codes.shape[0], width), read
