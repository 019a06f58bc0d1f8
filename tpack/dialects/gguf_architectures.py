"""The architectures of GGUF files that tpack knows: a record each, from which everything is read.

A GGUF file states its architecture and some numbers; the computation itself is in llama.cpp. A
record says which tensors that computation reads and what Hugging Face calls them, which rows lie
in another order, and which configs describe the same computation. The names of tensors, import,
export, the checks of config.json and the manual read it; a new architecture is a new record.

Source: the graphs, tables of tensors and converters of llama.cpp (``llama``, ``bitnet``) and of
bitnet.cpp (``bitnet-b1.58``, ``bitnet-25``). Tested against the tables of the gguf package.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tpack.dialects.gguf_types import WRITTEN
from tpack.grouping import Place

LLAMA_CPP, BITNET_CPP = "llama.cpp", "bitnet.cpp"

#: What every architecture states: key of GGUF → its type, and the field of config.json.
FIELDS: Mapping[str, tuple[str, str]] = {
    "vocab_size": ("uint32", "vocab_size"),
    "context_length": ("uint32", "max_position_embeddings"),
    "embedding_length": ("uint32", "hidden_size"),
    "block_count": ("uint32", "num_hidden_layers"),
    "feed_forward_length": ("uint32", "intermediate_size"),
    "attention.head_count": ("uint32", "num_attention_heads"),
    "attention.head_count_kv": ("uint32", "num_key_value_heads"),
    "attention.key_length": ("uint32", "head_dim"),
    "attention.value_length": ("uint32", "head_dim"),
    "attention.layer_norm_rms_epsilon": ("float32", "rms_norm_eps"),
    "rope.dimension_count": ("uint32", "head_dim"),
    "rope.freq_base": ("float32", "rope_theta"),
}


@dataclass(frozen=True)
class Architecture:
    """What a program computes under the name of an architecture, and what its files hold.

    Attributes:
        name: as files spell it.
        classes: of transformers, whose configs may describe this computation; the first one is
            named in errors. Empty for an architecture that is only read.
        tensors: name in GGUF → names in Hugging Face checkpoints, without ``.weight`` or
            ``.bias``, with ``*`` for the number of the block. Reading gives the first one,
            writing takes any. Norms of queries and keys, fused matrices and experts are rows too.
        tied: whether its head is always the embedding: no ``output`` of its own can be written.
        biased: tensors that may have a bias, by their names in GGUF.
        permuted: tensors with neighbouring rows of a head interleaved, where the original rotates
            rows half a head apart → the key of the number of their heads.
        activations: values of ``hidden_act`` that mean what it computes, the usual one first.
        int8_inputs: whether its linear layers round their inputs to int8 per token.
        fields: what files state of a config: key → its type, and the field of config.json.
        constants: what files state of every model: key → its type and value.
        defaults: values of fields that a config need not state.
        said: further fields of config.json that the tensors of a file express.
        model_types: of transformers, whose linear layers have the shapes of Llama's.
        runner: the program that has it.
        types: types of trits that the runner reads, of those that tpack writes.
    """

    name: str
    classes: tuple[str, ...]
    tensors: Mapping[str, tuple[str, ...]]
    tied: bool = False
    biased: tuple[str, ...] = ()
    permuted: Mapping[str, str] = field(default_factory=dict)
    activations: tuple[str, ...] = ("silu", "swish")
    int8_inputs: bool = False
    fields: Mapping[str, tuple[str, str]] = field(default_factory=lambda: FIELDS)
    constants: Mapping[str, tuple[str, Any]] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    said: tuple[str, ...] = ()
    model_types: tuple[str, ...] = ()
    runner: str = LLAMA_CPP
    types: tuple[str, ...] = tuple(WRITTEN)

    def to_hf(self, name: str) -> str:
        """Return the Hugging Face name of a tensor of a file; the name itself if it has none.

        Example:
            >>> ARCHITECTURES["llama"].to_hf("blk.3.attn_q.weight")
            'model.layers.3.self_attn.q_proj.weight'
        """
        return _renamed(name, {inside: names[0] for inside, names in self.tensors.items()}) or name

    def to_gguf(self, name: str) -> str | None:
        """Return the name in a file of a Hugging Face tensor; None if it has none.

        Example:
            >>> ARCHITECTURES["bitnet"].to_gguf("model.layers.3.mlp.ffn_layernorm.weight")
            'blk.3.ffn_sub_norm.weight'
        """
        inverse = {hf: inside for inside, names in self.tensors.items() for hf in names}
        return _renamed(name, inverse)

    def takes(self, name: str) -> bool:
        """Return whether its runner reads a tensor of that name; it fails at any other.

        Example:
            >>> name = "blk.0.attn_q.bias"
            >>> ARCHITECTURES["llama"].takes(name), ARCHITECTURES["bitnet"].takes(name)
            (True, False)
        """
        stem, _, last = Place.of(name).role.rpartition(".")
        if stem not in self.tensors or (self.tied and stem == "output"):
            return False
        return last == "weight" or (last == "bias" and stem in self.biased)


def _renamed(name: str, names: Mapping[str, str]) -> str | None:
    """Translate a name by a table of names without ``.weight``; None if it is not there."""
    place = Place.of(name)
    stem, _, last = place.role.rpartition(".")
    if stem not in names or last not in ("weight", "bias"):
        return None
    if stem.count("*") != len(place.numbers):  # a name with a star of its own
        return None
    numbers = iter(place.numbers)
    return re.sub(r"\*", lambda _: str(next(numbers)), names[stem]) + f".{last}"


def _tensors(*texts: str) -> dict[str, tuple[str, ...]]:
    rows = [line.split() for text in texts for line in text.strip().splitlines()]
    return {inside: tuple(names) for inside, *names in rows}


_COMMON = """
    token_embd           model.embed_tokens
    output_norm          model.norm
    output               lm_head
    blk.*.attn_norm      model.layers.*.input_layernorm
    blk.*.attn_q         model.layers.*.self_attn.q_proj
    blk.*.attn_k         model.layers.*.self_attn.k_proj
    blk.*.attn_v         model.layers.*.self_attn.v_proj
    blk.*.attn_output    model.layers.*.self_attn.o_proj
    blk.*.ffn_norm       model.layers.*.post_attention_layernorm
    blk.*.ffn_gate       model.layers.*.mlp.gate_proj
    blk.*.ffn_up         model.layers.*.mlp.up_proj
    blk.*.ffn_down       model.layers.*.mlp.down_proj
