"""Weights that ONNX nodes make of codes and scales: read as they are, equal to ONNX Runtime."""

import numpy as np
import onnx_models
import pytest
import torch
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from onnx_models import array, packed, trits

import tpack
from tpack.errors import NotTernaryError
from tpack.sources import PackedTensor, open_source

KINDS = {
    "INT2": (TensorProto.INT2, 0),
    "UINT2": (TensorProto.UINT2, 1),
    "INT4": (TensorProto.INT4, 0),
    "UINT4": (TensorProto.UINT4, 8),
    "INT8": (TensorProto.INT8, 3),
    "UINT8": (TensorProto.UINT8, 128),
}


def codes_of(name, kind, values):
    if kind == TensorProto.INT8:
        return array(name, values.astype(np.int8))
    if kind == TensorProto.UINT8:
        return array(name, values.astype(np.uint8))
    return packed(name, kind, values)


def dequantized(q, kind, zero, scale, **attributes):
    """A model whose one weight is dequantized codes."""
    proto, initializers = KINDS[kind][0], []
    initializers.append(codes_of("fc.weight_quantized", proto, q + np.array(zero)))
    initializers.append(array("fc.weight_scale", scale))
    inputs = ["fc.weight_quantized", "fc.weight_scale"]
    if np.any(zero):
        each = np.array(zero)
        shaped = np.broadcast_to(each.reshape(-1) if each.size > 1 else each, scale.shape)
        initializers.append(codes_of("fc.weight_zero_point", proto, np.array(shaped)))
        inputs.append("fc.weight_zero_point")
    node = helper.make_node("DequantizeLinear", inputs, ["w"], **attributes)
    kind_of = helper.np_dtype_to_tensor_dtype(scale.dtype)
    out = helper.make_tensor_value_info("w", kind_of, None)
    return onnx_models.model([node], initializers, (), (out,))


def converted(path, tmp_path, **options):
    out = tmp_path / "out.safetensors"
    report = tpack.convert(path, out, **options)
    assert tpack.verify(out, path).ok
    return tpack.unpack(out), report, out


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("scale", "attributes", "granularity"),
    [
        ((), {}, "tensor"),
        ((5,), {"axis": 0}, "row"),
        ((33,), {"axis": 1}, "column"),
        ((33,), {"axis": -1}, "column"),
        ((5, 3), {"axis": 1, "block_size": 16}, "group:16"),
    ],
)
def test_dequantize_linear(tmp_path, kind, scale, attributes, granularity, dtype):
    q = trits(5, 33)
    scales = np.array(onnx_models.RNG.uniform(0.1, 2, scale)).astype(dtype)
    made = dequantized(q, kind, KINDS[kind][1], scales, **attributes)
    path = onnx_models.save(tmp_path / "m.onnx", made)
    with open_source(path) as source:
        (weight,) = source.tensors.values()
        assert isinstance(weight, PackedTensor)
        assert (weight.name, str(weight.granularity)) == ("fc.weight", granularity)
        assert weight.scale.reshape(-1).tolist() == scales.reshape(-1).tolist()
    values, _, out = converted(path, tmp_path, exact=True)
    wanted = onnx_models.run(made)
    assert values["fc.weight"].numpy().dtype == wanted.dtype
    assert np.array_equal(values["fc.weight"].numpy(), wanted)
    assert tpack.inspect(out).tensors[0].scale == granularity


def test_zero_points_that_differ(tmp_path):
    q, zero = trits(4, 8), np.array([[3], [1], [0], [7]])
    scale = np.array([1, 2, 3, 4], np.float32)
    made = dequantized(q, "UINT8", zero + 1, scale, axis=0)
    path = onnx_models.save(tmp_path / "m.onnx", made)
    values, *_ = converted(path, tmp_path, exact=True)
    assert np.array_equal(values["fc.weight"].numpy(), onnx_models.run(made))


