"""Inputs and words that fuzzing begins with."""

from __future__ import annotations

import json
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import gguf_files
import numpy as np
import onnx_models
import random_trees
import tflite_models
from drawing import Draw
from onnx import TensorProto, helper

from tpack import hfconfig
from tpack.container import Checkpoint
from tpack.container.strictjson import canonical_json

CORPUS = Path(__file__).parents[1] / "corpus"

CONFIGS: tuple[Any, ...] = (
    {"quantization_config": {"quant_method": "bitnet"}},
    {"quantization_config": {"quant_method": "bitnet", "linear_class": "autobitlinear"}},
    {
        "quantization_config": {
            "quant_method": "compressed-tensors",
            "config_groups": {
                "g": {"weights": {"num_bits": 2, "symmetric": True, "strategy": "tensor"}}
            },
        }
    },
    {
        "quantization_config": {
            "quant_method": "compressed-tensors",
            "config_groups": {
                "g": {
                    "weights": {
                        "num_bits": 2,
                        "symmetric": True,
                        "strategy": "group",
                        "group_size": 32,
                    }
                }
            },
        }
    },
    {"quantization": {"bits": 2, "group_size": 32}},
    {"hidden_size": 16, "intermediate_size": 8},
)


def json_texts() -> Iterator[bytes]:
    yield from (b"{}", b'{"a":[1,-2.5e3,true,null,"\\ud83d\\ude00"]}', b'[[[["\\\\"]]]]')
    yield b'{"__metadata__":{"format":"pt"},"t":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}'
    yield b'{"t":{"dtype":"F4","shape":[2,2],"data_offsets":[0,2]}}'


def files() -> Iterator[bytes]:
    for path in sorted(CORPUS.glob("*/*.safetensors")):
        yield path.read_bytes()


def programs() -> Iterator[bytes]:
    for path in sorted((CORPUS / "accept").glob("*.safetensors")):
        with Checkpoint(path) as file:
            if file.document.program is not None:
                yield canonical_json(file.document.program.to_dict()).encode()
    for seed in range(40):
        drawn = np.random.default_rng(seed).bytes(200)
        yield canonical_json(random_trees.program(Draw(drawn))).encode()


def random(count: int = 8, size: int = 120) -> Iterator[bytes]:
    for seed in range(count):
        yield np.random.default_rng(seed).bytes(size)


def indices() -> Iterator[bytes]:
    yield b'{"metadata":{"total_size":1},"weight_map":{"t":"a.safetensors","u":"b.safetensors"}}'
    yield b'{"weight_map":{"t":"../a.safetensors"}}'


def configs() -> Iterator[bytes]:
    for found in CONFIGS:
        yield json.dumps(found).encode()
        yield json.dumps(hfconfig.packed_config(found)).encode()


def gguf() -> Iterator[bytes]:
    metadata = [
        ("general.architecture", "string", "llama"),
        ("llama.attention.head_count", "uint32", 2),
        ("llama.attention.head_count_kv", "uint32", 1),
        ("a", "array", ("string", ["x", "ß"])),
        ("b", "array", ("array", [("float32", [1.0, float("inf")])])),
        ("c", "uint64", 2**64 - 1),
        ("d", "bool", True),
    ]
    tensors = [
        ("token_embd.weight", (2, 256), 0, bytes(2048)),
        ("blk.0.attn_q.weight", (4, 256), 35, bytes(4 * 66)),
        ("blk.0.ffn_up.weight", (2, 256), 34, bytes(2 * 54)),
        ("blk.0.ffn_down.weight", (2, 64), 42, bytes(2 * 18)),
        ("x.weight", (1, 128), 36, bytes(64)),
    ]
    yield gguf_files.container(metadata, tensors)
    for name, shape, number, content in tensors:
        yield gguf_files.container(metadata[:3], [(name, shape, number, content)])
    yield gguf_files.container([("general.alignment", "uint32", 64)], [], version=2)


def arrays() -> Iterator[bytes]:
    """One array by rows and by columns, in both byte orders; archives of two."""
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    for one in (array, array.T, array.astype(">f4"), array > 2, np.float64(1)):
        stream = BytesIO()
        np.save(stream, one)
        yield stream.getvalue()
    for save in (np.savez, np.savez_compressed):
        stream = BytesIO()
        save(stream, a=array, b=array[0])
        yield stream.getvalue()


def tflite_files() -> Iterator[bytes]:
    """One layer of codes in each width, with its bytes inside and outside of the FlatBuffer."""
    codes = np.resize(np.array([-1, 0, 1], np.int8), (4, 9))
    for outside in (False, True):
        for kind in ("int8", "int4", "int2"):
            model = tflite_models.Model(outside=outside)
            model.tensor("b", (4,), "int32", np.arange(4, dtype=np.int32), [0.5] * 4)
            weight = model.tensor("w", (4, 9), kind, codes, [0.5, 1, 2, 0.25])
            model.fully_connected(weight, 9, 4)
            yield model.content()


def gguf_json() -> Iterator[bytes]:
    yield b'["uint32",7]'
    yield b'["array",["string",["a",{"hex":"ff"}]]]'
    yield b'["array",["float32",[1.5,"0000807f"]]]'
    yield b'["uint64","ffffffffffffffff"]'


