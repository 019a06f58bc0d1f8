"""The safetensors header: layout, alignment, and reading by position."""

# ruff: noqa: PTH208 -- listdir gives names, which is what is compared

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from tpack.container.header import (
    ALIGNMENT,
    MAX_HEADER_WRITTEN,
    Entry,
    TensorFile,
    header_bytes,
    lay_out,
    parse_header,
)
from tpack.dtypes import BY_CODE, BY_NAME
from tpack.errors import FormatError, InputError

PIECES = st.lists(
    st.tuples(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=12).filter(
            lambda name: name != "__metadata__"
        ),
        st.sampled_from(sorted(BY_NAME)),
        st.lists(st.integers(0, 5), max_size=4).map(tuple),
    ),
    unique_by=lambda piece: piece[0],
    max_size=8,
)


@given(PIECES, st.dictionaries(st.sampled_from(["format", "ä", "x"]), st.text(max_size=5)))
def test_header_reads_back(pieces, metadata):
    metadata = {k: v.encode("utf-8", "replace").decode() for k, v in metadata.items()}
    entries = lay_out(pieces)
    blob = header_bytes(entries, metadata)
    assert len(blob) % ALIGNMENT == 0
    length = int.from_bytes(blob[:8], "little")
    assert length == len(blob) - 8
    size = sum(entry.nbytes for entry in entries.values())
    found, read = parse_header(blob[8:], size)
    assert found == entries
    assert read == metadata
    assert set(found) == {name for name, _, _ in pieces}


@given(PIECES)
def test_order_is_by_size_then_name_without_holes(pieces):
    entries = list(lay_out(pieces).values())
    keys = [(-BY_NAME[e.dtype].size, e.name) for e in entries]
    assert keys == sorted(keys)
    position = 0
    for entry in entries:
        assert entry.start == position
        position = entry.stop


def test_the_codes_are_those_of_safetensors(tmp_path):
    for code, dtype in BY_CODE.items():
        path = tmp_path / code
        entries = lay_out([("t", dtype.name, (2,))])
        path.write_bytes(header_bytes(entries, {}) + bytes(2 * dtype.size))
        with safe_open(path, "numpy") as file:
            assert file.get_slice("t").get_dtype() == code
            assert file.get_slice("t").get_shape() == [2]


def test_a_header_that_hubs_refuse_is_not_written():
    with pytest.raises(InputError, match="hubs"):
        header_bytes({}, {"x": "y" * MAX_HEADER_WRITTEN})


def test_missing_folder_and_unreadable_files(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        TensorFile(tmp_path / "gone")
    with pytest.raises(InputError, match="directory"):
        TensorFile(tmp_path)


def file_of(path, shape=(4,)):
    entries = lay_out([("t", "uint8", shape)])
    path.write_bytes(header_bytes(entries, {}) + bytes(range(entries["t"].nbytes)))
    return path


def test_read_by_position(tmp_path):
    with TensorFile(file_of(tmp_path / "x", (9,))) as file:
        assert file.read("t") == bytes(range(9))
        assert file.read("t", 2, 5) == b"\2\3\4"
        assert b"".join(file.chunks("t")) == bytes(range(9))
        descriptor = file.fileno()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_a_file_that_shrinks_while_it_is_read(tmp_path):
    path = file_of(tmp_path / "x", (9,))
    with TensorFile(path) as file:
        os.truncate(path, path.stat().st_size - 1)
        with pytest.raises(InputError, match="truncated while it was read") as caught:
            file.read("t")
    assert (caught.value.file, caught.value.tensor) == (str(path), "t")


def test_a_refused_file_is_closed(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"12345678" * 4)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        with pytest.raises(FormatError):
            TensorFile(path)
    assert len(os.listdir("/proc/self/fd")) == before


def test_entries_come_in_the_order_of_their_data():
    raw = {
        "b": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
        "a": {"dtype": "U8", "shape": [2], "data_offsets": [1, 3]},
    }
    entries, metadata = parse_header(json.dumps(raw).encode(), 3)
    assert list(entries.values()) == [
        Entry("b", "uint8", (1,), 0, 1),
        Entry("a", "uint8", (2,), 1, 3),
    ]
    assert metadata == {}


def test_a_very_long_name_does_not_flood_the_message():
    raw = {"n" * 10_000: {"dtype": "X", "shape": [], "data_offsets": [0, 0]}}
    with pytest.raises(FormatError) as caught:
        parse_header(json.dumps(raw).encode(), 0)
    assert len(str(caught.value)) < 1000
