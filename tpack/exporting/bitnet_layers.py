"""Which weights transformers loads in its bitnet packing: those of linear layers, one by one.

It replaces each ``nn.Linear`` of a model by a packed layer and loads the file into that. Any other
layer stays as it was, and does not take packed bytes.

Source: ``replace_with_bitnet_linear`` and the conversion mappings of the transformers library.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from tpack.container import TernaryEntry
from tpack.dialects.hf_bitnet import STRIPES
from tpack.errors import UnsupportedError
from tpack.layerdef.from_names import is_embedding
from tpack.wording import spell, spell_exclude

#: One of several experts, which are merged into one tensor.
_EXPERT = re.compile(r"(?:^|.*\.)experts\.[0-9]+\..*")
#: What chooses experts: no linear layer, but a class of its own.
_ROUTER = re.compile(r"(?:^|.*\.)(?:gate|router(?:\.\w+)?|wg)\.weight")
#: Layers of models that have transformers' ``Conv1D``.
_CONV1D = re.compile(r"(?:^|.*\.)(?:c_attn|q_attn|c_proj|c_fc)\.weight")
_CONV1D_MODELS = ("clvp", "clvp_decoder", "decision_transformer", "gpt2", "imagegpt", "openai-gpt")
#: Layers that transformers keeps in float32.
_FLOAT32 = re.compile(r"(?:^|.*\.)wo\.weight")
_FLOAT32_MODELS = ("mt5", "pop2piano", "t5", "udop", "umt5")
#: Heads that may share the table of an embedding, where they are not called ``lm_head``.
_HEADS = {
    "biogpt": "output_projection",
    "distilbert": "vocab_projector",
    "flaubert": "pred_layer.proj",
    "fsmt": "decoder.output_projection",
    "git": "output",
    "gpt_neox_japanese": "embed_out",
    "modernbert": "decoder",
    "modernbert-decoder": "decoder",
    "moonshine": "proj_out",
    "rwkv": "head",
    "trocr": "output_projection",
    "whisper": "proj_out",
    "xlm": "pred_layer.proj",
    "xlnet": "lm_loss",
}


def tied_heads(config: Mapping[str, Any], names: Collection[str]) -> list[str]:
    """Find modules that may be a head without its own tensor; transformers must not pack them.

    Args:
        config: of the model.
        names: of its tensors.
    """
    if config.get("tie_word_embeddings") is False:
        return []
    heads = ["lm_head"]
    if any(name.startswith("lm_head.dense.") for name in names):  # RoBERTa and its like
        heads = ["lm_head.decoder"]
    if (named := config.get("model_type")) in _HEADS:
        heads.append(_HEADS[named])
    if any("predictions." in name for name in names):  # BERT and its like
        heads.append("predictions.decoder")
    return heads


def check_layer(
    name: str, entry: TernaryEntry, config: Mapping[str, Any], *, experts: bool
) -> None:
    """Refuse a weight that the packing has no form for, or transformers no packed layer.

    Args:
        name: of the weight.
        entry: what it is.
        config: of its model.
        experts: whether the model has some.

    Raises:
        UnsupportedError: saying what to do.
    """
    if is_embedding(name):
        raise UnsupportedError(
            "is a packed embedding, expected floats. Convert the model again with "
            f"{spell_exclude(name)}, or unpack it."
        )
    if not name.endswith(".weight") or len(entry.shape) != 2 or entry.split != 1:
        raise UnsupportedError(
            f"has shape {entry.shape}, expected the weight of a linear layer. Convert the model "
            f"again with {spell_exclude(name)}."
        )
    if found := _other_layer(name, config.get("model_type"), experts=experts):
        what, pattern = found
        raise UnsupportedError(
            f"{what}, expected a linear layer of its own. Convert the model again with "
            f"{spell(exclude=[pattern])}, or unpack it."
        )
    if entry.scale != "tensor":
        raise UnsupportedError(
            f"has scales per {entry.scale}, expected one for the tensor. Export it to gguf, or "
            f"convert the model again with {spell(scale='tensor')}, which rounds it."
        )
    if entry.rows % STRIPES:
        raise UnsupportedError(
            f"has {entry.rows} rows, expected a multiple of {STRIPES}: transformers loads no "
            f"other. Convert the model again with {spell_exclude(name)}."
        )


def has_experts(names: Mapping[str, Any]) -> bool:
    """Return whether some tensor of a model belongs to an expert."""
    return any(".experts." in name or name.startswith("experts.") for name in names)


def _other_layer(name: str, model: Any, *, experts: bool) -> tuple[str, str] | None:
    """Return why a weight is not of a linear layer, and a pattern for all like it."""
    if _EXPERT.fullmatch(name):
        return "is one of several experts, which transformers merges", "*experts.*"
    if experts and _ROUTER.fullmatch(name):
        return "chooses experts, and is not a linear layer in transformers", name
    if model in _CONV1D_MODELS and _CONV1D.fullmatch(name):
        return f"is a Conv1D in {model}", name
    if model in _FLOAT32_MODELS and _FLOAT32.fullmatch(name):
        return f"is kept in float32 by transformers in {model}", "*.wo.weight"
    return None
