"""Constants come in as TFLite's own runtime gives them; ternary codes with unchanged scales."""

import struct

import numpy as np
import pytest
from opened_files import check_refusal, values
from tflite_models import Model

import tpack
from tpack.errors import InputError
from tpack.sources import open_source

GENERATOR = np.random.default_rng(3)


def trits(*shape):
    found = GENERATOR.integers(-1, 2, shape).astype(np.int8)
    found.reshape(-1)[:3] = 1, -1, 0
    return found


def scales(count):
    return GENERATOR.random(count, dtype=np.float32) + 0.5


def written(tmp_path, model, name="m.tflite"):
    path = tmp_path / name
    path.write_bytes(model.content())
    return path


def interpreter(path):
    from ai_edge_litert.interpreter import Interpreter

    return Interpreter(str(path))


@pytest.mark.parametrize("outside", [False, True])
def test_constants_are_those_of_the_runtime(tmp_path, outside):
    model = Model(outside=outside)
    wanted = {
        "a/kernel": GENERATOR.standard_normal((4, 5)).astype(np.float32),
        "half": GENERATOR.standard_normal((3, 3)).astype(np.float16),
        "shape": np.array([1, -1], np.int32),
        "long": np.array([1, 1 << 40]),
        "flags": np.array([True, False]),
        "bytes": GENERATOR.integers(0, 255, (3, 3)).astype(np.uint8),
    }
    for name, array in wanted.items():
        model.tensor(name, array.shape, str(array.dtype), array)
    model.fully_connected(0, 5, 4)
    path = written(tmp_path, model)
    runtime = interpreter(path)
    with open_source(path) as source:
        found = values(source)
        assert list(found) == list(wanted)
        for number, (name, array) in enumerate(wanted.items()):
            np.testing.assert_array_equal(found[name].view(array.dtype), array)
            np.testing.assert_array_equal(runtime.get_tensor(number), array)
        assert source.roles["a/kernel"] == "layer"
        assert source.roles["half"] == "not used as a weight"


@pytest.mark.parametrize("count", [1, 7])
@pytest.mark.parametrize("kind", ["int8", "int4", "int2"])
def test_ternary_codes_are_packed_with_their_scales(tmp_path, kind, count):
    """33 columns: rows do not end at bytes."""
    model, codes, scale = Model(), trits(7, 33), scales(count)
    model.fully_connected(model.tensor("w", codes.shape, kind, codes, scale), 33, 7)
    path, out = written(tmp_path, model), tmp_path / "m.safetensors"
    report = tpack.convert(path, out, exact=True)
    assert [(t.name, t.scale) for t in report.tensors] == [("w", "row" if count > 1 else "tensor")]
    assert tpack.verify(out, path).ok
    found = tpack.unpack(out)["w"].numpy()
    np.testing.assert_array_equal(found, codes * scale[:, None])
    if kind != "int2" or count > 1:
        runtime = interpreter(path)
        runtime.allocate_tensors()
        x = np.eye(33, dtype=np.float32)[4:5]
        runtime.set_tensor(runtime.get_input_details()[0]["index"], x)
        runtime.invoke()
        y = runtime.get_tensor(runtime.get_output_details()[0]["index"])[0]
        np.testing.assert_allclose(y, found[:, 4], rtol=1e-2)


