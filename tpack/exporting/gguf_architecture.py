"""What llama.cpp computes under the name of an architecture, held against a model's config.json.

A GGUF file says its architecture and some numbers; the computation itself is in llama.cpp. So a
field of the config that says something else, or that nobody here knows, is refused: the file
would load, and compute another model.

Source: the graphs and the tables of tensors of llama.cpp (``llama``, ``bitnet``) and of
bitnet.cpp (``bitnet-b1.58``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from tpack.errors import InputError, UnsupportedError

#: What a config calls the activation that an architecture has.
_ACTIVATIONS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"llama": ("silu", "swish"), "bitnet": ("silu", "swish"), "bitnet-b1.58": ("relu2",)}
)

_MATRICES = "attn_q|attn_k|attn_v|attn_output|ffn_gate|ffn_up|ffn_down"
_COMMON = rf"(token_embd|output_norm|blk\.\d+\.(attn_norm|ffn_norm|{_MATRICES}))\.weight"
_SUB_NORMS = r"blk\.\d+\.(attn|ffn)_sub_norm\.weight"
#: The tensors that it reads; it stops at any other. bitnet has no head but the embedding.
_TAKEN = {
    "llama": re.compile(rf"{_COMMON}|output\.weight|blk\.\d+\.({_MATRICES})\.bias"),
    "bitnet": re.compile(rf"{_COMMON}|{_SUB_NORMS}"),
    "bitnet-b1.58": re.compile(rf"{_COMMON}|{_SUB_NORMS}|output\.weight"),
}

#: Architectures that bitnet.cpp has added to its own llama.cpp; no other program may have them.
_OF_BITNET_CPP = ("bitnet-b1.58", "bitnet-25")
#: The types of trits that its llama.cpp has, of those that tpack writes.
_TYPES_OF_BITNET_CPP = ("TQ2_0", "TQ1_0")

#: Fields that are written, or are checked by their own rules.
_SAID = re.compile(
    r"architectures|hidden_act|(hidden|intermediate|vocab)_size|num_hidden_layers"
    r"|num_(attention|key_value)_heads|head_dim|max_position_embeddings|rms_norm_eps"
    r"|rope_(theta|scaling|parameters)|tie_word_embeddings"
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


def architecture(config: Mapping[str, Any], kind: str) -> str:
    """The architecture that runs a model: BitNet with squared ReLU is bitnet.cpp's own.

    Args:
        config: of the plain model.
        kind: ``llama`` or ``bitnet``.

    Example:
        >>> architecture({"hidden_act": "relu2"}, "bitnet"), architecture({}, "llama")
        ('bitnet-b1.58', 'llama')

    Raises:
        UnsupportedError: none that computes this activation.
        InputError: a BitNet without one.
    """
    stated = config.get("hidden_act")
    if stated is None:
        if kind == "llama":
            return kind
        raise InputError(
            "has no hidden_act in its config.json, expected 'silu' or 'relu2': versions of BitNet "
            "differ in it. Add that of the original."
        )
    names = (kind,) if kind == "llama" else ("bitnet", "bitnet-b1.58")
    for name in names:
        if stated in _ACTIVATIONS[name]:
            return name
    known = " or ".join(repr(_ACTIVATIONS[name][0]) for name in names)
    raise UnsupportedError(
        f"has hidden_act {stated!r:.40} in its config.json, expected {known}, which is what "
        f"llama.cpp computes for {kind}. No GGUF file can say another."
    )


def check_fields(config: Mapping[str, Any], name: str) -> None:
    """Refuse a config that an architecture cannot say.

    Args:
        config: of the plain model.
        name: of the architecture.

    Raises:
        UnsupportedError: a field that is not known to change nothing, with its value.
    """
    biased = ("attention_bias", "mlp_bias") if name == "llama" else ()
    for key, found in config.items():
        if key not in biased and not _SAID.fullmatch(key) and not _IRRELEVANT.fullmatch(key):
            _check_neutral(key, found, name)


def check_rope(rope: Mapping[str, Any], name: str) -> None:
    """Refuse fields of RoPE that an architecture cannot say; as ``check_fields``."""
    for key, found in rope.items():
        if key not in _ROPE and key != "original_max_position_embeddings":
            _check_neutral(key, found, name)


def _check_neutral(key: str, found: Any, name: str) -> None:
    off = key not in _ON and not found
    if found is None or off or found in _NEUTRAL.get(key, ()):
        return
    raise UnsupportedError(
        f"has {key} {found!r:.60} in its config.json, which GGUF files of {name} cannot say: "
        "llama.cpp would compute something else. Use its own converter on the unpacked model; or, "
        "if the field changes nothing of what this model computes, take it out."
    )


def takes(name: str, tensor: str) -> bool:
    """Whether llama.cpp reads a tensor of that name for an architecture.

    Example:
        >>> takes("llama", "blk.0.attn_q.bias"), takes("bitnet", "blk.0.attn_q.bias")
        (True, False)
    """
    return _TAKEN[name].fullmatch(tensor) is not None


def types_read(name: str, types: Sequence[str]) -> list[str]:
    """Those of some types of trits that what runs an architecture can read.

    Example:
        >>> types_read("bitnet-b1.58", ["TQ2_0", "Q2_0"]), types_read("llama", ["Q2_0"])
        (['TQ2_0'], ['Q2_0'])
    """
    return [kind for kind in types if name not in _OF_BITNET_CPP or kind in _TYPES_OF_BITNET_CPP]


def about_runner(name: str) -> list[str]:
    """A note on an architecture that llama.cpp itself cannot load."""
    if name not in _OF_BITNET_CPP:
        return []
    return [
        f"open the file with bitnet.cpp: llama.cpp itself has no architecture {name!r}, and "
        "refuses it"
    ]
