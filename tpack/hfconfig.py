"""Read the ``config.json`` of a folder, and write that of a packed folder for transformers.

A transformers that does not know ``quant_method`` ``tpack`` would warn, and run the model on
random weights. It reads ``transformers_weights``, though, as the name of the file to load, and
refuses a name without such a file: from version 4.53 on no class of transformers loads the folder
without ``import tpack.hf``. Everything else stays as the model has it, so tokenizers, configs and
tools that only read the architecture work as before.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tpack.container import parse_json
from tpack.container.opening import read_whole
from tpack.errors import InputError, UnsupportedError, locate

#: The ``quant_method`` of a packed folder.
METHOD = "tpack"
#: In place of a file name. It ends the message with which transformers refuses the folder.
REFUSAL = "none, the weights are packed by tpack. Run `import tpack.hf` first"

#: Where a config says how weights are quantized: transformers, MLX, early compressed-tensors.
_QUANTIZATION = ("quantization_config", "quantization", "compression_config")
MAX_CONFIG = 4_000_000


def read_config(folder: Path, name: str = "config.json") -> dict[str, Any] | None:
    """Return the content of a folder's config.json, or of another such file; None without it.

    Raises:
        FormatError: the file is too long, or not strict JSON.
        InputError: the file cannot be read, or is not a JSON object.
    """
    path = folder / name
    if not path.exists():
        return None
    with locate(file=path):
        text = read_whole(path, MAX_CONFIG, "R18")
        data = parse_json(text, "R18", "config")
        if not isinstance(data, dict):
            raise InputError(f"is {data!r:.40}, expected a JSON object.")
        return data


def packed_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of a packed folder, made from that of its model.

    ``quantization_config`` becomes ours. Its field ``replaced`` has the keys that it replaces, so
    that ``plain_config`` can put them back. Its field ``activations`` is ``int8`` if linear layers
    round their inputs, as in models with ``quant_method`` ``bitnet``.

    Example:
        >>> packed_config({"model_type": "llama"})["quantization_config"]
        {'quant_method': 'tpack', 'activations': 'float', 'replaced': {}}
    """
    if is_packed(config):
        return {**config, "transformers_weights": REFUSAL}
    replaced = {
        key: config[key] for key in (*_QUANTIZATION, "transformers_weights") if key in config
    }
    plain = {key: value for key, value in config.items() if key not in replaced}
    return plain | {
        "quantization_config": {
            "quant_method": METHOD,
            "activations": "int8" if quant_method(config) == "bitnet" else "float",
            "replaced": replaced,
        },
        "transformers_weights": REFUSAL,
    }


def plain_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Undo ``packed_config``; return the config of a plain folder as it is.

    Example:
        >>> plain_config(packed_config({"model_type": "llama"}))
        {'model_type': 'llama'}

    Raises:
        InputError: the field ``replaced`` is not an object.
    """
    if not is_packed(config):
        return dict(config)
    ours = ("quantization_config", "transformers_weights")
    replaced = config["quantization_config"].get("replaced", {})
    if not isinstance(replaced, Mapping):
        raise InputError(
            f"has {replaced!r:.40} as 'replaced' in the quantization_config of its config.json, "
            "expected an object. Convert the model again."
        )
    return {key: value for key, value in config.items() if key not in ours} | dict(replaced)


def unquantized_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of the plain model of a packed folder, all of whose weights are floats.

    Example:
        >>> source = {"model_type": "llama", "quantization_config": {"quant_method": "bitnet"}}
        >>> unquantized_config(packed_config(source))
        {'model_type': 'llama'}

    Raises:
        InputError: as ``plain_config``.
        UnsupportedError: linear layers normalize their inputs, which plain ones do not.
    """
    plain = plain_config(config)
    if quant_method(plain) == "bitnet" and plain["quantization_config"].get("use_rms_norm"):
        raise UnsupportedError(
            "has layers that normalize their inputs (use_rms_norm in config.json), which plain "
            "layers do not. Unpack it to one file, with a name that ends in .safetensors."
        )
    return {key: value for key, value in plain.items() if key not in _QUANTIZATION}


def rounds_inputs(config: Mapping[str, Any]) -> bool:
    """Return whether the linear layers of a packed folder round their inputs to int8."""
    return is_packed(config) and config["quantization_config"].get("activations") == "int8"


def quant_method(config: Mapping[str, Any]) -> Any:
    """Return the ``quant_method`` of a config; empty if it has none.

    Example:
        >>> quant_method({"quantization_config": {"quant_method": "bitnet", "bits": 2}})
        'bitnet'
    """
    found = config.get("quantization_config")
    return found.get("quant_method", "") if isinstance(found, Mapping) else ""


def is_packed(config: Mapping[str, Any]) -> bool:
    """Return whether a config is that of a packed folder."""
    return bool(quant_method(config) == METHOD)
