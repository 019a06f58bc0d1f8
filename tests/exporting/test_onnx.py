"""A checkpoint as an ONNX model: right in a default session, and the way back bit for bit."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from torch.export import Dim

import tpack
from tpack.errors import (
    ExistsError,
    FormatError,
    LayerDefError,
    UnsupportedError,
    UsageError,
)
from tpack.nn import TernaryEmbedding, TernaryLinear


def session(path):
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def trits(*shape, scale=0.05):
    return torch.randint(-1, 2, shape).float() * scale


def fill(module):
    """Make all weights of a module ternary."""
    for parameter in module.parameters():
        parameter.data = trits(*parameter.shape) if parameter.dim() > 1 else parameter.data
    return module.eval()


class Perceptron(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(70, 33), nn.Linear(33, 5, bias=False)

    def forward(self, x):
        return {"logits": self.down(torch.relu(self.up(x))), "again": x * 2}


@pytest.fixture(scope="module")
def perceptron(tmp_path_factory):
    """A checkpoint, and its models by form."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("perceptron")
    path = folder / "model.safetensors"
    example = (torch.randn(2, 70),)
    tpack.convert(
        fill(Perceptron()), path, example_args=example, dynamic_shapes=({0: Dim("rows")},)
    )
    reports = {
        form: tpack.export(path, "onnx", folder / f"{form}.onnx", form=form)
        for form in ("exact", "fast")
    }
    return path, reports


@pytest.mark.parametrize(("form", "bound"), [("exact", 1e-6), ("fast", 0.05)])
def test_a_default_session_computes_what_the_packed_model_does(perceptron, form, bound):
    path, reports = perceptron
    model, run = tpack.load(path), session(reports[form].output)
    assert [(one.name, one.shape) for one in run.get_inputs()] == [("x", ["batch", 70])]
    shapes = {one.name: one.shape for one in run.get_outputs()}
    assert shapes == {"logits": ["batch", 5], "again": ["batch", 70]}
    for rows in (1, 2, 9):
        x = torch.randn(rows, 70)
        logits, again = run.run(["logits", "again"], {"x": x.numpy()})
        with torch.no_grad():
            expected = model(x)
        assert np.abs(logits - expected["logits"].numpy()).max() <= bound
        assert np.array_equal(again, expected["again"].numpy())


def test_the_report_tells_the_difference(perceptron):
    _, reports = perceptron
    exact, fast = (reports[form].to_dict() for form in ("exact", "fast"))
    assert exact["nodes"] == {"MatMul": 2}
    assert fast["nodes"] == {"MatMulNBits": 2}
    assert exact["difference"] < 1e-6 < fast["difference"] < 0.1 * fast["largest"]
    assert f"onnxruntime {onnxruntime.__version__}" in exact["notes"][0]


@pytest.mark.parametrize("form", ["exact", "fast"])
def test_weights_stay_two_bits(perceptron, form):
    path, reports = perceptron
    model = onnx.load(reports[form].output)
    onnx.checker.check_model(model, full_check=form == "exact")
    stored = {one.name: one for one in model.graph.initializer}
    packed = stored["up.weight_packed"]
    assert (packed.data_type, list(packed.dims)) == (onnx.TensorProto.UINT8, [33, 18])
    constants = [node for node in model.graph.node if node.op_type == "Constant"]
    assert all(len(node.attribute[0].t.raw_data) < 100 for node in constants)
    assert Path(reports[form].output).stat().st_size == reports[form].output_bytes
    assert reports[form].output_bytes < path.stat().st_size + 8192


@pytest.mark.parametrize("form", ["exact", "fast"])
def test_convert_gives_the_checkpoint_back(perceptron, tmp_path, form):
    path, reports = perceptron
    report = tpack.convert(reports[form].output, tmp_path / "back.safetensors")
    assert (tmp_path / "back.safetensors").read_bytes() == path.read_bytes()
    assert {t.name: t.action for t in report.tensors} == {
        "up.weight": "packed", "down.weight": "packed", "up.bias": "kept",
    }  # fmt: skip
    assert report.output_bytes == path.stat().st_size


def test_a_dry_run_of_the_way_back(perceptron, tmp_path):
    path, reports = perceptron
    report = tpack.convert(reports["exact"].output, tmp_path / "back.safetensors", dry_run=True)
    assert report.output is None
    assert report.output_bytes == path.stat().st_size
    assert not list(tmp_path.iterdir())


def test_options_that_would_change_a_carried_checkpoint_are_refused(perceptron, tmp_path):
    _, reports = perceptron
    with pytest.raises(UsageError, match=r"layout.*carries a checkpoint"):
        tpack.convert(reports["exact"].output, tmp_path / "back.safetensors", layout="t5")


