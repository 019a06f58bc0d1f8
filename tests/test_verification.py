"""Verification: every kind of tampering is found, and what is lossless is proved so."""

import numpy as np
import pytest
import torch
from corpus import make
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import tpack
from tpack.errors import InputError

STATE = {
    "fc.weight": torch.tensor([[0.5, 0, -0.5, 0.5, 0.5], [0, 0, 0.5, -0.5, 0]]),
    "fc.bias": torch.tensor([1.0, 2.0]),
}

#: A byte of each layout that no encoder writes.
NO_CODE = {"t2": 0xFF, "t5": 1}


@pytest.fixture(params=["t2", "t5"])
def file(request, tmp_path):
    path = tmp_path / "m.safetensors"
    tpack.convert(STATE, path, layout=request.param)
    return path


def overwrite(path, tensor, at, value):
    """Change one byte of a tensor in place."""
    blob = bytearray(path.read_bytes())
    header, _, data = make.parts(bytes(blob))
    start = len(blob) - len(data) + header[tensor]["data_offsets"][0]
    assert blob[start + at] != value
    blob[start + at] = value
    path.write_bytes(blob)


def failed(report):
    """(tensor, check) of every check that failed."""
    return {(t.name, check) for t in report.tensors for check, ok in t.checks.items() if not ok}


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
        ({"fc.bias": torch.tensor([1.0, 2.0]).double()}, {("fc.bias", "same_form")}),
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
    assert failed(report) == {("w", "lossless")}
    assert "quantized" in report.problems[0]


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