"""
#: The second names are those of the first BitNet checkpoints.
_SUB_NORMS = """
    blk.*.attn_sub_norm  model.layers.*.self_attn.attn_sub_norm  model.layers.*.self_attn.inner_attn_ln
    blk.*.ffn_sub_norm   model.layers.*.mlp.ffn_sub_norm         model.layers.*.mlp.ffn_layernorm
"""  # noqa: E501
_MATRICES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")


def _bitnet(name: str, classes: tuple[str, ...], **own: Any) -> Architecture:
    """Build the record of an architecture of BitNet; they differ in names and defaults."""
    return Architecture(
        name,
        classes,
        _tensors(_COMMON, _SUB_NORMS),
        int8_inputs=True,
        constants={
            "rope.scaling.type": ("string", "linear"),
            "rope.scaling.factor": ("float32", 1.0),
        },
        model_types=("bitnet",),
        **own,
    )


_BITNET_CLASSES = ("BitNetForCausalLM", "BitNet25ForCausalLM")
_OF_BITNET_CPP = {"runner": BITNET_CPP, "types": ("TQ2_0", "TQ1_0")}

#: Every architecture that is known, by name. Of those that a config may describe, the first with
#: its activation is written.
ARCHITECTURES: dict[str, Architecture] = {
    row.name: row
    for row in (
        Architecture(
            "llama",
            ("LlamaForCausalLM",),
            _tensors(_COMMON),
            biased=tuple(f"blk.*.{matrix}" for matrix in _MATRICES),
            permuted={
                "blk.*.attn_q": "attention.head_count",
                "blk.*.attn_k": "attention.head_count_kv",
            },
            defaults={"hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 10000.0},
            said=("attention_bias", "mlp_bias"),
            model_types=("llama",),
        ),
        _bitnet("bitnet", _BITNET_CLASSES, tied=True),
        _bitnet("bitnet-b1.58", _BITNET_CLASSES, activations=("relu2",), **_OF_BITNET_CPP),
        _bitnet("bitnet-25", (), **_OF_BITNET_CPP),
    )
}


def named(spelling: str) -> list[Architecture]:
    """Find the architectures with a name, or of a class of transformers, in any spelling.

    Example:
        >>> [row.name for row in named("bitnet_b1_58")], [row.name for row in named("qwen3")]
        (['bitnet-b1.58'], [])
        >>> [row.name for row in named("BitnetForCausalLM")]
        ['bitnet', 'bitnet-b1.58']
    """
    return [
        row
        for row in ARCHITECTURES.values()
        if _plain(spelling) in map(_plain, (row.name, *row.classes))
    ]


def _plain(spelling: str) -> str:
    return re.sub(r"[^a-z0-9]", "", spelling.lower())
