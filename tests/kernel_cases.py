"""What the tests of the kernels share: random cases, the bound on float errors, guarded arrays."""

from __future__ import annotations

import ctypes
import mmap
from typing import Any

import numpy as np
import numpy.typing as npt

from tpack import kernels
from tpack.kernels import reference
from tpack.kernels.arrays import as_float32, from_float32, scale_shape

VARIANTS = [name for name in kernels.available() if name != "numpy"]
COLUMNS = [
    0,
    1,
    3,
    4,
    5,
    15,
    16,
    17,
    31,
    32,
    33,
    63,
    64,
    65,
    127,
    128,
    129,
    255,
    256,
    257,
    511,
    513,
    1027,
]
ROWS = [0, 1, 3, 4, 5, 63, 64, 65]
GROUPS = [0, 1, 2, 4, 12, 32, 48, 64, 128, 256, 512]
FLOATS = [np.float32, np.float16, np.uint16]

random = np.random.default_rng(7)


def trits(rows: int, columns: int) -> np.ndarray:
    return random.integers(-1, 2, (rows, columns)).astype(np.int8)


def packed_reference(values: np.ndarray) -> np.ndarray:
    return reference.pack_codes(values + 1)


def scales(rows: int, columns: int, group: int, dtype: type = np.float32) -> np.ndarray:
    values = random.uniform(0.01, 2, scale_shape(rows, columns, group))
    return from_float32((values * random.choice([-1, 1], values.shape)).astype(np.float32), dtype)


def activations(tokens: int, columns: int, dtype: type = np.float32) -> np.ndarray:
    return from_float32(random.standard_normal((tokens, columns)).astype(np.float32), dtype)


def check_linear(
    y: np.ndarray,
    x: np.ndarray,
    values: np.ndarray,
    scale: np.ndarray,
    group: int,
    bias: np.ndarray | None,
    along: bool = False,
) -> None:
    """Compare with doubles; the bound follows from the roundings of a float32 sum.

    At most inputs / 16 additions one after the other in a lane, or the 128 pairs of a block and
    then the blocks; in the other orientation all inputs. Each of them, and some 20 products,
    foldings and scalings, can be off by 2^-24 of the sum of magnitudes. The result is rounded to
    its dtype last.
    """
    weight = values * reference.spread_scale(
        as_float32(scale).astype(np.float64), values.shape, group
    )
    weight = weight if along else weight.T
    wide = as_float32(x).astype(np.float64)
    exact, size = wide @ weight, np.abs(wide) @ np.abs(weight)
    if bias is not None:
        exact, size = exact + as_float32(bias), size + np.abs(as_float32(bias))
    inputs = wide.shape[1]
    steps = (inputs if along else max(inputs / 16, 128 + inputs / 256)) + 20
    ulp = {
        np.dtype(np.float32): 2.0**-24,
        np.dtype(np.float16): 2.0**-11,
        np.dtype(np.uint16): 2.0**-8,
    }[y.dtype]
    bound = steps * 2.0**-24 * size + ulp * np.abs(exact) + 1e-7
    assert (np.abs(as_float32(y) - exact) <= bound).all()


def check_bit_linear(
    y: np.ndarray,
    x: np.ndarray,
    values: np.ndarray,
    scale: np.ndarray,
    group: int,
    bias: np.ndarray | None,
) -> None:
    """Compare with the definition: the same bits, but with scales of columns, as floats."""
    wide = as_float32(x)
    if group == reference.COLUMN:
        quantized, factor = reference.quantize_activations(wide)
        check_linear(y, quantized / factor, values, scale, group, bias)
    else:
        added = None if bias is None else as_float32(bias)
        wanted = reference.bit_linear(wide, values, as_float32(scale), group, added)
        assert np.array_equal(y, from_float32(wanted, x.dtype))


PAGE = mmap.PAGESIZE
_mprotect = ctypes.CDLL(None, use_errno=True).mprotect
_mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


class Guarded:
    """A copy of an array that ends right before a forbidden page (or starts right after one)."""

    def __init__(self, array: npt.NDArray[Any], at_start: bool = False) -> None:
        size = array.nbytes
        span = -(-max(size, 1) // PAGE) * PAGE
        self._map = mmap.mmap(-1, span + 2 * PAGE)
        base = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        for page in (base, base + PAGE + span):
            if _mprotect(page, PAGE, mmap.PROT_NONE if hasattr(mmap, "PROT_NONE") else 0):
                raise OSError(ctypes.get_errno(), "mprotect")
        self.address = base + PAGE + (0 if at_start else span - size)
        self.shape, self.dtype, self.size = array.shape, array.dtype, size
        ctypes.memmove(self.address, np.ascontiguousarray(array).ctypes.data, size)

    def array(self) -> npt.NDArray[Any]:
        """A copy of what is there now."""
        return np.frombuffer(ctypes.string_at(self.address, self.size), self.dtype).reshape(
            self.shape
        )


def work(threads: int | None = None) -> np.ndarray:
    """Products, trits and bytes of one weight, for every number of threads the same."""
    local = np.random.default_rng(5)
    packed = reference.pack_codes(local.integers(0, 3, (600, 1500)).astype(np.int8))
    x = local.standard_normal((5, 1500)).astype(np.float32)
    scale = np.ones(1, np.float32)
    both = [
        kernels.linear(x, packed, scale, threads=threads),
        kernels.bit_linear(x, packed, scale, threads=threads),
    ]
    values = kernels.unpack(packed, 1500, threads=threads)
    return np.concatenate(
        [*both, kernels.pack(values, threads=threads).astype(np.float32)], axis=None
    )
