"""Which tensors of a checkpoint are weights to pack, and why the others are kept."""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Literal, TypeAlias

from tpack.codec.shapes import default_split
from tpack.dtypes import WEIGHT_DTYPES
from tpack.errors import UnsupportedError
from tpack.layerdef.from_names import EMBEDDING_NAMES, EMBEDDING_WORDS, is_embedding
from tpack.layerdef.params import MAX_RANK
from tpack.wording import spell_exclude

Shape = Sequence[int]

#: Modules near the root whose weight is an output head.
HEADS = (
    *("lm_head", "output", "head", "heads", "classifier", "embed_out", "score", "cls"),
    *("out", "out_proj", "output_projection", "output_layer", "linear_out", "fc_out", "readout"),
    *("logits", "to_logits", "final", "final_layer", "final_linear", "final_proj", "generator"),
    *("vocab_proj", "vocab_projection", "vocab_out", "logit_proj", "unembed", "unembedding"),
    *("pred", "predict", "predictor", "policy"),
    *("lm_loss", "qa_outputs", "vocab_projector"),  # XLNet, BERT, DistilBERT
    *("text_projection", "visual_projection"),  # CLIP
)
#: Layers of a head that are never its last, as transformers calls them.
HIDDEN = ("dense", "transform")
#: Modules that hold others: what is called a head in one of them is a hidden layer.
INNER = ("attn", "attention", "mlp", "ffn", "ff", "feed_forward", "block", "blocks", "layer")
#: Where the last layer of a head lies deeper. Hidden layers of a head are weights like others.
HEAD_PATHS = (
    "lm_head.decoder.weight",  # RoBERTa
    "predictions.decoder.weight",  # BERT, ALBERT
    "pred_layer.proj.weight",  # XLM
    "classifier.out_proj.weight",  # RoBERTa
    "classification_head.out_proj.weight",  # BART, T5
    "discriminator_predictions.dense_prediction.weight",  # ELECTRA
)
#: Kernels of convolutions over sounds and texts are shorter.
LONG_KERNEL = 16
#: Words in the last part of a name of tensors that are no matrices to multiply with.
OTHER_WORDS = ("bias", "token", "mask", "norm", "freq", "scale")


#: Reasons that are the user's own.
PATTERNS = ("excluded", "not included")


@dataclass(frozen=True)
class Rule:
    """Names of tensors that are kept.

    Attributes:
        reason: why, for the report.
        part: where the words are looked for: in the ``last`` part of a name, in the part before
            it, the ``owner`` (numbers do not count), in ``either`` of them, or in the ``path``.
            ``head`` is a module near the root: its own weight, or the last matrix inside of it.
        how: the part ``is``, ``has``, ``begins`` or ``ends`` with one of the words.
        words: in lower case.
        near_root: only where at most two modules hold the tensor.
        shape: a condition on its shape.
    """

    reason: str
    part: Literal["last", "owner", "either", "path", "head"]
    how: Literal["is", "has", "begins", "ends"]
    words: tuple[str, ...]
    near_root: bool = False
    shape: Callable[[Shape], bool] = lambda _: True


def _wide(shape: Shape) -> bool:
    """Return whether rows are fewer than columns: a gate of few experts, not of a feed-forward."""
    return shape[0] < shape[-1]


def _matrix(shape: Shape) -> bool:
    """Return whether it is the weight of a linear layer, not of a convolution."""
    return len(shape) == 2


def _depthwise(shape: Shape) -> bool:
    """Return whether each channel has a filter of its own."""
    return len(shape) == 2 or shape[1] == 1


def _pictures(shape: Shape) -> bool:
    """Return whether it is the weight of a convolution over pictures or videos."""
    return len(shape) >= 4


