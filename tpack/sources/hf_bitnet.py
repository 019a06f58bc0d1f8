"""Folders in Hugging Face's ``bitnet`` packing: uint8 weights with a scale beside each.

What the scale means stands in the config alone. ``linear_class: bitlinear``, the default,
divides by it; ``autobitlinear`` with ``quantization_mode: offline`` multiplies; ``autobitlinear``
``online`` stores plain floats. Nothing fails in a model that takes the wrong one, so nothing is
guessed here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from tpack.codec import Scale, pack
from tpack.dialects.hf_bitnet import STRIPES, stripes, to_t2
from tpack.dtypes import SCALE_DTYPES
from tpack.errors import InputError, NotTernaryError, UnsupportedError, locate
from tpack.quantize import narrow, widen
from tpack.sources.adapting import Config, Plain, Tensors
from tpack.sources.shapes import expected_shape
from tpack.sources.source import PackedTensor, SourceTensor

Array = npt.NDArray[Any]
Convention = Literal["divide", "multiply", "floats"]

#: Beyond this, weights of unit inputs give outputs that no trained layer has.
ABSURD, PLAUSIBLE = 500.0, 5.0


def adapt(tensors: Plain, config: Config) -> tuple[Tensors, list[str]]:
    """Turn packed weights and their scales into one tensor each; the rest stays as it is.

    Args:
        tensors: of the whole folder.
        config: its ``config.json``.

    Raises:
        UnsupportedError: the config does not show what the scales mean.
        InputError: a scale is missing or of another shape; a shape that the config contradicts;
            when they are read, illegal codes.
    """
    convention = _convention(tensors, config)
    if convention == "floats":
        if packed := packed_names(tensors):
            raise InputError(
                "is packed, but quantization_mode is 'online', which stores floats. Correct "
                "config.json: 'offline', if the weights were packed for inference.",
                tensor=packed[0],
            )
        return tensors, ["weights are floats; the model rounds them by absmean as it runs"]
    result: dict[str, SourceTensor | PackedTensor] = {}
    read: list[PackedTensor] = []
    scales = _scales(tensors, convention)
    for name, tensor in tensors.items():
        if name in scales:
            with locate(tensor=name):
                read.append(_weight(tensor, tensors[scales[name]], config, convention))
            result[name] = read[-1]
        elif name not in scales.values():
            result[name] = tensor
    notes = []
    if read:
        how = {"divide": "divides by weight_scale", "multiply": "multiplies by weight_scale"}
        notes.append(f"read {len(read)} weights in bitnet packing; it {how[convention]}")
        notes += _doubts(read, convention)
    if convention == "multiply":
        notes += _scale_biases(result, read)
    return result, notes


def packed_names(tensors: Tensors) -> list[str]:
    """Find tensors that look like weights in this packing: uint8 matrices beside a scale."""
    return [
        name
        for name, tensor in tensors.items()
        if isinstance(tensor, SourceTensor) and _is_packed(tensor) and f"{name}_scale" in tensors
    ]


def _is_packed(tensor: SourceTensor) -> bool:
    return (
        tensor.dtype == "uint8"
        and len(tensor.shape) == 2
        and tensor.name.rpartition(".")[2] == "weight"
    )


def _convention(tensors: Plain, config: Config) -> Convention:
    """Read from the config whether scales multiply or divide.

    Raises:
        UnsupportedError: the config does not state it, or states something unknown.
    """
    found = config.get("quantization_config")
    if not isinstance(found, Mapping):
        names = packed_names(tensors)
        raise UnsupportedError(
            "is packed as Hugging Face's bitnet does it, but no quantization_config shows whether "
            "its scale multiplies or divides. Put the config.json of the model beside the file.",
            tensor=names[0] if names else None,
        )
    linear, mode = found.get("linear_class"), found.get("quantization_mode")
    known: dict[tuple[Any, Any], Convention] = {
        ("bitlinear", "offline"): "divide",
        ("bitlinear", "online"): "divide",  # the class knows no modes
        ("autobitlinear", "offline"): "multiply",
        ("autobitlinear", "online"): "floats",
    }
    key = ("bitlinear" if linear is None else linear, "offline" if mode is None else mode)
    if not all(isinstance(part, str) for part in key) or key not in known:
        raise UnsupportedError(
            f"has linear_class {linear!r:.60} and quantization_mode {mode!r:.60} in its config, "
            "expected bitlinear or autobitlinear, and offline or online. Correct config.json: the "
            "two fields decide whether scales multiply or divide."
        )
    return known[key]


def _scales(tensors: Plain, convention: Convention) -> dict[str, str]:
    """Return the name of the scale of each weight in this packing.

    Raises:
        InputError: a weight without a scale, or a scale without a weight.
    """
    scales = {}
    for name, tensor in tensors.items():
        scale = f"{name}_scale"
        if _is_packed(tensor):
            if scale not in tensors:
                raise InputError(
                    f"has no scale, expected a tensor {scale!r} of shape (1,). Download the "
                    "checkpoint again.",
                    tensor=name,
                )
            scales[name] = scale
        elif name.endswith(".weight_scale"):
            weight = tensors.get(name.removesuffix("_scale"))
            if weight is None or (convention == "divide" and weight.dtype != "uint8"):
                found = "is missing" if weight is None else f"is {weight.dtype}"
                raise InputError(
                    f"is the scale of a weight that {found}, expected uint8. Download the "
                    "checkpoint again.",
                    tensor=name,
                )
            scales[weight.name] = name
    return scales


def _weight(
    tensor: SourceTensor, stored: SourceTensor, config: Config, convention: Convention
) -> PackedTensor:
    """Return a weight with its scale.

    Raises:
        InputError: as ``adapt``.
    """
    if stored.shape not in ((1,), ()) or stored.dtype not in SCALE_DTYPES:
        raise InputError(
            f"is {stored.dtype} {stored.shape}, expected a float of shape (1,).", tensor=stored.name
        )
    raw = stored.read(0, 1).reshape(1)
    number = float(widen(raw, stored.dtype)[0])
    divisor, scale, dtype = None, raw, stored.dtype
    if convention == "divide":
        with np.errstate(divide="ignore", over="ignore"):
            scale, dtype = (1 / widen(raw, stored.dtype)).astype(np.float32), "float32"
        divisor = number
    if not math.isfinite(number) or not math.isfinite(float(widen(scale, dtype)[0])):
        verb = "divide by" if convention == "divide" else "multiply with"
        raise InputError(f"is {number:g}, a scale that nothing can {verb}.", tensor=stored.name)
    shape, rows = _layout(tensor, config)
    return PackedTensor(
        tensor.name,
        stored.dtype,
        shape,
        rows,
        scale,
        dtype,
        Scale.parse("tensor"),
        tensor.nbytes + stored.nbytes,
        divisor,
    )


def _layout(
    tensor: SourceTensor, config: Config
) -> tuple[tuple[int, ...], Callable[[int, int], npt.NDArray[np.uint8]]]:
    """Return the logical shape of a weight, and the function that reads its rows.

    Raises:
        InputError: the config gives another shape.
    """
    wanted = expected_shape(tensor.name, config)
    if tensor.dtype != "uint8" or not tensor.shape:
        shape, rows = tensor.shape, partial(_float_rows, tensor)
    else:
        shape = (STRIPES * tensor.shape[0], *tensor.shape[1:])
        rows = partial(_packed_rows, tensor)
        if wanted is not None and wanted[0] % STRIPES:
            raise InputError(
                f"has {wanted[0]} rows by config.json, which is not a multiple of {STRIPES}: the "
                "rows that fill up the last byte look like any others. Convert the original model."
            )
    if len(shape) != 2 or 0 in shape or wanted not in (None, shape):
        raise InputError(
            f"has shape {tensor.shape} for {shape} weights, expected {wanted or 'a matrix'} by "
            "config.json. The file or its config is of another model."
        )
    return shape, rows


def _packed_rows(tensor: SourceTensor, first: int, last: int) -> npt.NDArray[np.uint8]:
    stored, columns = tensor.shape
    parts = []
    for stripe, start, stop in stripes(first, last, stored):
        part = tensor.read(start * columns, stop * columns).reshape(stop - start, columns)
        with locate(tensor=tensor.name):
            parts.append(to_t2(part, stripe, stripe * stored + start))
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _float_rows(tensor: SourceTensor, first: int, last: int) -> npt.NDArray[np.uint8]:
    """Read rows of an offline weight that was saved as floats: trits, not yet scaled."""
    columns = tensor.shape[1]
    raw = tensor.read(first * columns, last * columns).reshape(last - first, columns)
    try:
        return pack(widen(raw, tensor.dtype))
    except NotTernaryError as error:
        row, column = error.index or (0, 0)
        raise InputError(
            f"holds {error.value:g} at row {first + row}, column {column}, expected -1, 0 or 1 "
            "beside a weight_scale. Is quantization_mode 'online' meant?",
            tensor=tensor.name,
        ) from error


def _scale_biases(
    tensors: dict[str, SourceTensor | PackedTensor], weights: list[PackedTensor]
) -> list[str]:
    """Multiply each bias with the scale of its weight, as ``autobitlinear`` does.

    It computes ``(x @ trits + bias) * scale``; everywhere else a bias is added last.
    """
    notes = []
    for weight in weights:
        name = f"{weight.name.removesuffix('.weight')}.bias"
        bias = tensors.get(name)
        if isinstance(bias, SourceTensor) and bias.dtype in SCALE_DTYPES:
            factor = np.float32(widen(weight.scale, weight.scale_dtype)[0])
            tensors[name] = replace(bias, dtype="float32", read=partial(_product, bias, factor))
            notes.append(f"multiplied {name} with the scale of its weight, as the model does")
    return notes


def _product(bias: SourceTensor, factor: np.float32, start: int, stop: int) -> Array:
    return narrow(widen(bias.read(start, stop), bias.dtype) * factor, "float32")


def _doubts(weights: list[PackedTensor], convention: Convention) -> list[str]:
    """Return a note if the numbers speak against the config.

    A layer of K inputs of unit size gives outputs of about ``scale · sqrt(2K/3)``. Where that
    is hundreds by the convention of the config and about one by the other, the config may be
    that of another model. The numbers of published models leave no room to decide by them.
    """
    declared, opposite = [], []
    for weight in weights:
        scale = abs(float(widen(weight.scale, weight.scale_dtype)[0]))
        if scale:
            size = math.sqrt(weight.shape[-1] * 2 / 3)
            declared.append(scale * size)
            opposite.append(size / scale)
    if not declared or np.median(declared) < ABSURD or np.median(opposite) > PLAUSIBLE:
        return []
    other = "multiply" if convention == "divide" else "divide"
    return [
        f"weights are {np.median(declared):.0f} times as large as usual if scales {convention}, as "
        f"config.json says, and would be usual if they {other}: check its linear_class and "
        "quantization_mode"
    ]