@pytest.mark.parametrize(
    ("operator", "shape", "axis", "scale"),
    [
        ("CONV_2D", (16, 3, 3, 8), 0, "row"),
        ("TRANSPOSE_CONV", (16, 3, 3, 8), 0, "row"),
        ("DEPTHWISE_CONV_2D", (1, 5, 5, 32), 3, "column"),
        ("GATHER", (40, 16), 0, "row"),
        ("CONV_3D", (3, 3, 3, 4, 16), 4, "column"),
        ("BATCH_MATMUL", (24, 16), 1, "column"),
    ],
)
def test_scales_of_every_operator(tmp_path, operator, shape, axis, scale):
    model, codes, factor = Model(), trits(*shape), scales(shape[axis])
    weight = model.tensor("w", shape, "int8", codes * 127, factor / 127, axis=axis)
    x, y = model.tensor("x", (1, 1)), model.tensor("y", (1, 1))
    model.operator(operator, [weight, x] if operator == "GATHER" else [x, weight], [y])
    path, out = written(tmp_path, model), tmp_path / "m.safetensors"
    report = tpack.convert(path, out, include=["*"], exact=True)
    assert [(t.name, t.scale) for t in report.tensors] == [("w", scale)]
    wide = (factor / 127).reshape([-1 if i == axis else 1 for i in range(len(shape))])
    found = tpack.unpack(out)["w"].numpy()
    np.testing.assert_array_equal(found, ((codes * 127) * wide.astype(float)).astype(np.float32))


def test_float_kernels_have_a_scale_for_each_output(tmp_path):
    model, factor = Model(), scales(16)
    kernel = trits(16, 3, 3, 8) * factor[:, None, None, None]
    half = model.tensor("half", kernel.shape, "float16", (trits(16, 3, 3, 8) * 0.5).astype("f2"))
    weight = model.tensor("w", kernel.shape, "float32", kernel)
    cast = model.tensor("cast", kernel.shape)
    x, y = model.tensor("x", (1, 1)), model.tensor("y", (1, 1))
    model.operator("CONV_2D", [x, weight], [y])
    model.operator("DEQUANTIZE", [half], [cast])
    model.operator("CONV_2D", [x, cast], [y])
    path = written(tmp_path, model)
    report = tpack.convert(path, tmp_path / "m.safetensors", exact=True)
    assert {t.name: t.scale for t in report.tensors} == {"half": "tensor", "w": "row"}


def test_other_codes_keep_their_scales_and_biases_become_floats(tmp_path):
    model = Model()
    codes = GENERATOR.integers(-8, 8, (7, 33)).astype(np.int8)
    bias = np.arange(7, dtype=np.int32) * 1000
    zeros = [0, 1, 0, 0, 0, 0, 2]
    model.tensor("t", (8, 33), "int8", trits(8, 33), 0.5)
    for name, use in (("w", scales(7)), ("z", scales(7))):
        model.tensor(name, (7, 33), "int4", codes, use, zeros if name == "z" else None)
    model.tensor("b", (7,), "int32", bias, np.float32([0.25] * 7))
    x, y = model.tensor("x", (1, 1)), model.tensor("y", (1, 1))
    for weight in (0, 1, 2):
        model.operator("FULLY_CONNECTED", [x, weight, 3], [y])
    path, out = written(tmp_path, model), tmp_path / "m.safetensors"
    report = tpack.convert(path, out)
    assert [t.name for t in report.tensors if t.action == "packed"] == ["t"]
    assert "2 weights are packed by TFLite's int4, and kept bit for bit" in report.warnings[0]
    found = tpack.unpack(out)
    assert set(found) == {"t", "w", "w_scale", "z", "z_scale", "z_zero_point", "b"}
    np.testing.assert_array_equal(found["z"].numpy(), codes)
    np.testing.assert_array_equal(found["z_zero_point"].numpy(), zeros)
    np.testing.assert_array_equal(found["b"].numpy(), bias * np.float32(0.25))
    assert tpack.verify(out, path).ok


def test_zero_points_of_trits_are_subtracted(tmp_path):
    model, codes = Model(), trits(7, 33)
    weight = model.tensor(
        "w", (7, 33), "uint8", (codes.astype(int) + 128).astype(np.uint8), 0.5, [128]
    )
    model.fully_connected(weight, 33, 7)
    tpack.convert(written(tmp_path, model), tmp_path / "m.safetensors", exact=True)
    found = tpack.unpack(tmp_path / "m.safetensors")["w"].numpy()
    np.testing.assert_array_equal(found, codes * np.float32(0.5))