#: What is kept by its name, and who names it so; the first that fits gives the reason.
#: ``docs/checkpoints.md`` has the same table.
RULES = (
    Rule("output head", "head", "is", HEADS),
    Rule("output head", "head", "ends", ("_head", "_logits")),
    Rule("output head", "owner", "is", ("decoder",), near_root=True, shape=_matrix),
    Rule("output head", "last", "is", ("w_u",)),  # TransformerLens
    Rule("output head", "path", "is", ("proj_out.weight",)),  # Whisper
    Rule("output head", "path", "has", ("lm_heads.",)),  # MusicGen
    Rule("output head", "path", "ends", HEAD_PATHS),
    Rule("embedding", "either", "has", EMBEDDING_WORDS),  # most models
    Rule("embedding", "either", "is", EMBEDDING_NAMES),
    Rule("embedding", "owner", "is", ("shared",), near_root=True),  # T5, BART, Pegasus
    Rule(
        "embedding",
        "path",
        "is",
        ("e", "e.weight", "model.e", "model.e.weight"),
    ),
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
    Rule("state of training", "last", "is", ("exp_avg", "exp_avg_sq", "momentum_buffer")),
    Rule("state of training", "path", "begins", ("optimizer.", "scheduler.")),
    Rule("no matrix by its name", "last", "has", OTHER_WORDS),
    Rule("no matrix by its name", "last", "is", ("pe", "latents", "probe")),  # Perceiver, SigLIP
)


#: Whether a matrix of a head is called as one, and the numbers of its name.
_Rank: TypeAlias = tuple[bool, list[int]]
#: Below every rank.
_NONE: _Rank = (False, [-1])


class Shapes(dict[str, Shape]):
    """The shapes of all tensors of a source, indexed by what is looked for."""

    @cached_property
    def embeddings(self) -> set[Shape]:
        """The shapes of tables of tokens."""
        found = (name for name in self if is_embedding(name) and "pos" not in name.lower())
        return {tuple(self[name]) for name in found}

    @cached_property
    def matrices(self) -> dict[str, set[Shape]]:
        """The shapes of the tensors of each module that are longer than one than in one dim."""
        found: dict[str, set[Shape]] = {}
        for name, shape in self.items():
            if math.prod(shape) > max(shape, default=1):
                found.setdefault(name.rpartition(".")[0], set()).add(tuple(shape))
        return found

    @cached_property
    def _sorted(self) -> list[str]:
        return sorted(self)

    @cached_property
    def _last(self) -> dict[str, tuple[_Rank, str]]:
        return {}

    def last_inside(self, module: str) -> tuple[_Rank, str]:
        """Find the last matrix inside a module; return its rank and name, "" if two share it."""
        if module not in self._last:
            begin, end = (bisect_left(self._sorted, f"{module}{mark}") for mark in "./")
            inside = self._sorted[begin:end]  # "/" follows "."
            found = [(_rank(n), n) for n in inside if len(self[n]) >= 2 and not _is_hidden(n)]
            rank = max((rank for rank, _ in found), default=_NONE)
            names = [name for other, name in found if other == rank]
            self._last[module] = rank, names[0] if len(names) == 1 else ""
        return self._last[module]