def pickles() -> Iterator[bytes]:
    import argparse
    import collections
    import io
    import pickle
    import zipfile

    import torch

    whole = torch.arange(16.0)
    values: list[Any] = [
        {"a": whole, "b": whole.reshape(4, 4).T, "c": torch.nn.Parameter(torch.ones(4, 4))},
        {"state_dict": {"w": whole.bfloat16()}, "args": argparse.Namespace(lr=0.1), "epoch": 3},
        torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4)),
        {"w": whole.to(torch.uint16), "z": (whole * 1j).to(torch.complex64).conj()},
        {"s": torch.eye(4).to_sparse(), "m": torch.empty(2, device="meta")},
    ]
    for value in values:
        for protocol in (2, 5):
            file = io.BytesIO()
            torch.save(value, file, pickle_protocol=protocol)
            with zipfile.ZipFile(file) as archive:
                yield archive.read("archive/data.pkl")
    plain = [
        {"n": [1, -2.5, None, True, 2**70, "h\u20ac", b"ab", 1j], "t": ((), (1, (2,)))},
        [collections.OrderedDict(a=1), collections.defaultdict(list, b=2), {1, 2}, frozenset("x")],
        [np.arange(6.0).reshape(2, 3).T, np.float32(3), np.array([None]), bytearray(b"xy")],
    ]
    for value in plain:
        for protocol in range(6):
            yield pickle.dumps(value, protocol)
    yield b"cos\nsystem\n(S'true'\ntR."
    yield b"(S'true'\nios\nsystem\n."
    yield b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85}\x92."


PICKLE_WORDS = (
    *("cos\nsystem\n", "cbuiltins\neval\n", "cbuiltins\nset\n", "ccollections\nOrderedDict\n"),
    *("ctorch._utils\n_rebuild_tensor_v2\n", "ctorch\nFloatStorage\n", "ctorch\nuint16\n"),
    *("ctorch._utils\n_rebuild_parameter\n", "ctorch._utils\n_rebuild_qtensor\n"),
    *("ctorch._tensor\n_rebuild_from_type_v2\n", "cnumpy\ndtype\n", "c_codecs\nencode\n"),
    *("cnumpy.core.multiarray\n_reconstruct\n", "cnumpy.core.multiarray\nscalar\n"),
    *("_parameters", "_buffers", "_modules", "storage", "X\1\0\0\0a", "K\1", "]", "}", ")", "tR"),
)


def onnx() -> Iterator[bytes]:
    q = onnx_models.trits(4, 32)
    codes = onnx_models.packed("q", TensorProto.INT2, q)
    rows = onnx_models.array("s", np.ones(4, np.float32))
    blocks = onnx_models.array("s", np.ones(8, np.float32))
    bytes_ = onnx_models.array("q", np.full((4, 2, 4), 0x5A, np.uint8))
    wide = onnx_models.array("w", np.ones((4, 600), np.float32))
    dequantize = helper.make_node("DequantizeLinear", ["q", "s"], ["w"], axis=0)
    turn = helper.make_node("Transpose", ["w"], ["t"], perm=[1, 0])
    product = helper.make_node("MatMul", ["x", "t"], ["y"], "/fc/MatMul")
    n_bits = helper.make_node(
        "MatMulNBits", ["x", "q", "s"], ["y"], K=32, N=4, bits=2, block_size=16
    )
    numbers = [onnx_models.array(name, np.float32(v)) for name, v in (("z", 0), ("n", 2))]
    quant = helper.make_node("Quant", ["w", "s", "z", "n"], ["t"], signed=1, narrow=1)
    inner = helper.make_graph([product], "b", [], [], [wide])
    choice = helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner)
    for nodes, tensors in (
        ([dequantize, turn, product], [codes, rows]),
        ([n_bits], [bytes_, blocks]),
        ([turn, product], [wide]),
        ([quant, product], [wide, onnx_models.array("s", np.float32(0.5)), *numbers]),
        ([choice], []),
    ):
        yield onnx_models.model(nodes, tensors, ("x",), ("y",)).SerializeToString()


FORMAT_WORDS = (
    *('"dtype"', '"shape"', '"data_offsets"', '"__metadata__"', '"tpack"', '"format"', '"pt"'),
    *(
        '"U8"',
        '"F32"',
        '"BF16"',
        '"I64"',
        '"F8_E8M0"',
        '"C64"',
        '"F4"',
        "NaN",
        "Infinity",
        "\\ud800",
    ),
    *("9223372036854775807", "9223372036854775808", "1e999", "-0", "true", "null", "[", "{", ":"),
)
TREE_WORDS = (
    *('"node"', '"root"', '"layers"', '"params"', '"body"', '"name"', '"param_type"', '"shape"'),
    *('"TernaryTensor"', '"Tensor"', '"Buffer"', '"Constant"', '"Layer"', '"formula"', '"args"'),
    *('"Return"', '"Assignment"', '"Unpack"', '"targets"', '"value"', '"Identifier"', '"Tuple"'),
    *('"FunctionCall"', '"function"', '"kwargs"', '"LayerCall"', '"BinaryOp"', '"Dict"', '"items"'),
    *('"values"', '"rotary_frequencies"', '"Unspecified"', '"repeat"', '"split"', '"layer"', '"x"'),
)
CONFIG_WORDS = (
    *('"quantization_config"', '"quant_method"', '"bitnet"', '"tpack"', '"compressed-tensors"'),
    *('"config_groups"', '"weights"', '"num_bits"', '"quantization"', '"bits"', '"replaced"'),
    *('"linear_class"', '"quantization_mode"', '"transformers_weights"', '"weight_map"', "../"),
)
