"""Small GGUF files for the tests of the source."""

import numpy as np
from gguf_files import HEADS, KEYS

from tpack import codec
from tpack.dialects import gguf_blocks
from tpack.quantize import widen
from tpack.sources import PackedTensor

LLAMA = (
    ("general.architecture", "string", "llama"),
    ("llama.attention.head_count", "uint32", HEADS),
    ("llama.attention.head_count_kv", "uint32", KEYS),
)


def plain(tensor):
    """The values of a tensor."""
    dense = tensor.dense() if isinstance(tensor, PackedTensor) else tensor
    return widen(dense.read(0, dense.numel), dense.dtype).reshape(tensor.shape)


def put(tmp_path, data, name="m.gguf"):
    path = tmp_path / name
    path.write_bytes(data)
    return path


def ternary(kind, number, shape=(4, 256), scales=None, seed=0, name="w"):
    """A tensor of blocks for ``container``, and its values."""
    rng = np.random.default_rng(seed)
    rows, columns = int(np.prod(shape[:-1])), shape[-1]
    trits = rng.integers(-1, 2, (rows, columns)).astype(np.int8)
    if scales is None:
        scales = rng.uniform(0.1, 2, (rows, columns // kind.weights))
    scales = np.broadcast_to(scales, (rows, columns // kind.weights)).astype(np.float16)
    data = gguf_blocks.pack_blocks(kind, codec.pack(trits), scales).tobytes()
    wanted = np.repeat(scales.astype(np.float32), kind.weights, 1) * trits
    return (name, shape, number, data), wanted.reshape(shape)


EVERYTHING = (
    ("a.u8", "uint8", 255),
    ("a.i8", "int8", -128),
    ("a.u16", "uint16", 65535),
    ("a.i16", "int16", -32768),
    ("a.u32", "uint32", 2**32 - 1),
    ("a.i32", "int32", -(2**31)),
    ("a.u64", "uint64", 2**64 - 1),
    ("a.i64", "int64", -(2**63)),
    ("a.f32", "float32", 0.1),
    ("a.f64", "float64", 0.1),
    ("a.inf", "float32", float("inf")),
    ("a.zero", "float32", -0.0),
    ("a.tiny", "float32", 1e-45),
    ("a.bool", "bool", 1),
    ("a.text", "string", "ßĠ\0\U0001f600"),
    ("a.bytes", "string", b"\xff\xfe"),
    ("a.empty", "string", ""),
    ("a.none", "array", ("uint32", [])),
    ("a.numbers", "array", ("int16", [1, -2, 3])),
    ("a.floats", "array", ("float64", [float("nan"), -1e300, 0.5])),
    ("a.texts", "array", ("string", ["a", "", b"\x80"])),
    (
        "a.nested",
        "array",
        ("array", [("array", [("uint8", [1]), ("string", ["x"])]), ("int8", [])]),
    ),
)


def one(name="w", shape=(1, 256), number=35, data=bytes(66), *offset):
    return (name, shape, number, data, *offset)