def keep_reason(
    name: str,
    dtype: str,
    shape: Sequence[int],
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    *,
    role: str | None = None,
    others: Shapes | None = None,
) -> str | None:
    """Return why a tensor is kept as it is, or None if it is to be packed.

    Args:
        include: patterns of names; if there are any, only matching tensors are packed, also
            embeddings and output heads.
        exclude: patterns of names to keep.
        role: what the module that owns it says: ``layer`` for one that multiplies with it, which
            may still be an output head; ``weight`` for one that surely is none; anything else is
            the reason to keep it. None: names tell.
        others: the shapes of all tensors of the source, among which the last matrix of a head
            is found.

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
    if not include and role not in (None, "layer", "weight"):
        return role
    if not include and role != "weight":
        reason = _reason_by_name(name, shape, Shapes() if others is None else others, role)
        if reason:
            return reason
    if dtype not in WEIGHT_DTYPES:
        raise UnsupportedError(
            f"is a weight in {dtype}, expected {', '.join(WEIGHT_DTYPES)}. Cast it to bfloat16 "
            f"first, or keep it with {spell_exclude(name)}.",
            tensor=name,
        )
    return None


def split_by_name(name: str, shape: Shape) -> int:
    """Return how many leading dimensions index rows, judged by name and shape alone.

    Weights of three dimensions are stacks of matrices ``(experts, out, in)``, whose rows are
    those of the matrices, or convolutions ``(out, in, kernel)``, each of whose filters is a row.
    Kernels are short; those that are not have one channel or are called convolutions.

    Example:
        >>> split_by_name("mlp.experts.down_proj", (8, 64, 100))
        2
        >>> split_by_name("encoder.conv1.weight", (384, 80, 3))
        1
    """
    if len(shape) != 3:
        return default_split(len(shape))
    path = name.lower()
    if "conv" in path:
        return 1
    return 2 if "expert" in path or (shape[1] > 1 and shape[2] >= LONG_KERNEL) else 1


def is_of_experts(name: str) -> bool:
    """Return whether a tensor belongs to the experts of a mixture, by its name in a file."""
    return re.search(r"(^|\.)experts\.", name) is not None


def unwanted(name: str, include: Sequence[str], exclude: Sequence[str]) -> str | None:
    """Return why the patterns alone keep a tensor that is a weight, or None."""
    if any(fnmatchcase(name, pattern) for pattern in exclude):
        return "excluded"
    if include and not any(fnmatchcase(name, pattern) for pattern in include):
        return "not included"
    return None


def _reason_by_name(name: str, shape: Shape, others: Shapes, role: str | None) -> str | None:
    path = name.lower()
    *owners, last = path.split(".")
    modules = [part for part in owners if not part.isdecimal()]
    owner = modules[-1] if modules else ""
    direct = owners[-1] if owners else ""
    parts = {"last": (last,), "owner": (owner,), "either": (owner, last), "path": (path,)}
    for rule in RULES:
        if role == "layer" and rule.reason != "output head":
            continue
        if rule.part == "head":
            found: tuple[str, ...] = tuple(_heads(name, others, rule))
        elif rule.near_root:
            found = (direct,) if len(owners) <= 2 else ()
        else:
            found = parts[rule.part]
        if any(_fits(rule, part) for part in found) and rule.shape(shape):
            return rule.reason
    if len(modules) <= 1 and direct in modules and _is_unembedding(shape, others):
        return "output head"
    if last != "weight" and math.prod(shape) == max(shape):
        if len(shape) > 2:
            return "a vector"  # of a weight norm, of RWKV
        if _scales_another(name, shape, others):
            return "a scale by its shape"  # learned, beside the weight that it multiplies
    return None


def _scales_another(name: str, shape: Shape, others: Shapes) -> bool:
    """Return whether a vector has one number for each row or column of a matrix beside it."""
    return any(
        len(found) == len(shape)
        and all(size in (1, whole) for size, whole in zip(shape, found, strict=True))
        for found in others.matrices.get(name.rpartition(".")[0], ())
    )


def _heads(name: str, others: Shapes, rule: Rule) -> Iterator[str]:
    """Return the modules near the root that fit a rule and whose last matrix is this tensor."""
    *owners, last = name.split(".")
    if not owners and last != "weight":
        owners = [last]  # a parameter of the root that bears the name itself
    for end, part in enumerate(owners, 1):
        outer = [other.lower() for other in owners[:end] if not other.isdecimal()]
        if part.isdecimal() or len(outer) > 2 or any(word in INNER for word in outer[:-1]):
            continue
        if not _fits(rule, outer[-1]):
            continue
        if end == len(owners) or _is_last_inside(".".join(owners[:end]), name, others):
            yield outer[-1]


def _is_last_inside(module: str, name: str, others: Shapes) -> bool:
    """Return whether a tensor is the last matrix inside a module, under its name or an alias."""
    rank, last = others.last_inside(module)
    return name == last if name in others else not _is_hidden(name) and _rank(name) > rank


def _is_hidden(name: str) -> bool:
    return any(word in HIDDEN for word in name.lower().split("."))


def _rank(name: str) -> _Rank:
    """Return by what the last matrix of a module is known: a name of heads, and its numbers."""
    return name.lower().split(".")[-2] in (*HEADS, "decoder"), _numbers(name)


def _numbers(name: str) -> list[int]:
    return [int(digits) for digits in re.findall(r"\d{1,9}", name)]


def _is_unembedding(shape: Shape, others: Shapes) -> bool:
    """Return whether a matrix has the shape of a token embedding, as an output head has."""
    return len(shape) == 2 and shape[0] != shape[1] and tuple(shape) in others.embeddings


def _fits(rule: Rule, part: str) -> bool:
    match rule.how:
        case "is":
            return part in rule.words
        case "has":
            return any(word in part for word in rule.words)
        case "begins":
            return part.startswith(rule.words)
    return part.endswith(rule.words)
