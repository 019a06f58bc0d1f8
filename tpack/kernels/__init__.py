"""Kernels on packed ternary weights: numpy arrays in, numpy arrays out.

The work is done by a small C extension with one variant per instruction set, chosen when it
loads; without the extension numpy does the same, slowly (``reference.py``, which is also the
definition). ``selection.native`` is the extension itself, for callers who hold addresses and have
checked them.

``group`` in every function says what a scale belongs to: 0 the tensor, 1 a row, 2 a column, else
that many columns of a row (a multiple of 4); sums and thresholds never belong to a column.
bfloat16 arrays are uint16 bits.
"""

from tpack.kernels.arrays import infer_group
from tpack.kernels.codec import dequantize, embedding, pack, unpack
from tpack.kernels.matmul import bit_linear, bit_linear_columns, linear, linear_columns
from tpack.kernels.quantization import (
    abs_sums,
    column_sizes,
    quantize,
    quantize_absmean,
    quantize_exact,
    quantize_measured,
    survey,
)
from tpack.kernels.selection import available, forced, select, variant

__all__ = [
    "abs_sums",
    "available",
    "bit_linear",
    "bit_linear_columns",
    "column_sizes",
    "dequantize",
    "embedding",
    "forced",
    "infer_group",
    "linear",
    "linear_columns",
    "pack",
    "quantize",
    "quantize_absmean",
    "quantize_exact",
    "quantize_measured",
    "select",
    "survey",
    "unpack",
    "variant",
]
