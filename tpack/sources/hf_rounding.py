"""What a transformers model does to weights and inputs as it runs, by its ``config.json``.

With ``quant_method`` ``bitnet``, transformers puts a layer that rounds its input to int8 per token
in the place of every ``nn.Linear`` but those that ``modules_to_not_convert`` names, or, without
such a list, the output head. With ``quantization_mode: online`` that layer rounds its weight too:
s = max(mean |w|, 1e-5) of the whole weight in float32, whatever its dtype.

The tensors alone do not show which of them is the weight of an ``nn.Linear``: names do.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from tpack.dtypes import WEIGHT_DTYPES
from tpack.errors import InputError
from tpack.hfconfig import quant_method
from tpack.quantize import Rounding
from tpack.selection import keep_reason
from tpack.sources.source import PackedTensor, SourceTensor

ABSMEAN = Rounding("absmean", "tensor")
#: ``linear_class`` and ``quantization_mode`` of a model that rounds its weights.
ONLINE = ("autobitlinear", "online")
#: Quantifiers in a pattern, and its length: more of them take too long on long names.
MOST_QUANTIFIERS, LONGEST = 3, 200


def rounding(
    tensors: Mapping[str, SourceTensor | PackedTensor],
    aliases: Mapping[str, str],
    config: Mapping[str, Any] | None,
) -> tuple[dict[str, Rounding], frozenset[str]]:
    """Give the weights that the model rounds, and those of layers that round their inputs.

    Args:
        tensors: of the whole folder, as its dialect gives them.
        aliases: other names of some of them.
        config: its ``config.json``.

    Raises:
        InputError: ``modules_to_not_convert`` is no list of names and patterns.
    """
    if not config or quant_method(config) != "bitnet":
        return {}, frozenset()
    settings = config["quantization_config"]
    kept = _patterns(settings.get("modules_to_not_convert"))
    names: dict[str, list[str]] = {name: [name] for name in tensors}
    for alias, name in aliases.items():
        names[name].append(alias)
    layers = {
        name
        for name, tensor in tensors.items()
        if isinstance(tensor, PackedTensor)
        or all(_is_replaced(one, tensor, kept) for one in names[name])
    }
    if (settings.get("linear_class"), settings.get("quantization_mode")) != ONLINE:
        return {}, frozenset(layers)
    # the gate of experts is no nn.Linear in transformers 5
    rounded = {name: ABSMEAN for name in layers if _reason(tensors[name]) != "router"}
    return rounded, frozenset(layers)


def _is_replaced(name: str, tensor: SourceTensor, kept: list[str] | None) -> bool:
    """Return whether a tensor is the weight of a layer that transformers replaces."""
    if len(tensor.shape) != 2 or not name.endswith(".weight") or tensor.dtype not in WEIGHT_DTYPES:
        return False
    reason = _reason(tensor, name)
    if kept is not None and reason == "output head":  # a list stands for the rule of heads
        reason = None
    module = name.removesuffix(".weight")
    return reason in (None, "router") and not any(_fits(one, module) for one in kept or ())


def _reason(tensor: SourceTensor | PackedTensor, name: str = "") -> str | None:
    return keep_reason(name or tensor.name, tensor.dtype, tensor.shape)


def _patterns(found: Any) -> list[str] | None:
    """Return the patterns of ``modules_to_not_convert``; None if the config has none.

    Raises:
        InputError: it holds something else than names and patterns that match in little time.
    """
    if found is None:
        return None
    patterns = found if isinstance(found, list) else [found]
    bad = [one for one in patterns if not (isinstance(one, str) and _is_simple(one))]
    if isinstance(found, list) and not bad:
        return patterns
    raise InputError(
        f"has {(bad or patterns)[0]!r:.80} in modules_to_not_convert of its config.json, expected "
        "a list of names of modules, or simple patterns. Write the names out."
    )


def _is_simple(pattern: str) -> bool:
    """Return whether a text is a regex that no name keeps busy for long."""
    try:
        re.compile(pattern)
    except re.error:
        return False
    few = len(re.findall(r"[*+?{]", pattern)) <= MOST_QUANTIFIERS and len(pattern) <= LONGEST
    return few and not re.search(r"\)[*+?{]", pattern)


def _fits(pattern: str, module: str) -> bool:
    """Return whether a pattern of transformers fits a module: a path, a regex, or an ending.

    Example:
        >>> _fits("model.layers.1", "model.layers.1.mlp.gate"), _fits("fc", "model.fc1")
        (True, False)
    """
    boundary = r"(?:(?<=\.)|(?=\.|$))"
    return module.endswith(pattern) or bool(re.match(rf"(?:{pattern}){boundary}", module))
