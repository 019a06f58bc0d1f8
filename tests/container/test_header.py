"""The safetensors header: layout, alignment, and reading by position."""

# ruff: noqa: PTH208 -- listdir gives names, which is what is compared

import errno
import gc
import json
import os
import re
from pathlib import Path

import pytest
from hypothesis import given, strategies as st
from safetensors import safe_open

from tpack.container import header
from tpack.container.header import (
    ALIGNMENT,
    CHUNK,
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
        st.lists(st.integers(0, 5), max_size=4).map(lambda shape: (*shape, 4)),
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
    keys = [(-BY_NAME[e.dtype].bits, e.name) for e in entries]
    assert keys == sorted(keys)
    position = 0
    for entry in entries:
        assert entry.start == position
        position = entry.stop


def test_the_codes_are_those_of_safetensors(tmp_path):
    for code, dtype in BY_CODE.items():
        path = tmp_path / code
        entries = lay_out([("t", dtype.name, (4,))])
        path.write_bytes(header_bytes(entries, {}) + bytes(4 * dtype.bits // 8))
        with safe_open(path, "numpy") as file:
            assert file.get_slice("t").get_dtype() == code
            assert file.get_slice("t").get_shape() == [4]


def test_the_manual_lists_the_dtypes():
    text = (Path(__file__).parents[2] / "docs" / "format.md").read_text()
    found = re.findall(r"^\| `(\w+)` \| `(\w+)` \| (\d+) \|$", text, re.MULTILINE)
    assert found == [(dtype.code, dtype.name, str(dtype.bits)) for dtype in BY_CODE.values()]


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


# ---- one value changed in a small header


def tensor(dtype="U8", shape=(2,), offsets=(0, 2), **more):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)} | more


def refusal(raw, size=2):
    """Rule, tensor and message of an error."""
    with pytest.raises(FormatError) as caught:
        parse_header(raw if isinstance(raw, bytes) else json.dumps(raw).encode(), size)
    return caught.value.rule, caught.value.tensor, caught.value.message


@pytest.mark.parametrize(
    ("said", "size"),
    [
        (tensor(), 2),
        (tensor(shape=(), offsets=(0, 1)), 1),
        (tensor(shape=(0, 7), offsets=(0, 0)), 0),
        (tensor(shape=(1,) * 128, offsets=(0, 1)), 1),
        (tensor("F32", (3, 2), (0, 24)), 24),
        (tensor("C64", (1,), (0, 8)), 8),
    ],
)
def test_tensors_of_a_header(said, size):
    entries, _ = parse_header(json.dumps({"t": said}).encode(), size)
    shape = tuple(said["shape"])
    assert entries == {"t": Entry("t", BY_CODE[said["dtype"]].name, shape, 0, size)}
    assert entries["t"].nbytes == size


FIELDS = "has other fields than dtype, shape and data_offsets."


@pytest.mark.parametrize(
    ("said", "rule", "message"),
    [
        ([], "R4", FIELDS),
        ({}, "R4", FIELDS),
        (tensor(more=1), "R4", FIELDS),
        ({key: value for key, value in tensor().items() if key != "shape"}, "R4", FIELDS),
        *(
            (
                *(tensor(dtype), "R5"),
                f"has dtype {dtype!r}, expected one of {', '.join(BY_CODE)}. No reader of "
                "safetensors opens a file with another: write it again with one of these.",
            )
            for dtype in ("u8", "", "U2", None, 8, ["U8"])
        ),
        *(
            (
                tensor() | {"shape": shape},
                "R4",
                f"has shape {shape!r:.60}, expected a list of at most 128 integers from 0.",
            )
            for shape in (2, None, "2", [-1], [True, 2], [2.0], ["2"], [[2]], [1] * 129)
        ),
        *(
            (
                tensor() | {"data_offsets": offsets},
                "R4",
                f"has data_offsets {offsets!r:.60}, expected [start, stop].",
            )
            for offsets in (2, None, [], [0], [2], [0, 1, 2], [2, 0], [0, True], [0, 2.0], [-2, 0])
        ),
        (tensor(shape=(3,)), "R5", "holds 2 bytes, expected 3 for shape (3,) in U8."),
        (tensor("F16"), "R5", "holds 2 bytes, expected 4 for shape (2,) in F16."),
        (tensor("F4"), "R5", "holds 2 bytes, expected 1 for shape (2,) in F4."),
        *(
            (
                *(tensor(dtype, shape), "R5"),
                f"has shape {shape} in {dtype}, expected elements that fill whole bytes. No reader "
                "of safetensors opens such a file: write it again with rows that do.",
            )
            for dtype, shape in (("F4", (3,)), ("F4", ()), ("F6_E2M3", (2,)), ("F6_E3M2", (3, 2)))
        ),
        (tensor(offsets=(0, 0)), "R5", "holds 0 bytes, expected 2 for shape (2,) in U8."),
        *(
            (
                tensor(shape=(2**32, size)),
                *("R5", f"holds 2 bytes, expected {count} for shape (4294967296, {size}) in U8."),
            )
            for size, count in ((2**32 - 1, 2**64 - 2**32), (2**32, "far more"))
        ),
    ],
)  # fmt: skip
def test_no_tensors_of_a_header(said, rule, message):
    assert refusal({"t": said}) == (rule, "t", message)
    assert refusal({"n" * 300: said})[1] == "n" * 200


def two(start, stop):
    """A tensor at bytes 0 to 2, and another."""
    return {"t": tensor(), "u": tensor(offsets=(start, stop))}


NO_STRINGS = "__metadata__ is not an object of strings."
LONGER = "The file is longer than its header says."


@pytest.mark.parametrize(
    ("raw", "size", "rule", "name", "message"),
    [
        (b"[]", 0, "R3", None, "header is not a JSON object."),
        ({"__metadata__": []}, 0, "R7", None, NO_STRINGS),
        ({"__metadata__": None}, 0, "R7", None, NO_STRINGS),
        ({"__metadata__": {"a": "b", "c": 1}}, 0, "R7", None, NO_STRINGS),
        (two(3, 5), 5, "R6", "u", "starts at byte 3, expected 2: it leaves a hole."),
        (two(1, 3), 3, "R6", "u", "starts at byte 1, expected 2: it overlaps its neighbour."),
        (two(0, 2), 2, "R6", "u", "starts at byte 0, expected 2: it overlaps its neighbour."),
        (two(2, 4), 3, "R6", None, "holds 3 bytes of data, expected 4. The file is truncated."),
        (two(2, 4), 5, "R6", None, f"holds 5 bytes of data, expected 4. {LONGER}"),
        ({}, 1, "R6", None, f"holds 1 bytes of data, expected 0. {LONGER}"),
    ],
)
def test_no_headers(raw, size, rule, name, message):
    assert refusal(raw, size) == (rule, name, message)


def test_what_is_no_json_is_called_a_header():
    rule, _, message = refusal(b"{", 0)
    assert rule == "R3"
    assert message.startswith("header is not JSON: ")


def test_an_empty_tensor_may_stand_anywhere():
    empty = tensor(shape=(0,), offsets=(2, 2))
    raw = {"z": empty, "t": tensor(), "u": tensor(offsets=(2, 4)), "a": empty}
    assert list(parse_header(json.dumps(raw).encode(), 4)[0]) == ["t", "z", "a", "u"]


def test_metadata():
    raw = {"__metadata__": {"a": "b", "": ""}, "t": tensor()}
    assert parse_header(json.dumps(raw).encode(), 2)[1] == {"a": "b", "": ""}
    assert parse_header(b"{}", 0) == ({}, {})


@pytest.mark.parametrize("name", ["__metadata__", "\ud800", "a\udfffb"])
def test_names_that_no_header_holds(name):
    with pytest.raises(InputError, match="safetensors cannot hold") as caught:
        lay_out([(name, "uint8", ())])
    assert caught.value.tensor == name


def test_names_that_a_header_holds():
    names = ["", "a", "__metadata___", "é", "\U0001f600", "\ud7ff", "\ue000"]
    assert set(lay_out((name, "uint8", (0,)) for name in names)) == set(names)


def test_bytes_of_a_header():
    entries = lay_out([("b", "uint8", (3,)), ("c", "float32", ()), ("a", "uint8", (0, 2))])
    text = (
        b'{"__metadata__":{"k":"v"},"c":{"data_offsets":[0,4],"dtype":"F32","shape":[]},'
        b'"a":{"data_offsets":[4,4],"dtype":"U8","shape":[0,2]},'
        b'"b":{"data_offsets":[4,7],"dtype":"U8","shape":[3]}}'
    )
    size = -(-(8 + len(text)) // 64) * 64
    wanted = (size - 8).to_bytes(8, "little") + text.ljust(size - 8)
    assert header_bytes(entries, {"k": "v"}) == wanted


@pytest.mark.parametrize("length", range(38, 104, 13))
def test_a_header_that_fits_is_not_padded(length):
    """8 bytes of length, 26 around the value, 64 in all or 128."""
    blob = header_bytes({}, {"x": "y" * (length - 8 - 26)})
    assert len(blob) == (64 if length <= 64 else 128)


def test_the_longest_header_that_is_written():
    around = len('{"__metadata__":{"x":""}}')
    assert len(header_bytes({}, {"x": "y" * (MAX_HEADER_WRITTEN - around)})) >= MAX_HEADER_WRITTEN
    with pytest.raises(InputError, match=f"takes {MAX_HEADER_WRITTEN + 1} bytes") as caught:
        header_bytes({}, {"x": "y" * (MAX_HEADER_WRITTEN - around + 1)})
    assert f"expected at most {MAX_HEADER_WRITTEN}" in caught.value.message


# ---- files

NO_FILE = "is not a safetensors file, or is truncated: its header would take"


@pytest.mark.parametrize(
    ("blob", "rule", "message"),
    [
        (
            b"",
            "R1",
            "is 0 bytes long, too short for a safetensors file. Download or copy it again.",
        ),
        (
            bytes(7),
            "R1",
            "is 7 bytes long, too short for a safetensors file. Download or copy it again.",
        ),
        (bytes(8), "R3", None),
        (b"\3" + bytes(9), "R2", f"{NO_FILE} 3 bytes, expected at most 2."),
        (b"\2" + bytes(7) + b"{", "R2", f"{NO_FILE} 2 bytes, expected at most 1."),
        (b"\xff" * 8, "R2", f"{NO_FILE} {2**64 - 1} bytes, expected at most 0."),
    ],
)
def test_files_that_are_none(tmp_path, blob, rule, message):
    path = tmp_path / "x"
    path.write_bytes(blob)
    with pytest.raises(FormatError) as caught:
        TensorFile(path)
    assert (caught.value.rule, caught.value.file) == (rule, str(path))
    assert message is None or caught.value.message.startswith(message)


def test_the_longest_header_that_is_read(tmp_path, monkeypatch):
    assert header.MAX_HEADER == 100_000_000
    monkeypatch.setattr(header, "MAX_HEADER", 64)
    path = tmp_path / "x"
    for length, good in ((64, True), (65, False)):
        path.write_bytes(length.to_bytes(8, "little") + b"{}".ljust(length))
        if good:
            TensorFile(path).close()
        else:
            with pytest.raises(FormatError, match="expected at most 64") as caught:
                TensorFile(path)
            assert caught.value.rule == "R2"


def test_the_smallest_file(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"\2" + bytes(7) + b"{}")
    with TensorFile(path) as file:
        assert (file.entries, file.metadata, file.data_start) == ({}, {}, 10)
        assert file.path == path


@pytest.mark.parametrize(
    ("name", "spelled"),
    [(r"\u00e9", True), (r"\u00E9", False), (r"\\u00E9", True), (r"\uABCD", False), ("A", True),
     (r"\u000A", False), (r"\\\u00E9", False), (r"\u00e9A", True), (r"\"A", True)],
)  # fmt: skip
def test_whether_escapes_have_small_digits(tmp_path, name, spelled):
    text = b'{"__metadata__":{"' + name.encode() + b'":""}}'
    path = tmp_path / "x"
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    with TensorFile(path) as file:
        assert file.spelled == spelled


def test_pieces_of_a_large_tensor(tmp_path):
    size = 2 * CHUNK + 5
    path = tmp_path / "x"
    data = (bytes(range(251)) * (size // 251 + 1))[:size]
    path.write_bytes(header_bytes(lay_out([("t", "uint8", (size,)), ("u", "int64", (1,))]), {}))
    with path.open("ab") as file:
        file.write(bytes(8) + data)
    with TensorFile(path) as file:
        pieces = list(file.chunks("t"))
        assert [len(piece) for piece in pieces] == [CHUNK, CHUNK, 5]
        assert b"".join(pieces) == data
        assert list(file.chunks("u")) == [bytes(8)]
        assert file.read("t", CHUNK - 1, CHUNK + 2) == data[CHUNK - 1 : CHUNK + 2]
        assert file.read("t", size - 1) == data[-1:]
        assert file.read("t", 3, 3) == b""


def test_reads_that_give_less_than_was_asked_for_go_on(tmp_path, monkeypatch):
    path, read = file_of(tmp_path / "x", (9,)), os.preadv
    with TensorFile(path) as file:
        monkeypatch.setattr(os, "preadv", lambda fd, views, at: read(fd, [views[0][:2]], at))
        assert file.read("t") == bytes(range(9))
        assert file.read("t", 2, 7) == bytes(range(2, 7))


def test_a_disk_that_cannot_be_read(tmp_path, monkeypatch):
    def fails(*_):
        raise OSError(errno.EIO, "I/O error")

    with TensorFile(file_of(tmp_path / "x")) as file:
        monkeypatch.setattr(os, "preadv", fails)
        with pytest.raises(InputError) as caught:
            file.read("t")
    assert caught.value.message == "cannot be read: I/O error."
    assert (caught.value.file, caught.value.tensor) == (str(tmp_path / "x"), "t")


def test_a_fifo_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "x")
    with pytest.raises(InputError, match="is not a regular file"):
        TensorFile(tmp_path / "x")


@pytest.mark.parametrize("on", [True, False])
def test_the_garbage_collector_is_left_as_it_was(on):
    before = gc.isenabled()
    try:
        (gc.enable if on else gc.disable)()
        parse_header(b"{}", 0)
        assert gc.isenabled() == on
        with pytest.raises(FormatError):
            parse_header(b"[", 0)
        assert gc.isenabled() == on
    finally:
        (gc.enable if before else gc.disable)()
