"""Quantizers of QKeras and Larq: their layers keep float weights, and round them as they run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tpack.sources.keras_files.variables import Layer
from tpack.text import printable


def quantizer_of(layer: Layer, variable: str) -> str | None:
    """Return the quantizer that the config of a layer names for a variable; None for none."""
    key = f"{variable.removesuffix('_kernel')}_quantizer"
    found: Any = (layer.config or {}).get(key)
    if isinstance(found, Mapping):
        found = found.get("class_name")
    if not found:
        return None
    return printable(str(found).rpartition(">")[2])[:60]