def test_trits_times_127_keep_the_values_of_the_product(tmp_path):
    q, scale = trits(4, 8), np.array(0.37 / 127, np.float32)
    made = dequantized(q * 127, "INT8", 0, scale)
    path = onnx_models.save(tmp_path / "m.onnx", made)
    values, *_ = converted(path, tmp_path, exact=True)
    assert np.array_equal(values["fc.weight"].numpy(), onnx_models.run(made))


def test_bfloat16_scales(tmp_path):
    """ONNX Runtime has no such node; the reference evaluator has."""
    q = trits(4, 16)
    scale = helper.make_tensor("s", TensorProto.BFLOAT16, [4], [0.1, 0.2, 0.3, 0.4])
    node = helper.make_node("DequantizeLinear", ["q", "s"], ["w"], axis=0)
    out = helper.make_tensor_value_info("w", TensorProto.BFLOAT16, None)
    made = onnx_models.model([node], [packed("q", TensorProto.INT2, q), scale], (), (out,))
    values, *_ = converted(onnx_models.save(tmp_path / "m.onnx", made), tmp_path, exact=True)
    wanted = ReferenceEvaluator(made).run(None, {})[0]
    assert values["q"].dtype == torch.bfloat16
    assert np.array_equal(values["q"].float().numpy(), wanted.astype(np.float32))


def test_blocks_along_the_inputs_are_read_as_the_transpose(tmp_path):
    q, scale = trits(40, 6), np.arange(1, 19, dtype=np.float32).reshape(3, 6)
    made = dequantized(q, "INT2", 0, scale, axis=0, block_size=16)
    path = onnx_models.save(tmp_path / "m.onnx", made)
    with open_source(path) as source:
        assert "fc.weight is stored as its transpose, (6, 40)" in source.notes[0]
    values, *_ = converted(path, tmp_path, exact=True)
    assert np.array_equal(values["fc.weight"].numpy().T, onnx_models.run(made))


def test_kernels_of_a_convolution_with_a_scale_each(tmp_path):
    q, scale = trits(5, 3, 3, 3), np.arange(1, 6, dtype=np.float32)
    made = dequantized(q, "INT2", 0, scale, axis=0)
    values, _, out = converted(onnx_models.save(tmp_path / "m.onnx", made), tmp_path, exact=True)
    assert np.array_equal(values["fc.weight"].numpy(), onnx_models.run(made))
    assert tpack.inspect(out).tensors[0].scale == "row"


