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
def abs_sums(
    source: int, dtype: int, rows: int, columns: int, group: int, sums: int, threads: int, /
) -> int: ...
def ranges(
    source: int, dtype: int, rows: int, columns: int, maxima: int, minima: int, threads: int, /
) -> int: ...
def quantize(
    source: int, dtype: int, rows: int, columns: int,
    thresholds: int, group: int, packed: int, threads: int, /,
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
