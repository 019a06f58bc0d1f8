"""What is written is read again: other bytes on the disk are an error, and what was there stays."""

import hashlib
import os

import pytest
import torch

import tpack
from tpack.container import Piece, new_file, rereading, write_tensors
from tpack.container.atomic import copy_file
from tpack.conversion.packing import Batch
from tpack.errors import ExistsError, InputError, StorageError


@pytest.fixture
def path(tmp_path):
    (tmp_path / "x").write_bytes(b"old")
    return tmp_path / "x"


def write(path, parts, damage=lambda _: None):
    """Write sections over what is there; damage the temporary file before it is checked."""
    with new_file(path, force=True) as file:
        for part in parts:
            file.write(part)
            file.section()
        file.flush()
        (temporary,) = path.parent.glob(".tpack-*.tmp")
        damage(temporary)


def names(folder):
    return [path.name for path in folder.iterdir()]


@pytest.mark.parametrize("at", [0, 2, 5, 11])
def test_other_bytes_on_the_disk(path, at):
    def damage(temporary):
        with temporary.open("r+b") as file:
            file.seek(at)
            file.write(b"?")

    with pytest.raises(StorageError, match="other bytes") as caught:
        write(path, [b"one two", b" three"], damage)
    assert caught.value.code == 7
    assert caught.value.file == str(path)
    assert ("0 to 7" if at < 7 else "7 to 13") in caught.value.message
    assert path.read_bytes() == b"old"
    assert names(path.parent) == ["x"]


@pytest.mark.parametrize("size", [3, 20])
def test_another_size_on_the_disk(path, size):
    with pytest.raises(StorageError, match="failing"):
        write(path, [b"one two"], lambda temporary: os.truncate(temporary, size))
    assert path.read_bytes() == b"old"


def test_sections_in_any_order(path):
    with new_file(path, force=True) as file:
        file.seek(4)
        assert file.write(b"two") == 3
        assert file.section() == hashlib.sha256(b"two").hexdigest()
        assert file.section() == hashlib.sha256(b"").hexdigest()
        file.write(memoryview(b" three"))
        file.seek(0)
        file.write(b"one ")
    assert path.read_bytes() == b"one two three"


@pytest.mark.parametrize("at", [1, 8])
def test_bytes_written_twice_or_never_are_a_bug(path, at):
    def written():
        with new_file(path, force=True) as file:
            file.write(b"one two")
            file.seek(at)
            file.write(b"three")

    with pytest.raises(AssertionError):
        written()
    assert path.read_bytes() == b"old"


def test_a_file_larger_than_what_is_read_at_a_time(path, monkeypatch):
    monkeypatch.setattr(rereading, "_PIECE", 5)
    with new_file(path, force=True) as file:
        file.write(b"one two three")
    assert path.read_bytes() == b"one two three"


def test_a_system_that_cannot_forget_what_it_holds(path, monkeypatch):
    monkeypatch.delattr(os, "posix_fadvise")
    with new_file(path, force=True) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new"


def test_an_error_of_reading_again(path, monkeypatch):
    def broken(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(rereading.os, "preadv", broken)
    with pytest.raises(StorageError, match="Input/output error"):
        write(path, [b"new"])
    assert path.read_bytes() == b"old"


def test_a_piece_without_its_digest(tmp_path):
    good = Piece("a", "uint8", (2,), lambda: [b"ab"], hashlib.sha256(b"ab").hexdigest())
    assert write_tensors(tmp_path / "good", [good]) > 2
    bad = Piece("a", "uint8", (2,), lambda: [b"ac"], good.sha256)
    with pytest.raises(StorageError, match="'a' came back from a temporary file") as caught:
        write_tensors(tmp_path / "bad", [bad])
    assert caught.value.tensor == "a"
    assert names(tmp_path) == ["good"]


@pytest.mark.parametrize("layout", ["t2", "t5"])
def test_damage_of_what_was_packed_so_far(tmp_path, monkeypatch, layout):
    read = Batch._spooled

    def flipped(self, item):
        for piece in read(self, item):
            yield bytes([piece[0] ^ 2]) + piece[1:]

    monkeypatch.setattr(Batch, "_spooled", flipped)
    with pytest.raises(StorageError, match="w_packed"):
        tpack.convert({"w": torch.eye(8)}, tmp_path / "m", layout=layout)
    assert names(tmp_path) == []


def test_copies(path, tmp_path):
    copy_file(path, tmp_path / "y")
    assert (tmp_path / "y").read_bytes() == b"old"
    with pytest.raises(ExistsError):
        copy_file(path, tmp_path / "y")
    with pytest.raises(InputError):
        copy_file(tmp_path / "gone", tmp_path / "z")