def test_names_are_made_unique_and_equal_tensors_are_stored_once(tmp_path):
    model, one = Model(), GENERATOR.standard_normal((4, 4)).astype(np.float32)
    for value in (one, one * 2):
        model.tensor("w", (4, 4), "float32", value)
    model.tensor("again", (4, 4))
    model.graph.tensors[2].buffer = 1
    model.tensor("words", (1,), "string", b"hello")
    path = written(tmp_path, model)
    with open_source(path) as source:
        found = values(source)
        assert list(found) == ["w", "w_1"]
        np.testing.assert_array_equal(found["w_1"], one * 2)
        assert source.aliases == {"again": "w"}
        assert source.notes == ["left out words: no safetensors file can hold them"]


def small():
    model = Model()
    model.fully_connected(model.tensor("w", (7, 33), "int8", trits(7, 33), scales(7)), 33, 7)
    return model.content()


def test_every_truncated_or_changed_file_is_read_or_refused(tmp_path):
    content, path = small(), tmp_path / "m.tflite"
    for cut in range(8, len(content), 7):
        path.write_bytes(content[:cut])
        with pytest.raises(InputError):
            values(open_source(path))
    for place in range(8, len(content), 3):
        for value in (0, 0x7F, 0xFF):
            changed = bytearray(content)
            changed[place] = value
            path.write_bytes(changed)
            try:
                with open_source(path) as source:
                    for tensor in source.tensors.values():
                        getattr(tensor, "dense", lambda one=tensor: one)().read(0, 1)
            except InputError as error:
                assert len(str(error)) < 500  # noqa: PT017


@pytest.mark.parametrize(
    ("shape", "kind", "text"),
    [
        ((7, 34), "int8", "holds 231 bytes, expected 238"),
        ((1 << 30, 1 << 30), "int8", "holds 231 bytes, expected"),
        ((-7, -33), "int8", "expected sizes"),
        ((1,) * 9, "int8", "expected sizes"),
        ((7, 33), "int2", "holds 231 bytes, expected 58"),
    ],
)
def test_a_shape_that_does_not_fit_is_refused(tmp_path, shape, kind, text):
    model = Model()
    model.tensor("w", shape, kind, bytes(231))
    with pytest.raises(InputError, match=f"tensor 'w' .*{text}"):
        open_source(written(tmp_path, model))


def shared_tables(path):
    """A million tensors that are one."""
    content = bytearray(small())
    count = 1 << 20
    at = len(content)
    content += struct.pack("<I", count)
    tensor = _tensor_of(content)
    content += b"".join(struct.pack("<I", tensor - at - 4 - 4 * n & 0xFFFFFFFF) for n in range(3))
    content += bytes(4 * (count - 3))
    _point(content, at)
    path.write_bytes(content)


def _field(content, table, number):
    vtable = table - struct.unpack_from("<i", content, table)[0]
    return table + struct.unpack_from("<H", content, vtable + 4 + 2 * number)[0]


def _follow(content, at):
    return at + struct.unpack_from("<I", content, at)[0]


def _graph(content):
    graphs = _follow(content, _field(content, _follow(content, 0), 2))
    return _follow(content, graphs + 4)


def _tensor_of(content):
    tensors = _follow(content, _field(content, _graph(content), 0))
    return _follow(content, tensors + 4)


def _point(content, at):
    place = _field(content, _graph(content), 0)
    struct.pack_into("<I", content, place, at - place)


def test_tables_that_are_shared_many_times_are_refused(tmp_path):
    shared_tables(tmp_path / "m.tflite")
    check_refusal(tmp_path / "m.tflite", "m.tflite: ")


def test_scales_that_are_shared_many_times_are_refused(tmp_path):
    model = Model()
    for number in range(3000):
        model.tensor(f"w{number}", (1, 1), "int8", b"\1", 0.5)
    wide = scales(2000)
    model.graph.tensors[0].quantization.scale = [float(one) for one in wide]
    for tensor in model.graph.tensors:
        tensor.quantization = model.graph.tensors[0].quantization
    check_refusal(written(tmp_path, model), "m.tflite: ")
