"""Whole models: captured, converted, loaded and printed, they compute what they did."""

import gc
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import llama_page
import pytest
import torch
from captured_models import FAMILIES, Example, Trained, llama, mlp, quantized
from running import from_text
from torch import nn
from torch.export import Dim

import tpack
from tpack import LayerDefError, UsageError
from tpack.build import BuiltModule, build_module, program_of
from tpack.capturing import Captured, capture, trace_module
from tpack.cli.reference import ops_reference
from tpack.codegen import generate_pytorch_code
from tpack.layerdef import Assignment, LayerDef, Program, Unspecified, lower, slots


def flat(result):
    """The tensors of a result, in order."""
    if isinstance(result, torch.Tensor):
        return [result]
    items = result.values() if isinstance(result, dict) else result
    return [tensor for item in items for tensor in flat(item)]


class Converted(NamedTuple):
    """A model of a family, what convert made of it, and the trace that it made it from."""

    example: Example
    report: tpack.ConversionReport
    path: Path
    trace: Captured


@pytest.fixture(scope="session")
def converted(tmp_path_factory):
    """Converts a family, once: nearly all the time goes to torch.export."""

    @cache
    def convert(name):
        example = FAMILIES[name]()
        path = tmp_path_factory.mktemp("captured") / "model.tpack.safetensors"
        traces = []

        def spy(*args):
            traces.append(trace_module(*args))
            return traces[-1]

        with mock.patch("tpack.capturing.trace_module", spy):
            report = tpack.convert(example.model, path, exact=True, **example.arguments())
        return Converted(example, report, path, *traces)

    return convert


#: Families that differ from others here in little.
SLOW = ("gpt2, eager", "qwen3")


@pytest.fixture(params=[pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in FAMILIES])
def family(request, converted):
    """One of the families, converted."""
    return converted(request.param)


def check(example: Example, modules, sizes):
    for batch, length in sizes:
        inputs = example.inputs(batch, length)
        with torch.no_grad():
            expected = flat(example.model(**inputs, **example.constants))
            for module in modules:
                found = flat(module(**inputs))
                torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_loaded_models_and_their_source_equal_the_original(family):
    example, report, path, _ = family
    loaded = tpack.load(path)
    source = generate_pytorch_code(program_of(loaded), standalone=True)
    assert "tpack.nn" not in source
    written = from_text(source, program_of(loaded).root)
    written.load_state_dict(loaded.state_dict(), strict=True)
    assert any(tensor.action == "packed" for tensor in report.tensors)
    check(example, [loaded, written], [(1, 3), (3, 9)])
    assert tpack.verify(path).ok


def test_shapes_that_source_tells_are_those_of_the_values(family, monkeypatch):
    example, _, path, _ = family
    loaded = tpack.load(path)
    seen = []

    def forward(module, *args, **kwargs):
        """Of BuiltModule, with every shape compared."""
        program = module._tpack_program
        layer = program.by_name[module._tpack_layer]
        inputs, _, owned, body = module._tpack_steps
        values = dict(zip(inputs, args, strict=False)) | kwargs
        values |= {key: getattr(module, name) for key, name in owned}
        sizes: dict[str, int] = {}
        for param in layer.params:
            if param.is_input:
                fits(values[param.name], param.sizes, sizes)
        for statement, (targets, step) in zip(lower(layer, program).body, body, strict=True):
            value = values[targets] = step(values)
            if not isinstance(targets, str):
                value = tuple(values[target] for target in targets)
            told = [statement.sizes] if isinstance(statement, Assignment) else statement.sizes
            if any(told := told or ()):
                for one, shape in zip(flat(value), told, strict=True):
                    fits(one, shape, sizes)
            seen.append(any(told))
        return value

    def fits(value, told, sizes):
        if told is not None:
            assert len(told) == value.dim()
            for size, found in zip(told, value.shape, strict=True):
                assert (size if isinstance(size, int) else sizes.setdefault(size, found)) == found

    monkeypatch.setattr(BuiltModule, "forward", forward)
    with torch.no_grad():
        loaded(**example.inputs(3, 9))
    assert sum(seen) > len(seen) / 2


