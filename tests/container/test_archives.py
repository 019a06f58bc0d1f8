"""Tests of zip archives of tensors: torch and NumPy open what is written here."""

import zipfile

import numpy as np
import pytest
import torch

from tpack.container import Piece
from tpack.container.archives import write_npz, write_torch
from tpack.dtypes import BY_CODE, DTYPES
from tpack.errors import ExistsError, UnsupportedError
from tpack.sources import open_source

WHOLE = [dtype for dtype in DTYPES if not dtype.torch]
BYTES = np.random.default_rng(0).integers(0, 2, 8 * 24, dtype=np.uint8)
SHAPES = [(), (0,), (3, 0, 2), (1,), (24,), (2, 3, 4), (1, 24)]


def piece(name, dtype, shape):
    count = int(np.prod(shape)) * getattr(torch, dtype.name).itemsize
    return Piece.of(name, dtype.name, shape, BYTES[:count])


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("dtype", WHOLE, ids=lambda dtype: dtype.name)
def test_torch_loads_every_dtype(tmp_path, dtype, mmap):
    pieces = [piece(f"t.{number}", dtype, shape) for number, shape in enumerate(SHAPES)]
    path = tmp_path / "m.pt"
    assert write_torch(path, pieces) == path.stat().st_size
    found = torch.load(path, weights_only=True, mmap=mmap)
    assert list(found) == [one.name for one in pieces]
    for one in pieces:
        tensor = found[one.name]
        assert (tensor.dtype, tuple(tensor.shape)) == (getattr(torch, dtype.name), one.shape)
        assert tensor.is_contiguous()
        if tensor.numel():
            stored = tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
            assert stored == b"".join(one.chunks())
    with open_source(path) as source:
        assert {name: t.shape for name, t in source.tensors.items()} == {
            one.name: one.shape for one in pieces
        }


def test_elements_of_less_than_a_byte(tmp_path):
    """Of four bits as torch holds them, two in an item; of six, torch has no dtype."""
    write_torch(tmp_path / "m.pt", [Piece.of("t", "float4_e2m1fn", (3, 4), BYTES[:6])])
    found = torch.load(tmp_path / "m.pt", weights_only=True)["t"]
    assert (found.dtype, tuple(found.shape)) == (torch.float4_e2m1fn_x2, (3, 2))
    with open_source(tmp_path / "m.pt") as source:
        read = source.tensors["t"]
        assert (read.dtype, read.shape, read.nbytes) == ("float4_e2m1fn", (3, 4), 6)
        assert b"".join(map(bytes, read.chunks())) == BYTES[:6].tobytes()
        assert bytes(read.read(2, 6)) == BYTES[1:3].tobytes()
    for code, shape in (("F6_E2M3", (2, 4)), ("F6_E3M2", (4,)), ("F4", (2, 1))):
        dtype = BY_CODE[code]
        data = BYTES[: dtype.nbytes(int(np.prod(shape)))]
        with pytest.raises(UnsupportedError, match="which torch does not have") as caught:
            write_torch(tmp_path / "no.pt", [Piece.of("w", dtype.name, shape, data)])
        assert caught.value.tensor == "w"
        with pytest.raises(UnsupportedError, match="which NumPy does not have"):
            write_npz(tmp_path / "no.npz", [Piece.of("w", dtype.name, shape, data)])


def test_names_that_share_chunks_share_a_storage(tmp_path):
    own = Piece.of("a", "float32", (2,), np.ones(2, np.float32))
    other = Piece.of("c", "float32", (2,), np.ones(2, np.float32))
    write_torch(tmp_path / "m.pt", [own, Piece("b", "float32", (2,), own.chunks), other])
    found = torch.load(tmp_path / "m.pt", weights_only=True)
    a, b, c = (found[name].data_ptr() for name in "abc")
    assert a == b != c


def test_bytes_begin_where_they_can_be_mapped(tmp_path):
    pieces = [piece("é" * n, DTYPES[0], (n,)) for n in range(1, 20)]
    write_torch(tmp_path / "m.pt", pieces)
    data = (tmp_path / "m.pt").read_bytes()
    with zipfile.ZipFile(tmp_path / "m.pt") as archive:
        assert archive.testzip() is None
        for info in archive.infolist():
            header = data[info.header_offset :][:30]
            name, extra = (int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
            assert (info.header_offset + 30 + name + extra) % 64 == 0


def test_the_same_tensors_give_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        write_torch(tmp_path / name, [piece("t", DTYPES[2], (24,))])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_numpy_loads_what_it_has(tmp_path):
    dtypes = [dtype for dtype in WHOLE if not dtype.name.startswith(("bfloat", "float8"))]
    pieces = [
        piece(f"{dtype.name}/{number}", dtype, shape)
        for dtype in dtypes
        for number, shape in enumerate(SHAPES)
    ]
    assert write_npz(tmp_path / "m.npz", pieces) == (tmp_path / "m.npz").stat().st_size
    with np.load(tmp_path / "m.npz", allow_pickle=False) as found:
        assert list(found) == [one.name for one in pieces]
        for one in pieces:
            assert (found[one.name].dtype.name, found[one.name].shape) == (one.dtype, one.shape)
            assert found[one.name].tobytes() == b"".join(one.chunks())


def test_a_dtype_that_numpy_does_not_have(tmp_path):
    pieces = [piece("a", DTYPES[2], (2,)), Piece.of("w", "bfloat16", (1,), bytes(2))]
    with pytest.raises(UnsupportedError, match="is bfloat16, which NumPy does not have") as caught:
        write_npz(tmp_path / "m.npz", pieces)
    assert caught.value.tensor == "w"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("write", [write_torch, write_npz])
def test_a_failure_leaves_nothing(tmp_path, write):
    def fail():
        yield b"ab"
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write(tmp_path / "m", [Piece("a", "uint8", (4,), fail)])
    assert not list(tmp_path.iterdir())
    (tmp_path / "m").touch()
    with pytest.raises(ExistsError):
        write(tmp_path / "m", [piece("a", DTYPES[0], (2,))])
