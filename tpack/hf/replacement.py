"""Put packed modules into a model on the meta device, before its weights are loaded."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tpack.architectures.names import Names
from tpack.architectures.rounding import rounded_layers
from tpack.container import Checkpoint, TernaryEntry
from tpack.errors import InputError, UnsupportedError, locate
from tpack.hf.direct_reads import read_directly
from tpack.hf.layers import (
    NormedBitLinear,
    PackedConv1D,
    PackedEmbedding,
    ReadableEmbedding,
    ReadableLinear,
    TiedEmbedding,
    TiedHead,
)
from tpack.hf.mixtures import place_stacks, refusal
from tpack.nn import BitLinear, TernaryLinear
from tpack.selection import is_of_experts
from tpack.wording import spell, spell_exclude


@dataclass(frozen=True)
class Placed:
    """What was put into a model.

    Attributes:
        sources: the name of each packed weight in the checkpoint, by its name in the model.
        dropped: the patterns of the conversions that transformers must not apply any more.
    """

    sources: Mapping[str, str]
    dropped: Collection[str]


def place(model: PreTrainedModel, file: Checkpoint, settings: Mapping[str, Any]) -> Placed:
    """Replace the layers whose weights are packed, and check that no weight is missing.

    Args:
        model: the model, all its tensors on the meta device.
        file: the checkpoint that will be loaded into it.
        settings: the ``quantization_config`` of the folder.

    Raises:
        InputError: a weight of the model is not in the checkpoint; a packed weight is not in the
            model, or has another shape there.
        UnsupportedError: a weight is packed, but its layer has no packed form.
    """
    names = Names(model)
    there = _stored(file, names)
    _check_complete(model, there, names)
    bit_linear = _bit_linear(settings)
    rounded = None
    if bit_linear is not None:
        rounded = {*rounded_layers(model, _bitnet(settings).get("modules_to_not_convert"))}
    direct = read_directly(model)
    placed: dict[str, nn.Module] = {}
    sources, dropped = place_stacks(model, file, names)
    handled = set(sources.values())
    for name, entry in file.ternary():
        if name in handled:
            continue
        target, merged = names.target(name)
        with locate(tensor=name):
            if merged and is_of_experts(name):
                raise refusal(model, dict(file.ternary()))
            if merged:
                raise UnsupportedError(
                    f"is merged with others when {type(model).__name__} is loaded, which packed "
                    f"weights cannot be. Convert with {spell_exclude(name)}."
                )
            if target not in names.expected:
                if names.is_other_head(target):
                    continue
                raise InputError(
                    f"has no place in {type(model).__name__}. The config.json belongs to another "
                    "checkpoint: convert the folder again."
                )
            path, _, last = target.rpartition(".")
            if last != "weight":
                if is_of_experts(name):
                    raise refusal(model, dict(file.ternary()))
                raise UnsupportedError(
                    f"is not the weight of a layer in {type(model).__name__}, so it has no packed "
                    f"form. Convert with {spell_exclude(name)}."
                )
            dtype = file.entries[f"{name}_scale"].dtype
            make = bit_linear if rounded is not None and path in rounded else None
            layer = model.get_submodule(path)
            placed[target] = _packed(layer, entry, dtype, make, readable=path in direct)
            model.set_submodule(path, placed[target])
            sources[target] = name
    _check_parts(model, file, sources, dropped)
    _mark_loaded(model, there, placed)
    if rounded is not None:
        _check_rounding(model, settings, rounded)
    _tie(model, placed)
    return Placed(sources, dropped)


# ---- one layer


def _packed(
    module: nn.Module,
    entry: TernaryEntry,
    scale_dtype: str,
    bit_linear: Callable[..., nn.Module] | None,
    *,
    readable: bool,
) -> nn.Module:
    """Return the packed form of a layer, on the meta device.

    Raises:
        InputError: the weight has another shape in the model.
        UnsupportedError: the layer has no packed form.
    """
    weight, bias = module.weight, getattr(module, "bias", None)
    assert isinstance(weight, torch.Tensor)
    if tuple(weight.shape) != entry.shape or entry.split != 1:
        raise InputError(
            f"has shape {entry.shape}, expected {tuple(weight.shape)} by config.json. It belongs "
            "to another checkpoint."
        )
    options: dict[str, Any] = {
        "scale": entry.scale,
        "scale_dtype": getattr(torch, scale_dtype),
        "layout": entry.layout,
        "dtype": weight.dtype,
    }
    if len(entry.shape) == 2:
        rows, columns = entry.shape
        rounds = "BitLinear" in type(module).__name__
        with torch.device("meta"):
            if rounds or _runs_as(module, nn.Linear):
                plain = ReadableLinear if readable else TernaryLinear
                make = bit_linear or (BitLinear if rounds else plain)
                return make(columns, rows, bias is not None, **options)
            if _runs_as(module, nn.Embedding):
                table = ReadableEmbedding if readable else PackedEmbedding
                return table(rows, columns, output=weight.dtype, **options)
            if _runs_as(module, Conv1D):
                return PackedConv1D(rows, columns, **options)
    raise UnsupportedError(
        f"is the weight of a {type(module).__name__}, which has no packed form. Convert with "
        f"{spell(exclude=[...])}."
    )


def _runs_as(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Return whether a layer computes what its base class does: a subclass may scale or round."""
    return isinstance(module, kind) and type(module).forward is kind.forward


