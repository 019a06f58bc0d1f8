"""Modules and ops on packed weights, for torch.

``reference`` defines the ops, ``extension`` calls the kernels, ``code_check`` checks
the packed bytes, ``modules`` are the layers, ``training`` how they train, ``caching``
keeps the keys and values of a decoder.
Importing this package registers ``torch.ops.tpack.linear`` and
``torch.ops.tpack.bit_linear``.
"""

from tpack.nn import ops as _ops  # registers torch.ops.tpack
from tpack.nn.caching import NO_CACHE, KeyValueCache, NoCache, causal_attention
from tpack.nn.functional import (
    dequantize,
    ternary_bit_linear,
    ternary_conv1d,
    ternary_conv2d,
    ternary_embedding,
    ternary_expert_linear,
    ternary_expert_matmul,
    ternary_linear,
    ternary_matmul,
)
from tpack.nn.modules import (
    BitLinear,
    PackedModule,
    TernaryConv2d,
    TernaryEmbedding,
    TernaryLinear,
    packed_zeros,
)
from tpack.nn.reference import (
    by_expert,
    expert_linear,
    expert_matmul,
    rotary_frequencies,
    rotate_half,
    unpack_trits,
)
from tpack.nn.training import freeze, is_unfrozen, unfreeze

__all__ = [
    "NO_CACHE",
    "BitLinear",
    "KeyValueCache",
    "NoCache",
    "PackedModule",
    "TernaryConv2d",
    "TernaryEmbedding",
    "TernaryLinear",
    "by_expert",
    "causal_attention",
    "dequantize",
    "expert_linear",
    "expert_matmul",
    "freeze",
    "is_unfrozen",
    "packed_zeros",
    "rotary_frequencies",
    "rotate_half",
    "ternary_bit_linear",
    "ternary_conv1d",
    "ternary_conv2d",
    "ternary_embedding",
    "ternary_expert_linear",
    "ternary_expert_matmul",
    "ternary_linear",
    "ternary_matmul",
    "unfreeze",
    "unpack_trits",
]

del _ops
