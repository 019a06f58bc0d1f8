"""A folder whose shards do not belong together is refused."""

import json
import shutil

import pytest
import torch
from damage import unnoticed
from shards import model, write_shards

import tpack
from tpack.container import INDEX
from tpack.errors import (
    FormatError,
)


@pytest.fixture
def packed(source, target):
    tpack.convert(source, target)
    return target


def refused(folder, rule):
    with pytest.raises(FormatError) as caught:
        tpack.verify(folder)
    assert caught.value.rule == rule
    assert str(folder) in caught.value.file


def test_a_shard_of_another_model(packed, tmp_path):
    other = model()
    other["model.layers.0.norm.weight"] = torch.ones(63)
    tpack.convert(write_shards(tmp_path / "other", other), tmp_path / "out")
    name = "model-00003-of-00003.safetensors"
    shutil.copy(tmp_path / "out" / name, packed / name)
    refused(packed, "R19")


def test_a_shard_alone(packed):
    refused(packed / "model-00002-of-00003.safetensors", "R19")


def test_a_shard_under_another_name(packed):
    names = [packed / f"model-0000{n}-of-00003.safetensors" for n in (1, 2)]
    blobs = [path.read_bytes() for path in names]
    for path, blob in zip(names, reversed(blobs), strict=True):
        path.write_bytes(blob)
    refused(packed, "R19")


def test_a_shard_of_another_model_of_the_same_form(packed, tmp_path):
    """Its names, shapes and program are equal: only the index can tell."""
    other = {name: -tensor for name, tensor in model().items()}
    tpack.convert(write_shards(tmp_path / "other", other), tmp_path / "out")
    for path in (tmp_path / "out").glob("*.safetensors"):
        own = (packed / path.name).read_bytes()
        shutil.copy(path, packed / path.name)
        refused(packed, "R20")
        with pytest.raises(FormatError, match=path.name):
            tpack.load(packed)
        (packed / path.name).write_bytes(own)
    assert tpack.verify(packed).ok
    shutil.copy(tmp_path / "out" / INDEX, packed / INDEX)
    refused(packed, "R20")


def edited(path, change):
    """Rewrite an index with a change; returns it."""
    index = json.loads(path.read_text())
    change(index["metadata"])
    path.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.update(tpack=[]),
        lambda m: m["tpack"].pop("shards"),
        lambda m: m["tpack"]["shards"].popitem(),
        lambda m: m["tpack"]["shards"].update({"model-00003-of-00003.safetensors": "0"}),
        lambda m: m["tpack"]["shards"].update({"model-00003-of-00003.safetensors": 5}),
        lambda m: m["tpack"]["shards"].update({"more.safetensors": "0" * 64}),
    ],
)
def test_an_index_that_ties_other_shards(packed, change):
    edited(packed / INDEX, change)
    refused(packed, "R20")


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.pop("tpack"),
        lambda m: m["tpack"].pop("sha256"),
        lambda m: m.update(total_size=m["total_size"] + 1),
        lambda m: m.update(more=1),
    ],
)
def test_a_changed_index_is_reported(packed, change):
    edited(packed / INDEX, change)
    report = tpack.verify(packed)
    assert not report.ok
    assert all(row.ok for row in report.tensors)
    assert INDEX in report.problems[0]
    tpack.load(packed)  # what another program has written, loads


@pytest.fixture
def small(tmp_path):
    """A folder of two shards of few bytes."""
    state = {"a.weight": torch.tensor([[1.0, -1.0]]), "b.weight": torch.tensor([[0.5, 0.0]])}
    tpack.convert(write_shards(tmp_path / "small", state, count=2), tmp_path / "packed")
    return tmp_path / "packed"


def test_a_flipped_bit_in_any_byte_of_an_index_or_shard_is_found(small):
    for path in (small / INDEX, small / "model-00002-of-00002.safetensors"):
        assert unnoticed(path, small) == []


@pytest.mark.slow
def test_every_flipped_bit_of_a_folder_is_found(small):
    for path in (small / INDEX, *small.glob("*.safetensors")):
        assert unnoticed(path, small, range(8)) == []


def test_a_flipped_bit_in_any_shard_is_found(packed):
    for path in packed.glob("*.safetensors"):
        blob = bytearray(path.read_bytes())
        blob[-1] ^= 1
        path.write_bytes(blob)
        assert not tpack.verify(packed).ok
        blob[-1] ^= 1
        path.write_bytes(blob)
    assert tpack.verify(packed).ok
