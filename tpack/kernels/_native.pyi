# The extension: addresses and sizes as integers. Nothing is checked; the functions of
# tpack.kernels do that.
#
# dtype: 0 float32, 1 float16, 2 bfloat16, 3 int8. group: 0 tensor, 1 row, else columns per scale.
# Addresses may be unaligned. A returned index is flat and counts from 0; -1: all is good.

def pack(source: int, dtype: int, rows: int, columns: int, packed: int, threads: int, /) -> int: ...
def unpack(packed: int, rows: int, columns: int, out: int, dtype: int, threads: int, /) -> int: ...
def dequantize(
    packed: int, rows: int, columns: int,
    scale: int, scale_dtype: int, group: int,
    out: int, dtype: int, threads: int, /,
) -> int: ...  # fmt: skip
def embedding(
    indices: int, count: int,
    packed: int, rows: int, columns: int,
    scale: int, scale_dtype: int, group: int,
    out: int, dtype: int, threads: int, /,
) -> int: ...  # fmt: skip

# Addresses that may be 0 leave out what they are for: see ops.h.
def survey(
    source: int, dtype: int, rows: int, columns: int,
    group: int, sums: int, maxima: int, minima: int, threads: int, /,
) -> int: ...  # fmt: skip
def column_sizes(
    source: int, dtype: int, rows: int, columns: int, sizes: int, threads: int, /
) -> int: ...
def quantize(
    source: int, dtype: int, rows: int, columns: int,
    thresholds: int, scales: int, group: int, packed: int, squares: int, threads: int, /,
) -> int: ...  # fmt: skip
def linear(
    x: int, x_dtype: int, tokens: int,
    packed: int, rows: int, columns: int,
    scale: int, scale_dtype: int, group: int,
    bias: int, bias_dtype: int,
    out: int, threads: int, /,
) -> int: ...  # fmt: skip
def bit_linear(
    x: int, x_dtype: int, tokens: int,
    packed: int, rows: int, columns: int,
    scale: int, scale_dtype: int, group: int,
    bias: int, bias_dtype: int,
    out: int, threads: int, /,
) -> int: ...  # fmt: skip
def linear_columns(
    x: int, x_dtype: int, tokens: int,
    packed: int, rows: int, columns: int,
    scale: int, scale_dtype: int, group: int,
    bias: int, bias_dtype: int,
    out: int, threads: int, /,
) -> int: ...  # fmt: skip
def bit_linear_columns(
    x: int, x_dtype: int, tokens: int,
    packed: int, rows: int, columns: int,
    scale: int, scale_dtype: int, group: int,
    bias: int, bias_dtype: int,
    out: int, threads: int, /,
) -> int: ...  # fmt: skip
def read_bytes(data: int, count: int, threads: int, /) -> int: ...
def variants() -> list[str]: ...
def variant() -> str: ...
def runtime() -> str: ...
def select(name: str, /) -> bool: ...
