"""Files as they are written: sizes, digests, progress, and pieces that are not what they say."""

import json
from dataclasses import replace
from hashlib import sha256

import numpy as np
import pytest
from safetensors import safe_open

from tpack.container import Checkpoint, Document, Piece, write_tensors
from tpack.container.header import CHUNK
from tpack.container.writer import checkpoint_size, write_checkpoint
from tpack.errors import ExistsError, StorageError

VALUES = {"a": np.arange(5, dtype=np.int64), "b": np.arange(3, dtype=np.uint8)}
PIECES = [Piece.of(name, str(v.dtype), v.shape, v) for name, v in VALUES.items()]
DOCUMENT = Document(None, {}, dict.fromkeys("ab", "0" * 64))


def test_pieces_know_their_size():
    assert [piece.nbytes for piece in PIECES] == [40, 3]
    assert Piece("x", "complex64", (2, 3), list).nbytes == 48
    assert Piece("x", "float16", (), list).nbytes == 2


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK])
def test_pieces_come_in_slices(size):
    data = np.arange(size, dtype=np.uint8)
    slices = list(Piece.of("x", "uint8", (size,), data).chunks())
    assert [len(s) for s in slices] == [CHUNK] * (size // CHUNK) + [size % CHUNK] * (
        size % CHUNK > 0
    )
    assert b"".join(slices) == data.tobytes()


def test_slices_count_bytes():
    (piece,) = Piece.of("x", "float64", (4,), np.arange(4.0)).chunks()
    assert (len(piece), bytes(piece)) == (32, np.arange(4.0).tobytes())


@pytest.mark.parametrize("metadata", [None, {}, {"zebra": "1", "ant": "2"}])
def test_a_checkpoint_has_the_digests_of_what_it_keeps(tmp_path, metadata):
    path, steps = tmp_path / "x", []
    size = write_checkpoint(path, DOCUMENT, PIECES, metadata=metadata, progress=steps.append)
    assert size == path.stat().st_size == checkpoint_size(DOCUMENT, PIECES, metadata)
    assert steps == [40, 3]
    digests = {name: sha256(value.tobytes()).hexdigest() for name, value in VALUES.items()}
    with safe_open(path, "numpy") as file:
        assert sorted(file.keys()) == ["a", "b"]
        assert all(np.array_equal(file.get_tensor(name), VALUES[name]) for name in "ab")
        found = file.metadata()
    assert json.loads(found["tpack"])["kept"] == digests
    assert {k: v for k, v in found.items() if k != "tpack"} == {"format": "pt", **(metadata or {})}
    with Checkpoint(path) as file:
        assert file.digest_holds


def test_what_the_metadata_says_of_the_format_is_not_replaced(tmp_path):
    write_checkpoint(tmp_path / "x", DOCUMENT, PIECES, metadata={"format": "tf", "tpack": "{}"})
    with Checkpoint(tmp_path / "x") as file:
        assert file.metadata["format"] == "pt"


def test_a_checkpoint_without_tensors(tmp_path):
    size = write_checkpoint(tmp_path / "x", Document(None, {}, {}), [])
    assert size == (tmp_path / "x").stat().st_size
    with Checkpoint(tmp_path / "x") as file:
        assert (file.entries, file.digest_holds) == ({}, True)


@pytest.mark.parametrize("write", [lambda path, **o: write_checkpoint(path, DOCUMENT, PIECES, **o),
                                   lambda path, **o: write_tensors(path, PIECES, **o)])  # fmt: skip
def test_files_are_replaced_only_by_force(tmp_path, write):
    path = tmp_path / "x"
    path.write_bytes(b"old")
    with pytest.raises(ExistsError):
        write(path)
    assert path.read_bytes() == b"old"
    assert write(path, force=True) == path.stat().st_size > 43


def test_plain_files_say_what_they_are(tmp_path):
    assert write_tensors(tmp_path / "x", PIECES) == (tmp_path / "x").stat().st_size
    with safe_open(tmp_path / "x", "numpy") as file:
        assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize("data", [b"12", b"1234", b""])
def test_a_piece_of_another_size_is_a_bug(tmp_path, data):
    piece = Piece("x", "uint8", (3,), lambda: iter([data]))
    with pytest.raises(AssertionError, match=f"x: {len(data)} bytes came, 3 announced"):
        write_tensors(tmp_path / "x", [piece])
    assert not (tmp_path / "x").exists()


def test_a_piece_that_comes_with_its_digest_is_compared(tmp_path):
    digest = sha256(VALUES["a"].tobytes()).hexdigest()
    write_tensors(tmp_path / "x", [replace(PIECES[0], sha256=digest)])
    with pytest.raises(StorageError, match="came back from a temporary file") as caught:
        write_tensors(tmp_path / "y", [replace(PIECES[0], sha256=digest[::-1])])
    assert (caught.value.file, caught.value.tensor) == (str(tmp_path / "y"), "a")
    assert not (tmp_path / "y").exists()
