"""Dialects are rows: a new one is read from folders and files, and named where others are."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import tpack
from tpack.codec import Scale, pack
from tpack.errors import InputError, UnsupportedError
from tpack.hfconfig import quant_method
from tpack.sources import PackedTensor, open_source
from tpack.sources.adapting import Dialect, read_weights
from tpack.sources.dialects import DIALECTS

MANUAL = Path(__file__).parents[2] / "docs" / "dialects.md"


def not_in_manual():
    """Rows that the table of formats lacks, or describes as found by something else."""
    lines = MANUAL.read_text().replace("`", "").splitlines()
    table = [line for line in lines if line.startswith("| ")]
    return [
        row.name
        for row in DIALECTS.values()
        if not any(line.startswith(f"| {row.name}") and row.found_by in line for line in table)
    ]


def adapt_shorts(tensors, _):
    """Trits as int16 ``<layer>.shorts``, with a number beside each."""

    def read(name):
        codes, scale = tensors[name], tensors.get(f"{name}_by")
        if scale is None:
            raise UnsupportedError("it has no number")

        def rows(first, last):
            columns = codes.shape[1]
            found = codes.read(first * columns, last * columns).reshape(-1, columns)
            if (abs(found) > 1).any():
                raise InputError("holds what is no trit. Say so.")
            return pack(found.astype("int8"))

        weight = name.replace("shorts", "weight")
        number, scale_of = scale.read(0, 1), Scale.parse("tensor")
        found = PackedTensor(
            weight, "float32", codes.shape, rows, number, "float32", scale_of, codes.nbytes
        )
        return found, {name, scale.name}

    codes = [name for name in tensors if name.endswith(".shorts")]
    return read_weights(tensors, codes, read, lambda _: None, "shorts")


SHORTS = Dialect(
    "Shorts",
    "quant_method shorts",
    ("int16",),
    lambda _, config: quant_method(config) == "shorts",
    adapt_shorts,
)
TRITS = torch.tensor([[1, 0, -1, 1], [0, 1, 1, -1]], dtype=torch.int16)
STATE = {"up.shorts": TRITS, "up.shorts_by": torch.tensor([0.5]), "up.bias": torch.ones(2)}


@pytest.fixture
def shorts(monkeypatch):
    monkeypatch.setitem(DIALECTS, "Shorts", SHORTS)


def write(folder, state=STATE, method="shorts"):
    folder.mkdir()
    save_file(state, folder / "model.safetensors")
    config = {"quantization_config": {"quant_method": method}}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_every_dialect_stands_in_the_manual():
    assert not_in_manual() == []


@pytest.mark.usefixtures("shorts")
@pytest.mark.parametrize("file", ["", "model.safetensors"])
def test_a_new_dialect_is_recognised(tmp_path, file):
    path = write(tmp_path / "m") / file
    report = tpack.convert(path, tmp_path / "out", exact=True)
    assert "read 1 weights in shorts" in report.notes
    assert torch.equal(tpack.unpack(tmp_path / "out")["up.weight"], TRITS * 0.5)
    assert tpack.verify(tmp_path / "out", path).ok


@pytest.mark.usefixtures("shorts")
def test_a_new_dialect_is_named_where_dialects_are_listed(tmp_path):
    path = write(tmp_path / "m", {"w": torch.ones(2, 2)}, "another")
    with pytest.raises(UnsupportedError, match=r"'another' as its .* Shorts \(quant_method shorts"):
        open_source(path)
    assert not_in_manual() == ["Shorts"]


@pytest.mark.usefixtures("shorts")
@pytest.mark.parametrize(
    ("change", "coded"),
    [
        ({"up.shorts": TRITS * 3}, "it holds what is no trit"),
        ({"up.shorts": TRITS, "up.shorts_by": None}, "it has no number"),
    ],
)
def test_what_is_not_ternary_stays_and_says_so(tmp_path, change, coded):
    state = {name: tensor for name, tensor in (STATE | change).items() if tensor is not None}
    with open_source(write(tmp_path / "m", state)) as source:
        assert set(source.tensors) == set(state)
        assert source.tensors["up.shorts"].coded == coded


@pytest.mark.usefixtures("shorts")
def test_a_weight_that_is_there_twice(tmp_path):
    path = write(tmp_path / "m", STATE | {"up.weight": torch.ones(2, 4)})
    with pytest.raises(InputError, match=r"up.weight.* is stored twice, plain and as 'up.shorts'"):
        open_source(path)
