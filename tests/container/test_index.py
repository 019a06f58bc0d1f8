"""The index of a folder: what it may say, and what must be there."""

import json
from hashlib import sha256

import pytest

from tpack.container import INDEX, SINGLE, index as index_module, read_index
from tpack.container.index import is_plain_name, write_index
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


def test_metadata_that_is_no_object_is_none(folder):
    weight_map = {"a": SHARDS[0], "b": SHARDS[1]}
    for data in ({}, {"metadata": None}, {"metadata": [1]}, {"metadata": {}}):
        index = read_index(write(folder, {"weight_map": weight_map} | data))
        assert (index.metadata, index.holds, index.described()) == ({}, False, None)


def test_every_file_name_is_a_string(folder):
    with pytest.raises(FormatError, match="has no weight_map from names to file names"):
        read_index(write(folder, {"weight_map": {"a": SHARDS[0], "b": 1}}))


def test_a_long_name_is_cut(folder):
    with pytest.raises(FormatError) as caught:
        read_index(write(folder, {"weight_map": {"n" * 300: "../x"}}))
    assert caught.value.tensor == "n" * 200


def test_what_is_no_json_is_called_an_index(folder):
    with pytest.raises(FormatError, match="index is not JSON"):
        read_index(write(folder, "{"))


@pytest.mark.parametrize(("more", "good"), [(0, True), (1, False), (2, False)])
def test_the_longest_index(folder, monkeypatch, more, good):
    text = json.dumps({"weight_map": {"a": SHARDS[0], "b": SHARDS[1]}})
    assert index_module.MAX_INDEX == 100_000_000
    monkeypatch.setattr(index_module, "MAX_INDEX", len(text))
    path = write(folder, text + " " * more)
    if good:
        read_index(path)
    else:
        with pytest.raises(FormatError, match=f"is longer than {len(text)} bytes") as caught:
            read_index(path)
        assert caught.value.rule == "R18"


@pytest.mark.parametrize("count", [1, 4, 5, 7])
def test_a_few_of_many_names_are_shown(folder, count):
    names = [f"n{i}-00001-of-00009.safetensors" for i in range(count)]
    shown = ", ".join(names[:4]) + (f" and {count - 4} more" if count > 4 else "")
    with pytest.raises(InputError) as caught:
        read_index(write(folder, {"weight_map": {name: name for name in names}}))
    assert caught.value.message == (f"names shards that are missing: {shown}. Download them again.")
    for name in names:
        (folder / name).touch()
    with pytest.raises(InputError) as caught:
        read_index(write(folder, {"weight_map": {"a": SHARDS[0], "b": SHARDS[1]}}))
    assert caught.value.message == (
        f"does not name {shown}, which lie beside it. Move away what belongs to another download."
    )


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("model-00001-of-00003.safetensors", True),
        ("a-b-1-of-2.safetensors", True),
        ("model-00001-of-00003.bin", False),
        ("model-00001-of-00003.safetensors.index.json", False),
        ("1-of-3.safetensors", False),
        ("model-of-3.safetensors", False),
        ("model-00001-to-00003.safetensors", False),
        ("model-x-of-00003.safetensors", False),
        ("model-00001-of-x.safetensors", False),
        ("extra", False),
    ],
)
def test_only_what_is_spelled_as_a_shard_counts(folder, name, counts):
    (folder / name).touch()
    path = write(folder, {"weight_map": {"a": SHARDS[0], "b": SHARDS[1]}})
    if counts:
        with pytest.raises(InputError, match="does not name"):
            read_index(path)
    else:
        read_index(path)


@pytest.mark.parametrize("name", ["a", "a.b", "ä", "a b", "...", "a_", "x"])
def test_plain_names(name):
    assert is_plain_name(name)


# ---- the tie of an index to its shards

TEXTS = ["{}", '{"é":1}']
HEX = "0123456789abcdef" * 4