def n_bits(q, block, scale, zeros=None, bits=2, zero=1, float_zeros=False):
    """A MatMulNBits of codes ``(N, K)`` on the identity."""
    rows, columns = q.shape
    blocks = -(-columns // block)
    wide = np.full((rows, blocks * block), 3 if bits == 2 else 0)
    zeros = np.full((rows, blocks), zero) if zeros is None else zeros
    wide[:, :columns] = q + np.repeat(zeros, block, axis=1)[:, :columns]
    kind = TensorProto.UINT2 if bits == 2 else TensorProto.UINT4
    raw = np.frombuffer(onnx_models._bytes(wide, kind), np.uint8)
    b = array("fc.weight_Q2", raw.reshape(rows, blocks, block * bits // 8))
    initializers = [b, array("fc.weight_scales", scale)]
    inputs = ["x", "fc.weight_Q2", "fc.weight_scales"]
    if float_zeros:
        initializers.append(array("fc.weight_zero_points", zeros.astype(scale.dtype)))
        inputs.append("fc.weight_zero_points")
    elif not (zeros == 1 << bits - 1).all():
        each = 8 // bits
        padded = np.zeros((rows, -(-blocks // each) * each), int)
        padded[:, :blocks] = zeros
        raw = np.frombuffer(onnx_models._bytes(padded, kind), np.uint8)
        initializers.append(array("fc.weight_zero_points", raw))
        inputs.append("fc.weight_zero_points")
    node = helper.make_node(
        "MatMulNBits", inputs, ["y"], domain="com.microsoft",
        K=columns, N=rows, bits=bits, block_size=block,
    )  # fmt: skip
    kind = helper.np_dtype_to_tensor_dtype(scale.dtype)
    x, y = (helper.make_tensor_value_info(name, kind, None) for name in "xy")
    return onnx_models.model([node], initializers, (x,), (y,), opset=21)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize(("columns", "block"), [(32, 16), (40, 16), (7, 16), (160, 32), (33, 32)])
@pytest.mark.parametrize("zeros", ["absent", "packed", "differ", "float"])
def test_matmul_n_bits(tmp_path, columns, block, zeros, dtype):
    q, blocks = trits(5, columns), -(-columns // block)
    scale = onnx_models.RNG.uniform(0.5, 2, 5 * blocks).astype(dtype)
    points = None
    if zeros == "differ":
        points = onnx_models.RNG.integers(1, 3, (5, blocks))
    zero = 2 if zeros == "absent" else 1
    made = n_bits(q, block, scale, points, zero=zero, float_zeros=zeros == "float")
    path = onnx_models.save(tmp_path / "m.onnx", made)
    values, _, out = converted(path, tmp_path, exact=True)
    wanted = onnx_models.run(made, {"x": np.eye(columns, dtype=dtype)}).T
    assert values["fc.weight"].shape == (5, columns)
    assert np.array_equal(values["fc.weight"].numpy(), wanted)
    row = tpack.inspect(out).tensors[0]
    assert row.scale == ("row" if blocks == 1 else f"group:{block}")


def test_matmul_n_bits_of_four_bits_may_be_ternary(tmp_path):
    q, scale = trits(4, 64), np.ones(8, np.float32)
    made = n_bits(q, 32, scale, bits=4, zero=8)
    values, *_ = converted(onnx_models.save(tmp_path / "m.onnx", made), tmp_path, exact=True)
    assert np.array_equal(values["fc.weight"].numpy(), q)


def test_gather_block_quantized(tmp_path):
    q, scale = trits(6, 40), np.arange(1, 19, dtype=np.float32).reshape(6, 3)
    raw = np.frombuffer(onnx_models._bytes(q + 2, TensorProto.UINT2), np.uint8).reshape(6, 10)
    inputs = ["emb.weight_Q2", "ids", "emb.weight_scales"]
    node = helper.make_node(
        "GatherBlockQuantized", inputs, ["y"], domain="com.microsoft",
        bits=2, block_size=16, gather_axis=0, quantize_axis=1,
    )  # fmt: skip
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, None)
    initializers = [array(inputs[0], raw), array(inputs[2], scale)]
    made = onnx_models.model([node], initializers, (ids,), ("y",), opset=21)
    path = onnx_models.save(tmp_path / "m.onnx", made)
    with open_source(path) as source:
        assert source.roles == {"emb.weight": "embedding"}
    values, *_ = converted(path, tmp_path, exact=True)
    assert np.array_equal(
        values["emb.weight"].numpy(), onnx_models.run(made, {"ids": np.arange(6)})
    )


# ---- codes that are not ternary


@pytest.mark.parametrize(
    ("kind", "zero"), [(TensorProto.INT4, 0), (TensorProto.UINT4, 1), (TensorProto.UINT4, 8)]
)
def test_gather_block_quantized_of_typed_codes(tmp_path, kind, zero):
    q, scale = trits(10, 16), np.arange(1, 11, dtype=np.float32).reshape(10, 1)
    initializers = [packed("e_quant", kind, q + zero), array("e_scales", scale)]
    initializers.append(packed("e_zero", kind, np.full((10, 1), zero)))
    node = helper.make_node(
        "GatherBlockQuantized", ["e_quant", "ids", "e_scales", "e_zero"], ["y"],
        domain="com.microsoft", block_size=16, quantize_axis=1, gather_axis=0,
    )  # fmt: skip
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["n"])
    made = onnx_models.model([node], initializers, (ids,), ("y",), opset=21)
    values, *_ = converted(onnx_models.save(tmp_path / "m.onnx", made), tmp_path, exact=True)
    assert np.array_equal(values["e"].numpy(), q * scale)
    assert np.array_equal(values["e"].numpy(), onnx_models.run(made, {"ids": np.arange(10)}))


def test_integers_of_a_bias_are_read_whole(tmp_path):
    q, bias = trits(4, 8), np.array([100_000, -70_000, 5, 65_536], np.int32)
    nodes = [helper.make_node("DequantizeLinear", ["w_quant", "s"], ["w"])]
    nodes.append(helper.make_node("DequantizeLinear", ["b_quant", "t"], ["b"]))
    nodes.append(helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=1))
    initializers = [array("w_quant", q), array("b_quant", bias)]
    initializers += [onnx_models.array(n, np.float32([0.001])) for n in "st"]
    made = onnx_models.model(nodes, initializers, ("x",), ("y",), opset=21)
    values, *_ = converted(onnx_models.save(tmp_path / "m.onnx", made), tmp_path)
    assert np.array_equal(values["b"].numpy(), bias.astype(np.float32) * np.float32(0.001))


def four_levels():
    q = trits(4, 32)
    q[0, 0] = -2
    return q


@pytest.mark.parametrize(
    ("made", "codes"),
    [
        (lambda: dequantized(four_levels(), "INT2", 0, np.array(0.5, np.float32)), "_quantized"),
        (lambda: n_bits(four_levels(), 16, np.ones(8, np.float32), zero=2), "_Q2"),
    ],
)
def test_more_than_three_values(tmp_path, made, codes):
    """Alone they are refused by name; beside a ternary weight all their parts are kept."""
    made = made()
    path = onnx_models.save(tmp_path / "m.onnx", made)
    with pytest.raises(NotTernaryError, match=r"is packed by ONNX.*: it has more values than thr"):
        tpack.convert(path, tmp_path / "out.safetensors")
    made.graph.initializer.append(array("up.weight", trits(8, 8) * np.float32(0.5)))
    onnx_models.save(path, made)
    values, report, _ = converted(path, tmp_path)
    assert "1 weight is packed by ONNX" in report.warnings[0]
    assert set(values) == {t.name for t in made.graph.initializer}


def test_codes_of_a_product_whose_scale_lies_elsewhere(tmp_path):
    node = helper.make_node("MatMulInteger", ["x", "b"], ["y"])
    x = helper.make_tensor_value_info("x", TensorProto.INT8, None)
    y = helper.make_tensor_value_info("y", TensorProto.INT32, None)
    made = onnx_models.model([node], [array("b", trits(4, 8))], (x,), (y,), opset=21)
    path = onnx_models.save(tmp_path / "m.onnx", made)
    with pytest.raises(NotTernaryError, match="MatMulInteger, without a scale of its own"):
        tpack.convert(path, tmp_path / "out.safetensors")


def test_codes_of_a_product_that_is_scaled_afterwards(tmp_path):
    """As onnxruntime's quantize_dynamic writes it."""
    q, scale = trits(4, 6), np.arange(1, 7, dtype=np.float32)
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["xq", "xs", "xz"]),
        helper.make_node("MatMulInteger", ["xq", "w_quantized", "xz", "w_zero_point"], ["i"]),
        helper.make_node("Cast", ["i"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["xs", "w_scale"], ["s"]),
        helper.make_node("Mul", ["f", "s"], ["y"]),
    ]
    initializers = [array("w_quantized", q), array("w_scale", scale)]
    initializers.append(array("w_zero_point", np.zeros(6, np.int8)))
    made = onnx_models.model(nodes, initializers, ("x",), ("y",), opset=21)
    values, *_ = converted(onnx_models.save(tmp_path / "m.onnx", made), tmp_path, exact=True)
    assert np.array_equal(values["w"].numpy(), q * scale)


def test_a_scale_of_a_product_is_not_that_of_its_weight(tmp_path):
    """The number is the scale of the inputs times that of the weight: neither can be told."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["xq"]),
        helper.make_node("MatMulInteger", ["xq", "w", "xz"], ["i"]),
        helper.make_node("Cast", ["i"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["f", "both"], ["y"]),
    ]
    initializers = [array("w", trits(4, 6)), array("both", np.float32([0.01]))]
    initializers += [array("xs", np.float32([0.1])), array("xz", np.zeros(1, np.uint8))]
    made = onnx_models.model(nodes, initializers, ("x",), ("y",), opset=21)
    path = onnx_models.save(tmp_path / "m.onnx", made)
    with pytest.raises(NotTernaryError, match="without a scale of its own"):
        tpack.convert(path, tmp_path / "out.safetensors")


def test_qlinear_matmul(tmp_path):
    q, scale = trits(4, 6), np.arange(1, 7, dtype=np.float32)
    names = ["x", "xs", "xz", "b", "bs", "bz", "ys", "yz"]
    one, zero = np.array(1, np.float32), np.array(0, np.int8)
    values = [one, zero, q, scale, np.zeros(6, np.int8), one, zero]
    initializers = [array(name, value) for name, value in zip(names[1:], values, strict=True)]
    x, y = (helper.make_tensor_value_info(name, TensorProto.INT8, None) for name in "xy")
    node = helper.make_node("QLinearMatMul", names, ["y"])
    made = onnx_models.model([node], initializers, (x,), (y,), opset=21)
    values, *_ = converted(onnx_models.save(tmp_path / "m.onnx", made), tmp_path, exact=True)
    assert np.array_equal(values["b"].numpy(), q * scale)


# ---- QONNX and Brevitas


def quant(weight, scale, bits=2.0, op="Quant", **attributes):
    initializers = [array("fc.weight", weight), array("s", scale)]
    initializers += [array("z", np.array(0, np.float32)), array("n", np.array(bits, np.float32))]
    made = {"signed": 1, "narrow": 1, "rounding_mode": "ROUND"} | attributes
    nodes = [
        helper.make_node(op, ["fc.weight", "s", "z", "n"], ["q"], "", **made),
        helper.make_node("Gemm", ["x", "q"], ["y"], transB=1),
    ]
    nodes[0].domain = "qonnx.custom_op.general"
    return onnx_models.model(nodes, initializers, ("x",), ("y",), opset=20)


@pytest.mark.parametrize(
    "scale", [np.array(0.1), np.array([[0.1], [0.2], [0.4]]), np.full((1, 8), 0.3)]
)
def test_quant_is_applied(tmp_path, scale):
    scale = scale.astype(np.float32)
    weight = onnx_models.RNG.normal(0, 0.3, (3, 8)).astype(np.float32)
    weight[0, :2] = 0.05, 0.15  # ties, half to even
    made = quant(weight, scale)
    path = onnx_models.save(tmp_path / "m.onnx", made)
    values, *_ = converted(path, tmp_path, exact=True)
    wanted = np.round(np.clip(weight / scale, -1, 1)) * scale  # as qonnx.custom_op.general.quant
    assert np.array_equal(values["fc.weight"].numpy(), wanted)


@pytest.mark.parametrize(
    ("mode", "wanted"),
    [
        ("HALF_EVEN", [0, 0, 1, -1, 0, 1]),
        ("DOWN", [0, 0, 0, 0, 0, 1]),
        ("UP", [1, -1, 1, -1, 1, 1]),
        ("HALF_UP", [1, -1, 1, -1, 0, 1]),
        ("HALF_DOWN", [0, 0, 1, -1, 0, 1]),
    ],
)
def test_quant_rounds_as_its_mode_says(tmp_path, mode, wanted):
    """The op is called IntQuant since qonnx 1.0."""
    weight = np.float32([[0.5, -0.5, 0.75, -0.75, 0.25, 1.5]])
    made = quant(weight, np.array(1, np.float32), op="IntQuant", rounding_mode=mode)
    values, *_ = converted(onnx_models.save(tmp_path / "m.onnx", made), tmp_path)
    assert values["fc.weight"].tolist() == [wanted]


@pytest.mark.parametrize("change", [{"bits": 4.0}, {"signed": 0}, {"narrow": 0}])
def test_quant_to_more_values_leaves_the_floats(tmp_path, change):
    weight = np.linspace(-2, 2, 24, dtype=np.float32).reshape(3, 8)
    path = onnx_models.save(tmp_path / "m.onnx", quant(weight, np.array(1, np.float32), **change))
    with open_source(path) as source:
        assert "the values that are stored were taken" in source.warnings[0]
        tensor = source.tensors["fc.weight"]
        assert np.array_equal(tensor.read(0, 24).reshape(3, 8), weight)
    with pytest.raises(tpack.TpackError, match="1 rounded by Quant"):  # never by absmean
        tpack.convert(path, tmp_path / "out.safetensors")


def test_a_damaged_shape_is_refused(tmp_path):
    made = dequantized(trits(4, 8), "INT2", 0, np.ones(3, np.float32), axis=0)
    path = onnx_models.save(tmp_path / "m.onnx", made)
    with pytest.raises(tpack.TpackError, match=r"of shape \(3,\), expected \(4,\)"):
        open_source(path)


@pytest.mark.parametrize("name", ["s", "w_scale"])
@pytest.mark.parametrize("shape", [(), (1,), (8,), (8, 1), (1, 8)])
@pytest.mark.parametrize("op", ["Mul", "turned", "Div"])
def test_trits_that_the_graph_casts_and_scales(tmp_path, op, shape, name):
    """The graph says whether a scale multiplies or divides and along which axis; no name does."""
    operands = [name, "f"] if op == "turned" else ["f", name]
    nodes = [
        helper.make_node("Cast", ["w"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Mul" if op == "turned" else op, operands, ["u"]),
        helper.make_node("MatMul", ["x", "u"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8])
    scale = np.array(onnx_models.RNG.uniform(2, 4, shape)).astype(np.float32)
    made = onnx_models.model(
        nodes, [array("w", trits(8, 8)), array(name, scale)], (x,), ("y",), opset=21
    )
    path = onnx_models.save(tmp_path / "m.onnx", made)
    values, report, out = converted(path, tmp_path, exact=True)
    assert not report.warnings
    given = onnx_models.RNG.normal(0, 1, (3, 8)).astype(np.float32)
    wanted = onnx_models.run(made, {"x": given})
    np.testing.assert_allclose(given @ values["w"].numpy(), wanted, rtol=1e-5, atol=1e-5)
    loaded = tpack.load(out)
    np.testing.assert_allclose(loaded(torch.from_numpy(given)).detach(), wanted, 1e-5, 1e-5)


def test_scaled_trits_that_serve_something_else_too(tmp_path):
    """No weight of the checkpoint can be both: the codes, and the codes times a scale."""
    nodes = [
        helper.make_node("Cast", ["w"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["f", "s"], ["u"]),
        helper.make_node("MatMul", ["x", "u"], ["z"]),
        helper.make_node("MatMul", ["z", "f"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8])
    initializers = [array("w", trits(8, 8)), array("s", np.float32([3]))]
    made = onnx_models.model(nodes, initializers, (x,), ("y",), opset=21)
    values, _, out = converted(onnx_models.save(tmp_path / "m.onnx", made), tmp_path)
    assert values["w"].abs().max() == 1
    given = onnx_models.RNG.normal(0, 1, (3, 8)).astype(np.float32)
    wanted = onnx_models.run(made, {"x": given})
    np.testing.assert_allclose(
        tpack.load(out)(torch.from_numpy(given)).detach(), wanted, 1e-5, 1e-4
    )
