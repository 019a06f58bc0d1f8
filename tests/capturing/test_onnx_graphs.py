"""Graphs of ONNX files as programs: what the generated source computes equals ONNX Runtime."""

import numpy as np
import onnx
import onnx_exports
import onnx_models
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx_models import array

import tpack
from tpack.container import Checkpoint

RNG = np.random.default_rng(3)


def floats(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def ternary(*shape):
    return onnx_models.trits(*shape).astype(np.float32) * np.float32(0.25)


def run(path, feeds, *, optimized):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if not optimized:
        level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.graph_optimization_level = level
    return onnxruntime.InferenceSession(str(path), options).run(None, feeds)


def generated(path):
    """The model that the source of a checkpoint defines, with its tensors, and the source."""
    with Checkpoint(path) as checkpoint:
        program = checkpoint.document.program
    source = tpack.generate_pytorch_code(program)
    loaded = tpack.load(path)
    space = {"__name__": "generated"}
    exec(source, space)
    model = space[program.root]().eval()
    model.load_state_dict(loaded.state_dict())
    return model, source


def feeds_of(path, batch, length):
    graph = onnx.load(path).graph
    stored = {one.name for one in graph.initializer}
    feeds = {}
    for info in graph.input:
        if info.name in stored:
            continue
        kind = info.type.tensor_type
        free = (batch, length, length, length)
        shape = [dim.dim_value or free[i] for i, dim in enumerate(kind.shape.dim)]
        if kind.elem_type == TensorProto.FLOAT:
            feeds[info.name] = floats(*shape)
        else:
            top = 2 if "mask" in info.name else 30
            feeds[info.name] = RNG.integers(0, top, shape)
            feeds[info.name][:, 0] = 1
    return feeds


def check(path, tmp_path, sizes=((1, 5), (3, 11))):
    """Convert, and compare the generated source with ONNX Runtime at two sizes."""
    out = tmp_path / "out.safetensors"
    report = tpack.convert(path, out)
    assert tpack.verify(out, path).ok
    assert any("equals the graph" in note for note in report.notes), report.notes
    model, source = generated(out)
    for size in sizes:
        feeds = feeds_of(path, *size)
        with torch.no_grad():
            found = model(*map(torch.from_numpy, feeds.values()))
        found = [found] if isinstance(found, torch.Tensor) else found
        for optimized in (False, True):
            for one, expected in zip(found, run(path, feeds, optimized=optimized), strict=True):
                scale = max(1.0, float(np.abs(expected).max()))
                np.testing.assert_allclose(one.numpy() / scale, expected / scale, atol=1e-5)
    return source, report


@pytest.mark.parametrize("dynamo", [False, True])
@pytest.mark.parametrize(
    "name",
    [
        one if one in ("mlp", "cnn") else pytest.param(one, marks=pytest.mark.slow)
        for one in onnx_exports.MODELS
    ],
)
def test_exported_models(tmp_path, name, dynamo):
    path = tmp_path / "model.onnx"
    onnx_exports.export(name, path, dynamo=dynamo)
    check(path, tmp_path)


def test_the_source_has_the_modules_of_the_original(tmp_path):
    path = tmp_path / "model.onnx"
    onnx_exports.export("mlp", path, dynamo=True)
    source, _ = check(path, tmp_path)
    assert "class MLP3(nn.Module):" in source
    assert "self.norm(x + self.down(F.gelu(self.up(x))))" in source


def made(tmp_path, nodes, initializers, shape=("N", 8), opset=17, outputs=("y",), kind=1):
    x = helper.make_tensor_value_info("x", kind, list(shape))
    return onnx_models.save(
        tmp_path / "model.onnx", onnx_models.model(nodes, initializers, (x,), outputs, opset)
    )


def node(op, inputs, output, **attributes):
    return helper.make_node(op, inputs, [output], **attributes)


def test_names_of_tensorflow_become_paths(tmp_path):
    """NHWC, as tf2onnx writes Keras: transposed around convolutions, dense layers (in, out)."""
    path = made(
        tmp_path,
        [
            node("Transpose", ["x"], "t", perm=[0, 3, 1, 2], name="model/conv/Conv2D__6"),
            node(
                "Conv", ["t", "model/conv/Conv2D/ReadVariableOp:0", "b"], "c", auto_pad="SAME_UPPER"
            ),
            node("Relu", ["c"], "r"),
            node("GlobalAveragePool", ["r"], "p"),
            node("Squeeze", ["p", "axes"], "s"),
            node(
                "MatMul", ["s", "StatefulPartitionedCall/model/dense/MatMul/ReadVariableOp:0"], "m"
            ),
            node("Add", ["m", "model/dense/bias:0"], "a"),
            node("Softmax", ["a"], "y"),
        ],
        [
            array("model/conv/Conv2D/ReadVariableOp:0", ternary(4, 3, 3, 3)),
            array("b", floats(4)),
            array("axes", np.array([2, 3])),
            array("StatefulPartitionedCall/model/dense/MatMul/ReadVariableOp:0", ternary(4, 5)),
            array("model/dense/bias:0", floats(5)),
        ],
        shape=("N", 8, 8, 3),
    )
    source, report = check(path, tmp_path)
    assert {one.name for one in report.tensors} == {
        "model.conv.Conv2D",
        "b",
        "model.dense.MatMul",
        "model.dense.bias_0",
    }
    assert "F.softmax" in source


def test_a_perceptron_of_sklearn(tmp_path):
    nodes = [
        node("Cast", ["x"], "cast_input", to=TensorProto.FLOAT),
        node("MatMul", ["cast_input", "coefficient"], "mul_result"),
        node("Add", ["mul_result", "intercepts"], "add_result"),
        node("Relu", ["add_result"], "next_activations"),
        node("MatMul", ["next_activations", "coefficient1"], "mul_result1"),
        node("Add", ["mul_result1", "intercepts1"], "add_result1"),
        node("Softmax", ["add_result1"], "probabilities", axis=1),
        node("ArgMax", ["probabilities"], "label", axis=1, keepdims=0),
    ]
    stored = [
        array("coefficient", ternary(8, 6)),
        array("intercepts", floats(1, 6)),
        array("coefficient1", ternary(6, 3)),
        array("intercepts1", floats(1, 3)),
    ]
    label = helper.make_tensor_value_info("label", TensorProto.INT64, None)
    check(made(tmp_path, nodes, stored, outputs=(label, "probabilities")), tmp_path)


W = array("w", ternary(8, 8))


def scalar(name, value):
    return numpy_helper.from_array(np.array(value), name)


def numbers(name, *values, dtype=np.int64):
    return array(name, np.array(values, dtype))


#: Nodes from ``h`` (N, 8) to ``y``, their stored tensors, and the version of ONNX.
GRAPHS = {
    "gemm": (
        [node("Gemm", ["h", "g", "c"], "y", alpha=0.5, beta=2.0)],
        [array("g", floats(8, 3)), array("c", floats(3))],
        11,
    ),
    "gemm of a transpose": (
        [node("Gemm", ["h", "g"], "y", transB=1)],
        [array("g", floats(3, 8))],
        13,
    ),
    "axes as attributes": (
        [
            node("Unsqueeze", ["h"], "u", axes=[1]),
            node("Squeeze", ["u"], "s", axes=[1]),
            node("ReduceMean", ["s"], "y", axes=[1], keepdims=0),
        ],
        [],
        11,
    ),
    "axes as inputs": (
        [
            node("Unsqueeze", ["h", "a"], "u"),
            node("Squeeze", ["u", "a"], "s"),
            node("ReduceMean", ["s", "a"], "y"),
        ],
        [numbers("a", 1)],
        18,
    ),
    "softmax of old": (
        [node("Unsqueeze", ["h"], "u", axes=[1]), node("Softmax", ["u"], "y")],
        [],
        11,
    ),
    "the last": ([node("Gather", ["h", "i"], "y", axis=1)], [scalar("i", np.array(-1))], 17),
    "from the end": ([node("Gather", ["h", "i"], "y", axis=1)], [numbers("i", -1, 2, -8)], 17),
    "clip by attributes": ([node("Clip", ["h"], "y", min=-0.5, max=0.5)], [], 10),
    "clip by inputs": ([node("Clip", ["h", "", "m"], "y")], [scalar("m", np.float32(0.25))], 13),
    "shape chain": (
        [
            node("Shape", ["h"], "s"),
            node("Gather", ["s", "zero"], "n", axis=0),
            node("Unsqueeze", ["n", "first"], "n1"),
            node("Concat", ["n1", "rest"], "shape", axis=0),
            node("Reshape", ["h", "shape"], "r"),
            node("Transpose", ["r"], "t", perm=[0, 2, 1]),
            node("Flatten", ["t"], "y"),
        ],
        [numbers("rest", 2, -1), scalar("zero", np.array(0)), numbers("first", 0)],
        17,
    ),
    "expand as exporters write it": (
        [
            node("Shape", ["h"], "s"),
            node("Slice", ["s", "b", "e"], "n"),
            node("Concat", ["n", "k"], "shape", axis=0),
            node("Mul", ["shape", "m"], "neg"),
            node("Equal", ["shape", "neg"], "q"),
            node("ConstantOfShape", ["two"], "one", value=numbers("v", 1)),
            node("Where", ["q", "one", "shape"], "wanted"),
            node("Expand", ["token", "wanted"], "x2"),
            node("Concat", ["x2", "h"], "y", axis=1),
        ],
        [
            numbers("b", 0),
            numbers("e", 1),
            numbers("k", 8),
            numbers("m", -1),
            numbers("two", 2),
            array("token", floats(1, 8)),
        ],
        17,
    ),
    "slice and pad": (
        [node("Slice", ["h", "b", "e", "a", "st"], "s"), node("Pad", ["s", "p"], "y")],
        [
            numbers("b", 1),
            numbers("e", 2**31 - 1),
            numbers("a", 1),
            numbers("st", 2),
            numbers("p", 0, 1, 0, 2),
        ],
        13,
    ),
    "backwards": (
        [node("Slice", ["h", "b", "e", "a", "st"], "y")],
        [numbers("b", -1), numbers("e", -(2**63)), numbers("a", 1), numbers("st", -1)],
        13,
    ),
    "split": (
        [helper.make_node("Split", ["h"], ["p", "q"], axis=1), node("Mul", ["p", "q"], "y")],
        [],
        11,
    ),
    "split by sizes": (
        [
            helper.make_node("Split", ["h", "z"], ["p", "q"], axis=1),
            node("Tile", ["p", "t"], "r"),
            node("Concat", ["q", "r"], "y", axis=-1),
        ],
        [numbers("z", 5, 3), numbers("t", 1, 2)],
        13,
    ),
    "silu": ([node("Sigmoid", ["h"], "s"), node("Mul", ["h", "s"], "y")], [], 13),
    "erf": (
        [
            node("Div", ["h", "r"], "d"),
            node("Erf", ["d"], "e"),
            node("Add", ["e", "one"], "a"),
            node("Mul", ["h", "a"], "m"),
            node("Mul", ["m", "half"], "y"),
        ],
        [
            scalar("r", np.float32(2**0.5)),
            scalar("one", np.float32(1)),
            scalar("half", np.float32(0.5)),
        ],
        13,
    ),
    "norms": (
        [
            node("LayerNormalization", ["h", "a", "b"], "l", epsilon=1e-6),
            node("Unsqueeze", ["l", "ax"], "u"),
            node("Transpose", ["u"], "u2", perm=[0, 2, 1]),
            node("GroupNormalization", ["u2", "c", "c2"], "g", num_groups=2),
            node("Flatten", ["g"], "y"),
        ],
        [
            array("a", floats(8)),
            array("b", floats(8)),
            array("c", floats(8)),
            array("c2", floats(8)),
            numbers("ax", 1),
        ],
        21,
    ),
    "activations": (
        [
            node("LeakyRelu", ["h"], "a", alpha=0.2),
            node("Elu", ["a"], "b"),
            node("HardSwish", ["b"], "c"),
            node("HardSigmoid", ["c"], "d"),
            node("Softplus", ["d"], "e"),
            node("Selu", ["e"], "f"),
            node("Softsign", ["f"], "g"),
            node("PRelu", ["g", "sl"], "y"),
        ],
        [array("sl", floats(8))],
        16,
    ),
    "masks": (
        [
            node("Greater", ["h", "z"], "g"),
            node("Not", ["g"], "n"),
            node("Where", ["n", "z", "h"], "w2"),
            node("Cast", ["g"], "f", to=1),
            node("Add", ["w2", "f"], "y"),
        ],
        [scalar("z", np.float32(0))],
        16,
    ),
    "constants": (
        [
            node("Constant", [], "k", value=array("v", floats(8))),
            node("Mul", ["h", "k"], "m"),
            node("Constant", [], "two", value_float=2.0),
            node("Pow", ["m", "two"], "y"),
        ],
        [],
        13,
    ),
    "causal": (
        [
            node("Shape", ["h"], "s"),
            node("Gather", ["s", "zero"], "n"),
            node("Unsqueeze", ["n", "ax"], "n1"),
            node("Concat", ["n1", "n1"], "nn", axis=0),
            node("ConstantOfShape", ["nn"], "o", value=array("v", np.ones(1, np.float32))),
            node("Trilu", ["o"], "l", upper=0),
            node("MatMul", ["l", "h"], "y"),
        ],
        [scalar("zero", np.array(0)), numbers("ax", 0)],
        17,
    ),
    "range": (
        [
            node("Shape", ["h"], "s"),
            node("Gather", ["s", "zero"], "n"),
            node("Range", ["zero", "n", "one"], "r"),
            node("Gather", ["table", "r"], "g"),
            node("Add", ["g", "h"], "y"),
        ],
        [scalar("zero", np.array(0)), scalar("one", np.array(1)), array("table", floats(32, 8))],
        17,
    ),
    "reductions": (
        [
            node("ReduceMax", ["h"], "a", axes=[1]),
            node("ReduceL2", ["h"], "b", axes=[1]),
            node("Min", ["a", "b"], "c"),
            node("ReduceSum", ["h", "ax"], "d"),
            node("Max", ["c", "d"], "e"),
            node("Sub", ["h", "e"], "y"),
        ],
        [numbers("ax", 1)],
        13,
    ),
    "einsum": (
        [node("Einsum", ["h", "g"], "y", equation="bi,ij->bj")],
        [array("g", floats(8, 3))],
        13,
    ),
}


@pytest.mark.parametrize("case", GRAPHS)
def test_rows(tmp_path, case):
    nodes, stored, opset = GRAPHS[case]
    path = made(tmp_path, [node("MatMul", ["x", "w"], "h"), *nodes], [W, *stored], opset=opset)
    check(path, tmp_path)


def test_ops_outside_are_named_and_the_names_mirrored(tmp_path):
    nodes = [
        node("MatMul", ["x", "fc.weight"], "h"),
        node("NonZero", ["h"], "n"),
        helper.make_node("Mystery", ["n"], ["m"], domain="my.domain"),
        helper.make_node("Mystery", ["m"], ["y"], domain="my.domain"),
    ]
    out = tmp_path / "out.safetensors"
    report = tpack.convert(made(tmp_path, nodes, [array("fc.weight", ternary(8, 8))]), out)
    (said,) = [note for note in report.notes if "not captured" in note]
    assert "my.domain::Mystery (2), NonZero (1)" in said
    with Checkpoint(out) as checkpoint:
        assert checkpoint.document.program is not None


def test_parameters_outside_are_said_with_the_node(tmp_path):
    nodes = [node("MatMul", ["x", "w"], "h")]
    nodes.append(node("CumSum", ["h", "one"], "y", reverse=1, name="/net/CumSum"))
    stored = [W, scalar("one", np.array(1))]
    report = tpack.convert(made(tmp_path, nodes, stored), tmp_path / "out.safetensors")
    assert any("/net/CumSum: CumSum is exclusive or in reverse" in one for one in report.notes)


def test_a_graph_that_makes_a_huge_tensor_is_not_run(tmp_path):
    nodes = [
        node("MatMul", ["x", "w"], "h"),
        node("ConstantOfShape", ["shape"], "big"),
        node("ReduceSum", ["big"], "s"),
        node("Add", ["h", "s"], "y"),
    ]
    stored = [W, numbers("shape", 1 << 20, 1 << 20)]
    report = tpack.convert(made(tmp_path, nodes, stored), tmp_path / "out.safetensors")
    assert any("too large" in note for note in report.notes)


@pytest.mark.parametrize("bits", [2, 4])
def test_matmul_n_bits_is_a_ternary_linear_layer(tmp_path, bits):
    q = onnx_models.trits(8, 32)
    codes = onnx_models._bytes(
        q.astype(np.int64) + (1 << (bits - 1)), TensorProto.INT4 if bits == 4 else TensorProto.UINT2
    )
    stored = [
        array("fc.weight_Q", np.frombuffer(codes, np.uint8).reshape(8, 1, -1)),
        array("s", np.full(8, 0.5, np.float32)),
    ]
    nodes = [
        helper.make_node(
            "MatMulNBits", ["x", "fc.weight_Q", "s"], ["y"], domain="com.microsoft",
            K=32, N=8, bits=bits, block_size=32,
        )
    ]  # fmt: skip
    source, _ = check(made(tmp_path, nodes, stored, shape=("N", 32)), tmp_path)
    assert "ternary_linear(x, self.fc.weight" in source


def test_dequantized_weights_are_the_weights(tmp_path):
    nodes = [
        node("DequantizeLinear", ["fc.weight_quantized", "s"], "w", axis=0),
        node("Gemm", ["x", "w", "b"], "y", transB=1),
    ]
    stored = [
        array("fc.weight_quantized", onnx_models.trits(5, 8)),
        array("s", np.full(5, 0.5, np.float32)),
        array("b", floats(5)),
    ]
    source, _ = check(made(tmp_path, nodes, stored), tmp_path)
    assert "linear(x, self.fc.weight" in source


def test_sizes_that_are_tried_in_vain_leave_no_log(tmp_path, caplog):
    """A pool takes no image smaller than its window; smaller ones are tried first."""
    sizes = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", 2, "h", "w"])
    pool = helper.make_node("AveragePool", ["x"], ["y"], kernel_shape=[9, 9], strides=[9, 9])
    graph = helper.make_graph(
        [pool],
        "g",
        [sizes],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.ones((4, 4), np.float32), "w.weight")],
    )
    opset = helper.make_opsetid("", 20)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=9), tmp_path / "m.onnx")
    with caplog.at_level("INFO"):
        tpack.convert(tmp_path / "m.onnx", tmp_path / "out")
    assert caplog.records == []
