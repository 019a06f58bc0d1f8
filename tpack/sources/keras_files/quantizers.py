"""Quantizers of QKeras and Larq: their layers keep float weights, and round them as they run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from tpack.sources.keras_files.variables import Layer, mapping
from tpack.sources.source import SourceTensor
from tpack.text import printable

#: Larq's ternary quantizer, whose rule is applied.
_STE_TERN = "SteTern"


@dataclass(frozen=True)
class Quantizer:
    """A quantizer that the config of a layer names.

    Attributes:
        name: its class.
        config: its options.
    """

    name: str
    config: Mapping[str, Any]

    @property
    def threshold(self) -> float | None:
        """What Larq's quantizer compares weights with; None for others, and for other rules."""
        value = self.config.get("threshold_value")
        fixed = self.config.get("ternary_weight_networks") is False
        known = self.name == _STE_TERN and fixed and isinstance(value, float) and 0 < value < 1e9
        return value if known else None

    def __str__(self) -> str:
        label = printable(self.name)[:60]
        return label if self.threshold is None else f"{label} with threshold {self.threshold:g}"

    def trits(self, tensor: SourceTensor) -> SourceTensor | None:
        """Return what the layer computes with; None for a rule that is not known exactly."""
        if self.threshold is None or tensor.dtype != "float32":
            return None
        limit = np.float32(self.threshold)

        def read(start: int, stop: int) -> npt.NDArray[np.float32]:
            values = tensor.read(start, stop)
            found: npt.NDArray[np.float32] = np.sign(
                np.sign(values + limit) + np.sign(values - limit)
            )
            return found

        return replace(tensor, read=read)


def quantizer_of(layer: Layer, variable: str) -> Quantizer | None:
    """Return the quantizer that the config of a layer names for a variable; None for none."""
    keys = [f"{variable.removesuffix('_kernel')}_quantizer"]
    if variable == "kernel":  # of a depthwise layer
        keys.append("depthwise_quantizer")
    found: Any = next(filter(None, (mapping(layer.config).get(key) for key in keys)), None)
    if not found:
        return None
    if isinstance(found, Mapping):
        name = str(found.get("class_name")).rpartition(">")[2]
        return Quantizer(name, mapping(found.get("config")))
    return Quantizer(str(found), {})
