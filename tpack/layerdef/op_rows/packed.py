"""Ops on packed bytes, spelled by the functions of ``tpack.nn``.

``packed`` and ``scale`` are stored tensors; ``shape`` is the logical shape of the weight.
"""

from __future__ import annotations

from tpack.layerdef.op_rows.shared import WINDOWS

_PACKED = "packed:tensor scale:tensor shape:ints"
_PACKED_LINEAR = "x:tensor packed:tensor scale:tensor bias:tensor?=None"
_PACKED_CONV = f"x:tensor {_PACKED} bias:tensor?=None {WINDOWS}"

ROWS = (
    # op, parameters, the op above, its weight, the dims of it
    ("ternary_linear", _PACKED_LINEAR, "linear", "weight", 2),
    ("ternary_bit_linear", _PACKED_LINEAR, "bit_linear", "weight", 2),
    ("ternary_matmul", f"x:tensor {_PACKED}", "matmul", "y", 2),
    (
        "ternary_expert_linear",
        "x:tensor packed:tensor scale:tensor ids:tensor",
        "expert_linear",
        "weight",
        3,
    ),
    (
        "ternary_expert_matmul",
        "x:tensor packed:tensor scale:tensor ids:tensor shape:ints",
        "expert_matmul",
        "weight",
        3,
    ),
    ("ternary_embedding", f"ids:tensor {_PACKED}", "embedding", "weight", 2),
    ("ternary_conv1d", _PACKED_CONV, "conv1d", "weight", 3),
    ("ternary_conv2d", _PACKED_CONV, "conv2d", "weight", 4),
    ("dequantize", f"{_PACKED} like:tensor?=None", "", "", 0),
)
