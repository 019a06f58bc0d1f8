"""Folders of MLX with 2-bit weights that are ternary: ``weight``, ``scales`` and ``biases``.

MLX computes ``scale · code + bias`` with codes of 0 to 3. With bias = -scale and without the
code 3 that is ``scale · trit``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from tpack.codec import Scale
from tpack.dialects.mlx import PER_WORD, to_t2
from tpack.dtypes import SCALE_DTYPES
from tpack.errors import InputError, UnsupportedError, locate
from tpack.hfconfig import quant_method
from tpack.quantize import widen
from tpack.sources.adapting import Config, Plain, Tensors, read_weights
from tpack.sources.source import PackedTensor, SourceTensor


def recognises(tensors: Plain, config: Config) -> bool:
    """Return whether a folder is from MLX: its config says so, and weights have scales."""
    stated = quant_method(config) == "" and isinstance(config.get("quantization"), Mapping)
    return stated and any(name.endswith(".scales") for name in tensors)


def adapt(tensors: Plain, config: Config) -> tuple[Tensors, list[str]]:
    """Turn packed weights, scales and biases into one tensor each; the rest stays as it is.

    Weights of more than two bits, and those whose biases are not of trits, stay too, and say
    what they are.

    Args:
        tensors: of the whole folder.
        config: its ``config.json``, with a ``quantization``.

    Raises:
        InputError: a tensor is missing or of another shape.
    """
    settings = config.get("quantization")
    if not isinstance(settings, Mapping):
        raise InputError("has no quantization in its config.json.")

    def read(name: str) -> tuple[PackedTensor, set[str]]:
        prefix = name.removesuffix(".weight")
        weight = _weight(tensors, prefix, _group_size(settings, prefix))
        return weight, {f"{prefix}.scales", f"{prefix}.biases"}

    codes = [f"{n.removesuffix('.scales')}.weight" for n in tensors if n.endswith(".scales")]
    return read_weights(tensors, codes, read, _check_rest, "MLX's 2-bit packing")


def _check_rest(tensor: SourceTensor) -> None:
    if tensor.dtype == "uint32" and tensor.name.endswith(".weight"):
        raise InputError("is packed, but has no scales beside it.", tensor=tensor.name)


def _group_size(settings: Mapping[str, Any], prefix: str) -> int:
    """Return how many columns share a scale in a layer; its own settings go first.

    Raises:
        InputError: the config does not quantize the layer.
        UnsupportedError: it is not quantized in two bits.
    """
    own = settings.get(prefix)
    if own is False:
        raise InputError(
            "is packed, but config.json says that it is not. Download the checkpoint again."
        )
    if isinstance(own, Mapping):
        settings = own
    bits, size = settings.get("bits"), settings.get("group_size")
    mode = settings.get("mode", "affine")
    if type(bits) is not int or bits != 2 or mode != "affine":
        raise UnsupportedError(
            f"it has {bits!r:.60} bits in mode {mode!r:.60} by config.json, expected 2 in mode "
            "affine"
        )
    if type(size) is not int or size not in (32, 64, 128):
        raise UnsupportedError(
            f"it has groups of {size!r:.60} columns by config.json, expected 32, 64 or 128"
        )
    return size


def _weight(tensors: Plain, prefix: str, size: int) -> PackedTensor:
    packed, scales, biases = (
        tensors.get(f"{prefix}.{last}") for last in ("weight", "scales", "biases")
    )
    assert scales is not None
    if packed is None or biases is None:
        missing = f"{prefix}.{'weight' if packed is None else 'biases'}"
        raise InputError(
            f"lacks {missing!r} beside {scales.name!r}. Download the checkpoint again."
        )
    if packed.dtype != "uint32" or len(packed.shape) < 2 or 0 in packed.shape:
        raise InputError(f"is {packed.dtype} {packed.shape}, expected a uint32 matrix.")
    shape = (*packed.shape[:-1], PER_WORD * packed.shape[-1])
    wanted = (*shape[:-1], shape[-1] // size)
    for stored in (scales, biases):
        if (
            stored.dtype not in SCALE_DTYPES
            or stored.dtype != scales.dtype
            or stored.shape != wanted
            or shape[-1] % size
        ):
            raise InputError(
                f"is {stored.dtype} {stored.shape}, expected floats {wanted} for a weight of shape "
                f"{shape} in groups of {size}.",
                tensor=stored.name,
            )
    return PackedTensor(
        packed.name,
        scales.dtype,
        shape,
        partial(_rows, packed),
        _ternary_scale(scales, biases),
        scales.dtype,
        Scale.parse(f"group:{size}"),
        packed.nbytes + scales.nbytes + biases.nbytes,
    )


def _ternary_scale(scales: SourceTensor, biases: SourceTensor) -> npt.NDArray[Any]:
    """Return the scales, after a check that the biases are their negatives.

    Raises:
        UnsupportedError: a bias is something else.
        InputError: a scale is not finite.
    """
    raw = scales.read(0, scales.numel).reshape(scales.shape)
    values = widen(raw, scales.dtype)
    if not np.isfinite(values).all():
        raise InputError("has NaN or infinity, expected finite values.", tensor=scales.name)
    others = widen(biases.read(0, biases.numel), biases.dtype).reshape(scales.shape)
    bad = others != -values
    if bad.any():
        index = tuple(int(i) for i in np.unravel_index(int(bad.argmax()), bad.shape))
        raise UnsupportedError(
            f"{biases.name!r} is {others[index]!s} at index {index}, expected "
            f"{-values[index]!s}, the negative scale: the weights are quantized to four values"
        )
    return raw


def _rows(packed: SourceTensor, first: int, last: int) -> npt.NDArray[np.uint8]:
    words = packed.shape[-1]
    assert last <= math.prod(packed.shape[:-1])
    part = packed.read(first * words, last * words).reshape(last - first, words)
    with locate(tensor=packed.name):
        return to_t2(part, first)
