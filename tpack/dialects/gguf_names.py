"""Names of tensors in GGUF files and in Hugging Face checkpoints, and the order of their rows.

Covers Llama and BitNet. llama.cpp rotates neighbouring rows of a head in Llama files, where the
original rotates rows half a head apart, so its converter interleaves the halves of each head of
attn_q and attn_k; for BitNet it leaves them. Tested against the tables of the gguf package.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tpack.dialects.gguf_values import Value
from tpack.errors import InputError

#: Architectures with Llama's names, as files and configurations spell them.
_LLAMA = ("llama", "llamaforcausallm")
#: The same with BitNet's two more norms and without a permutation.
_BITNET = ("bitnet", "bitnetb158", "bitnet25", "bitnetforcausallm", "bitnet25forcausallm")

_GLOBAL = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_sub_norm": "self_attn.attn_sub_norm",
    "ffn_sub_norm": "mlp.ffn_sub_norm",
}
#: What the first BitNet checkpoints called their norms.
_EARLIER = {
    "self_attn.inner_attn_ln": "attn_sub_norm",
    "mlp.ffn_layernorm": "ffn_sub_norm",
}
_FROM_BLOCK = {hf: name for name, hf in _BLOCK.items()} | _EARLIER
_FROM_GLOBAL = {hf: name for name, hf in _GLOBAL.items()}

_GGUF = re.compile(r"(?:blk\.(0|[1-9][0-9]{0,5})\.)?([a-z_]+)\.(weight|bias)")
_HF = re.compile(r"(?:model\.layers\.(0|[1-9][0-9]{0,5})\.)?([a-z_.]+)\.(weight|bias)")


def family(architecture: str) -> str | None:
    """``llama`` or ``bitnet``, whatever the spelling; None for any other architecture.

    Example:
        >>> family("bitnet-b1.58"), family("BitNetForCausalLM"), family("qwen3")
        ('bitnet', 'bitnet', None)
    """
    plain = re.sub(r"[^a-z0-9]", "", architecture.lower())
    return "llama" if plain in _LLAMA else "bitnet" if plain in _BITNET else None


def to_hf(name: str) -> str:
    """The Hugging Face name of a tensor of a GGUF file; the name itself if it has none.

    Example:
        >>> to_hf("blk.3.attn_q.weight")
        'model.layers.3.self_attn.q_proj.weight'
    """
    if match := _GGUF.fullmatch(name):
        block, stem, last = match.groups()
        if block is None and stem in _GLOBAL:
            return f"{_GLOBAL[stem]}.{last}"
        if block is not None and stem in _BLOCK:
            return f"model.layers.{block}.{_BLOCK[stem]}.{last}"
    return name


def to_gguf(name: str) -> str | None:
    """The GGUF name of a tensor of a Hugging Face checkpoint; None if it has none.

    Example:
        >>> to_gguf("model.layers.3.mlp.ffn_layernorm.weight")
        'blk.3.ffn_sub_norm.weight'
    """
    if match := _HF.fullmatch(name):
        block, stem, last = match.groups()
        if block is None and stem in _FROM_GLOBAL:
            return f"{_FROM_GLOBAL[stem]}.{last}"
        if block is not None and stem in _FROM_BLOCK:
            return f"blk.{block}.{_FROM_BLOCK[stem]}.{last}"
    return None


@dataclass(frozen=True)
class Heads:
    """How many heads attention has: of queries, and of keys and values."""

    queries: int
    keys: int

    @classmethod
    def of(cls, queries: Any, keys: Any) -> Heads | None:
        """Heads of metadata; None where they are missing, or differ from layer to layer."""
        keys = queries if keys is None else keys
        good = all(type(n) is int and n > 0 for n in (queries, keys))
        return cls(queries, keys) if good else None

    def permuted(self, gguf_name: str, rows: int) -> RowOrder | None:
        """The order of the rows of a tensor of a Llama file; None if it keeps its order.

        Raises:
            InputError: its rows are no even number for each head.
        """
        match = _GGUF.fullmatch(gguf_name)
        if match is None or match[2] not in ("attn_q", "attn_k"):
            return None
        heads = self.queries if match[2] == "attn_q" else self.keys
        if rows % (2 * heads):
            raise InputError(
                f"has {rows} rows, expected an even number for each of {heads} heads. The "
                "metadata does not fit the tensor.",
                tensor=gguf_name,
            )
        return RowOrder(rows // heads)


@dataclass(frozen=True)
class Naming:
    """How the tensors of a model are named and ordered in its GGUF file.

    Attributes:
        architecture: as the file spells it; empty if it does not say.
        renamed: whether names are those of Hugging Face outside of the file.
        heads: of a model whose attn_q and attn_k are permuted in the file.
    """

    architecture: str
    renamed: bool
    heads: Heads | None

    @classmethod
    def of(cls, metadata: Mapping[str, Value]) -> Naming:
        """Read it off the metadata of a file."""

        def plain(key: str) -> Any:
            found = metadata.get(key)
            return None if found is None else found.plain

        stated = plain("general.architecture")
        architecture = stated if isinstance(stated, str) else ""
        kind, heads = family(architecture), None
        if kind == "llama":
            heads = Heads.of(
                plain(f"{architecture}.attention.head_count"),
                plain(f"{architecture}.attention.head_count_kv"),
            )
        # what is to be permuted cannot be renamed without the number of heads
        return cls(architecture, kind == "bitnet" or heads is not None, heads)

    def outside(self, gguf_name: str) -> str:
        """What a tensor of the file is called outside."""
        return to_hf(gguf_name) if self.renamed else gguf_name

    def inside(self, name: str) -> str | None:
        """What a tensor is called in the file; None if it can have no name there."""
        if not self.renamed:
            return name
        found = to_gguf(name)
        # what has no other name outside keeps its own
        return name if found is None and not name.startswith("model.") else found

    def order(self, gguf_name: str, rows: int) -> RowOrder | None:
        """The order of the rows of a tensor; None if it is the same inside and outside.

        Raises:
            InputError: as ``Heads.permuted``.
        """
        return None if self.heads is None else self.heads.permuted(gguf_name, rows)


@dataclass(frozen=True)
class RowOrder:
    """Where rows of a permuted tensor lie, in heads of ``size`` rows."""

    size: int

    def in_gguf(self, first: int, last: int) -> npt.NDArray[np.int64]:
        """Rows of the GGUF tensor that are rows ``first`` to ``last`` of the original.

        Example:
            >>> RowOrder(4).in_gguf(0, 4)
            array([0, 2, 1, 3])
        """
        head, row = np.divmod(np.arange(first, last), self.size)
        half, pair = np.divmod(row, self.size // 2)
        order: npt.NDArray[np.int64] = head * self.size + 2 * pair + half
        return order

    def in_original(self, first: int, last: int) -> npt.NDArray[np.int64]:
        """The inverse: rows of the original that are rows ``first`` to ``last`` in GGUF."""
        head, row = np.divmod(np.arange(first, last), self.size)
        pair, half = np.divmod(row, 2)
        order: npt.NDArray[np.int64] = head * self.size + half * (self.size // 2) + pair
        return order
