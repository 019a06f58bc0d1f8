"""What is captured is run beside its source: it gives the same, or is refused."""

import math
import re

import pytest
import torch
from captured_models import llama, mlp
from torch import nn

import tpack
from tpack import LayerDefError
from tpack.capturing import capture, trace_module
from tpack.capturing.aten import ATEN, Row
from tpack.capturing.comparison import built, difference, float_rounding

X = torch.randn((2, 6), generator=torch.Generator().manual_seed(0))


class Tripled(nn.Linear):
    """Gives torch.export another result than anybody else."""

    def forward(self, x):
        return super().forward(x) * (2 if torch.compiler.is_exporting() else 3)


class Random(nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x * self.calls


class Parity(nn.Module):
    def forward(self, x):
        return x * 2 if x.size(0) % 2 else x * 3


@pytest.fixture
def misread(monkeypatch):
    """A table of ours that is wrong: relu is read as tanh."""
    monkeypatch.setitem(ATEN, "relu.default", Row("tanh", {"self": "x"}, {}, frozenset()))


def test_a_capture_that_differs_is_refused_by_the_layer_that_does():
    model = nn.Sequential(nn.Linear(6, 6), nn.Sequential(Tripled(6, 6)), nn.Linear(6, 6)).eval()
    with pytest.raises(LayerDefError, match=r"^1\.0: the captured program gives other") as caught:
        capture(model, (X,))
    assert "differ by 0." in str(caught.value)
    assert "The layers up to '0' agree" in str(caught.value)


@pytest.mark.parametrize("kind", ["module", "capture", "pt2"])
def test_what_we_read_wrongly_is_refused(kind, misread, tmp_path):
    model = mlp().model
    x = torch.randn(3, 24)
    target = tmp_path / "m.tpack.safetensors"
    torch.export.save(torch.export.export(model, (x,)), tmp_path / "m.pt2")
    run = {
        "capture": lambda: capture(model, (x,)),
        "pt2": lambda: tpack.convert(tmp_path / "m.pt2", target),
        "module": lambda: tpack.convert(model, target, example_args=(x,)),
    }
    with pytest.raises(LayerDefError, match="gives other results than the module"):
        run[kind]()
    assert not target.exists()


def test_a_module_that_never_gives_the_same_is_refused():
    with pytest.raises(LayerDefError, match="other results each time"):
        capture(Random().eval(), (X,))


def test_a_size_that_changes_what_is_computed_is_refused():
    """torch.export takes the branch of the example, and says that the size is free."""
    with pytest.raises(LayerDefError, match=r"inputs of batch 3: .* Give dynamic_shapes=\{\}"):
        capture(Parity().eval(), (X,))
    assert capture(Parity().eval(), (X,), dynamic_shapes={})


def test_sizes_that_the_module_does_not_take_are_not_tried():
    class Table(nn.Module):
        def __init__(self):
            super().__init__()
            self.positions = nn.Embedding(4, 3)

        def forward(self, ids):
            return self.positions(torch.arange(ids.size(1))) + ids.unsqueeze(-1)

    trace = trace_module(Table().eval(), (torch.ones(2, 4, dtype=torch.int64),), None, None)
    sizes = [[tuple(t.shape) for t in inputs] for _, inputs in trace.example.inputs(trace.graph)]
    assert sizes == [[(2, 4)], [(2, 3)]] or sizes == [[(2, 4)], [(1, 3)]]
    assert "to the bit" in trace.compare()


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x / 0,
        lambda x: (x - 1).log(),
        lambda x: (x > 0, x.argmax(-1)),
        lambda x: {"ids": x.long(), "half": x.half() * 3},
        lambda x: x * 0,
        lambda x: x[:0],
    ],
)
def test_results_of_every_kind_are_compared(function):
    class Net(nn.Module):
        def forward(self, x):
            return function(x)

    note = trace_module(Net().eval(), (X.clone(),), None, {}).compare()
    assert note == "the captured program equals the module: no difference, to the bit"


def test_differences():
    one = torch.tensor([1.0, -2.0, math.nan, math.inf])
    assert difference([one], [one.clone()]).largest == 0
    near = torch.tensor([1.0, -2.5, math.nan, math.inf])
    found = difference([near], [one])
    assert (found.largest, found.relative) == (0.5, 0.25)
    for other in (one.double(), one[:3], -one, one.nan_to_num(), one.long()):
        assert difference([other], [one]).relative == math.inf
    assert difference([torch.tensor([1, 2])], [torch.tensor([1, 3])]).relative == math.inf
    assert difference([one], []).relative == math.inf
    assert difference([torch.zeros(2)], [torch.full((2,), 1e-9)]).relative < 0.01
    assert str(found) == "largest difference 5.0e-01, 2.5e-01 of the largest number"


