"""Bytes with a scale beside them: trits are read, with the scale; other codes are not ternary.

One rule for int8 and uint8. The scale may be a number, or have one value for each row, each
column, or each block of a row; it multiplies, unless its name suggests a division, and then
only the user can know.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from tpack.choices import MEANINGS, QUANTIZERS, Means
from tpack.dtypes import BY_NAME, SCALE_DTYPES
from tpack.errors import InputError, TpackError, UnsupportedError
from tpack.quantize import widen
from tpack.quantize.weight import BLOCK
from tpack.sources.packed_layouts import UNKNOWN, PackedGroup, words
from tpack.sources.packed_systems import BITNET, PLAIN_BYTES
from tpack.sources.source import PackedTensor, SourceTensor
from tpack.wording import spell, spell_exclude

Tensors = Mapping[str, SourceTensor | PackedTensor]
#: The system of a weight that would be read if its codes were trits.
_BYTES = "a system of 8-bit integers with scales"

_SCALES = {"scale", "scales", "wscale", "wscales", "divisor", "divisors"}
_ZEROS = {"zero", "zeros", "zp", "zps", "zeropoint", "zeropoints"}
_OF_ACTIVATIONS = {"input", "output", "in", "out", "activation", "act", "token"}
_OPEN = {"inv", "inverse", "reciprocal", "divisor", "divisors"}


@dataclass(frozen=True)
class ReadGroup:
    """A weight that was read from the tensors of another system.

    Attributes:
        weight: what takes the place of the codes.
        taken: the names of the tensors that it was read from, the codes first.
        warning: for the report, shown also where notes are not; empty for none.
    """

    weight: SourceTensor | PackedTensor
    taken: tuple[str, ...]
    warning: str = ""

    @property
    def note(self) -> str:
        """What was done, for the report."""
        return f"took {' and '.join(self.taken[1:])} as the scale of {self.taken[0]}"


def read_group(
    group: PackedGroup, tensors: Tensors, means: Means | None = None, *, asked: bool = False
) -> ReadGroup | PackedGroup:
    """Read a weight whose codes are trits.

    Args:
        tensors: of the whole source.
        means: what the user says that scales do.
        asked: read codes that are not trits too, as floats, for they are to be quantized.

    Returns:
        The weight; the group, perhaps with a better reason, if its codes are not trits or
        cannot be known to be.

    Raises:
        UnsupportedError: trits, but whether the scale multiplies or divides cannot be known.
        InputError: a scale by which nothing can be divided.
    """
    parts = _parts(group, tensors)
    found = None if parts is None else _scaled(*parts, means, asked=asked)
    if isinstance(found, ReadGroup):
        return found
    if group.system == BITNET and means is not None:
        return _bitnet(group, tensors, means) or group
    if isinstance(found, str) and group.system == UNKNOWN:
        advice = group.advice
        if "holds" in found:
            advice = f"{spell(quantize=tuple(QUANTIZERS))} rounds the values that they stand for."
        return replace(group, system=_BYTES, reason=found, advice=advice)
    return group


def readings(group: PackedGroup, tensors: Tensors) -> Iterator[ReadGroup]:
    """Yield every way to read a weight; the one that needs no decision of the user comes first."""
    for means in (None, *MEANINGS):
        with suppress(TpackError):
            found = read_group(group, tensors, means, asked=True)
            if isinstance(found, ReadGroup):
                yield found


def _scaled(
    codes: SourceTensor,
    scale: SourceTensor,
    zero: SourceTensor | None,
    means: Means | None,
    *,
    asked: bool,
) -> ReadGroup | str:
    """Read a weight of codes and a scale; or return why it is not one: completes "tensor X …".

    Raises:
        UnsupportedError, InputError: as ``read_group``.
    """
    name = f"is {codes.dtype} with the scale {scale.name!r}"
    factor = _factor(scale, codes.shape)
    if factor is None:
        return (
            f"{name}, {scale.dtype} of shape {scale.shape}, expected a float for all or one for "
            f"each row, column, or block of a row of {codes.shape}"
        )
    offset, warning, coded = _offset(codes, zero), "", ""
    if offset is None:
        offset, warning = _offset_of_trits(codes, scale) if zero is None else (None, "")
        if offset is None:
            return f"{name}, and its zero point is not one number"
    elif not _are_trits(codes, offset):
        if (codes.dtype, offset) not in (("int8", 0), ("uint8", 128)):
            return f"{name}, and its values are not ternary"
        if not asked:
            return f"{name}, and holds more values than three"
        coded = name.removeprefix("is ")
    if means is None and _OPEN.intersection(words(scale.name.rpartition(".")[2])):
        raise UnsupportedError(
            f"holds trits, but whether its scale {scale.name!r} multiplies or divides cannot be "
            f"known from the name. Say which with {spell(scale_means=tuple(MEANINGS))}, or keep "
            f"both as they are with {spell_exclude(codes.name)}.",
            tensor=codes.name,
        )
    if means == "divide":
        factor = _reciprocal(factor, scale)
    if len(scale.shape) == 1 and scale.numel > 1 and codes.shape[0] == codes.shape[-1]:
        warning = warning or (
            f"{scale.name} has as many values as {codes.name} has rows and columns: it was taken "
            f"as one scale per row. If it is one per column, store it as (1, {codes.shape[-1]})."
        )
    weight = replace(codes, dtype="int8", read=_shifted(codes, offset), factor=factor, coded=coded)
    taken = (codes.name, scale.name, *((zero.name,) if zero is not None else ()))
    return ReadGroup(weight, taken, warning)


def _parts(
    group: PackedGroup, tensors: Tensors
) -> tuple[SourceTensor, SourceTensor, SourceTensor | None] | None:
    """Return codes, scale and zero points; None if the weight has other parts."""
    parts = [t for name in group.parts if isinstance(t := tensors[name], SourceTensor)]
    codes, scales, zeros = parts[0], [], []
    if group.system not in (UNKNOWN, BITNET, *PLAIN_BYTES):
        return None
    if codes.dtype not in ("int8", "uint8") or len(codes.shape) < 2:
        return None
    for part in parts[1:]:
        found = set(words(part.name.rpartition(".")[2]))
        if found & _OF_ACTIVATIONS and not found & {"weight", "w"}:
            continue
        if found & _SCALES:
            scales.append(part)
        elif found & _ZEROS:
            zeros.append(part)
        else:
            return None
    if len(scales) != 1 or len(zeros) > 1:
        return None
    return codes, scales[0], zeros[0] if zeros else None


# ---- scales


def _factor(scale: SourceTensor, shape: tuple[int, ...]) -> npt.NDArray[np.float32] | None:
    """Return a scale with as many dims as its weight, each 1, the weight's size or a divisor."""
    if scale.dtype not in (*SCALE_DTYPES, "float64") or not scale.numel:
        return None
    if scale.numel == 1:
        wanted: tuple[int, ...] = (1,) * len(shape)
    elif len(scale.shape) == len(shape):
        wanted = scale.shape
    elif scale.shape in (shape[:1], shape[:-1]):
        wanted = (*scale.shape, *(1,) * (len(shape) - len(scale.shape)))
    elif scale.shape == shape[-1:]:
        wanted = (*(1,) * (len(shape) - 1), shape[-1])
    else:
        return None
    if any(own % count for own, count in zip(shape, wanted, strict=True)):
        return None
    stored = widen(scale.read(0, scale.numel), scale.dtype)
    values = stored.astype(np.float32)
    if not np.array_equal(values, stored, equal_nan=True):
        return None
    return values.reshape(wanted)


