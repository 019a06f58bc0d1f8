"""verify: every byte is accounted for."""

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from corpus import make
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from verified_files import STATE, failed, masters

import tpack
from tpack.errors import InputError

#: A byte of each layout that no encoder writes.
NO_CODE = {"t2": 0xFF, "t5": 1}


def overwrite(path, tensor, at, value):
    """Change one byte of a tensor in place."""
    blob = bytearray(path.read_bytes())
    header, _, data = make.parts(bytes(blob))
    start = len(blob) - len(data) + header[tensor]["data_offsets"][0]
    assert blob[start + at] != value
    blob[start + at] = value
    path.write_bytes(blob)


def test_a_good_file(file):
    report = tpack.verify(file)
    assert report.ok
    assert report.problems == []
    assert [t.name for t in report.tensors] == ["fc.weight", "fc.bias"]
    assert all(t.ok and all(t.checks.values()) for t in report.tensors)
    against = tpack.verify(file, STATE)
    assert against.ok
    assert all("same_values" in t.checks for t in against.tensors)


def test_codes_that_are_none(file):
    overwrite(file, "fc.weight_packed", 1, NO_CODE[tpack.inspect(file).tensors[0].layout])
    report = tpack.verify(file, STATE)
    assert {("fc.weight", "codes"), ("fc.weight", "digest")} <= failed(report)
    assert any("fc.weight" in problem for problem in report.problems)


def test_padding_of_t2(tmp_path):
    file = tmp_path / "m"
    tpack.convert(STATE, file)
    overwrite(file, "fc.weight_packed", 1, 0b00000010)
    assert ("fc.weight", "padding") in failed(tpack.verify(file))


def test_padding_of_t5(file):
    tpack.convert({"w": STATE["fc.weight"][:, :4].clone()}, file, layout="t5", force=True)
    trits = [int(v * 2) + 1 for v in STATE["fc.weight"][0, :4].tolist()]
    value = 81 * trits[0] + 27 * trits[1] + 9 * trits[2] + 3 * trits[3] + 2
    overwrite(file, "w_packed", 0, -(-256 * value // 243))
    assert failed(tpack.verify(file)) == {("w", "padding")}


def test_a_changed_trit(file):
    with safe_open(file, "pt") as opened:
        old = opened.get_tensor("fc.weight_packed")[0, 0].item()
    layout = tpack.inspect(file).tensors[0].layout
    overwrite(file, "fc.weight_packed", 0, old - 1 if layout == "t2" else -(-256 * 121 // 243))
    report = tpack.verify(file, STATE)
    assert failed(report) == {("fc.weight", "digest"), ("fc.weight", "same_values")}
    assert not report.ok


def test_a_changed_scale(file):
    overwrite(file, "fc.weight_scale", 0, 1)
    assert failed(tpack.verify(file)) == {("fc.weight", "scale_digest")}
    assert ("fc.weight", "same_values") in failed(tpack.verify(file, STATE))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_scale_that_is_not_finite(file, value):
    for at, byte in enumerate(np.float32(value).tobytes()):
        if byte != np.float32(0.5).tobytes()[at]:
            overwrite(file, "fc.weight_scale", at, byte)
    assert ("fc.weight", "scale") in failed(tpack.verify(file))


def test_a_changed_kept_tensor(file):
    overwrite(file, "fc.bias", 0, 1)
    assert failed(tpack.verify(file)) == {("fc.bias", "digest")}


def test_a_changed_description(file):
    header, description, data = make.parts(file.read_bytes())
    description["tensors"]["fc.weight"]["relative_error"] = 0.25
    header["__metadata__"]["tpack"] = make.canonical(description)
    file.write_bytes(make.raw(make.canonical(header), data))
    report = tpack.verify(file)
    assert not report.ok
    assert failed(report) == set()
    assert "description" in report.problems[0]


def test_swapped_tensors_of_one_shape(tmp_path):
    path = tmp_path / "m.safetensors"
    state = {"a.weight": make.trits(4, 4), "b.weight": -make.trits(4, 4)}
    tpack.convert(state, path)
    with safe_open(path, "pt") as opened:
        metadata = opened.metadata()
    tensors = load_file(path)
    tensors["a.weight_packed"], tensors["b.weight_packed"] = (
        tensors["b.weight_packed"],
        tensors["a.weight_packed"],
    )
    save_file(tensors, path, metadata=metadata)
    assert failed(tpack.verify(path)) == {("a.weight", "digest"), ("b.weight", "digest")}


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"fc.bias": torch.tensor([1.0, 2.5])}, {("fc.bias", "same_values")}),
        ({"fc.bias": torch.tensor([[1.0, 2.0]])}, {("fc.bias", "same_form")}),
        ({"fc.bias": torch.tensor([1.0, 2.1]).double()}, {("fc.bias", "same_cast")}),
        ({"fc.bias": torch.tensor([1, 2])}, {("fc.bias", "same_form")}),
        ({"fc.weight": STATE["fc.weight"].half()}, {("fc.weight", "same_form")}),
        ({"fc.weight": STATE["fc.weight"] * 2}, {("fc.weight", "same_values")}),
        ({"fc.weight": -STATE["fc.weight"]}, {("fc.weight", "same_values")}),
        ({"fc.weight": STATE["fc.weight"].T.contiguous()}, {("fc.weight", "same_form")}),
    ],
)
def test_another_source(file, change, wanted):
    report = tpack.verify(file, STATE | change)
    assert failed(report) == wanted
    assert not report.ok


