"""Ops on a cache of keys and values, and attention to what it holds."""

from __future__ import annotations

from tpack.layerdef.op_rows.shared import Rows

ROWS: Rows = (
    # name, parameters, spelling, what it computes, traits, version of the format
    (
        "causal_attention",
        "query:tensor key:tensor value:tensor *scale:float=None *enable_gqa:bool=False",
        "causal_attention",
        "attention of the last tokens, each to itself and those before it",
        "product",
    ),
    ("cache_length", "cache:cache", ".length", "how many tokens a cache holds"),
    ("cache_layer", "cache:cache index:int", ".layer", "the cache of one layer", "part"),
    (
        "cache_extend",
        "cache:cache keys:tensor values:tensor",
        ".extend",
        "keys and values of all tokens, after those of new ones are added",
        "several",
    ),
)
