"""A row that is added to a table at run time is known to all who read it: there is no other list.

Each test adds a fake row, and looks for it in the help, in errors, in the manual and in checks.
"""

import json
import sys
import types
from dataclasses import dataclass, fields, make_dataclass

import numpy as np
import pytest
import torch

import tpack
import tpack.options
from tpack.choices import QUANTIZERS, Choice, Quantizer
from tpack.cli.main import main
from tpack.cli.reference import cli_reference
from tpack.codec import GRANULARITIES, LAYOUTS, Layout, Scale
from tpack.codec.shapes import Granularity
from tpack.container import Checkpoint, new_file
from tpack.dtypes import KEEP_DTYPES
from tpack.errors import FormatError, LayerDefError, UsageError
from tpack.exporting import TARGETS, ExportedTensor, ExportReport, Target
from tpack.layerdef import LayerDef, Param, as_program, validate
from tpack.nn import ternarization, unfreeze
from tpack.options import Options, check, option
from tpack.quantize import METHODS, fitting


@pytest.fixture
def run(capsys):
    """Run a command: what it printed on stdout, and its exit code."""

    def call(*arguments):
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        return capsys.readouterr().out, ended.value.code

    return call


@pytest.fixture
def weight():
    return {"up.weight": torch.randn(6, 40, generator=torch.Generator().manual_seed(0))}


def refused(action, error=UsageError):
    with pytest.raises(error) as caught:
        action()
    return str(caught.value)


# ---- tables and what is attached to them


def test_every_quantizer_has_its_functions():
    assert list(METHODS) == list(QUANTIZERS)
    assert set(ternarization.METHODS) <= set(QUANTIZERS)


@pytest.mark.parametrize("table", [QUANTIZERS, LAYOUTS, GRANULARITIES], ids=["q", "l", "g"])
def test_rows_have_their_name_as_key_and_a_meaning(table):
    for name, row in table.items():
        assert row.name == name
        assert row.meaning
        assert not row.meaning.endswith(".")


# ---- a quantizer


def sign(weight, granularity, statistics):
    """Keep the signs of all weights, with the scale 1."""
    scale = np.ones(granularity.shape((weight.rows, weight.columns), 1))
    return fitting.make_fit(weight, "sign", granularity, scale)


