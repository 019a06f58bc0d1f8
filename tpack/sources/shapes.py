"""The shapes that a Hugging Face config gives the linear layers of its model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tpack.dialects.gguf_architectures import ARCHITECTURES

#: Model types whose attention and feed-forward layers have the shapes below, and no others, as
#: those of some architectures of GGUF have.
LLAMA_SHAPED = ("mistral", "qwen2", "qwen3")


def expected_shape(name: str, config: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return the shape ``(out, in)`` of a linear weight by the config; None if it has none.

    Example:
        >>> config = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 96}
        >>> expected_shape("model.layers.0.mlp.up_proj.weight", config)
        (96, 64)
    """
    known = {kind for row in ARCHITECTURES.values() for kind in row.model_types}
    if config.get("model_type") not in {*LLAMA_SHAPED, *known} or not name.endswith(".weight"):
        return None
    sizes = {key: value for key, value in config.items() if type(value) is int and value > 0}
    hidden, inner = sizes.get("hidden_size"), sizes.get("intermediate_size")
    heads = sizes.get("num_attention_heads")
    pairs = sizes.get("num_key_value_heads", heads)
    size = sizes.get("head_dim", hidden // heads if hidden and heads else None)
    queries = heads * size if heads and size else None
    keys = pairs * size if pairs and size else None
    out, inputs = {
        "q_proj": (queries, hidden),
        "k_proj": (keys, hidden),
        "v_proj": (keys, hidden),
        "o_proj": (hidden, queries),
        "gate_proj": (inner, hidden),
        "up_proj": (inner, hidden),
        "down_proj": (hidden, inner),
    }.get(name.split(".")[-2], (None, None))
    return (out, inputs) if out and inputs else None