@pytest.fixture
def tied(tmp_path):
    """A written index of two files with different descriptions."""
    for name, text in zip(SHARDS, TEXTS, strict=True):
        header = json.dumps({"__metadata__": {"tpack": text}}).encode()
        (tmp_path / name).write_bytes(len(header).to_bytes(8, "little") + header)
    write_index(tmp_path / INDEX, {"b": SHARDS[1], "a": SHARDS[0]}, {"total_size": 5})
    return tmp_path / INDEX


def test_an_index_ties_its_shards_together(tied):
    index = read_index(tied)
    digests = [sha256(text.encode()).hexdigest() for text in TEXTS]
    assert index.holds
    assert index.described() == dict(zip(SHARDS, digests, strict=True))
    data = json.loads(tied.read_text())
    assert data["weight_map"] == {"a": SHARDS[0], "b": SHARDS[1]}
    assert data["metadata"]["total_size"] == 5
    stated = data["metadata"]["tpack"].pop("sha256")
    canonical = json.dumps(data, sort_keys=True, separators=(",", ":"))
    assert stated == sha256(canonical.encode()).hexdigest()


def test_an_index_is_written_again(tied):
    before = tied.read_bytes()
    write_index(tied, {"b": SHARDS[1], "a": SHARDS[0]}, {"total_size": 5})
    assert tied.read_bytes() == before
    assert before.endswith(b"\n}\n")
    assert before.startswith(b'{\n  "metadata": {')
    assert list(json.loads(before)["weight_map"]) == ["a", "b"]


def test_an_index_holds_only_as_it_was_written(tied):
    text = tied.read_text()
    data = json.loads(text)
    for changed in (text + "\n", text.replace("  ", " "), text.replace('": 5', '": 6'),
                    json.dumps(data), json.dumps(data, indent=2, sort_keys=True)):  # fmt: skip
        tied.write_text(changed)
        assert not read_index(tied).holds
    data["metadata"]["tpack"]["sha256"] = HEX
    tied.write_text(json.dumps(data, indent=2, sort_keys=True) + "\n")
    assert not read_index(tied).holds
    tied.write_text(text)
    assert read_index(tied).holds


def test_an_index_without_its_digest_does_not_hold(tied):
    data = json.loads(tied.read_text())
    del data["metadata"]["tpack"]["sha256"]
    tied.write_text(json.dumps(data, indent=2, sort_keys=True) + "\n")
    assert not read_index(tied).holds
    data["metadata"]["tpack"] = None
    tied.write_text(json.dumps(data, indent=2, sort_keys=True) + "\n")
    assert read_index(tied).described() is None


@pytest.mark.parametrize(
    "tie",
    [
        *([], {}, {"shards": None}, {"shards": []}, {"shards": {}}),
        {"shard": dict.fromkeys(SHARDS, HEX)},
        *({"shards": dict.fromkeys(SHARDS, v)} for v in (None, 1, "", HEX[1:], HEX.upper())),
        *({"shards": {SHARDS[0]: HEX, SHARDS[1]: v}} for v in (None, HEX + "0", "x" * 64)),
        {"shards": {SHARDS[0]: HEX}},
        {"shards": dict.fromkeys([*SHARDS, "more"], HEX)},
    ],
)  # fmt: skip
def test_a_tie_has_one_digest_for_each_shard(folder, tie):
    data = {"weight_map": {"a": SHARDS[0], "b": SHARDS[1]}, "metadata": {"tpack": tie}}
    with pytest.raises(FormatError, match="does not have one digest for each shard") as caught:
        read_index(write(folder, data)).described()
    assert caught.value.rule == "R20"


def test_a_tie_without_a_digest_of_its_own_still_ties(folder):
    tie = {"shards": dict.fromkeys(SHARDS, HEX)}
    data = {"weight_map": {"a": SHARDS[0], "b": SHARDS[1]}, "metadata": {"tpack": tie}}
    assert read_index(write(folder, data)).described() == tie["shards"]


def test_a_file_without_shards_beside_them(folder):
    """Other libraries load it, and not the shards."""
    (folder / SINGLE).touch()
    path = write(folder, {"weight_map": dict(zip("ab", SHARDS, strict=True))})
    with pytest.raises(InputError, match=r"model.safetensors beside model.safetensors.index") as e:
        read_index(path)
    assert e.value.file == str(folder)
