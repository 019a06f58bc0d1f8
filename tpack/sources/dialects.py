"""Weights that come packed in a dialect of others: which one it is, and who reads it.

A dialect takes the tensors of a whole folder, so that a scale may lie in another shard than
its weight, and gives back those of the plain model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from tpack.errors import UnsupportedError
from tpack.sources.packed_layouts import packed_groups
from tpack.sources.source import PackedTensor, SourceTensor

Tensors = Mapping[str, SourceTensor | PackedTensor]
Adapt = Callable[[Mapping[str, SourceTensor], Mapping[str, Any]], tuple[Tensors, list[str]]]

#: What a config's quant_method is called → the module that reads it.
METHODS = {
    "bitnet": "tpack.sources.hf_bitnet",
    "compressed-tensors": "tpack.sources.compressed_tensors",
}


def adapt(
    tensors: Mapping[str, SourceTensor], config: Mapping[str, Any] | None
) -> tuple[Tensors, list[str]]:
    """Recognise the dialect of a folder and read it.

    Args:
        tensors: of the whole folder, as stored.
        config: the content of config.json, if there is one.

    Returns:
        The tensors of the plain model, and notes for the report.

    Raises:
        UnsupportedError: a quantization of which the tensors show nothing, or of an unknown
            convention.
        InputError: weights that do not fit the dialect.
    """
    config = config or {}
    quantization = config.get("quantization_config")
    if isinstance(quantization, dict) and "quant_method" in quantization:
        method = quantization["quant_method"]
        if isinstance(method, str) and method in METHODS:
            return _reader(METHODS[method])(tensors, config)
        if packed_groups(tensors):  # each is refused by name, or kept
            return tensors, [f"config.json says that weights are quantized by {method!r:.40}"]
        raise UnsupportedError(
            f"is quantized by {method!r:.40} as its config.json says, expected "
            f"{' or '.join(METHODS)}. Dequantize it first."
        )
    if isinstance(config.get("quantization"), dict) and any(n.endswith(".scales") for n in tensors):
        return _reader("tpack.sources.mlx")(tensors, config)
    return tensors, []


def _reader(module: str) -> Adapt:
    found: Adapt = import_module(module).adapt
    return found
