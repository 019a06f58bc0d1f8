"""Files as Keras 2 wrote them, and Keras 3 does under ``.h5``: with the names of variables."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import cache

from tpack.errors import InputError, locate
from tpack.sources.archive import AGAIN
from tpack.sources.keras_files.hdf5 import Hdf5
from tpack.sources.keras_files.layers import ATTENTION, layer_of
from tpack.sources.keras_files.naming import Found
from tpack.sources.keras_files.variables import VARIABLES, Layer, Variable, mapping
from tpack.sources.source import SourceTensor

_WEIGHTS = "model_weights"
_ROWS = {row.name: row for rows in reversed(VARIABLES.values()) for row in rows}
#: Variables of the model itself, not of a layer.
_ROOT = "top_level_model_weights"
#: What TensorFlow added to the name of a variable.
_NUMBER = ":0"


def read_legacy(file: Hdf5) -> Found:
    """Name the variables of a file with ``weight_names``.

    Raises:
        InputError: a variable that a layer names is not there.
    """
    root = _WEIGHTS if file.has(_WEIGHTS) else ""
    model = Layer()
    with suppress(ValueError, RecursionError):
        model = layer_of(json.loads(file.text("", "model_config") or "{}"))
    found, layer_at = Found(), _finder(model)
    for name in dict.fromkeys((*file.texts(root, "layer_names"), _ROOT)):
        group = f"{root}/{name}".lstrip("/")
        if not file.has(group):
            continue
        held: dict[tuple[str, ...], dict[str, SourceTensor]] = {}
        for path in file.texts(group, "weight_names"):
            tensor = file.datasets.get(f"{group}/{path}")
            if tensor is None:
                raise InputError(
                    f"is not in the file, but its layer names it. {AGAIN}", tensor=path[:200]
                )
            *inner, last = path.removesuffix(_NUMBER).replace(":", "_").split("/")
            if name in inner:  # Keras 3 writes the name of the model before it
                inner = inner[inner.index(name) + 1 :]
            own = () if name == _ROOT else (name,)
            held.setdefault((*own, *inner), {})[last] = tensor
        for parts, variables in held.items():
            with locate(tensor=".".join(parts)):
                _add(found, parts, variables, layer_at(parts))
    found.say()
    return found


def _add(
    found: Found, parts: tuple[str, ...], variables: dict[str, SourceTensor], layer: Layer
) -> None:
    scales = {name: name.removesuffix("_scale") for name in variables if name.endswith("_scale")}
    of_codes = [name for name in scales.values() if name in variables]
    taken = set()
    for name in of_codes:
        held = {what: f"{name}_{what}" for what in ("scale", "zero")} | {"g_idx": "g_idx"}
        stored = {what: variables[n] for what, n in held.items() if n in variables}
        taken |= {name, *(held[what] for what in stored)}
        stored = {"": variables[name]} | stored
        if not layer.mode and variables[name].dtype == "int8":
            found.opaque.append(".".join(parts))
            for what, tensor in stored.items():
                full = ".".join((*parts, held.get(what, name)))
                found.add(replace(tensor, name=full))
                found.floats[full] = "quantized by Keras"
        else:
            found.add_variable(".".join((*parts, name)), stored, _row(layer, name), layer)
    for name, tensor in variables.items():
        if name not in taken:
            found.add_variable(".".join((*parts, name)), {"": tensor}, _row(layer, name), layer)


def _row(layer: Layer, name: str) -> Variable:
    """Return what is known of a variable by its name, first of its layer."""
    own = {row.name: row for row in VARIABLES.get(layer.kind, ())}
    return own.get(name) or _ROWS.get(name) or Variable(name, "")


def _finder(model: Layer) -> Callable[[tuple[str, ...]], Layer]:
    """Return a function that finds the innermost layer that a config describes on a path."""

    @cache
    def found(parts: tuple[str, ...]) -> Layer:
        if not parts:
            return model
        layer, part = found(parts[:-1]), parts[-1]
        inside = mapping(mapping(layer.config).get("layer"))
        if mapping(inside.get("config")).get("name") == part:
            return layer_of(inside)
        if part in layer.layers[0]:
            return layer_of(layer.layers[0][part][1])
        if layer.kind in ATTENTION and part in ("query", "key", "value"):
            return Layer("attention_inputs", layer.config)
        return layer

    return found