def _bit_linear(settings: Mapping[str, Any]) -> Callable[..., nn.Module] | None:
    """Return the class for linear layers that round their inputs; None if they do not."""
    if settings["activations"] != "int8":
        return None
    bitnet = _bitnet(settings)
    if not bitnet.get("use_rms_norm"):
        return BitLinear

    def normed(*sizes: Any, dtype: torch.dtype, **options: Any) -> nn.Module:
        eps = bitnet.get("rms_norm_eps", 1e-6)
        return NormedBitLinear(*sizes, eps=eps, norm_dtype=dtype, dtype=dtype, **options)

    return normed


def _bitnet(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    found = settings["replaced"].get("quantization_config")
    return found if isinstance(found, Mapping) else {}


# ---- the model as a whole


def _stored(file: Checkpoint, names: Names) -> set[str]:
    """Return the names of the plain model's tensors that the checkpoint has."""
    document = file.document
    stored = (*document.kept, *document.tensors)
    return {target for name in stored for target in names.targets(name)}


def _check_complete(model: PreTrainedModel, there: set[str], names: Names) -> None:
    """Refuse a checkpoint that lacks a tensor, which transformers would fill with random values.

    A missing head, one of another task, is left to transformers, which reports it.
    """
    head = model.get_output_embeddings()
    ignored = "|".join(model._keys_to_ignore_on_load_missing or ())  # noqa: SLF001
    whole = model.base_model is model
    for name, _ in model.named_parameters():
        if (
            name not in there
            and name not in model.all_tied_weights_keys
            and (
                whole
                or not names.is_other_head(name)
                or model.get_submodule(name.rpartition(".")[0]) is head
            )
            and not (ignored and re.search(ignored, name))
        ):
            raise InputError("is missing. Convert the model again.", tensor=name)


def _check_parts(
    model: PreTrainedModel,
    file: Checkpoint,
    sources: Mapping[str, str],
    dropped: Collection[str],
) -> None:
    """Check that transformers loads scale and packed rows into the layer of their weight.

    Its rules for names may depend on the end of a name. A part that is not loaded stays zero, and
    packed rows of zeros are trits of -1.

    Args:
        sources: the name of a weight in the checkpoint, by its name in the model.

    Raises:
        InputError: the norm of a packed layer is missing; with its name.
        UnsupportedError: a part of a weight would be renamed otherwise; with the weight's name.
    """
    names = Names(model, dropped)  # made again, for its tensors have changed: layers were replaced
    there = _stored(file, names)
    for path, module in model.named_modules():
        norm = f"{path}.rms_norm.weight"
        if isinstance(module, NormedBitLinear) and norm not in there:
            raise InputError("is missing. Convert the model again.", tensor=norm)
    for target, name in sources.items():
        for part in ("packed", "scale"):
            if (found := names.target(f"{name}_{part}")[0]) != f"{target}_{part}":
                raise UnsupportedError(
                    f"is {target!r} in {type(model).__name__}, but its part in {name}_{part} would "
                    f"be {found!r}. Convert with {spell_exclude(name)}.",
                    tensor=name,
                )


def _mark_loaded(model: PreTrainedModel, there: set[str], placed: Mapping[str, nn.Module]) -> None:
    """Keep transformers from initializing parents of packed layers: it would ask for ``weight``."""
    for path in {target.rpartition(".")[0].rpartition(".")[0] for target in placed}:
        parent = model.get_submodule(path)
        own = [*parent.named_parameters(recurse=False), *parent.named_buffers(recurse=False)]
        if all(f"{path}.{name}" in there for name, _ in own):
            parent._is_hf_initialized = True  # noqa: SLF001


def _check_rounding(model: PreTrainedModel, settings: Mapping[str, Any], rounded: set[str]) -> None:
    """Refuse a float weight that the original model rounds to trits as it runs."""
    bitnet = _bitnet(settings)
    if (
        bitnet.get("linear_class") != "autobitlinear"
        or bitnet.get("quantization_mode") == "offline"
    ):
        return
    for path in sorted(rounded):
        if isinstance(model.get_submodule(path), nn.Linear):
            raise UnsupportedError(
                "is kept as floats, but the model rounds it to trits as it runs. Convert the "
                f"folder again, without {spell(exclude=[...])} for it.",
                tensor=f"{path}.weight",
            )


def _tie(model: PreTrainedModel, placed: Mapping[str, nn.Module]) -> None:
    """Replace heads and embeddings that share a packed table: transformers cannot tie them."""
    tied = {
        head: table
        for head, table in model.all_tied_weights_keys.items()
        if head in placed or table in placed
    }
    for head, table in tied.items():
        del model.all_tied_weights_keys[head]
        if head in placed:
            continue
        module, path = placed[table], head.rpartition(".")[0]
        if not isinstance(module, PackedEmbedding):
            raise UnsupportedError(
                f"is shared with {head!r}, but of packed weights only those of an embedding can be "
                f"shared. Convert with {spell_exclude(table)}.",
                tensor=table,
            )
        user = model.get_submodule(path)
        if _runs_as(user, nn.Embedding):
            model.set_submodule(path, TiedEmbedding(module))
        elif _runs_as(user, nn.Linear):
            model.set_submodule(path, TiedHead(module, user.bias))
        else:
            raise UnsupportedError(
                f"is shared with {head!r}, a {type(user).__name__}, which has no packed form. "
                f"Convert with {spell_exclude(table)}.",
                tensor=table,
            )
    if tied:
        rest = model._tied_weights_keys or {}  # noqa: SLF001
        model._tied_weights_keys = {k: v for k, v in rest.items() if k not in tied}  # noqa: SLF001
