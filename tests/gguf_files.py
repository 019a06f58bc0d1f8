"""GGUF files for tests: bytes put together by hand, and small models by the gguf package."""

import struct

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

IDS = {
    "uint8": (0, "B"),
    "int8": (1, "b"),
    "uint16": (2, "H"),
    "int16": (3, "h"),
    "uint32": (4, "I"),
    "int32": (5, "i"),
    "float32": (6, "f"),
    "bool": (7, "B"),
    "string": (8, ""),
    "array": (9, ""),
    "uint64": (10, "Q"),
    "int64": (11, "q"),
    "float64": (12, "d"),
}


def string(text):
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def body(kind, data):
    if kind == "string":
        return string(data)
    if kind == "array":
        inner, items = data
        head = struct.pack("<IQ", IDS[inner][0], len(items))
        return head + b"".join(body(inner, item) for item in items)
    return struct.pack(f"<{IDS[kind][1]}", data)


def container(metadata=(), tensors=(), *, version=3, alignment=32, tail=b""):
    """A GGUF file.

    Args:
        metadata: (key, kind, data).
        tensors: (name, logical shape, type id, bytes); a fifth is the offset, instead of the
            next one.
    """
    out = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(metadata))
    for key, kind, data in metadata:
        out += string(key) + struct.pack("<I", IDS[kind][0]) + body(kind, data)
    data = b""
    for name, shape, number, content, *offset in tensors:
        sizes = shape[::-1]
        out += string(name) + struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes)
        out += struct.pack("<IQ", number, offset[0] if offset else len(data))
        data += content + bytes(-len(content) % alignment)
    return out + bytes(-len(out) % alignment) + data + tail


HEADS, KEYS, WIDTH, INNER, VOCABULARY = 4, 2, 256, 512, 32

SHAPES = {
    "token_embd.weight": (VOCABULARY, WIDTH),
    "output_norm.weight": (WIDTH,),
    "output.weight": (VOCABULARY, WIDTH),
    "blk.0.attn_norm.weight": (WIDTH,),
    "blk.0.attn_q.weight": (WIDTH, WIDTH),
    "blk.0.attn_q.bias": (WIDTH,),
    "blk.0.attn_k.weight": (WIDTH // 2, WIDTH),
    "blk.0.attn_v.weight": (WIDTH // 2, WIDTH),
    "blk.0.attn_output.weight": (WIDTH, WIDTH),
    "blk.0.ffn_norm.weight": (WIDTH,),
    "blk.0.ffn_gate.weight": (INNER, WIDTH),
    "blk.0.ffn_up.weight": (INNER, WIDTH),
    "blk.0.ffn_down.weight": (WIDTH, INNER),
}


def values(seed=0):
    """Float weights of a model: matrices of layers ternary, each with one scale."""
    rng = np.random.default_rng(seed)
    found = {}
    for name, shape in SHAPES.items():
        if name.startswith("blk") and len(shape) == 2:
            scale = np.float16(rng.uniform(0.01, 2)).astype(np.float32)
            trits = rng.integers(-1, 2, shape)
            trits[:, ::64] = 1  # so that the largest value of every block is the scale
            found[name] = (trits * scale).astype(np.float32)
        else:
            found[name] = rng.standard_normal(shape).astype(np.float32)
    return found


def write_model(path, weights, kind=Type.TQ2_0, architecture="llama", extra=lambda writer: None):
    """Write a model with the gguf package."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(1)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEYS)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["a", "ß", "Ġc"])
    writer.add_token_scores([0.1, float("-inf"), 3.0])
    writer.add_key_value("test.u64", 2**64 - 1, gguf.GGUFValueType.UINT64)
    writer.add_key_value("test.flag", True, gguf.GGUFValueType.BOOL)
    extra(writer)
    for name, array in weights.items():
        if name.startswith("blk") and array.ndim == 2:
            writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, array.astype(np.float16) if array.ndim == 2 else array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def interleave(array, heads):
    """What llama.cpp's converter does to attn_q and attn_k of Llama."""
    rest = array.shape[1:]
    halves = array.reshape(heads, 2, array.shape[0] // heads // 2, *rest)
    return halves.swapaxes(1, 2).reshape(array.shape)
