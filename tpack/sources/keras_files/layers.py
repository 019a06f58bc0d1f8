"""The layers that the groups of a file belong to: their names, and what a config says of them.

A file calls its groups after the classes of layers, with a counter. The name of a layer is an
attribute of its group; what it is made of stands in the config of the model, if there is one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from tpack.sources.keras_files.variables import VARIABLES, Layer, mapping, snake_case

#: Groups that hold the layers of a model: now, and until TensorFlow 2.13.
_LAYERS = ("layers", "_layer_checkpoint_dependencies")
_MODELS = ("functional", "sequential", "model")
_RECURRENT = ("lstm", "gru", "simple_rnn")
ATTENTION = ("multi_head_attention", "group_query_attention")
#: Packages whose quantized layers have the variables of Keras's own, and what they add to names.
QUANTIZED = {"larq": "quant_", "qkeras": "q_"}


def layer_of(described: Any) -> Layer:
    """Return what a config says of a layer.

    Args:
        described: ``{"class_name": …, "module": …, "config": …}``.
    """
    described = mapping(described)
    package = str(described.get("module") or "keras").partition(".")[0]
    registered = str(described.get("registered_name") or "").partition(">")[0].lower()
    kind = snake_case(str(described.get("class_name", "")).rpartition(">")[2])
    prefix = QUANTIZED.get(package) or QUANTIZED.get(registered)
    if prefix is None and package == "keras":  # Keras 2 does not write modules
        prefix = next((one for one in QUANTIZED.values() if kind.startswith(one)), None)
    if prefix is not None and kind.removeprefix(prefix) in VARIABLES:
        kind = kind.removeprefix(prefix)
    elif package not in ("keras", "tf_keras"):
        kind = ""
    return Layer(kind, mapping(described.get("config")))


@dataclass(frozen=True)
class Group:
    """A group of a file.

    Attributes:
        parts: the name of what it belongs to, from the model on.
        layer: what is known of it.
        is_layer: whether it is a layer, not a list of layers.
    """

    parts: tuple[str, ...]
    layer: Layer
    is_layer: bool = True

    @property
    def is_model(self) -> bool:
        """Whether its layers lie in a list of their own, which is not part of their names."""
        listed = isinstance((self.layer.config or {}).get("layers"), list)
        return not self.parts or listed or self.layer.kind in _MODELS


def groups(root: Layer, name_of: Callable[[str], str | None]) -> Callable[[str], Group]:
    """Return a function that describes a group by its path.

    Args:
        root: the model.
        name_of: returns the name of the layer whose variables a group has; "" if the group has
            variables without a name, None if it has none.
    """

    @cache
    def described(path: str) -> Group:
        if not path:
            return Group((), root)
        outer, _, key = path.rpartition("/")
        up, name = described(outer), name_of(path)
        if up.is_layer and up.is_model and key in _LAYERS:
            return Group(up.parts, up.layer, is_layer=False)
        if up.is_layer:
            known = _inside(up.layer, key)
            return Group((*up.parts, key), known or Layer(), bool(known) or name is not None)
        known, listed = _listed(up.layer, key, name) if up.is_model else (None, "")
        layer = known or Layer(re.sub(r"_\d+$", "", key))
        part = (name or listed or key).replace("/", ".")
        return Group((*up.parts, part), layer, bool(known) or name is not None)

    return described


def _listed(model: Layer, key: str, name: str | None) -> tuple[Layer | None, str]:
    """Find a layer and its name in the config of its model, by its name, else by its group."""
    by_name, by_group = model.layers
    listed = by_name.get(name or "") or by_group.get(key)
    return (None, "") if listed is None else (layer_of(listed[1]), listed[0])


def _inside(layer: Layer, key: str) -> Layer | None:
    """Return a layer that another one holds as its attribute; None if that is not known."""
    config, kind = layer.config, layer.kind
    if key == "cell" and kind in _RECURRENT:
        return Layer(f"{kind}_cell", config)
    if key == "cell" and kind.startswith("conv_lstm"):
        return Layer("conv_lstm_cell", config)
    if kind in ATTENTION and key.endswith("_dense"):
        return Layer("dense" if key == "output_dense" else "attention_inputs", config)
    if key == "seed_generator":
        return Layer("seed_generator")
    for name in (key, "layer" if key in ("forward_layer", "backward_layer") else key):
        if isinstance(mapping(config).get(name), Mapping):
            return layer_of(mapping(config)[name])
    return None