@pytest.mark.parametrize("form", ["exact", "fast"])
def test_verify_proves_the_weights(perceptron, form):
    path, reports = perceptron
    report = tpack.verify(reports[form].output, against=path)
    assert report.ok
    assert report.lossless
    assert {row.name for row in report.tensors} == {"up.weight", "up.bias", "down.weight"}
    assert tpack.verify(reports[form].output).ok
    assert tpack.verify(path, against=reports[form].output).lossless


def changed(path, target, name, change):
    model = onnx.load(path)
    stored = {one.name: one for one in model.graph.initializer}
    stored[name].raw_data = change(stored[name].raw_data)
    onnx.save(model, target)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("up.weight_packed", lambda data: b"\x55" + data[1:]),
        ("up.weight_scale", lambda data: data[1:4] + data[:1] + data[4:]),
        ("up.bias", lambda data: data[:-4] + bytes(4)),
    ],
)
def test_a_changed_weight_is_found(perceptron, tmp_path, name, change):
    path, reports = perceptron
    changed(reports["exact"].output, tmp_path / "model.onnx", name, change)
    for against in (None, path):
        report = tpack.verify(tmp_path / "model.onnx", against=against)
        assert not report.ok
        assert name.removesuffix("_packed").removesuffix("_scale") in report.problems[0]
    with pytest.raises(FormatError, match="digest") as caught:
        tpack.convert(tmp_path / "model.onnx", tmp_path / "back.safetensors")
    assert caught.value.tensor == name
    assert not (tmp_path / "back.safetensors").exists()


def test_another_checkpoint_is_told(perceptron, tmp_path):
    _, reports = perceptron
    model = fill(Perceptron())
    example = (torch.randn(2, 70),)
    tpack.convert(
        model, tmp_path / "o.safetensors", example_args=example, dynamic_shapes=({0: Dim("rows")},)
    )
    model, other = reports["exact"].output, tmp_path / "o.safetensors"
    for report in (tpack.verify(model, against=other), tpack.verify(other, against=model)):
        assert "bytes of the checkpoint" in report.problems[0]
        assert not report.ok


def test_a_checkpoint_with_more_in_it_is_told(perceptron, tmp_path):
    _, reports = perceptron
    larger = Perceptron()
    larger.down = nn.Linear(33, 5)
    tpack.convert(fill(larger), tmp_path / "o.safetensors", example_args=(torch.randn(2, 70),))
    told = tpack.verify(reports["exact"].output, against=tmp_path / "o.safetensors").problems
    assert any("'down.bias' is only in the checkpoint" in problem for problem in told)
    assert any(problem.startswith("the LayerDefs are not those") for problem in told)


def test_a_model_without_one_of_its_tensors_is_refused(perceptron, tmp_path):
    _, reports = perceptron
    model = onnx.load(reports["exact"].output)
    kept = [one for one in model.graph.initializer if one.name != "up.bias"]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(FormatError, match="not in the model") as caught:
        tpack.convert(tmp_path / "model.onnx", tmp_path / "back.safetensors")
    assert caught.value.tensor == "up.bias"


def test_large_weights_lie_beside_the_model(perceptron, tmp_path, monkeypatch):
    path, reports = perceptron
    monkeypatch.setattr("tpack.exporting.onnx.files.INSIDE", 100)
    monkeypatch.setattr("tpack.exporting.onnx.files.SMALL", 100)
    report = tpack.export(path, "onnx", tmp_path / "model.onnx")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    sizes = [file.stat().st_size for file in tmp_path.iterdir()]
    assert report.output_bytes == sum(sizes)
    assert "model.onnx.data" in report.notes[0]
    x = np.random.default_rng(0).standard_normal((4, 70), np.float32)
    inside = session(reports["exact"].output).run(None, {"x": x})
    beside = session(tmp_path / "model.onnx").run(None, {"x": x})
    assert all(map(np.array_equal, inside, beside))
    tpack.convert(tmp_path / "model.onnx", tmp_path / "back.safetensors")
    assert (tmp_path / "back.safetensors").read_bytes() == path.read_bytes()


