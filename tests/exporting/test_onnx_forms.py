"""Packed layers of every shape and scale, in one graph each, in a default session."""

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn
from torch.export import Dim

import tpack
from tpack.nn import BitLinear, TernaryLinear

WIDEST = 300
#: Outputs and inputs of a layer, and its scale.
LAYERS = (
    [
        (out, inner, scale)
        for out, inner in (
            (1, 1),
            (1, 4),
            (2, 3),
            (3, 5),
            (5, 31),
            (4, 32),
            (7, 33),
            (6, 129),
            (9, 300),
        )
        for scale in ("tensor", "row")
    ]
    + [
        (out, inner, f"group:{size}")
        for out, inner in ((5, 64), (3, 160), (2, 300))
        for size in (16, 32, 64, 128, 256)
        if size < inner
    ]
    + [(5, 33, "column"), (4, 64, "column"), (1, 3, "column")]
)


class Several(nn.Module):
    """Layers side by side, each on the first columns of x."""

    def __init__(self, kind, *, bias=True):
        super().__init__()
        made = [kind(inner, out, bias=bias, scale=scale) for out, inner, scale in LAYERS]
        self.layers = nn.ModuleList(made)
        for layer, (out, inner, _) in zip(self.layers, LAYERS, strict=True):
            layer.weight_packed = tpack.pack_ternary(torch.randint(-1, 2, (out, inner)))
            with torch.no_grad():
                layer.weight_scale.copy_(torch.rand_like(layer.weight_scale) + 0.5)
                if bias:
                    layer.bias.copy_(torch.randn(out))

    def forward(self, x):
        return tuple(layer(x[:, : layer.in_features]) for layer in self.layers)


@pytest.fixture(scope="module", params=[TernaryLinear, BitLinear])
def several(request, tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("several") / "model.safetensors"
    tpack.convert(
        Several(request.param).eval(),
        path,
        example_args=(torch.randn(2, WIDEST),),
        dynamic_shapes=({0: Dim("batch")},),
    )
    return path


@pytest.mark.parametrize("form", ["exact", "fast"])
def test_every_shape_and_scale(several, tmp_path, form):
    report = tpack.export(several, "onnx", tmp_path / "model.onnx", form=form)
    run = onnxruntime.InferenceSession(report.output, providers=["CPUExecutionProvider"])
    model = tpack.load(several)
    integers = report.details["nodes"].get("MatMulInteger")
    for rows in (1, 3, 17):
        x = torch.randn(rows, WIDEST)
        with torch.no_grad():
            expected = model(x)
        for layer, ours, theirs in zip(
            LAYERS, expected, run.run(None, {"x": x.numpy()}), strict=True
        ):
            largest = max(1.0, float(ours.abs().max()))
            bound = 1e-5 if form == "exact" or integers else 0.05
            assert np.abs(ours.numpy() - theirs).max() <= bound * largest, (layer, rows)


def test_which_nodes_are_written(several, tmp_path):
    nodes = {
        form: tpack.export(several, "onnx", tmp_path / f"{form}.onnx", form=form).details["nodes"]
        for form in ("exact", "fast")
    }
    assert all(sum(counts.values()) == len(LAYERS) for counts in nodes.values())
    if "MatMulInteger" in nodes["exact"]:  # sums of integers are exact in both
        assert nodes["fast"] == nodes["exact"]
        assert nodes["exact"]["MatMulInteger"] >= 18
    else:
        assert nodes["exact"] == {"MatMul": len(LAYERS)}
        groups = sum(scale == "group:16" for _, _, scale in LAYERS)
        assert nodes["fast"] == {"MatMul": groups, "MatMulNBits": len(LAYERS) - groups}


class Columns(nn.Module):
    """Weights (in, out), as GPT-2 has them."""

    def __init__(self):
        super().__init__()
        sizes = ((3, 5), (33, 7), (64, 4), (130, 9))
        for i, size in enumerate(sizes):
            self.register_parameter(f"w{i}", nn.Parameter(torch.randint(-1, 2, size) * 0.1))
        self.scaled = nn.Parameter(torch.randint(-1, 2, (33, 6)) * (torch.rand(6) + 0.5))
        self.rows = nn.Parameter(torch.randint(-1, 2, (33, 6)) * (torch.rand(33, 1) + 0.5))

    def forward(self, x):
        plain = [x[:, : len(w)] @ w for w in (self.w0, self.w1, self.w2, self.w3)]
        return (*plain, x[:, :33] @ self.scaled, x[:, :33] @ self.rows)


@pytest.mark.parametrize("form", ["exact", "fast"])
def test_weights_whose_rows_are_inputs(tmp_path, form):
    torch.manual_seed(2)
    path = tmp_path / "model.safetensors"
    report = tpack.convert(
        Columns().eval(),
        path,
        include=["*"],
        example_args=(torch.randn(2, 130),),
        dynamic_shapes=({0: Dim("batch")},),
    )
    assert {"column", "row"} <= {tensor.scale for tensor in report.tensors}
    found = tpack.export(path, "onnx", tmp_path / "model.onnx", form=form)
    kind = "MatMulNBits" if form == "fast" else "MatMul"
    assert found.details["nodes"] == {kind: 6}
    run = onnxruntime.InferenceSession(found.output, providers=["CPUExecutionProvider"])
    x = torch.randn(5, 130)
    for ours, theirs in zip(tpack.load(path)(x), run.run(None, {"x": x.numpy()}), strict=True):
        bound = 1e-5 if form == "exact" else 0.05
        largest = max(1.0, float(ours.detach().abs().max()))
        assert np.abs(ours.detach().numpy() - theirs).max() <= bound * largest