@pytest.mark.parametrize(
    ("dtype", "limit"),
    [(torch.float64, 1.5e-8), (torch.float32, 3.5e-4), (torch.bfloat16, 8.9e-2)],
)
def test_what_rounding_explains_depends_on_the_coarsest_float(dtype, limit):
    model = nn.Linear(6, 6).eval().to(dtype)
    graph = trace_module(model, (X.to(dtype),), None, None).graph
    assert float_rounding(graph) == pytest.approx(limit, rel=0.02)


def test_nothing_is_copied_to_compare():
    model = mlp().model
    trace = trace_module(model, (torch.randn(3, 24),), None, None)
    module = trace.rebuilt()
    assert module.fc1.weight.data_ptr() == model.fc1.weight.data_ptr()


def test_what_was_measured_is_reported(tmp_path):
    example = llama()
    report = tpack.convert(
        example.model, tmp_path / "exact.safetensors", exact=True, **example.arguments()
    )
    (captured,) = (note for note in report.notes if note.startswith("the captured program"))
    (packed,) = (note for note in report.notes if note.startswith("the packed model"))
    assert captured.startswith("the captured program equals the module: ")
    assert packed.startswith("the packed model equals the module: largest difference ")
    with torch.no_grad():
        ids = example.inputs(2, 5)
        expected = example.model(**ids, use_cache=False).logits
        found = tpack.load(tmp_path / "exact.safetensors")(**ids)
        found = found["logits"] if isinstance(found, dict) else found
    largest = float(re.search(r"largest difference (\S+),", packed)[1])
    assert float((found - expected).abs().max()) <= largest * 1.05


def test_what_quantization_changes_is_reported_apart(tmp_path):
    torch.manual_seed(0)
    parts = nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)
    model = nn.Sequential(*parts).eval()  # the last is the output head, and stays as it is
    path = tmp_path / "m.safetensors"
    report = tpack.convert(model, path, example_args=(X,), quantize="absmean", dynamic_shapes={})
    (note,) = (note for note in report.notes if note.startswith("the packed model"))
    assert note.startswith("the packed model with 2 rounded weights differs from the module: ")
    with torch.no_grad():
        apart = float((tpack.load(path)(X) - model(X)).abs().max())
    assert f"largest difference {apart:.1e}" in note


def test_floats_that_are_cast_are_not_compared(tmp_path):
    example = mlp()
    options = {"keep_dtype": "bf16", "exact": True} | example.arguments()
    report = tpack.convert(example.model, tmp_path / "m.safetensors", **options)
    assert not any(note.startswith("the packed model") for note in report.notes)


def test_a_packed_model_that_differs_without_rounding_is_not_written(tmp_path, monkeypatch):
    example = mlp()

    def wrong(piece):
        found = right(piece)
        return found * 1.48 if piece.name.endswith("_scale") else found

    right = tpack.capturing.captured.tensor_of
    monkeypatch.setattr("tpack.capturing.captured.tensor_of", wrong)
    with pytest.raises(LayerDefError, match=r"fc1: .* gives other results"):
        tpack.convert(example.model, tmp_path / "m.safetensors", exact=True, **example.arguments())
    assert not list(tmp_path.iterdir())


def test_exports_are_run_on_the_inputs_that_they_carry(tmp_path):
    example = mlp()
    exported = torch.export.export(
        example.model, (torch.randn(2, 24),), dynamic_shapes={"x": {0: torch.export.Dim.AUTO}}
    )
    torch.export.save(exported, tmp_path / "m.pt2")
    report = tpack.convert(tmp_path / "m.pt2", exact=True)
    assert any(note.startswith("the captured program equals the module") for note in report.notes)
    exported.example_inputs = None
    torch.export.save(exported, tmp_path / "bare.pt2")
    report = tpack.convert(tmp_path / "bare.pt2", exact=True)
    assert any("was not compared with its source: the file has no" in n for n in report.notes)


def test_tensors_without_values_are_not_compared():
    with torch.device("meta"):
        model = nn.Linear(6, 4).eval()
    trace = trace_module(model, (X.to("meta"),), None, None)
    assert "was not compared with its source: tensors on the meta device" in trace.compare()


def test_packed_modules_are_built_on_tensors_as_they_are():
    program = capture(nn.Linear(6, 4).eval(), (X,))
    weight = torch.randn(4, 6)
    module = built(program, {"weight": weight, "bias": torch.zeros(4)})
    assert module.weight.data_ptr() == weight.data_ptr()
