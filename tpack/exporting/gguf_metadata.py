"""The metadata of a GGUF file: from the GGUF file it came from, or from a config.json."""

from __future__ import annotations

import re
from collections.abc import Mapping, Set as AbstractSet
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tpack.container import Checkpoint, digest, parse_json
from tpack.dialects.gguf_architectures import Architecture
from tpack.dialects.gguf_names import Naming
from tpack.dialects.gguf_values import Value, alignment_of, from_json, value
from tpack.errors import InputError, UnsupportedError
from tpack.exporting.gguf_fields import architecture_of, check_fields, check_rope
from tpack.exporting.gguf_tokenizer import tokenizer_metadata
from tpack.hfconfig import plain_config, read_config

#: Tensors that are no weights: llama.cpp computes them.
_LEFT_OUT = re.compile(r"(.*\.)?(rotary_emb\.inv_freq|attention\.(masked_)?bias)")
_QUANTIZATION_VERSION = 2


@dataclass(frozen=True)
class Model:
    """The description of a model in a GGUF file.

    Attributes:
        metadata: in the order of the file.
        naming: of its tensors.
        kinds: the type that each tensor had in the GGUF file that it came from, by its name there.
        names: name in that file, by name outside.
        tied: whether the head is the embedding; None where nothing says.
        notes: what is missing.
    """

    metadata: dict[str, Value]
    naming: Naming
    kinds: Mapping[str, str] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    tied: bool | None = None

    def name(self, outside: str) -> str:
        """Return the name of a tensor in the file.

        Raises:
            UnsupportedError: the architecture has no such tensor.
        """
        found = self.names.get(outside) or self.naming.inside(outside)
        known = self.naming.known
        # what a GGUF file had is not for us to judge
        if found is None or not (self.names or (known and known.takes(found))):
            raise UnsupportedError(
                f"has no place in GGUF files of {self.naming.stated}: llama.cpp could not use it. "
                "If the model does not need it, take it out and convert again.",
                tensor=outside,
            )
        return found

    def check_head(self, there: AbstractSet[str]) -> None:
        """Refuse a model without its head: llama.cpp would take the embedding for it.

        Args:
            there: names of all its tensors.

        Raises:
            InputError: naming the head.
        """
        embedding, head = map(self.naming.outside, ("token_embd.weight", "output.weight"))
        if self.tied is False and embedding in there and head not in there:
            raise InputError(
                'is missing, and config.json does not say "tie_word_embeddings": true. Add that '
                "if the model has no other head than its embedding.",
                tensor=head,
            )

    def is_left_out(self, outside: str) -> bool:
        """Return whether a tensor does not belong into the file."""
        return outside not in self.names and _LEFT_OUT.fullmatch(outside) is not None


def model_of(checkpoint: Checkpoint) -> Model:
    """Find the description of the model of a checkpoint.

    Raises:
        InputError: the checkpoint has no description of its model, or a malformed one.
        UnsupportedError: an architecture whose metadata tpack does not know.
    """
    carried = checkpoint.metadata.get("gguf")
    if carried is not None:
        if checkpoint.document.metadata.get("gguf") != digest([carried.encode()]):
            raise InputError(
                "has GGUF metadata that does not agree with its digest. Convert the GGUF file "
                "again."
            )
        return _from_gguf(carried)
    folder = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
    config = read_config(folder)
    if config is None:
        raise InputError(
            "has neither the metadata of a GGUF file nor a config.json beside it, expected one of "
            "them. Convert the whole folder of the model."
        )
    return _from_config(plain_config(config), folder)