def test_keys_are_those_of_the_original(family):
    example, report, path, _ = family
    state = example.model.state_dict()
    packed = {tensor.name for tensor in report.tensors if tensor.action == "packed"}
    tied = {note.partition(" ")[0] for note in report.notes if "shares the storage" in note}
    expected = {name for name in state if name not in packed | tied}
    expected |= {f"{name}_{part}" for name in packed for part in ("packed", "scale")}
    assert set(tpack.load(path).state_dict()) == expected


@pytest.mark.parametrize("name", ["mlp", "mobilenet", "llama", "t5 encoder", "lstm"])
def test_plain_capture_describes_plain_weights(name, converted):
    example, _, _, trace = converted(name)
    program = trace.program()
    kinds = {slot.param.param_type for slot in slots(program)}
    assert "TernaryTensor" not in kinds
    module = build_module(program)
    wanted = {slot.name for slot in slots(program)}
    state = {k: v for k, v in example.model.state_dict().items() if k in wanted}
    module.load_state_dict(state, strict=True)
    check(example, [module], [(1, 4)])


def test_source_has_no_names_of_the_tracer(family):
    source = generate_pytorch_code(program_of(tpack.load(family.path)))
    for word in ("getitem", "aten", "sym_size", "add_1", "view_"):
        assert word not in source
    assert "NotImplementedError" not in source


def test_linear_layers_that_round_activations_are_bit_linear(tmp_path):
    example = quantized()
    program = capture(example.model, (torch.randn(2, 5, 24),))
    layers = {p.name: p.layer for p in program.by_name["Trained"].params if p.layer}
    assert layers == {"norm": "RMSNorm", "up": "BitLinear", "down": "BitLinear"}
    path = tmp_path / "m.tpack.safetensors"
    tpack.convert(example.model, path, example_args=(torch.randn(2, 5, 24),))
    check(example, [tpack.load(path)], [(1, 3), (4, 2)])
    assert "relu_squared" in str(program)


class Rounded(nn.Linear):
    """A weight rounded to trits as it is used; x stays as it is."""

    def forward(self, x):
        return nn.functional.linear(x, self.rounded(self.weight.abs().mean()), self.bias)

    def rounded(self, scale):
        trits = (self.weight / scale.clamp(min=1e-5)).round().clamp(-1, 1)
        weight = trits * scale.clamp(min=1e-5)
        return self.weight + (weight - self.weight).detach()


class RoundedByLargest(Rounded):
    """The same with a scale that no method of quantization gives."""

    def forward(self, x):
        return nn.functional.linear(x, self.rounded(self.weight.abs().amax()), self.bias)


@pytest.mark.parametrize(("kind", "action"), [(Rounded, "quantized"), (RoundedByLargest, "kept")])
def test_weights_that_forward_rounds_are_not_rounded_twice(kind, action, tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(kind(16, 32), nn.ReLU(), nn.Linear(32, 8)).eval()
    model[2].weight.data = model[2].weight.data.sign()
    x = torch.randn(4, 16)
    report = tpack.convert(model, tmp_path / "m", example_args=(x,))
    assert {t.name: t.action for t in report.tensors}["0.weight"] == action
    loaded = tpack.load(tmp_path / "m")
    with torch.no_grad():
        torch.testing.assert_close(loaded(x[:3]), model(x[:3]), rtol=1e-5, atol=1e-5)


def test_exported_programs_are_sources(tmp_path):
    example = mlp()
    x = torch.randn(2, 24)
    exported = torch.export.export(
        example.model, (x,), dynamic_shapes={"x": {0: torch.export.Dim.AUTO}}
    )
    torch.export.save(exported, tmp_path / "mlp.pt2")
    report = tpack.convert(tmp_path / "mlp.pt2", exact=True)
    check(example, [tpack.load(report.output)], [(1, 1), (5, 1)])
    assert tpack.verify(report.output, against=tmp_path / "mlp.pt2").ok


def test_damaged_exports_are_refused(tmp_path):
    (tmp_path / "m.pt2").write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(tpack.InputError, match="The file is damaged"):
        tpack.convert(tmp_path / "m.pt2")


def test_weights_that_are_kept_stay_plain(tmp_path):
    example = mlp()
    path = tmp_path / "m.tpack.safetensors"
    tpack.convert(example.model, path, exclude=["fc2.*"], **example.arguments())
    loaded = tpack.load(path)
    assert isinstance(loaded.fc2, nn.Linear)
    check(example, [loaded], [(3, 1)])


def test_copies_that_are_packed_differently_become_layers_of_their_own(converted):
    trace = converted("llama").trace
    ternary = [name for name in trace.graph.stored if name.startswith("model.layers.1.mlp")]
    program = trace.program(ternary)
    layers = {param.name: param.layer for param in program.by_name["LlamaModel"].params}
    assert layers["layers.0"] != layers["layers.1"]
    kinds = {slot.name: slot.param.param_type for slot in slots(program)}
    assert {name for name, kind in kinds.items() if kind == "TernaryTensor"} == set(ternary)


def test_compiled_models_match_eager_ones(converted):
    example, _, path, _ = converted("llama")
    module = tpack.load(path)
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend="eager")
    inputs = example.inputs(2, 7)
    with torch.no_grad():
        torch.testing.assert_close(flat(compiled(**inputs)), flat(module(**inputs)))


