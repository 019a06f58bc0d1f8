"""Inspection: shares of zeros and bits per weight, by brute force."""

# ruff: noqa: PT017 -- an input may be read or refused; a refusal is checked too

import json

import pytest
import torch
from corpus import make
from safetensors.torch import load_file

import tpack
from tpack.container.version import KNOWN
from tpack.dtypes import BY_NAME


@pytest.mark.parametrize("layout", ["t2", "t5"])
@pytest.mark.parametrize("columns", [1, 4, 5, 7, 33])
def test_zeros_and_bits_by_brute_force(tmp_path, layout, columns):
    path = tmp_path / "m"
    state = {
        "a.weight": make.trits(6, columns),
        "b.weight": make.trits(3, columns) * torch.tensor([[1.0], [2.0], [4.0]])
        if columns > 16  # or scales would cost more than they save
        else make.trits(3, columns),
        "bias": torch.ones(5).half(),
    }
    tpack.convert(state, path, layout=layout)
    report = tpack.inspect(path)
    stored = load_file(path)
    assert [t.name for t in report.tensors] == ["a.weight", "b.weight"]
    for row in report.tensors:
        w = state[row.name]
        assert row.counts == tuple(int((w.sign() == trit).sum()) for trit in (-1, 0, 1))
        assert row.packed_bytes == stored[f"{row.name}_packed"].nbytes
        assert row.scale_bytes == stored[f"{row.name}_scale"].nbytes
        assert row.zeros == pytest.approx(float((w == 0).float().mean()), abs=1e-6)
        size = stored[f"{row.name}_packed"].nbytes + stored[f"{row.name}_scale"].nbytes
        assert row.bpw == pytest.approx(8 * size / w.numel(), abs=1e-4)
        assert (row.layout, row.shape, row.method) == (layout, tuple(w.shape), "exact")
    total = 8 * sum(t.nbytes for t in stored.values()) / sum(t.numel() for t in state.values())
    assert report.bpw_total == pytest.approx(total, abs=1e-4)
    assert report.file_bytes == path.stat().st_size
    assert report.stored_bytes == sum(t.nbytes for t in stored.values())
    assert report.source_bytes == sum(t.nbytes for t in state.values())


@pytest.mark.parametrize("name", sorted(make.checkpoints()))
def test_json_has_the_keys_of_the_contract(name):
    path = make.ACCEPT / f"{name}.safetensors"
    data = json.loads(json.dumps(tpack.inspect(path).to_dict()))
    assert {"file", "format_version", "tensors", "kept", "bpw_total"} <= set(data)
    assert data["format_version"] == KNOWN.to_json()
    source, _ = make.checkpoints()[name]
    for row in data["tensors"]:
        assert {"name", "shape", "layout", "scale", "method", "zeros", "bpw"} <= set(row)
        assert row["shape"] == list(source[row["name"]].shape)
        assert 0 <= row["zeros"] <= 1
    for row in data["kept"]:
        assert {"name", "dtype", "shape"} <= set(row)
        assert f"torch.{BY_NAME[row['dtype']].held}" == str(source[row["name"]].dtype)


def test_a_file_without_any_tensor(tmp_path):
    header = {"__metadata__": {"format": "pt"}}
    description = {
        "version": KNOWN.to_json(),
        "program": None,
        "tensors": {},
        "kept": {},
        "aliases": {},
        "shard": None,
        "metadata": {},
        "sha256": "",
    }
    path = tmp_path / "m"
    path.write_bytes(make.build(header, description, b""))
    try:
        report = tpack.inspect(path)
    except tpack.InputError as error:
        assert error.file == str(path)
    else:
        assert report.bpw_total == 0
        assert tpack.verify(path).ok


def test_a_file_of_empty_tensors_only(tmp_path):
    none = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    header = {
        "__metadata__": {"format": "pt"},
        "e": {"dtype": "F32", "shape": [0, 3], "data_offsets": [0, 0]},
    }
    description = {
        "version": KNOWN.to_json(),
        "program": None,
        "tensors": {},
        "kept": {"e": none},
        "aliases": {},
        "shard": None,
        "metadata": {},
        "sha256": "",
    }
    path = tmp_path / "m"
    path.write_bytes(make.build(header, description, b""))
    try:
        tpack.inspect(path)
    except tpack.InputError as error:
        assert error.file == str(path)