def test_what_exists_is_kept(perceptron, tmp_path):
    path, _ = perceptron
    (tmp_path / "model.onnx").write_text("mine")
    with pytest.raises(ExistsError):
        tpack.export(path, "onnx", tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").read_text() == "mine"
    tpack.export(path, "onnx", tmp_path / "model.onnx", force=True)
    assert onnx.load(tmp_path / "model.onnx").producer_name == "tpack"


def test_a_model_that_computes_something_else_is_not_kept(perceptron, tmp_path, monkeypatch):
    path, _ = perceptron
    monkeypatch.setattr("tpack.exporting.onnx.forms._PLACES", np.array([2, 0, 4, 6], np.uint8))
    with pytest.raises(UnsupportedError, match="other results in ONNX Runtime"):
        tpack.export(path, "onnx", tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_that_knows_no_order_of_calls_is_refused(tmp_path):
    torch.save({"a.weight": trits(8, 8), "b.weight": trits(8, 8)}, tmp_path / "m.pt")
    tpack.convert(tmp_path / "m.pt", tmp_path / "m.safetensors")
    with pytest.raises(LayerDefError, match="order of calls"):
        tpack.export(tmp_path / "m.safetensors", "onnx", tmp_path / "m.onnx")
    assert not (tmp_path / "m.onnx").exists()


def test_another_suffix_is_refused(perceptron, tmp_path):
    path, _ = perceptron
    with pytest.raises(UsageError, match=r"expected \.onnx"):
        tpack.export(path, "onnx", tmp_path / "model.bin")


def test_a_missing_package_is_named(perceptron, tmp_path, monkeypatch):
    path, _ = perceptron
    monkeypatch.setattr(
        "tpack.exporting.onnx.find_spec", lambda name: None if name == "onnxscript" else name
    )
    with pytest.raises(UnsupportedError, match=r"onnxscript.*tpack-ternary\[onnx\]"):
        tpack.export(path, "onnx", tmp_path / "model.onnx")


def test_a_checkpoint_with_changed_bytes_is_not_exported(perceptron, tmp_path):
    path, _ = perceptron
    data = bytearray(path.read_bytes())
    data[-1] = 0x55 if data[-1] != 0x55 else 0x56
    (tmp_path / "m.safetensors").write_bytes(data)
    with pytest.raises(FormatError, match="digest"):
        tpack.export(tmp_path / "m.safetensors", "onnx", tmp_path / "m.onnx")
    assert [file.name for file in tmp_path.iterdir()] == ["m.safetensors"]


def test_the_command_shows_one_line_on_stdout(perceptron, tmp_path):
    path, _ = perceptron
    done = subprocess.run(
        [sys.executable, "-m", "tpack", "export", path, "--to", "onnx", "--form", "fast",
         "-o", tmp_path / "m.onnx", "--json"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout)["form"] == "fast"
    assert not done.stderr


class Mixed(nn.Module):
    """Packed layers of every kind, and floats."""

    def __init__(self):
        super().__init__()
        self.embed = TernaryEmbedding(50, 22)
        self.conv = nn.Conv2d(3, 5, 3, padding=1)
        self.norm = nn.LayerNorm(22)
        self.head = TernaryLinear(22, 7)

    def forward(self, ids, image):
        found = self.head(self.norm(self.embed(ids)))
        return found.sum(-1), self.conv(image)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_embeddings_convolutions_and_half_precision(tmp_path, dtype):
    torch.manual_seed(1)
    model = Mixed()
    model.conv.weight.data = trits(5, 3, 3, 3)
    model.embed.weight_packed = tpack.pack_ternary(torch.randint(-1, 2, (50, 22)))
    model.head.weight_packed = tpack.pack_ternary(torch.randint(-1, 2, (7, 22)))
    model = model.eval().to(dtype)
    path, image = tmp_path / "m.safetensors", torch.randn(2, 3, 8, 9)
    tpack.convert(
        model,
        path,
        example_args=(torch.zeros(2, 4, dtype=torch.int64), image.to(dtype)),
        dynamic_shapes=({0: Dim("batch"), 1: Dim("length")}, {0: Dim("images")}),
    )
    report = tpack.export(path, "onnx", tmp_path / "m.onnx")
    ids = torch.randint(50, (3, 6))
    found = session(tmp_path / "m.onnx").run(None, {"ids": ids.numpy(), "image": image.numpy()})
    wide = tpack.load(path).float()
    # a program in half precision casts in places: in the graph all is float32
    bound = 1e-5 if dtype == torch.float32 else 0.05
    for ours, theirs in zip(wide(ids, image), found, strict=True):
        assert theirs.dtype == np.float32
        assert np.abs(theirs - ours.float().detach().numpy()).max() <= bound
    stored = {one.name: one.data_type for one in onnx.load(report.output).graph.initializer}
    halves = {torch.float32: 1, torch.float16: 10, torch.bfloat16: 16}
    assert stored["norm.weight"] == halves[dtype]
    tpack.convert(tmp_path / "m.onnx", tmp_path / "back.safetensors")
    assert (tmp_path / "back.safetensors").read_bytes() == path.read_bytes()


def test_weights_in_layout_t5(tmp_path):
    path, example = tmp_path / "m.safetensors", (torch.randn(2, 70),)
    shapes = ({0: Dim("rows")},)
    tpack.convert(
        fill(Perceptron()), path, example_args=example, dynamic_shapes=shapes, layout="t5"
    )
    report = tpack.export(path, "onnx", tmp_path / "m.onnx")
    tpack.convert(report.output, tmp_path / "back.safetensors")
    assert (tmp_path / "back.safetensors").read_bytes() == path.read_bytes()
    swapped = tmp_path / "swapped.onnx"
    changed(report.output, swapped, "up.weight_packed", lambda data: data[::-1])
    assert "'up.weight'" in tpack.verify(swapped).problems[0]
    with pytest.raises(FormatError, match="digest"):
        tpack.convert(swapped, tmp_path / "again.safetensors")