# ---- errors


class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Sorter()

    def forward(self, x):
        return self.inner(x)


class Sorter(nn.Module):
    def forward(self, x):
        return torch.erfinv(x)


def test_an_op_outside_the_table_is_named_with_its_module():
    with pytest.raises(LayerDefError) as caught:
        capture(Odd().eval(), (torch.randn(2, 3),))
    text = str(caught.value)
    assert text.startswith("inner: uses erfinv.default")
    assert "The manual lists the ops that capture knows" in text


class Table(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, 3))

    def forward(self):
        return self.weight * 2


def test_forwards_that_take_no_tensor_are_refused_alone_and_written_out_inside():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = Table()

        def forward(self, x):
            return x @ self.table()

    with pytest.raises(LayerDefError, match="module: forward takes no tensor, expected"):
        capture(Table().eval(), ())
    program = capture(Model().eval(), (torch.ones(2, 3),))
    built = build_module(program)
    built.load_state_dict({"table.weight": torch.ones(3, 3)})
    assert torch.equal(built(torch.ones(4, 3)), torch.full((4, 3), 6.0))


def test_buffers_that_forward_changes_are_named():
    class Counter(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(1))

        def forward(self, x):
            self.calls += 1
            return x + self.calls

    with pytest.raises(LayerDefError, match=r"changes its tensor '0\.calls' in forward"):
        capture(nn.Sequential(Counter()).eval(), (torch.randn(2, 3),))


def test_modules_in_training_mode_are_refused():
    with pytest.raises(UsageError, match="eval"):
        capture(Trained().train(), (torch.randn(2, 24),))


