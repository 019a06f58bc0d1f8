"""ONNX files: tensors equal to what onnx reads, wherever their bytes lie, under torch's names."""

import os
import re
import warnings

import ml_dtypes
import numpy as np
import onnx
import onnx_models
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx_models import array, trits
from torch import nn

import tpack
from tpack.errors import InputError
from tpack.options import Reading
from tpack.sources import open_source
from tpack.sources.onnx_files import open_onnx
from tpack.sources.onnx_files.skeleton import SMALL


class Net(nn.Module):
    """Layers of kinds that exporters store in different forms."""

    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(10, 8)
        self.fc1 = nn.Linear(8, 16)
        self.ln = nn.LayerNorm(16)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(16, 16, bias=False), nn.ReLU()) for _ in range(2)
        )
        self.head = nn.Linear(16, 10)

    def forward(self, ids):
        x = self.ln(self.fc1(self.emb(ids)))
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Pictures(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3)
        self.bn = nn.BatchNorm2d(8)
        self.deep = nn.Conv2d(8, 8, 3, groups=8)
        self.up = nn.ConvTranspose2d(8, 4, 2)
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        return self.fc(self.up(self.deep(self.bn(self.first(x)).relu())).mean((2, 3)))


@pytest.fixture(params=["dynamo", "torchscript"])
def export(request, tmp_path):
    """Write a module by one of torch's two exporters."""

    def write(module, *args):
        path = tmp_path / "model.onnx"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # both exporters warn of what they will become
            torch.onnx.export(
                module.eval(), args, path, dynamo=request.param == "dynamo", verbose=False
            )
        return path

    return write


def test_a_model_of_torch_has_torchs_names(export):
    torch.manual_seed(0)
    module = Net()
    with open_source(export(module, torch.zeros(1, 3, dtype=torch.long))) as source:
        found = {name: t for name, t in source.tensors.items() if t.dtype == "float32"}
        assert set(found) == set(module.state_dict())
        for name, value in module.state_dict().items():
            turned = name in source.in_out
            tensor = found[name]
            values = tensor.read(0, tensor.numel).reshape(tensor.shape)
            assert np.array_equal(values, (value.T if turned else value).numpy())
        assert source.in_out == {name for name, t in found.items() if t.shape and "emb" not in name
                                 and len(t.shape) == 2}  # fmt: skip
        roles = {name: role for name, role in source.roles.items() if role != "norm"}
    assert roles == {
        "emb.weight": "embedding",
        "fc1.weight": "linear",
        "blocks.0.0.weight": "linear",
        "blocks.1.0.weight": "linear",
        "head.weight": "output head",
    }


def test_convolutions_keep_their_orientation(export):
    module = Pictures()
    with open_source(export(module, torch.zeros(1, 3, 8, 8))) as source:
        for name in ("first", "deep", "up", "fc"):
            weight = module.get_submodule(name).weight
            assert source.tensors[f"{name}.weight"].shape == tuple(weight.shape)
        assert source.roles["deep.weight"] == "depthwise"
        assert {source.roles[f"{name}.weight"] for name in ("first", "up")} == {"conv"}
        assert not source.in_out