def test_missing_and_surplus_tensors_of_the_source(file):
    report = tpack.verify(file, {"fc.weight": STATE["fc.weight"]})
    assert failed(report) == {("fc.bias", "in_source")}
    report = tpack.verify(file, STATE | {"more": torch.ones(2)})
    assert not report.ok
    assert "'more'" in report.problems[0]


def test_other_aliases(file):
    report = tpack.verify(file, STATE | {"tied": STATE["fc.bias"]})
    assert not report.ok


def test_negative_zero_is_the_one_difference_allowed(tmp_path):
    state = {"w": torch.tensor([[-0.0, 1.0], [0.0, -1.0]])}
    tpack.convert(state, tmp_path / "m", exact=True)
    assert tpack.verify(tmp_path / "m", state).ok


def test_quantized_is_never_called_lossless(tmp_path):
    state = {"w": torch.randn(4, 8, generator=torch.Generator().manual_seed(0))}
    tpack.convert(state, tmp_path / "m")
    assert tpack.verify(tmp_path / "m").ok
    report = tpack.verify(tmp_path / "m", state)
    assert report.ok
    (row,) = report.tensors
    assert row.equals == "absmean of the source"
    assert "same_values" not in row.checks
    assert report.equals == {"absmean of the source": 1}


def test_what_unpack_writes_verifies_as_the_source(file, tmp_path):
    save_file(tpack.unpack(file), tmp_path / "plain.safetensors")
    assert tpack.verify(file, tmp_path / "plain.safetensors").ok


def test_unreadable_files_name_themselves(file, tmp_path):
    for path, against in ((tmp_path / "gone", None), (file, tmp_path / "gone.pt")):
        with pytest.raises(InputError) as caught:
            tpack.verify(path, against)
        assert caught.value.file == str(against or path)


def test_the_report_as_json(file):
    overwrite(file, "fc.bias", 0, 1)
    data = tpack.verify(file).to_dict()
    assert set(data) == {"ok", "file", "tensors", "problems"}
    assert data["ok"] is False
    assert data["file"] == str(file)
    for row in data["tensors"]:
        assert set(row) == {"name", "ok", "checks"}
        assert all(type(value) is bool for value in [row["ok"], *row["checks"].values()])


# ---- the report


def test_repeated_layers_share_a_sentence(tmp_path):
    state = {f"layers.{i}.up.weight": make.trits(2, 4) * (i + 1) for i in range(12)}
    tpack.convert(state, tmp_path / "m")
    for i in (3, 4, 5):
        state[f"layers.{i}.up.weight"][1, 2] += 9
    del state["layers.7.up.weight"]
    report = tpack.verify(tmp_path / "m", state | {f"h.{i}.w": torch.ones(2, 2) for i in range(2)})
    assert report.problems == [
        "each of the tensors 'h.0–1.w ×2' of the source is not in the checkpoint.",
        "each of the tensors 'layers.3–5.up ×3' does not unpack to the values of the source: first "
        f"at index (1, 2) of 'layers.3.up.weight' it has {state['layers.3.up.weight'][1, 2] - 9}, "
        f"the source has {state['layers.3.up.weight'][1, 2]}; 3 of 24 values differ.",
        "tensor 'layers.7.up.weight' is not in the source.",
    ]
    assert [row.name for row in report.tensors if not row.ok] == [
        f"layers.{i}.up.weight" for i in (3, 4, 5, 7)
    ]


