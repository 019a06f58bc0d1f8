"""The ``config.json`` of a folder, and what that of a packed one tells transformers.

A transformers that does not know ``quant_method`` ``tpack`` would warn, and run the model on
random weights. It reads ``transformers_weights``, though, as the name of the file to load, and
refuses a name that is none: from version 4.53 on the folder cannot be loaded without
``import tpack.hf``, through whatever class. Everything else stays as the model has it, so
tokenizers, configs and tools that only read the architecture work as before.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tpack.container import parse_json
from tpack.container.opening import input_errors, open_input
from tpack.errors import FormatError, InputError, locate

#: The ``quant_method`` of a packed folder.
METHOD = "tpack"
#: In place of a file name. It ends the message with which transformers refuses the folder.
REFUSAL = "none, the weights are packed by tpack. Run `import tpack.hf` first"

#: Where a config says how weights are quantized: transformers, MLX, early compressed-tensors.
_QUANTIZATION = ("quantization_config", "quantization", "compression_config")
MAX_CONFIG = 4_000_000


def read_config(folder: Path) -> dict[str, Any] | None:
    """The content of a folder's config.json; None if there is none.

    Raises:
        FormatError: it is not strict JSON, or no object.
    """
    path = folder / "config.json"
    if not path.exists():
        return None
    with locate(file=path):
        with open_input(path) as file, input_errors():
            text = file.read(MAX_CONFIG + 1)
        if len(text) > MAX_CONFIG:
            raise FormatError(f"is longer than {MAX_CONFIG} bytes.", rule="R18")
        data = parse_json(text, "R18", "config")
        if not isinstance(data, dict):
            raise InputError("is no JSON object.")
        return data


def packed_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of the packed folder that is made of a model with this config.

    ``quantization_config`` becomes ours. What it replaces stands in it, so that ``plain_config``
    gives it back, and so does whether linear layers round their inputs (``activations`` is
    ``int8``), which models with ``quant_method`` ``bitnet`` do.

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
    """The inverse of ``packed_config``; the config of a folder that is not packed as it is.

    Example:
        >>> plain_config(packed_config({"model_type": "llama"}))
        {'model_type': 'llama'}

    Raises:
        InputError: what it replaced is no object.
    """
    if not is_packed(config):
        return dict(config)
    ours = ("quantization_config", "transformers_weights")
    replaced = config["quantization_config"].get("replaced", {})
    if not isinstance(replaced, Mapping):
        raise InputError(
            f"has {replaced!r:.40} in its config.json where it says what the plain model had, "
            "expected an object. Convert the model again."
        )
    return {key: value for key, value in config.items() if key not in ours} | dict(replaced)


def quant_method(config: Mapping[str, Any]) -> Any:
    """What a config says of who quantized its weights; empty if it says nothing.

    Example:
        >>> quant_method({"quantization_config": {"quant_method": "bitnet", "bits": 2}})
        'bitnet'
    """
    found = config.get("quantization_config")
    return found.get("quant_method", "") if isinstance(found, Mapping) else ""


def is_packed(config: Mapping[str, Any]) -> bool:
    """Whether a config is that of a packed folder."""
    return bool(quant_method(config) == METHOD)


#: What stands in the model card of a packed folder before that of its source.
CARD_FOLLOWS = "The card of the source follows.\n\n---\n"


def source_card(card: str) -> str:
    """Return the text of the source's card from that of a packed folder; "" if there is none."""
    return card.partition(CARD_FOLLOWS)[2].lstrip("\n")