class Position(nn.Module):
    """Adds a vector to each of five positions, and so takes no other length."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.position = nn.Parameter(torch.ones(5, 8))

    def forward(self, x):
        return self.fc(x) + self.position


def test_sizes_that_cannot_be_free_are_told(tmp_path):
    free = {"x": {0: Dim.AUTO, 1: Dim.AUTO}}
    x = torch.randn(2, 5, 8)
    with pytest.warns(UserWarning, match="input x: dim 1 is 5 .* holds for no other size"):
        capture(Position().eval(), (x,), dynamic_shapes=free)
    report = tpack.convert(
        Position().eval(), tmp_path / "m.tpack.safetensors", example_args=(x[:1],)
    )
    assert any("input x: dim 0 is 1 in all" in note for note in report.notes)
    assert any("Give an example with another size" in note for note in report.notes)


@pytest.mark.parametrize(
    ("dims", "text"),
    [
        ({0: Dim("batch"), 1: Dim("length")}, "length can only be 5, though"),
        ({0: Dim.DYNAMIC, 1: Dim.DYNAMIC}, r"x.size\(1\) can only be 5, though"),
        ({0: Dim("n"), 1: Dim("n")}, r"x.size\(1\) = 5 is not equal to x.size\(0\) = 2\."),
    ],
)
def test_free_sizes_that_cannot_be_are_refused_in_plain_words(dims, text):
    with pytest.raises(LayerDefError, match=f"cannot trace Position: {text}"):
        capture(Position().eval(), (torch.randn(2, 5, 8),), dynamic_shapes={"x": dims})


def test_control_flow_that_depends_on_values_is_refused_with_its_line(caplog, capsys):
    class Chooser(nn.Module):
        def forward(self, x):
            return -x if x.sum() > 0 else x

    with pytest.raises(LayerDefError, match=r"values of tensors, in test_capture.py:.*torch.where"):
        capture(Chooser().eval(), (torch.randn(2, 3),))
    assert "Unable to find user code" not in caplog.text
    assert capsys.readouterr().err == ""


def test_experts_are_computed_as_before_once_captured(converted):
    assert converted("mixtral").example.model.config._experts_implementation == "eager"


@pytest.mark.parametrize("standalone", [False, True], ids=["importing", "standalone"])
def test_generated_classes_are_saved_as_what_they_were_made_from(family, standalone, tmp_path):
    loaded = tpack.load(family.path)
    program = program_of(loaded)
    written = from_text(generate_pytorch_code(program, standalone=standalone), program.root)
    written.load_state_dict(loaded.state_dict(), strict=True)
    tpack.save(written, tmp_path / "m.tpack.safetensors")
    again = tpack.load(tmp_path / "m.tpack.safetensors")
    inputs = family.example.inputs(3, 4)
    with torch.no_grad():
        for found, expected in zip(flat(again(**inputs)), flat(loaded(**inputs)), strict=True):
            assert torch.equal(found, expected)
    sources = [generate_pytorch_code(without_sizes(p)) for p in (program, program_of(again))]
    if "= dequantize(" not in sources[0]:  # that step is the printer's, and has no other name
        assert sources[0] == sources[1]


def without_sizes(program):
    """The program without the shapes that it tells."""
    plain = [
        LayerDef(
            layer.name,
            [replace(param, sizes=None) for param in layer.params],
            [s if isinstance(s, Unspecified) else replace(s, sizes=None) for s in layer.body],
        )
        for layer in program.layers
    ]
    return Program(plain, program.root)


def test_half_precision_is_captured_to_the_bit(tmp_path):
    example = llama()
    example.model.to(torch.bfloat16)
    tpack.convert(example.model, tmp_path / "m", **example.arguments())
    loaded = tpack.load(tmp_path / "m")
    source = generate_pytorch_code(program_of(loaded), standalone=True)
    written = from_text(source, "LlamaForCausalLM")
    written.load_state_dict(loaded.state_dict(), strict=True)
    inputs = example.inputs(3, 9)
    with torch.no_grad():
        (expected,) = flat(example.model(**inputs, **example.constants))
        for module in (loaded, written):
            (found,) = flat(module(**inputs))
            assert found.dtype == torch.bfloat16
            assert torch.equal(found, expected)


def test_arguments_that_do_not_fit_are_refused(tmp_path):
    model = mlp().model
    with pytest.raises(UsageError, match="forward"):
        capture(model, ())
    with pytest.raises(UsageError, match="dynamic_shapes names 'y'"):
        capture(model, (torch.randn(2, 24),), dynamic_shapes={"y": {}})
    with pytest.raises(UsageError, match="state dict"):
        tpack.convert(model.state_dict(), tmp_path / "m", example_args=(torch.randn(2, 24),))
    with pytest.raises(UsageError, match="path"):
        tpack.convert(tmp_path / "m.pt", tmp_path / "m", example_args=(torch.randn(2, 24),))


@pytest.mark.slow
def test_the_page_that_shows_a_captured_model_is_up_to_date():
    source = llama_page.page()
    assert source == llama_page.PAGE.read_text()
    assert source.count("\n") < 400


def test_the_page_of_ops_is_up_to_date():
    page = llama_page.PAGE.parent / "ops.md"
    assert page.read_text() == ops_reference()


@pytest.mark.parametrize("collecting", [True, False])
def test_garbage_is_collected_after_a_trace_as_before(collecting):
    class Fails(nn.Module):
        def forward(self, x):
            raise ValueError

    was = gc.isenabled()
    (gc.enable if collecting else gc.disable)()
    try:
        with pytest.raises(LayerDefError):
            tpack.capture(Fails().eval(), (torch.ones(2, 2),))
        assert gc.isenabled() == collecting
    finally:
        (gc.enable if was else gc.disable)()