def _from_gguf(text: str) -> Model:
    data = parse_json(text.encode(), "R7", "GGUF metadata")
    try:
        metadata = {str(key): from_json(rest) for key, *rest in data["metadata"]}
        tensors = [(inside, outside, kind) for inside, outside, kind in data["tensors"]]
        if not all(isinstance(part, str) for row in tensors for part in row):
            raise TypeError(tensors)
    except (TypeError, ValueError, KeyError) as error:
        raise InputError("has malformed GGUF metadata. Convert the GGUF file again.") from error
    alignment_of(metadata)
    return Model(
        metadata,
        Naming.of(metadata),
        {inside: kind for inside, _, kind in tensors},
        {outside: inside for inside, outside, _ in tensors},
    )


# ---- from a Hugging Face config


def _from_config(config: Mapping[str, Any], folder: Path) -> Model:
    architectures = config.get("architectures")
    stated = architectures[0] if isinstance(architectures, list) and architectures else ""
    if not stated:
        raise InputError(
            "names no architectures in its config.json, expected for example ["
            "'LlamaForCausalLM']. Add the class of the model."
        )
    row = architecture_of(config, stated)
    check_fields(config, row)
    metadata = {"general.architecture": value("string", row.name)} | {
        key if key.startswith("general.") else f"{row.name}.{key}": item
        for key, item in _hyperparameters(config, row).items()
    }
    tokenizer, notes = tokenizer_metadata(folder, config)
    metadata |= tokenizer
    tied = config.get("tie_word_embeddings") is True
    return Model(metadata, Naming.of(metadata), notes=tuple(notes), tied=tied)


def _hyperparameters(config: Mapping[str, Any], row: Architecture) -> dict[str, Value]:
    """Return the fields that a file states of a config; keys without the architecture's name."""
    rope = _rope(config)
    scaling = rope.get("rope_type", rope.get("type", "default"))
    if scaling not in ("default", "linear"):
        raise UnsupportedError(
            f"has RoPE scaling {scaling!r:.40}, expected none or linear. Unpack it and use "
            "llama.cpp's own converter."
        )
    check_rope(rope, row)
    stated = {**config, **{key: rope[key] for key in ("rope_theta",) if key in rope}}
    stated = {**row.defaults, **{key: item for key, item in stated.items() if item is not None}}
    heads = _number(stated, "uint32", "num_attention_heads")
    size = _number(stated, "uint32", "hidden_size") // heads
    stated = {"num_key_value_heads": heads, "head_dim": size, **stated}
    found = {
        "general.type": value("string", "model"),
        "general.quantization_version": value("uint32", _QUANTIZATION_VERSION),
    }
    for key, (kind, name) in row.fields.items():
        found[key] = value(kind, _number(stated, kind, name))
    found |= {key: value(*typed) for key, typed in row.constants.items()}
    if scaling == "linear":
        found["rope.scaling.type"] = value("string", "linear")
        found["rope.scaling.factor"] = value("float32", _number(rope, "float32", "factor"))
    return found


def _number(config: Mapping[str, Any], kind: str, key: str) -> float:
    """Return a field as a type of GGUF needs it: a positive integer, or any positive number."""
    found: Any = config.get(key)
    types, most = ((int,), 2**31) if kind == "uint32" else ((int, float), 1e30)
    if type(found) not in types or not 0 < found < most:
        raise InputError(
            f"has {key} {found!r:.40} in its config.json, expected a number above 0. Correct "
            "it by the config of the original model."
        )
    return float(found) if kind == "float32" else int(found)


def _rope(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return how positions are encoded; newer configs have it all under rope_parameters.

    Raises:
        InputError: it is not an object.
        UnsupportedError: two that differ; which one is used depends on transformers' version.
    """
    found = [config[key] for key in ("rope_parameters", "rope_scaling") if config.get(key)]
    if not found:
        return {}
    if found[1:] and found[0] != found[1]:
        raise UnsupportedError(
            "has rope_parameters and other rope_scaling in its config.json, expected one of them. "
            "Take out the one that the model was not trained with."
        )
    if not isinstance(found[0], dict):
        raise InputError(
            f"has RoPE {found[0]!r:.40} in its config.json, expected an object. Correct "
            "it by the config of the original model."
        )
    return found[0]
