"""Which tensors of a checkpoint are weights to pack, and why the others are kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from tpack.dtypes import WEIGHT_DTYPES
from tpack.errors import UnsupportedError
from tpack.layerdef.mirror import EMBEDDING_WORDS
from tpack.layerdef.params import MAX_RANK

Shape = Sequence[int]

#: Modules near the root whose weight is an output head.
HEADS = (
    *("lm_head", "output", "head", "classifier", "embed_out", "score", "output_projection"),
    *("lm_loss", "qa_outputs", "vocab_projector"),  # XLNet, BERT, DistilBERT
    *("text_projection", "visual_projection"),  # CLIP
)
#: Where the last layer of a head lies deeper. Hidden layers of a head are weights like others.
HEAD_PATHS = (
    "lm_head.decoder.weight",  # RoBERTa
    "predictions.decoder.weight",  # BERT, ALBERT
    "pred_layer.proj.weight",  # XLM
    "classifier.out_proj.weight",  # RoBERTa
    "classification_head.out_proj.weight",  # BART, T5
    "discriminator_predictions.dense_prediction.weight",  # ELECTRA
)
#: Words in the last part of a name of tensors that are no matrices to multiply with.
OTHER_WORDS = ("bias", "token", "mask", "norm", "freq", "scale")


@dataclass(frozen=True)
class Rule:
    """Names of tensors that are kept.

    Attributes:
        reason: why, for the report.
        part: where the words are looked for: in the ``last`` part of a name, in the part before
            it, the ``owner`` (numbers do not count), in ``either`` of them, or in the ``path``.
        how: the part ``is``, ``has`` or ``ends`` with one of the words.
        words: in lower case.
        near_root: only where at most two modules hold the tensor.
        shape: a condition on its shape.
    """

    reason: str
    part: Literal["last", "owner", "either", "path"]
    how: Literal["is", "has", "ends"]
    words: tuple[str, ...]
    near_root: bool = False
    shape: Callable[[Shape], bool] = lambda _: True


def _wide(shape: Shape) -> bool:
    """Fewer rows than columns: a gate among few experts, not one of a feed-forward layer."""
    return shape[0] < shape[-1]


def _depthwise(shape: Shape) -> bool:
    """A filter of its own for each channel."""
    return len(shape) == 2 or shape[1] == 1


def _pictures(shape: Shape) -> bool:
    """The weight of a convolution over pictures or videos."""
    return len(shape) >= 4


#: What is kept by its name, and who names it so; the first that fits gives the reason.
#: ``docs/checkpoints.md`` has the same table.
RULES = (
    Rule("output head", "owner", "is", HEADS, near_root=True),
    Rule("output head", "path", "is", ("proj_out.weight",)),  # Whisper
    Rule("output head", "path", "has", ("lm_heads.",)),  # MusicGen
    Rule("output head", "path", "ends", HEAD_PATHS),
    Rule("embedding", "either", "has", EMBEDDING_WORDS),  # most models
    Rule("embedding", "owner", "is", ("shared",), near_root=True),  # T5, BART, Pegasus
    Rule("embedding", "path", "ends", ("transformer.w.weight",)),  # CTRL
    Rule("embedding", "owner", "ends", ("_token", "_tokens")),  # SAM
    Rule("embedding", "either", "has", ("codebook", "codevector")),  # EnCodec, Wav2Vec2
    Rule("embedding", "path", "has", ("patch_embed",), shape=_pictures),  # ViT and its kin
    Rule("norm", "owner", "has", ("norm",)),
    Rule("router", "path", "has", ("router",)),  # GPT-OSS, Jamba, Granite, Switch
    Rule("router", "owner", "is", ("gate",), shape=_wide),  # Mixtral, Qwen-MoE, DeepSeek
    Rule("router", "path", "ends", ("expert_gate.weight", ".gate.wg.weight")),  # Qwen-MoE, Hunyuan
    Rule("router", "owner", "is", ("ffn_gate_inp", "ffn_gate_inp_shexp")),  # GGUF
    Rule("adapter", "path", "has", (".lora_a.", ".lora_b.")),  # PEFT
    Rule("position bias", "owner", "has", ("bias", "rel_pos")),  # T5, MPNet, timm
    Rule("position bias", "last", "has", ("rel_pos",)),  # SAM
    Rule("position bias", "owner", "is", ("attn_rel_b",)),  # GGUF
    Rule("state space", "last", "is", ("a_log", "ssm_a")),  # Mamba, Jamba
    Rule("state space", "owner", "is", ("conv1d", "conv_1d", "ssm_conv1d"), shape=_depthwise),
    Rule("state space", "last", "has", ("time_mix", "time_decay", "time_first")),  # RWKV
    Rule("depthwise", "path", "has", ("dwconv", "depthwise"), shape=_depthwise),  # ConvNeXt
    Rule("no matrix by its name", "last", "has", OTHER_WORDS),
    Rule("no matrix by its name", "last", "is", ("pe", "latents", "probe")),  # Perceiver, SigLIP
)


def keep_reason(
    name: str,
    dtype: str,
    shape: Sequence[int],
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> str | None:
    """Why a tensor is kept as it is, or None if it is to be packed.

    Args:
        include: patterns of names; if there are any, only matching tensors are packed, also
            embeddings and output heads.
        exclude: patterns of names to keep.

    Raises:
        UnsupportedError: a weight in a dtype that cannot be packed.

    Example:
        >>> keep_reason("model.embed_tokens.weight", "float32", (100, 64))
        'embedding'
        >>> keep_reason("layers.0.fc.weight", "float32", (64, 64)) is None
        True
    """
    patterns = unwanted(name, include, exclude)
    if patterns == "excluded":
        return patterns
    if 0 in shape:
        return "empty"
    if not 2 <= len(shape) <= MAX_RANK:
        return f"{len(shape)}-D"
    if dtype not in WEIGHT_DTYPES and not dtype.startswith(("float8", "complex")):
        return "integer"
    if patterns:
        return patterns
    if not include and (reason := _reason_by_name(name, shape)):
        return reason
    if dtype not in WEIGHT_DTYPES:
        raise UnsupportedError(
            f"is a weight in {dtype}, expected {', '.join(WEIGHT_DTYPES)}. Cast it to bfloat16 "
            f"first, or keep it with --exclude '{name}'.",
            tensor=name,
        )
    return None


def unwanted(name: str, include: Sequence[str], exclude: Sequence[str]) -> str | None:
    """Why a tensor that is a weight is kept: for the patterns alone; None if they let it be."""
    if any(fnmatchcase(name, pattern) for pattern in exclude):
        return "excluded"
    if include and not any(fnmatchcase(name, pattern) for pattern in include):
        return "not included"
    return None


def _reason_by_name(name: str, shape: Shape) -> str | None:
    path = name.lower()
    *owners, last = path.split(".")
    owner = next((part for part in reversed(owners) if not part.isdecimal()), "")
    direct = owners[-1] if owners else ""
    parts = {"last": (last,), "owner": (owner,), "either": (owner, last), "path": (path,)}
    for rule in RULES:
        # a head is a module of that name, not one of several in a list
        found = (direct,) if rule.near_root else parts[rule.part]
        if rule.near_root and len(owners) > 2:
            continue
        if any(_fits(rule, part) for part in found) and rule.shape(shape):
            return rule.reason
    if last != "weight" and len(shape) > 2 and math.prod(shape) == max(shape):
        return "a vector"  # of a weight norm, of RWKV
    return None


def _fits(rule: Rule, part: str) -> bool:
    match rule.how:
        case "is":
            return part in rule.words
        case "has":
            return any(word in part for word in rule.words)
    return part.endswith(rule.words)
