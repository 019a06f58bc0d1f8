"""Folders in the compressed-tensors format with 2-bit weights: ``weight_packed`` and a scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from tpack.codec import Scale
from tpack.dialects.compressed_tensors import PER_WORD, to_t2
from tpack.dtypes import SCALE_DTYPES
from tpack.errors import InputError, UnsupportedError, locate
from tpack.quantize import widen
from tpack.sources.adapting import Config, Plain, Tensors, read_weights
from tpack.sources.source import PackedTensor, SourceTensor

#: Tensors beside a packed weight that belong to forms of quantization which are not ternary.
FOREIGN = {
    "weight_zero_point": "a zero point",
    "weight_g_idx": "an order of its columns (actorder)",
    "weight_global_scale": "a global scale",
}


def adapt(tensors: Plain, config: Config) -> tuple[Tensors, list[str]]:
    """Turn packed weights, scales and shapes into one tensor each; the rest stays as it is.

    Other quantizations than symmetric integers of two bits stay too, and say what they are.

    Args:
        tensors: of the whole folder.
        config: its ``config.json``, with a ``quantization_config``.

    Raises:
        InputError: a scale or shape is missing or does not fit.
    """
    granularities = _granularities(config)
    return read_weights(
        tensors,
        [name for name in tensors if name.rpartition(".")[2] == "weight_packed"],
        lambda name: _weight(tensors, name, granularities),
        partial(_check_rest, tensors),
        "compressed-tensors' 2-bit packing",
    )


@dataclass(frozen=True)
class _Group:
    """The weights that a group of the config describes.

    Attributes:
        bits: of a code; None if the config does not say it.
        granularity: of the scales; None if the group is not of ternary weights.
        reason: why not, as "it …".
    """

    bits: int | None
    granularity: Scale | None
    reason: str = ""


def _granularities(config: Config) -> list[_Group]:
    """Read the groups of the config, with the granularity of their scales.

    Raises:
        InputError: no groups, or malformed ones.
    """
    found = config.get("quantization_config")
    groups = found.get("config_groups") if isinstance(found, Mapping) else None
    if not isinstance(groups, Mapping) or not groups:
        raise InputError("has no config_groups in the quantization_config of its config.json.")
    result = []
    for label, group in groups.items():
        weights = group.get("weights") if isinstance(group, Mapping) else None
        if not isinstance(weights, Mapping):
            raise InputError(
                f"config group {label!r:.60} has no settings of weights, expected their num_bits."
            )
        bits = weights.get("num_bits")
        known = bits if type(bits) is int and 0 < bits <= 32 else None
        try:
            result.append(_Group(known, _granularity(label, weights)))
        except UnsupportedError as error:
            result.append(_Group(known, None, error.message))
    return result


def _granularity(label: str, weights: Mapping[str, Any]) -> Scale:
    expected: tuple[tuple[str, Any, Any], ...] = (
        ("num_bits", 2, None),
        ("type", "int", "int"),
        ("symmetric", True, True),
        ("actorder", None, None),
        ("dynamic", False, False),
    )
    for key, wanted, default in expected:
        value = weights.get(key, default)
        if type(value) is not type(wanted) or value != wanted:
            raise UnsupportedError(
                f"its config group {label!r:.60} has {key} {value!r:.60}, expected {wanted!r}"
            )
    strategy, size = weights.get("strategy"), weights.get("group_size")
    match strategy:
        case "tensor":
            return Scale.parse("tensor")
        case "channel":
            return Scale.parse("row")
        case "group" if type(size) is int and 0 < size < 10**9:
            return Scale.parse(f"group:{size}")
    raise UnsupportedError(
        f"its config group {label!r:.60} has strategy {strategy!r:.60} with group_size "
        f"{size!r:.60}, expected tensor, channel or group"
    )


def _weight(tensors: Plain, name: str, groups: Sequence[_Group]) -> tuple[PackedTensor, set[str]]:
    """Return a weight, and the names of the tensors that it is made of.

    Raises:
        UnsupportedError: it is not of symmetric 2-bit integers.
        InputError: a part of it is missing, or of another shape.
    """
    prefix = name.removesuffix("_packed")
    for last, what in FOREIGN.items():
        other = f"{prefix.removesuffix('weight')}{last}"
        if other in tensors:
            raise UnsupportedError(f"it has {what}, {other!r}")
    packed, stored, sizes = (
        tensors.get(f"{prefix}_{part}") for part in ("packed", "scale", "shape")
    )
    assert packed is not None
    if stored is None or sizes is None:
        missing = f"{prefix}_{'scale' if stored is None else 'shape'}"
        raise InputError(f"has no tensor {missing!r} beside it. Download the checkpoint again.")
    shape, granularities = _shape(packed, sizes, groups)
    granularity = _fitting(granularities, stored, shape)
    raw = stored.read(0, stored.numel)
    if not np.isfinite(widen(raw, stored.dtype)).all():
        raise InputError("has NaN or infinity, expected finite values.", tensor=stored.name)
    weight = PackedTensor(
        prefix,
        stored.dtype,
        shape,
        partial(_rows, packed, shape[1]),
        raw.reshape(granularity.shape(shape, 1)),
        stored.dtype,
        granularity,
        packed.nbytes + stored.nbytes + sizes.nbytes,
    )
    return weight, {packed.name, stored.name, sizes.name}


def _shape(
    packed: SourceTensor, sizes: SourceTensor, groups: Sequence[_Group]
) -> tuple[tuple[int, int], list[Scale]]:
    """Return the shape of a weight of two bits, and the granularities that its scale may have.

    The number of words in a row shows which groups of the config it may belong to.

    Raises:
        UnsupportedError: it belongs to a group of other weights, or may do so.
        InputError: no group has this shape or dtype.
    """
    if sizes.dtype not in ("int64", "int32") or sizes.shape != (2,):
        raise InputError(
            f"is {sizes.dtype} {sizes.shape}, expected two integers.", tensor=sizes.name
        )
    rows, columns = (int(size) for size in sizes.read(0, 2))
    fitting = [
        group
        for group in groups
        if group.bits is None
        or (packed.dtype, packed.shape) == ("int32", (rows, -(-columns * group.bits // 32)))
    ]
    if not fitting and not any(group.granularity for group in groups):
        raise UnsupportedError(groups[0].reason)
    if not fitting or rows < 1 or columns < 1:
        words = (rows, -(-columns // PER_WORD))
        raise InputError(
            f"is {packed.dtype} {packed.shape}, expected int32 {words} for a weight of shape "
            f"{(rows, columns)} in two bits."
        )
    for group in fitting:
        if group.granularity is None:
            raise UnsupportedError(group.reason)
    return (rows, columns), [group.granularity for group in fitting if group.granularity]


def _fitting(granularities: Sequence[Scale], stored: SourceTensor, shape: tuple[int, int]) -> Scale:
    """Return the first granularity of the config whose scales have the shape of the stored one."""
    if stored.dtype not in SCALE_DTYPES:
        raise InputError(
            f"is {stored.dtype}, expected {', '.join(SCALE_DTYPES)}.", tensor=stored.name
        )
    for granularity in granularities:
        wanted = granularity.shape(shape, 1)
        squeezed = wanted[:-1] if wanted[-1] == 1 else wanted  # some writers drop that dim
        if stored.shape in (wanted, squeezed):
            return granularity
    wished = " or ".join(str(g.shape(shape, 1)) for g in granularities)
    raise InputError(
        f"has shape {stored.shape}, expected {wished} by config.json.", tensor=stored.name
    )


def _rows(packed: SourceTensor, columns: int, first: int, last: int) -> npt.NDArray[np.uint8]:
    words = packed.shape[1]
    part = packed.read(first * words, last * words).reshape(last - first, words)
    with locate(tensor=packed.name):
        return to_t2(part, columns, first)


def _check_rest(tensors: Plain, tensor: SourceTensor) -> None:
    """Refuse what belongs to a packed weight that is not there."""
    prefix, _, last = tensor.name.rpartition(".")
    if last in {"weight_shape", "weight_scale", *FOREIGN} and not any(
        f"{prefix}{'.' * bool(prefix)}{codes}" in tensors for codes in ("weight_packed", "weight")
    ):
        raise InputError(
            "belongs to a weight_packed that is missing. Download the checkpoint again.",
            tensor=tensor.name,
        )