def _reciprocal(factor: npt.NDArray[np.float32], scale: SourceTensor) -> npt.NDArray[np.float32]:
    with np.errstate(divide="ignore", over="ignore"):
        result = (1 / factor.astype(np.float64)).astype(np.float32)
    if not np.isfinite(result).all():
        raise InputError("has values that nothing can be divided by.", tensor=scale.name)
    return result


def nameless_scales(codes: SourceTensor | PackedTensor, tensors: Tensors) -> list[str]:
    """Find floats beside int8 codes with the shape of a scale, but not the name of one.

    Args:
        tensors: of the whole source.
    """
    module, rows = codes.name.rpartition(".")[0], codes.shape[0]
    return [
        name
        for name, tensor in tensors.items()
        if name.rpartition(".")[0] == module
        and name != codes.name
        and BY_NAME[tensor.dtype].is_float
        and "bias" not in name.rpartition(".")[2]
        and (tensor.numel == 1 or (tensor.shape[0] == rows and len(tensor.shape) <= 2))
    ]


# ---- codes


def _offset(codes: SourceTensor, zero: SourceTensor | None) -> int | None:
    """Return the code of zero, if known: one zero point for all, or int8 without zero points."""
    if zero is None:
        return 0 if codes.dtype == "int8" else None
    if zero.dtype.startswith(("complex", "float8")) or not zero.numel:
        return None
    values = np.unique(widen(zero.read(0, zero.numel), zero.dtype))
    return (
        int(values[0]) if len(values) == 1 and -128 <= values[0] == int(values[0]) < 256 else None
    )


