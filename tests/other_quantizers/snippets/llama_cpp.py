"""llama.cpp: ``ggml_quantize_chunk`` as xllamacpp ships it, and its own way back to floats."""

import ctypes
from pathlib import Path

import numpy as np
import xllamacpp

#: The number and the bytes of a block of 256 weights (64 for Q2_0).
TYPES = {"Q2_K": 10, "TQ1_0": 34, "TQ2_0": 35, "Q2_0": 42}


class Traits(ctypes.Structure):
    """What ggml knows of a type, as ``ggml.h`` declares it."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("block", ctypes.c_int64),
        ("interleaved", ctypes.c_int64),
        ("bytes", ctypes.c_size_t),
        ("quantized", ctypes.c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
    )


ggml = ctypes.CDLL(next(str(path) for path in Path(xllamacpp.__file__).parent.glob("*.so")))
ggml.ggml_get_type_traits.restype = ctypes.POINTER(Traits)
ggml.ggml_quantize_chunk.argtypes = [
    ctypes.c_int,
    ctypes.c_void_p,
    ctypes.c_void_p,
    *[ctypes.c_int64] * 3,
    ctypes.c_void_p,
]


def floats(packed, kind, shape):
    traits = ggml.ggml_get_type_traits(TYPES[kind]).contents
    assert traits.name.decode().upper() == kind, traits.name
    returned = np.empty(shape, np.float32)
    traits.to_float(packed.ctypes.data, returned.ctypes.data, returned.size)
    return returned


def quantize(weight, mode):
    traits = ggml.ggml_get_type_traits(TYPES[mode]).contents
    packed = np.empty(weight.size // traits.block * traits.bytes, np.uint8)
    whole = (weight.ctypes.data, packed.ctypes.data, 0, *weight.shape, None)
    ggml.ggml_quantize_chunk(TYPES[mode], *whole)
    return floats(packed, mode, weight.shape), [packed]


def by_hand(trits, scale):
    codes = (trits + 1).astype(np.uint8).reshape(-1, 2, 4, 32)
    blocks = np.empty(len(codes), [("codes", np.uint8, (2, 32)), ("scale", np.float16)])
    blocks["codes"] = (codes << np.array([0, 2, 4, 6], np.uint8)[:, None]).sum(2, dtype=np.uint8)
    blocks["scale"] = scale
    return floats(blocks, "TQ2_0", trits.shape)
