"""The description: reading what was written, and refusing every other value."""

# ruff: noqa: PT017 -- an input may be read or refused; a refusal is checked too

import json
from copy import deepcopy

import pytest
from corpus import make
from hypothesis import given, settings
from hypothesis import strategies as st

from tpack.container import Checkpoint, Document, TernaryEntry, digest
from tpack.container.document import parse_document
from tpack.errors import TpackError


def opened(name):
    return Checkpoint(make.ACCEPT / f"{name}.safetensors")


@pytest.mark.parametrize("name", sorted(make.checkpoints()))
def test_document_reads_back(name):
    with opened(name) as file:
        text = file.document.to_json(file.entries)
        assert text == file.metadata["tpack"]
        assert parse_document(text, file.entries) == (file.document, True)


def test_digest_is_sha256_of_the_parts():
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert digest([]) == empty
    assert digest([b"a", memoryview(b"bc")]) == digest([b"abc"])


def test_entry_shapes():
    entry = TernaryEntry((2, 3, 10), 2, "t5", "group:4", "mse", "float32", 0.1, "", "")
    assert (entry.rows, entry.columns) == (6, 10)
    assert entry.packed_shape == (2, 3, 2)
    assert entry.scale_shape == (2, 3, 3)


def test_with_kept_fills_in_digests_and_nothing_else():
    document = Document(None, {}, {"a": "0", "b": "0"})
    assert document.with_kept({"a": "1", "b": "2", "c": "3"}).kept == {"a": "1", "b": "2"}


def paths_of(data, path=()):
    """The path of every value in a JSON tree."""
    yield path
    items = data.items() if isinstance(data, dict) else enumerate(data)
    for key, value in items:
        if isinstance(value, dict | list):
            yield from paths_of(value, (*path, key))
        else:
            yield (*path, key)


ODD = st.one_of(
    st.none() | st.booleans(),
    st.sampled_from([0, 1, -1, 2**62, 2**63 - 1, 0.5, 1e308]),
    st.sampled_from(["", "x", "0" * 64, "group:1", "group:5", "row", "t2", "t5", "exact"]),
    st.sampled_from(["__class__", "import", "a.b", "float64"]),
    st.sampled_from([[], [0], [1], [2**40] * 4, [[]], [1] * 17, [1] * 100]),
    st.sampled_from([{}, {"": ""}, {"node": "Return"}]),
    st.integers(-(2**63) + 1, 2**63 - 1),
    st.text(max_size=4),
)


@settings(max_examples=600, deadline=None)
@given(data=st.data())
def test_any_changed_value_is_read_or_refused_but_never_a_crash(data):
    name = data.draw(st.sampled_from(["linear", "blocks", "group_f16_t5", "tied", "kinds"]))
    with opened(name) as file:
        tree = json.loads(file.metadata["tpack"])
        entries = dict(file.entries)
    path = data.draw(st.sampled_from([p for p in paths_of(tree) if p]))
    action = data.draw(st.sampled_from(["replace", "delete", "add"]))
    target = deepcopy(tree)
    parent = target
    for key in path[:-1]:
        parent = parent[key]
    if action == "delete":
        del parent[path[-1]]
    elif action == "add" and isinstance(parent, list):
        parent.append(data.draw(ODD))
    else:
        key = path[-1] if action == "replace" else "extra"
        parent[key] = data.draw(ODD)
    try:
        _, holds = parse_document(json.dumps(target), entries)
    except TpackError as error:
        assert error.code == 3
    else:
        changed = make.canonical(target) != make.canonical(tree)
        assert not (changed and holds)


@pytest.mark.parametrize("number", ["1e999", "-1e999", "1e-999", "0e0", "-0.0"])
def test_numbers_beyond_float_are_refused_not_crashes(number):
    with opened("linear") as file:
        text, entries = file.metadata["tpack"], dict(file.entries)
    for old in ('"relative_error":0.0', '"shape":[3,5]', '"split":1'):
        assert old in text
        changed = text.replace(old, f"{old.partition(':')[0]}:{number}")
        try:
            parse_document(changed, entries)
        except TpackError as error:
            assert error.code == 3


@pytest.mark.parametrize("number", ["1e999", "-1e999"])
def test_infinite_literals_of_the_program_are_refused(number):
    with opened("linear") as file:
        tree, entries = json.loads(file.metadata["tpack"]), dict(file.entries)
    tree["program"]["layers"][-1]["body"] = [
        {"node": "Return", "value": {"node": "Literal", "value": "NUMBER"}}
    ]
    text = json.dumps(tree).replace('"NUMBER"', number)
    with pytest.raises(TpackError):
        parse_document(text, entries)
    tree["program"]["layers"][-1]["params"].append(
        {
            "name": "n",
            "param_type": "Layer",
            "shape": None,
            "layer": "Linear",
            "args": {"a": "NUMBER"},
        }
    )
    with pytest.raises(TpackError):
        parse_document(json.dumps(tree).replace('"NUMBER"', number), entries)