def _offset_of_trits(codes: SourceTensor, scale: SourceTensor) -> tuple[int | None, str]:
    """Find the code of zero in unsigned trits without a zero point, by their three values.

    0, 1 and 2 are trits plus one. 0, 1 and 255 are the bytes of int8 trits.
    """
    if codes.dtype != "uint8":
        return None, ""
    seen = np.zeros(256, dtype=bool)
    for piece in _pieces(codes):
        seen |= np.bincount(piece, minlength=256) > 0
        if seen[3:255].any():
            return None, ""
    values = np.flatnonzero(seen).tolist()
    if values == [0, 1, 255]:
        return 256, ""
    if values == [0, 1, 2]:
        return 1, (
            f"{codes.name} holds 0, 1 and 2 with the scale {scale.name} and no zero point: read as "
            "-1, 0 and 1 times the scale"
        )
    return None, ""


def _are_trits(codes: SourceTensor, offset: int) -> bool:
    """Return whether codes minus their offset have one magnitude: trits, or trits times 127."""
    magnitude = 0
    for piece in _pieces(codes):
        sizes = np.abs(piece.astype(np.int16) - np.int16(offset))
        magnitude = magnitude or int(sizes.max())
        if magnitude > 127 or ((sizes != 0) & (sizes != magnitude)).any():
            return False
    return True


def _shifted(codes: SourceTensor, offset: int) -> Callable[[int, int], npt.NDArray[np.int8]]:
    def read(start: int, stop: int) -> npt.NDArray[np.int8]:
        stored = codes.read(start, stop).astype(np.int16) - np.int16(offset % 256)
        return stored.astype(np.int8)

    return read


def _pieces(codes: SourceTensor) -> Iterator[npt.NDArray[Any]]:
    for start in range(0, codes.numel, BLOCK):
        yield codes.read(start, min(start + BLOCK, codes.numel))


# ---- Hugging Face's bitnet without a config, where the user states what the scale means


def _bitnet(group: PackedGroup, tensors: Tensors, means: Means) -> ReadGroup | None:
    from tpack.sources import hf_bitnet

    codes, scale = (tensors[name] for name in (group.codes, f"{group.codes}_scale"))
    if not isinstance(codes, SourceTensor) or not isinstance(scale, SourceTensor):
        return None
    if len(codes.shape) != 2 or math.prod(scale.shape) != 1:
        return None
    linear = {"divide": "bitlinear", "multiply": "autobitlinear"}[means]
    config = {"linear_class": linear, "quantization_mode": "offline"}
    found, _ = hf_bitnet.adapt(
        {codes.name: codes, scale.name: scale}, {"quantization_config": config}
    )
    return ReadGroup(found[codes.name], (codes.name, scale.name))