def test_a_quantizer_is_a_row_and_a_function(run, weight, tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    with monkeypatch.context() as added:
        added.setitem(QUANTIZERS, "sign", Quantizer("sign", "keep the signs"))
        added.setitem(METHODS, "sign", sign)
        assert "mse|sign]" in run("convert", "--help")[0]
        assert "| `sign` | keep the signs |" in cli_reference()
        assert refused(lambda: Options(quantize="x")).endswith("twn, mse or sign.")
        tpack.convert(weight, path, quantize="sign")
        assert tpack.verify(path).ok
        assert [t.method for t in tpack.inspect(path).tensors] == ["sign"]
        unpacked = tpack.unpack(path)["up.weight"]
        assert torch.equal(unpacked, weight["up.weight"].sign())
        text = refused(lambda: unfreeze(tpack.load(path), "sign"))
        assert text == "method 'sign' is unknown, expected absmean, twn or mse."
    text = refused(lambda: tpack.inspect(path), FormatError)
    assert "is described with method 'sign', expected exact, absmean, twn, mse or unknown." in text


# ---- a layout


def test_a_layout_is_a_row(run, weight, tmp_path, monkeypatch):
    path, t2 = tmp_path / "a.safetensors", LAYOUTS["t2"]
    turned = Layout(
        "t2r",
        "t2 with its bytes turned round",
        4,
        lambda codes: ~t2.encode(codes),
        lambda packed: t2.decode(~packed),
        t2.valid[::-1],
    )
    with monkeypatch.context() as added:
        added.setitem(LAYOUTS, "t2r", turned)
        assert "[t2|t5|t2r]" in run("convert", "--help")[0]
        assert "| `t2r` | t2 with its bytes turned round |" in cli_reference()
        assert refused(lambda: Options(layout="t3")).endswith("expected t2, t5 or t2r.")
        tpack.convert(weight, tmp_path / "t2.safetensors")
        tpack.convert(weight, path, layout="t2r")
        assert tpack.verify(path).ok
        assert [t.layout for t in tpack.inspect(path).tensors] == ["t2r"]
        unpacked = tpack.unpack(path)["up.weight"]
        assert torch.equal(unpacked, tpack.unpack(tmp_path / "t2.safetensors")["up.weight"])
    text = refused(lambda: tpack.inspect(path), FormatError)
    assert text.endswith("is described with layout 't2r', expected t2 or t5.")


# ---- a granularity


def test_a_granularity_is_a_row(run, monkeypatch):
    with monkeypatch.context() as added:
        pair = Granularity("pair", "one for each two columns", by_row=False, width=2)
        added.setitem(GRANULARITIES, "pair", pair)
        assert "column|group:N|pair" in run("convert", "--help")[0].replace("\n", "")
        assert "| `pair` | one for each two columns |" in cli_reference()
        assert refused(lambda: Options(scale="x")).endswith("column, group:N or pair.")
        assert Options(scale="pair").scale == "pair"
        scale = Scale.parse("pair")
        assert scale.shape((6, 5), 1) == (1, 3)
        assert scale.can_repeat(Scale.parse("column"))
        assert not scale.can_repeat(Scale.parse("row"))
        assert fitting.spread(np.arange(3)[None], scale, 0, 6, 5).tolist() == [[0, 0, 1, 1, 2]]
        tree = as_program(LayerDef("A", [Param("w", "TernaryTensor", [6, 5], scale="pair")]))
        validate(tree)
    assert "'pair' is unknown, expected tensor, row" in refused(
        lambda: validate(tree), LayerDefError
    )


# ---- names of dtypes, and options


def test_a_kept_dtype_is_a_row(run, tmp_path, monkeypatch):
    monkeypatch.setitem(KEEP_DTYPES, "f64", tpack.dtypes.BY_NAME["float64"])
    assert "[f32|f16|bf16|f64]" in run("convert", "--help")[0]
    state = {"w": torch.ones(2, 8), "norm.weight": torch.ones(3)}
    tpack.convert(state, tmp_path / "a.safetensors", keep_dtype="f64")
    with Checkpoint(tmp_path / "a.safetensors") as checkpoint:
        assert checkpoint.entries["norm.weight"].dtype == "float64"


def test_an_option_is_a_field(run, monkeypatch):
    table = {"a": Choice("a", "the first letter"), "b": Choice("b", "the second")}
    described = [
        ("fake_names", str, option("a", "A fake.", among=table, letter="z")),
        ("fake_flag", bool, option(False, "Another.", decides=False)),
    ]
    more = make_dataclass("More", described, bases=(Options,), frozen=True, kw_only=True)
    monkeypatch.setattr(tpack.options, "Options", more)
    text = run("convert", "--help")[0]
    assert "-z, --fake-names [a|b]" in text
    assert "--fake-flag" in text
    assert "| `b` | the second |" in cli_reference()
    assert refused(lambda: more(fake_names="c")) == "fake_names 'c' is unknown, expected a or b."
    found = more(fake_names="b", fake_flag=True).to_dict()
    assert found == Options().to_dict() | {"fake_names": "b"}
    assert json.loads(json.dumps(found)) == found
    assert fields(more)[-1].name == "fake_flag"


# ---- a target


@pytest.fixture
def trits_target(monkeypatch):
    """A target that writes the names of the weights, with an option of its own."""

    @dataclass(frozen=True, kw_only=True)
    class NamesOptions:
        case: str = option("kept", "Of names.", among={"upper": Choice("upper", "in capitals")})

        def __post_init__(self):
            check(self)

    def write(checkpoint, destination, *, force, case):
        names = [name.upper() if case == "upper" else name for name, _ in checkpoint.ternary()]
        with new_file(destination, force=force) as file:
            size = file.write("\n".join(names).encode())
        rows = tuple(ExportedTensor(name, name, "name", ()) for name in names)
        return ExportReport("names", str(destination), size, rows)

    module = types.ModuleType("names_target")
    module.write = write
    monkeypatch.setitem(sys.modules, "names_target", module)
    row = Target("names", "the names alone", "file", ("names_target", "write"), NamesOptions)
    monkeypatch.setitem(TARGETS, "names", row)


def test_a_target_is_a_row_and_a_function(trits_target, run, weight, tmp_path):
    tpack.convert(weight, tmp_path / "m", quantize="absmean")
    report = tpack.export(tmp_path / "m", "names", tmp_path / "names.txt", case="upper")
    assert (tmp_path / "names.txt").read_text() == "UP.WEIGHT"
    assert [(row.name, row.exact, row.error) for row in report.tensors] == [("UP.WEIGHT", True, 0)]
    out, code = run("export", "--help")
    assert code == 0
    assert "[hf-bitnet|gguf|onnx|names]" in out
    assert "--case [kept|upper]" in out
    given = ("export", tmp_path / "m", "--to", "names", "-o", tmp_path / "again.txt")
    assert run(*given, "--case", "upper", "--json")[1] == 0
    assert (tmp_path / "again.txt").read_text() == "UP.WEIGHT"
    assert "[hf-bitnet|gguf|onnx|names]" in cli_reference()
    wrong = refused(lambda: tpack.export(tmp_path / "m", "coreml", tmp_path / "m.x"))
    assert wrong == "target 'coreml' is unknown, expected hf-bitnet, gguf, onnx or names."
    wrong = refused(lambda: tpack.export(tmp_path / "m", "names", tmp_path / "m.txt", type="t"))
    assert wrong == "type is not an option of names, expected case."
    wrong = refused(lambda: tpack.export(tmp_path / "m", "names", tmp_path / "m.txt", case="x"))
    assert wrong == "case 'x' is unknown, expected kept or upper."


def test_an_option_of_another_target_is_refused(run, weight, tmp_path):
    tpack.convert(weight, tmp_path / "m", quantize="absmean")
    given = ("export", tmp_path / "m", "--to", "hf-bitnet", "-o", tmp_path / "out")
    out, code = run(*given, "--type", "tq2_0", "--json")
    assert code == 2
    assert "type is not an option of hf-bitnet, which has none." in out


def test_a_target_must_be_given(run, tmp_path):
    assert run("export", tmp_path, "-o", tmp_path / "out")[1] == 2