def test_the_form_of_both_is_told(file):
    report = tpack.verify(file, STATE | {"fc.bias": torch.tensor([[1, 2]])})
    assert report.problems == [
        "tensor 'fc.bias' is float32 (2,) in the checkpoint, int64 (1, 2) in the source."
    ]


def test_aliases_that_differ_are_named(file):
    shared = STATE["fc.bias"]
    report = tpack.verify(
        file, {"fc.weight": STATE["fc.weight"], "fc.bias": shared, "tied": shared}
    )
    assert report.problems == [
        "'tied' is no shared name in the checkpoint, and shares 'fc.bias' in the source."
    ]


def test_warnings_of_the_source_are_passed_on(file, tmp_path, monkeypatch):
    from tpack.sources import open_source

    def opened(source, reading):
        return replace(
            open_source(source, reading), warnings=["holds more"], notes=["took a prefix away"]
        )

    monkeypatch.setattr("tpack.verification.open_source", opened)
    report = tpack.verify(file, STATE)
    assert (report.ok, report.warnings, report.notes) == (
        True,
        ["holds more"],
        ["took a prefix away"],
    )


@pytest.fixture
def run(run):
    return partial(run, "verify")


def test_the_command_says_what_was_proved(tmp_path, run):
    state = {f"layers.{i}.fc.weight": masters(i) for i in range(15)} | {
        "norm.weight": torch.ones(3)
    }
    torch.save(state, tmp_path / "m.pt")
    tpack.convert(tmp_path / "m.pt", tmp_path / "m")
    code, out, err = run(tmp_path / "m", "--against", tmp_path / "m.pt")
    assert (code, err) == (0, "")
    assert out.endswith(": 15 equal absmean of the source, 1 equal the source\n")
    assert "absmean of the source" in run(tmp_path / "m", "--against", tmp_path / "m.pt", "-v")[1]
    data = json.loads(run(tmp_path / "m", "--against", tmp_path / "m.pt", "--json")[1])
    assert data["equals"] == {"absmean of the source": 15, "the source": 1}
    state["layers.7.fc.weight"][0, 0] += 5
    torch.save(state, tmp_path / "other.pt")
    code, out, err = run(tmp_path / "m", "--against", tmp_path / "other.pt", "-q")
    assert (code, out) == (5, "")
    assert "'layers.7.fc.weight' is not what absmean makes of the source: at index (" in err
    data = json.loads(run(tmp_path / "m", "--against", tmp_path / "other.pt", "--json")[1])
    (row,) = [row for row in data["tensors"] if not row["ok"]]
    assert row["difference"]["of"] == 768


def test_a_source_with_more_beside_it_is_not_called_equal(tmp_path, run):
    """The weights of a sub-folder, which a conversion leaves out."""
    folder = tmp_path / "model"
    (folder / "2_Dense").mkdir(parents=True)
    save_file({"fc.weight": make.trits(4, 8)}, folder / "model.safetensors")
    save_file({"linear.weight": torch.ones(3, 3)}, folder / "2_Dense/model.safetensors")
    (folder / "config.json").write_text("{}")
    tpack.convert(folder, tmp_path / "m")
    code, out, err = run(tmp_path / "m", "--against", folder, "-q")
    assert (code, out) == (0, "")
    assert err.startswith("warning: ")
    assert "2_Dense" in err
    code, out, _ = run(tmp_path / "m", "--against", folder)
    assert (code, "equal to" in out) == (0, False)
    assert out.endswith(": 1 equal the source\n")


def test_other_weights_and_code_of_a_folder_are_named(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    tpack.convert(STATE, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    assert "notes" not in tpack.verify(folder).to_dict()
    (folder / "onnx").mkdir()
    for name in ("pytorch_model.bin", "modeling.py", "onnx/model.onnx"):
        (folder / name).touch()
    report = tpack.verify(folder)
    assert report.ok
    assert report.to_dict()["notes"] == [
        "did not look at other weights and code: modeling.py, onnx/, pytorch_model.bin"
    ]
