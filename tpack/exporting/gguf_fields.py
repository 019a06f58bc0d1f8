"""The fields of a config.json, checked against what an architecture of GGUF files can express.

A file states its architecture and some numbers, no more. So a field of the config that has another
value, or that tpack does not know, is refused: the file would load, and compute another model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from tpack.dialects.gguf_architectures import ARCHITECTURES, Architecture, named
from tpack.errors import InputError, UnsupportedError

#: Fields that are checked by their own rules.
_CHECKED = frozenset(
    ("architectures", "hidden_act", "rope_scaling", "rope_parameters", "tie_word_embeddings")
)
#: Fields that change nothing of what a model computes from its tokens.
_IRRELEVANT = re.compile(
    r"_.*|model_type|dtype|torch_dtype|torchscript|use_cache|auto_map|return_dict|use_return_dict"
    r"|initializer_(range|factor)|pretraining_tp|chunk_size_feed_forward|original_max_position_"
    r"embeddings|id2label|label2id|num_labels|problem_type|finetuning_task|task_specific_params"
    r"|tokenizer_class|prefix|quantization|quantization_config|compression_config"
    r"|transformers_weights|unsloth_.*|attn_implementation|is_decoder|cache_implementation"
    r"|max_(new_tokens|length)|min_length|do_sample|temperature|top_[kp]|num_beams"
    r"|repetition_penalty|output_(hidden_states|attentions|scores)"
    r"|.*_(dropout|pdrop|version|token_id|token_index)|dropout"
)
#: Values besides null, false, zero and nothing that leave a computation as it is.
_NEUTRAL: Mapping[str, tuple[Any, ...]] = MappingProxyType(
    {
        "activation": ("silu", "swiglu"),
        "attn_scale": (1,),
        "embedding_multiplier": (1,),
        "embedding_scale": (1,),
        "input_bits": (8,),  # of the first BitNet checkpoints
        "is_causal": (True,),
        "logit_scale": (1,),
        "logits_scaling": (1,),
        "partial_rotary_factor": (1,),
        "residual_multiplier": (1,),
        "rope_type": ("default",),
        "scale_emb": (1,),
        "use_rope": (True,),
        "weight_bits": (1, 2),
    }
)
#: Fields of which "off" is something else than what every architecture does.
_ON = ("is_causal", "use_rope")
#: Fields of RoPE that are written.
_ROPE = frozenset(("rope_theta", "rope_type", "type", "factor"))


def architecture_of(config: Mapping[str, Any], stated: Any) -> Architecture:
    """Choose the architecture that computes what a config describes, by its activation.

    Args:
        config: of the plain model.
        stated: the class of transformers that it names.

    Example:
        >>> architecture_of({"hidden_act": "relu2"}, "BitNetForCausalLM").name
        'bitnet-b1.58'

    Raises:
        UnsupportedError: no architecture is of this class, or computes this activation.
        InputError: the config states no activation, and models of its class differ in it.
    """
    rows = named(stated) if isinstance(stated, str) else []
    if not rows:
        classes = dict.fromkeys(row.classes[0] for row in ARCHITECTURES.values() if row.classes)
        raise UnsupportedError(
            f"is a model of {stated!r:.60}, expected {' or '.join(classes)}. Unpack it and use "
            "llama.cpp's own converter."
        )
    known = " or ".join(dict.fromkeys(repr(row.activations[0]) for row in rows))
    act = config.get("hidden_act")
    if act is None and not any("hidden_act" in row.defaults for row in rows):
        raise InputError(
            f"has no hidden_act in its config.json, expected {known}: models of {stated} differ "
            "in it. Add the hidden_act of the original model."
        )
    for row in rows:
        if (row.defaults.get("hidden_act") if act is None else act) in row.activations:
            return row
    raise UnsupportedError(
        f"has hidden_act {act!r:.40} in its config.json, expected {known}, which is what GGUF "
        f"files of {stated} can express: llama.cpp would compute something else."
    )


def check_fields(config: Mapping[str, Any], row: Architecture) -> None:
    """Refuse a config that an architecture cannot express.

    Args:
        config: of the plain model.

    Raises:
        UnsupportedError: a field that is not known to change nothing, with its value.
    """
    said = {*_CHECKED, *row.said, *(field for _, field in row.fields.values())}
    for key, found in config.items():
        if key not in said and not _IRRELEVANT.fullmatch(key):
            _check_neutral(key, found, row)


def check_rope(rope: Mapping[str, Any], row: Architecture) -> None:
    """Refuse fields of RoPE that an architecture cannot express; as ``check_fields``."""
    for key, found in rope.items():
        if key not in _ROPE and key != "original_max_position_embeddings":
            _check_neutral(key, found, row)


def _check_neutral(key: str, found: Any, row: Architecture) -> None:
    off = key not in _ON and not found
    if found is None or off or found in _NEUTRAL.get(key, ()):
        return
    raise UnsupportedError(
        f"has {key} {found!r:.60} in its config.json, which GGUF files of {row.name} cannot "
        f"express: {row.runner} would compute something else. Use llama.cpp's own converter on the "
        "unpacked model; or, if the field changes nothing of what this model computes, take it out."
    )
