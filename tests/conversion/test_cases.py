"""The five cases of a conversion's default, for every kind of source."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file
from tensors import noise, ternary
from torch import nn
from weight_kinds import BEGIN, END, table

import tpack
from tpack.cli.main import cli
from tpack.conversion import cases
from tpack.errors import NotTernaryError
from tpack.layerdef import LayerDef, Param


def actions(report):
    return {tensor.name: tensor.action for tensor in report.tensors}


#: A ternary language model with a float tower beside it.
MIXED = {
    "model.language_model.layers.0.mlp.up_proj.weight": ternary(128, 64),
    "model.visual.blocks.0.attn.qkv.weight": noise(192, 64),
    "model.visual.blocks.1.attn.qkv.weight": noise(192, 64, seed=1),
    "norm_out.linear.weight": noise(128, 64),
}
MASTERS = {f"layers.{n}.up.weight": noise(64, 48, seed=n) for n in range(3)}


def as_state_dict(state, _):
    return state


def as_safetensors(state, tmp_path):
    path = tmp_path / "source.safetensors"
    save_file(state, path)
    return path


def as_pickle(state, tmp_path):
    path = tmp_path / "source.pt"
    torch.save(state, path)
    return path


def as_folder(state, tmp_path):
    """Two shards, the float weights in the first."""
    root = tmp_path / "source"
    root.mkdir()
    names = sorted(state, key=lambda name: "language_model" in name)
    half = (len(names) + 1) // 2
    weight_map = {}
    for number, part in enumerate((names[:half], names[half:]), 1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: state[name] for name in part}, root / file)
        weight_map |= dict.fromkeys(part, file)
    (root / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return root


def as_module(state, _):
    root = nn.Module()
    for name, tensor in state.items():
        owner = root
        *parts, last = name.split(".")
        for part in parts[:-1]:
            if part not in owner._modules:
                owner.add_module(part, nn.Module())
            owner = owner._modules[part]
        layer = nn.Linear(tensor.shape[1], tensor.shape[0], bias=False)
        layer.weight.data = tensor.clone()
        owner.add_module(parts[-1], layer)
        assert last == "weight"
    return root


KINDS = [as_state_dict, as_safetensors, as_pickle, as_folder, as_module]


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def make(request, tmp_path):
    return lambda state: request.param(state, tmp_path)


def test_beside_a_ternary_weight_others_are_kept_bit_for_bit(make, tmp_path):
    out = tmp_path / "out"
    report = tpack.convert(make(MIXED), out)
    assert list(actions(report).values()).count("packed") == 1
    assert list(actions(report).values()).count("kept") == 3
    back = tpack.unpack(out)
    assert all(torch.equal(back[name], tensor) for name, tensor in MIXED.items())
    (warning,) = report.warnings
    assert warning == (
        "3 of 4 weights are not ternary and kept bit for bit: "
        "model.visual.blocks.0–1.attn.qkv ×2, norm_out.linear.weight. quantize='absmean', "
        "'twn' or 'mse' rounds them, exclude=['model.visual.blocks.*.attn.qkv.weight', "
        "'norm_out.linear.weight'] keeps them without this warning."
    )
    assert report.to_dict()["warnings"] == [warning]


def test_where_no_weight_is_ternary_all_are_rounded_and_that_is_said(make, tmp_path):
    source = make(MASTERS)
    report = tpack.convert(source, tmp_path / "out")
    assert set(actions(report).values()) == {"quantized"}
    assert {tensor.method for tensor in report.tensors} == {"absmean"}
    (warning,) = report.warnings
    assert warning.startswith("no weight of the source is ternary: 3 weights were rounded by abs")
    assert "masters of BitNet b1.58" in warning
    (warning,) = tpack.convert(source, tmp_path / "dry", dry_run=True).warnings
    assert "3 weights would be rounded by absmean" in warning


def test_a_method_that_is_named_rounds_without_a_warning(make, tmp_path):
    report = tpack.convert(make(MIXED), tmp_path / "out", quantize="mse")
    assert sorted(actions(report).values()) == ["packed"] + 3 * ["quantized"]
    assert report.warnings == ()


def test_exact_names_all_offenders_and_what_keeps_them(make, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(NotTernaryError) as caught:
        tpack.convert(make(MIXED), out, exact=True)
    error = caught.value
    assert set(error.tensors) == {name for name in MIXED if "language" not in name}
    assert "3 of 4 weights are not ternary" in str(error)
    assert "blocks.0–1.attn.qkv ×2" in str(error)
    patterns = ["model.visual.blocks.*.attn.qkv.weight", "norm_out.linear.weight"]
    for pattern in patterns:
        assert repr(pattern) in str(error)
    assert not out.exists()
    report = tpack.convert(make_again(make, tmp_path), out, exact=True, exclude=patterns)
    assert "quantized" not in actions(report).values()


def make_again(make, tmp_path):
    for path in tmp_path.glob("source*"):
        path.rename(path.with_name(f"old-{path.name}"))
    return make(MIXED)


def test_a_pattern_of_exclude_names_no_ternary_weight(tmp_path):
    state = {f"layers.{n}.up.weight": ternary(32, 64, seed=n) for n in range(3)}
    state["layers.1.up.weight"] = noise(32, 64)
    state["layers.[a].weight"] = noise(32, 64)
    with pytest.raises(NotTernaryError) as caught:
        tpack.convert(state, tmp_path / "out", exact=True)
    assert "'layers.1.up.weight'" in str(caught.value)
    assert "'layers.[[]a].weight'" in str(caught.value)


def test_the_order_of_weights_decides_nothing(tmp_path):
    for names in (list(MIXED), list(MIXED)[::-1]):
        report = tpack.convert({name: MIXED[name] for name in names}, tmp_path / "out", force=True)
        assert list(actions(report).values()).count("packed") == 1


@pytest.mark.parametrize(
    "chance",
    [torch.zeros(64, 64), torch.full((64, 64), 0.5), torch.tensor([[1.0, -1.0]])],
    ids=["zero", "constant", "two values"],
)
def test_what_is_ternary_by_chance_says_nothing_of_the_others(chance, tmp_path):
    report = tpack.convert(MASTERS | {"odd.weight": chance}, tmp_path / "out")
    assert actions(report)["layers.0.up.weight"] == "quantized"
    assert actions(report)["odd.weight"] == "packed"


def test_weights_that_are_all_zero_are_counted(tmp_path):
    state = {"a.weight": ternary(64, 64)} | {f"b.{n}.weight": torch.zeros(64, 64) for n in range(2)}
    report = tpack.convert(state, tmp_path / "out")
    assert report.warnings == ("2 weights (b.0–1 ×2) are all zero. Is the source complete?",)


def test_a_weight_that_a_pattern_keeps_still_tells_what_model_it_is(tmp_path):
    report = tpack.convert(MIXED, tmp_path / "out", include=["*language*", "norm_out*"])
    assert actions(report)["norm_out.linear.weight"] == "kept"
    with pytest.raises(NotTernaryError, match="holds no ternary weight among those to pack"):
        tpack.convert(MIXED, tmp_path / "out", include=["norm_out*"], force=True)
    report = tpack.convert(
        MIXED, tmp_path / "out", include=["norm_out*"], quantize="twn", force=True
    )
    assert actions(report)["norm_out.linear.weight"] == "quantized"


def test_float64_that_float32_cannot_hold_is_packed_and_said(tmp_path):
    state = {"a.weight": ternary(64, 64).sign().double() * 0.1, "b.weight": ternary(64, 64)}
    report = tpack.convert(state, tmp_path / "out")
    assert actions(report) == {"a.weight": "quantized", "b.weight": "packed"}
    (warning,) = report.warnings
    assert warning.startswith("1 weight (a.weight) is ternary in float64, with a scale that float")


def test_quiet_hides_no_warning(tmp_path):
    save_file(MIXED, tmp_path / "m.safetensors")
    run = CliRunner().invoke(cli, ["convert", "-q", str(tmp_path / "m.safetensors")])
    assert run.exit_code == 0
    assert run.stderr.startswith("warning: 3 of 4 weights are not ternary")
    assert run.stderr.count("\n") == 1
    run = CliRunner().invoke(cli, ["convert", "--json", "-f", str(tmp_path / "m.safetensors")])
    assert len(json.loads(run.stdout)["warnings"]) == 1


def test_the_table_of_the_manual_is_what_happens():
    page = (Path(__file__).parents[2] / "docs/checkpoints.md").read_text()
    assert page.partition(f"{BEGIN}\n")[2].partition(END)[0] == table()


def test_what_is_cast_is_not_called_bit_for_bit(tmp_path):
    report = tpack.convert(MIXED, tmp_path / "out", keep_dtype="f16")
    assert "not packed, but cast (keep_dtype='f16'): model.vis" in report.warnings[0]


@pytest.mark.parametrize("shape", [(), (1,), (64,), (64, 1), (64, 2)])
def test_a_scale_that_nobody_calls_so_is_not_rounded_and_is_told_of(shape, tmp_path):
    state = {"a.weight": ternary(64, 96, scale=1).to(torch.int8), "a.alpha": noise(*shape)}
    report = tpack.convert(state | MASTERS, tmp_path / "out", quantize="absmean")
    assert actions(report)["a.alpha"] == "kept"
    assert any("a.alpha beside it may be its scale" in warning for warning in report.warnings)


# ---- what is no weight


def test_embeddings_and_heads_are_not_rounded_by_a_method(tmp_path):
    state = MASTERS | {"tok.weight": noise(100, 48), "to_logits.weight": noise(100, 48)}
    for options in ({}, {"quantize": "absmean"}):
        report = tpack.convert(state, tmp_path / "out", force=True, **options)
        assert actions(report)["tok.weight"] == actions(report)["to_logits.weight"] == "kept"
    report = tpack.convert(
        state, tmp_path / "out", force=True, quantize="absmean", include=["tok*"]
    )
    assert actions(report)["tok.weight"] == "quantized"


def test_a_module_knows_what_its_names_do_not_tell(tmp_path):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(100, 48)
            self.positions = nn.Linear(48, 64)
            self.scaler = nn.GroupNorm(4, 64)

    report = tpack.convert(Model(), tmp_path / "out")
    assert actions(report)["table.weight"] == "kept"
    assert actions(report)["positions.weight"] == "quantized"


class Captured(nn.Module):
    """Names that tell nothing, or the wrong thing."""

    def __init__(self):
        super().__init__()
        self.a = nn.Embedding(50, 32)
        self.tok = nn.Linear(32, 48, bias=False)
        self.c = nn.Linear(48, 50, bias=False)

    def forward(self, ids):
        return self.c(torch.relu(self.tok(self.a(ids))))


def test_a_capture_knows_embeddings_and_heads(tmp_path):
    torch.manual_seed(0)
    model = Captured().eval()
    args = (torch.randint(0, 50, (2, 7)),)
    report = tpack.convert(model, tmp_path / "out", example_args=args)
    assert actions(report) == {"a.weight": "kept", "tok.weight": "quantized", "c.weight": "kept"}
    loaded = tpack.load(tmp_path / "out")
    assert loaded(*args).shape == (2, 7, 50)

    with torch.no_grad():
        for layer in (model.a, model.tok, model.c):
            layer.weight.copy_(ternary(*layer.weight.shape))
    report = tpack.convert(model, tmp_path / "out", example_args=args, force=True)
    assert actions(report) == {"a.weight": "kept", "tok.weight": "packed", "c.weight": "packed"}
    torch.testing.assert_close(tpack.load(tmp_path / "out")(*args), model(*args))


def test_a_captured_model_keeps_what_is_not_ternary(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 40), nn.Tanh()).eval()
    model[0].weight.data = ternary(48, 32)
    args = (torch.randn(3, 32),)
    report = tpack.convert(model, tmp_path / "out", example_args=args)
    assert actions(report)["2.weight"] == "kept"
    torch.testing.assert_close(tpack.load(tmp_path / "out")(*args), model(*args))


def test_layerdefs_that_declare_a_weight_ternary(tmp_path):
    layer = LayerDef(
        "Net",
        [Param("a", "TernaryTensor", [64, 48]), Param("b", "TernaryTensor", [48, 32])],
    )
    state = {"a": ternary(64, 48), "b": noise(48, 32)}
    with pytest.raises(NotTernaryError, match="declare it as a Tensor"):
        tpack.convert(state, tmp_path / "out", layerdef=layer)
    report = tpack.convert(state, tmp_path / "out", layerdef=layer, quantize="absmean")
    assert actions(report) == {"a": "packed", "b": "quantized"}
    state["a"] = noise(64, 48)
    report = tpack.convert(state, tmp_path / "out", layerdef=layer, force=True)
    assert set(actions(report).values()) == {"quantized"}
    assert "masters of BitNet" in report.warnings[0]


def test_a_weight_that_is_looked_at_early_is_not_looked_at_again(tmp_path, monkeypatch):
    seen, real = [], cases.detect
    monkeypatch.setattr(cases, "detect", lambda *args: seen.append(args) or real(*args))
    state = {f"{i}.weight": noise(8, 8, seed=i) for i in range(5)}
    tpack.convert(state, tmp_path / "a.tpack.safetensors")
    assert len(seen) == len(state)