def test_a_ternary_model_is_packed_as_it_is_and_multiplies_from_the_right_side(export, tmp_path):
    """A square weight (in, out) called ``0.weight`` is not taken for that of a Linear."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16, bias=False), nn.ReLU())
    scale = torch.rand(16, 1) + 0.5
    with torch.no_grad():
        for layer in (module[0], module[2]):
            layer.weight.copy_(torch.randint(-1, 2, (16, 16)) * scale)
    path = export(module, torch.zeros(2, 3, 16))
    out = tmp_path / "out.safetensors"
    tpack.convert(path, out, exact=True)
    assert tpack.verify(out, path).ok
    values = tpack.unpack(out)
    assert torch.equal(values["0.weight"].T, module[0].weight)
    assert [row.scale for row in tpack.inspect(out).tensors] == ["column", "column"]
    x = torch.randn(4, 16)
    for place in ("0", "2"):
        layer = tpack.load(out).get_submodule(place)
        assert torch.allclose(layer(x), module.get_submodule(place)(x), atol=1e-5)


def test_embeddings_are_not_rounded(export, tmp_path):
    path = export(Net(), torch.zeros(1, 3, dtype=torch.long))
    report = tpack.convert(path, tmp_path / "out.safetensors", quantize="absmean")
    actions = {row.name: row.action for row in report.tensors}
    assert (actions["emb.weight"], actions["head.weight"]) == ("kept", "kept")
    assert actions["fc1.weight"] == "quantized"


def test_a_name_that_two_tensors_would_have_is_given_to_neither(tmp_path):
    nodes = [
        helper.make_node("Gemm", ["x", "fc.weight"], ["h"], "/fc/Gemm"),
        helper.make_node("MatMul", ["h", "onnx::MatMul_7"], ["y"], "/fc/MatMul"),
    ]
    initializers = [array("fc.weight", np.eye(3)), array("onnx::MatMul_7", np.eye(3))]
    made = onnx_models.model(nodes, initializers, ("x",), ("y",))
    with open_source(onnx_models.save(tmp_path / "m.onnx", made)) as source:
        assert list(source.tensors) == ["fc.weight", "onnx_MatMul_7"]
        assert "onnx::MatMul_7 keeps its name" in source.notes[0]


def test_a_module_that_holds_others_has_no_weight_of_its_own_by_guess(tmp_path):
    nodes = [
        helper.make_node("MatMul", ["x", "onnx::MatMul_7"], ["h"], "/attn/MatMul"),
        helper.make_node("MatMul", ["h", "onnx::MatMul_8"], ["y"], "/attn/out/MatMul"),
    ]
    initializers = [array(name, np.eye(3)) for name in ("onnx::MatMul_7", "onnx::MatMul_8")]
    made = onnx_models.model(nodes, initializers, ("x",), ("y",))
    with open_source(onnx_models.save(tmp_path / "m.onnx", made)) as source:
        assert list(source.tensors) == ["onnx_MatMul_7", "attn.out.weight"]


def test_what_the_graph_computes_of_a_weight_is_said(tmp_path):
    nodes = [
        helper.make_node("Mul", ["w", "s"], ["scaled"]),
        helper.make_node("Transpose", ["scaled"], ["turned"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "turned"], ["y"]),
    ]
    initializers = [array("w", trits(4, 4).astype(np.float32)), array("s", np.float32(0.5))]
    made = onnx_models.model(nodes, initializers, ("x",), ("y",))
    with open_source(onnx_models.save(tmp_path / "m.onnx", made)) as source:
        assert source.warnings == [
            "w is changed by the graph before it is used (Mul): the values that are stored were "
            "taken"
        ]
        assert (source.roles["w"], source.in_out) == ("linear", frozenset())


# ---- where tensors lie


TYPES = {
    "float32": np.float32, "float64": np.float64, "float16": np.float16, "int8": np.int8,
    "uint8": np.uint8, "int16": np.int16, "uint16": np.uint16, "int32": np.int32,
    "uint32": np.uint32, "int64": np.int64, "uint64": np.uint64, "bool": np.bool_,
    "complex64": np.complex64, "bfloat16": ml_dtypes.bfloat16,
    "float8_e4m3fn": ml_dtypes.float8_e4m3fn, "float8_e5m2": ml_dtypes.float8_e5m2,
}  # fmt: skip


@pytest.mark.parametrize("where", ["raw", "typed", "external"])
@pytest.mark.parametrize("numel", [6, 3 * SMALL])
@pytest.mark.parametrize("dtype", TYPES)
def test_every_dtype_wherever_it_lies(tmp_path, dtype, numel, where):
    values = (onnx_models.RNG.integers(0, 2 if dtype == "bool" else 100, (3, numel // 3))).astype(
        TYPES[dtype]
    )
    if dtype in ("int8", "int16", "int32", "int64", "float32", "float16"):
        values[0, 0] = -7
    kind = helper.np_dtype_to_tensor_dtype(values.dtype)
    tensor = numpy_helper.from_array(values, "w")
    if where == "typed":
        tensor = helper.make_tensor("w", kind, values.shape, values.reshape(-1))
        assert not tensor.HasField("raw_data")
    made = onnx_models.model([], [tensor])
    path = tmp_path / "m.onnx"
    onnx.save(made, path, save_as_external_data=where == "external", size_threshold=0)
    assert (len(list(tmp_path.iterdir())) == 2) == (where == "external")
    with open_source(path) as source:
        found = source.tensors["w"]
        assert (found.dtype, found.shape) == (dtype, values.shape)
        read = np.concatenate([found.read(0, 5), found.read(5, numel)])
        assert read.tobytes() == values.tobytes()


def external(tmp_path, **entries):
    """A model whose one tensor, of 64 bytes, is said to lie in a file beside it."""
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4, 4])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    (tmp_path / "model").mkdir()
    return onnx_models.save(tmp_path / "model" / "m.onnx", onnx_models.model([], [tensor]))


@pytest.mark.parametrize("location", ["../weights.bin", "/etc/passwd", "a/../../weights.bin", ""])
def test_external_data_outside_the_folder_is_refused(tmp_path, location):
    path = external(tmp_path, location=location)
    (tmp_path / "weights.bin").write_bytes(bytes(64))
    with pytest.raises(InputError, match=r"w.* refers to the file .* expected one in the folder"):
        open_source(path)


def test_a_link_that_leads_out_of_the_folder_is_refused(tmp_path):
    path = external(tmp_path, location="weights.bin")
    (tmp_path / "weights.bin").write_bytes(bytes(64))
    (path.parent / "weights.bin").symlink_to(tmp_path / "weights.bin")
    with pytest.raises(InputError, match="a link that leads out of the folder"):
        open_source(path)


@pytest.mark.parametrize(
    ("entries", "problem"),
    [
        ({}, "which is not beside the model. Copy it there"),
        ({"size": 63}, "takes bytes 0 to 64 of a file of 63 bytes"),
        ({"size": 64, "offset": "1"}, "takes bytes 1 to 65 of a file of 64 bytes"),
        ({"size": 64, "offset": "-1"}, "has offset '-1', expected a number of bytes"),
        ({"size": 64, "offset": "9" * 30}, "expected a number of bytes"),
        ({"size": 64, "length": "60"}, "holds 60 bytes, expected 64"),
    ],
)
def test_external_data_that_is_not_there(tmp_path, entries, problem):
    size = entries.pop("size", None)
    path = external(tmp_path, location="weights.bin", **entries)
    if size is not None:
        (path.parent / "weights.bin").write_bytes(bytes(size))
    with pytest.raises(InputError, match=re.escape(problem)):
        open_source(path)


def test_external_data_in_a_folder_below_and_without_a_length(tmp_path):
    path = external(tmp_path, location="data/weights.bin", offset="4")
    (path.parent / "data").mkdir()
    values = np.arange(17, dtype=np.float32)
    values.tofile(path.parent / "data" / "weights.bin")
    with open_source(path) as source:
        assert source.tensors["w"].read(0, 16).tolist() == values[1:].tolist()
        assert [file.name for file in source.files] == ["m.onnx", "weights.bin"]


def test_a_file_of_data_that_is_cut_while_it_is_read(tmp_path):
    path = external(tmp_path, location="weights.bin")
    (path.parent / "weights.bin").write_bytes(bytes(64))
    with open_source(path) as source:
        os.truncate(path.parent / "weights.bin", 8)
        with pytest.raises(InputError, match="ends before its last byte"):
            source.tensors["w"].read(0, 16)


# ---- graphs inside graphs


def test_tensors_of_inner_graphs_and_functions_are_found(tmp_path):
    def branch(number):
        node = helper.make_node("MatMul", ["x", "w"], [f"y{number}"])
        value = np.full((3, 3), number, np.float32)
        return helper.make_graph(
            [node], "b", [], [helper.make_tensor_value_info(f"y{number}", 1, None)],
            [array("w", value)],
        )  # fmt: skip

    constant = helper.make_node("Constant", [], ["c"], value=array("", np.eye(3, dtype="f4")))
    choice = helper.make_node(
        "If", ["yes"], ["h"], "choice", then_branch=branch(1), else_branch=branch(2)
    )
    inner = helper.make_node("Constant", [], ["k"], value=array("", np.eye(4, dtype="f4")))
    function = helper.make_function(
        "own", "Times", ["a"], ["b"], [inner, helper.make_node("MatMul", ["a", "k"], ["b"])],
        [helper.make_opsetid("", 20)],
    )  # fmt: skip
    nodes = [choice, constant, helper.make_node("MatMul", ["h", "c"], ["y"])]
    nodes.append(helper.make_node("Times", ["y"], ["z"], domain="own"))
    yes = helper.make_tensor_value_info("yes", TensorProto.BOOL, [])
    made = onnx_models.model(nodes, [], ("x", yes), ("z",), functions=[function])
    with open_source(onnx_models.save(tmp_path / "m.onnx", made)) as source:
        assert set(source.tensors) == {"w", "choice.then_branch.w", "c", "k"}
        assert source.tensors["w"].read(0, 1) == 2
        assert source.tensors["choice.then_branch.w"].read(0, 1) == 1


def test_an_input_of_a_function_is_no_initializer_of_the_same_name(tmp_path):
    """Else a weight would be taken for codes that only the function has under its name."""
    inside = helper.make_node("DequantizeLinear", ["w", "s"], ["b"])
    function = helper.make_function(
        "own", "Unpack", ["w", "s"], ["b"], [inside], [helper.make_opsetid("", 20)]
    )
    nodes = [helper.make_node("DequantizeLinear", ["w", "scale"], ["u"])]
    nodes.append(helper.make_node("MatMul", ["x", "u"], ["y"]))
    initializers = [array("w", np.eye(4, dtype=np.int8)), array("scale", np.float32([2]))]
    initializers.append(array("s", np.float32([7])))
    made = onnx_models.model(nodes, initializers, ("x",), ("y",), functions=[function])
    with open_source(onnx_models.save(tmp_path / "m.onnx", made)) as source:
        assert source.tensors["w"].scale == 2
        assert set(source.tensors) == {"w", "s"}


def test_a_bias_of_a_recurrent_layer_is_no_weight(tmp_path):
    node = helper.make_node("LSTM", ["x", "w", "r", "b"], ["y"], hidden_size=16)
    shapes = {"w": (1, 64, 16), "r": (1, 64, 16), "b": (1, 128)}
    initializers = [array(name, np.ones(shape, np.float32)) for name, shape in shapes.items()]
    made = onnx_models.model([node], initializers, ("x",), ("y",))
    with open_source(onnx_models.save(tmp_path / "m.onnx", made)) as source:
        assert source.roles == {"w": "linear", "r": "linear", "b": "other"}


def test_what_cannot_be_held_is_named(tmp_path):
    sparse = helper.make_sparse_tensor(
        array("sparse.weight", np.ones(1, np.float32)), array("i", np.zeros(1, np.int64)), [9]
    )
    text = helper.make_tensor("vocabulary", TensorProto.STRING, [1], [b"a"])
    made = onnx_models.model([], [array("w", np.eye(2)), text])
    made.graph.sparse_initializer.append(sparse)
    with open_source(onnx_models.save(tmp_path / "m.onnx", made)) as source:
        assert list(source.tensors) == ["w"]
        first, second = source.warnings
    assert "left out vocabulary of type STRING" in first
    assert "left out sparse.weight: sparse initializers are not read" in second


def test_two_tensors_of_one_name_are_refused(tmp_path):
    made = onnx_models.model([], [array("w", np.eye(2)), array("w", np.eye(3))])
    with pytest.raises(InputError, match="is the name of two tensors of the graph"):
        open_source(onnx_models.save(tmp_path / "m.onnx", made))


# ---- damage


def test_damaged_models_are_refused_or_read(tmp_path):
    initializers = [array("w", trits(40, 40).astype(np.float32)), array("b", np.ones(9))]
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    blob = onnx_models.model([node], initializers, ("x",), ("y",)).SerializeToString()
    path = tmp_path / "m.onnx"
    start = blob.index(b"w" + bytes(0)) if b"w\0" in blob else 200
    places = [*range(260), *range(len(blob) - 200, len(blob)), start]
    for place in places:
        for damaged in (
            blob[:place],
            blob[:place] + bytes([blob[place] ^ 0x15]) + blob[place + 1 :],
        ):
            path.write_bytes(damaged)
            try:
                with open_onnx(path, Reading()) as source:
                    for tensor in source.tensors.values():
                        tensor.read(0, tensor.numel)
            except tpack.TpackError as error:
                assert str(error).isprintable()  # noqa: PT017


@pytest.mark.parametrize("blob", [b"", b"\x08", b"\xff" * 40, b"\x08\x0a", b"\x3a\x00", b"\x0b"])
def test_what_is_no_model_is_refused(tmp_path, blob):
    path = tmp_path / "m.onnx"
    path.write_bytes(blob)
    if blob == b"\x3a\x00":
        with open_onnx(path, Reading()) as source:
            assert not source.tensors
        return
    with pytest.raises(InputError, match="not an ONNX model"):
        open_onnx(path, Reading())
