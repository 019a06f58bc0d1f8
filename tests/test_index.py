"""The index of a folder: what it may say, and what must be there."""

import json

import pytest

from tpack.container import INDEX, read_index
from tpack.container.index import is_plain_name
from tpack.errors import FormatError, InputError

SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


@pytest.fixture
def folder(tmp_path):
    for name in SHARDS:
        (tmp_path / name).touch()
    return tmp_path


def write(folder, data):
    text = data if isinstance(data, str) else json.dumps(data)
    (folder / INDEX).write_text(text)
    return folder / INDEX


def test_an_index(folder):
    path = write(
        folder,
        {"metadata": {"total_size": 5}, "weight_map": {"b": SHARDS[1], "a": SHARDS[0]}},
    )
    index = read_index(path)
    assert index.files == SHARDS
    assert dict(index.weight_map) == {"b": SHARDS[1], "a": SHARDS[0]}
    assert index.metadata == {"total_size": 5}


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}', '{"weight_map": {}}',
     '{"weight_map": {"a": "x", "a": "x"}}', '{"weight_map": {"a": NaN}}'],
)  # fmt: skip
def test_what_is_no_index(folder, text):
    path = write(folder, text)
    with pytest.raises(FormatError) as caught:
        read_index(path)
    assert caught.value.rule == "R18"
    assert caught.value.file == str(path)


@pytest.mark.parametrize(
    "name", ["../x.safetensors", "/etc/passwd", "a/b", "..", ".", "", "a\\b", "C:x", "a\0b"]
)
def test_entries_that_lead_out_of_the_folder(folder, name):
    assert not is_plain_name(name)
    with pytest.raises(FormatError, match="beside the index") as caught:
        read_index(write(folder, {"weight_map": {"a": SHARDS[0], "w": name}}))
    assert caught.value.rule == "R18"
    assert caught.value.tensor == "w"


def test_missing_shards_are_named(folder):
    (folder / SHARDS[1]).unlink()
    with pytest.raises(InputError, match=f"missing: {SHARDS[1]}"):
        read_index(write(folder, {"weight_map": {"a": SHARDS[0], "b": SHARDS[1]}}))


def test_extra_shards_are_named(folder):
    extra = folder / "model-00003-of-00003.safetensors"
    extra.touch()
    path = write(folder, {"weight_map": {"a": SHARDS[0], "b": SHARDS[1]}})
    with pytest.raises(InputError, match=f"does not name {extra.name}"):
        read_index(path)
    extra.rename(folder / "adapter.safetensors")  # of something else
    assert read_index(path).files == SHARDS
