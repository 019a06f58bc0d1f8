"""Arrays come in as NumPy reads them; nothing is unpickled, and damage is refused by name."""

import io
import pickle
import struct
import zipfile

import numpy as np
import pytest
from numpy.lib import format as npy
from opened_files import check_refusal, values

import tpack
from tpack.errors import InputError, TpackError, UnsupportedError
from tpack.sources import open_source

GENERATOR = np.random.default_rng(5)
DTYPES = ("float64", "float32", "float16", "complex64", "int64", "uint16", "int8", "bool")


def trits(*shape):
    return GENERATOR.integers(-1, 2, shape).astype(np.float32)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_arrays_come_in_as_numpy_reads_them(tmp_path, dtype, order):
    array = (GENERATOR.standard_normal((3, 4, 5)) * 9).astype(dtype)
    array = array.astype(array.dtype.newbyteorder(order))
    for name, one in {"rows": array, "columns": np.asfortranarray(array)}.items():
        np.save(tmp_path / f"{name}.npy", one)
        with open_source(tmp_path / f"{name}.npy") as source:
            assert list(source.tensors) == [name]
            assert source.tensors[name].dtype == dtype
            found = values(source)[name].view(dtype)
            np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_archives_give_every_array_its_name(tmp_path, save):
    arrays = {"Dense_0/kernel": trits(64, 32), "b": np.arange(3), "s": np.float32(2).reshape(())}
    save(tmp_path / "m.npz", np.ones(2), names=np.array(["a", "b"]), **arrays)
    with open_source(tmp_path / "m.npz") as source:
        found = values(source)
        assert list(found) == ["Dense_0.kernel", "b", "s", "arr_0"]
        for name, array in arrays.items():
            np.testing.assert_array_equal(found[name.replace("/", ".")], array)
        assert source.notes == [
            "wrote '/' in names as '.'",
            "left out names: texts or times, not numbers",
        ]


@pytest.mark.parametrize("shape", [(64, 96), (3, 3, 16, 32)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_a_scale_for_each_output_of_a_kernel_is_exact(tmp_path, shape, order):
    kernel = trits(*shape) * (GENERATOR.random(shape[-1], dtype=np.float32) + 0.5)
    source, out = tmp_path / "m.npz", tmp_path / "m.safetensors"
    np.savez(source, **{"layer/kernel": np.asarray(kernel, order=order)})
    report = tpack.convert(source, out, exact=True)
    assert [(t.name, t.scale) for t in report.tensors] == [("layer.kernel", "column")]
    assert tpack.verify(out, source).ok
    np.testing.assert_array_equal(tpack.unpack(out)["layer.kernel"].numpy(), kernel)


class Trap:
    """Its pickle would write a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_pickled_arrays_are_refused_and_not_unpickled(tmp_path):
    trap = tmp_path / "sprung"
    np.savez(tmp_path / "m.npz", a=np.ones(2), b=np.array([Trap(trap)], dtype=object))
    with pytest.raises(UnsupportedError, match="tensor 'b' is an array of Python objects"):
        open_source(tmp_path / "m.npz")
    (tmp_path / "p.npy").write_bytes(pickle.dumps(Trap(trap)))
    with pytest.raises(TpackError):
        open_source(tmp_path / "p.npy")
    assert not trap.exists()


@pytest.mark.parametrize(
    ("dtype", "text"),
    [
        ([("x", "f4"), ("y", "i4")], "is an array of records"),
        ("V2", "has elements of 2 bytes without a kind, as NumPy saves bfloat16"),
        ("complex128", "is an array of complex128, expected numbers of at most 8 bytes"),
    ],
)
def test_elements_that_are_not_numbers_are_refused(tmp_path, dtype, text):
    np.save(tmp_path / "w.npy", np.zeros((2, 3), dtype))
    with pytest.raises(UnsupportedError, match=f"tensor 'w' {text}"):
        open_source(tmp_path / "w.npy")


def stored(array=None, **fields):
    """The bytes of an array, perhaps with a header that says something else."""
    stream = io.BytesIO()
    array = np.zeros((2, 3), np.float32) if array is None else array
    header = npy.header_data_from_array_1_0(array) | fields
    npy.write_array_header_1_0(stream, header)
    return stream.getvalue() + array.tobytes()


def raw(header):
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header


DAMAGED = {
    "short": stored()[:-1],
    "long": stored() + b"\0",
    "other shape": stored(shape=(3, 3)),
    "huge": stored(shape=(1 << 62, 1 << 62)),
    "negative": stored(shape=(-2, -3)),
    "beyond": stored(np.zeros((0, 3), np.float32), shape=(0, 1 << 80)),
    "version": b"\x93NUMPY\x09\x00" + stored()[8:],
    "half a header": stored()[:40],
    "nested": raw(b"(" * 9000),
    "code": raw(b"__import__('os').abort()"),
    "long header": raw(b"{" + b" " * 20_000 + b"}"),
    "dims": stored(np.zeros((1,), np.float32), shape=(1,) * 200),
    "truth": stored(np.zeros((1, 3), np.float32), shape=(True, 3)),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_arrays_are_refused_by_name(tmp_path, case):
    (tmp_path / "w.npy").write_bytes(DAMAGED[case])
    with pytest.raises(InputError, match=r"w\.npy: tensor 'w' ") as caught:
        open_source(tmp_path / "w.npy")
    assert len(str(caught.value)) < 400


def test_a_flipped_bit_in_an_archive_is_seen(tmp_path):
    np.savez(tmp_path / "m.npz", w=np.zeros(4096, np.float32))
    data = bytearray((tmp_path / "m.npz").read_bytes())
    data[8000] ^= 1
    (tmp_path / "m.npz").write_bytes(data)
    with (
        open_source(tmp_path / "m.npz") as source,
        pytest.raises(InputError, match=r"CRC-32 .* in record 'w\.npy'"),
    ):
        values(source)


def test_what_is_not_an_array_is_left_out(tmp_path):
    np.savez(tmp_path / "m.npz", w=np.zeros(4))
    with zipfile.ZipFile(tmp_path / "m.npz", "a") as archive:
        archive.writestr("readme.txt", "hello")
    with open_source(tmp_path / "m.npz") as source:
        assert source.notes == ["left out readme.txt: not arrays of NumPy"]


def test_names_that_become_one_are_refused(tmp_path):
    np.savez(tmp_path / "m.npz", **{"a/b": np.ones(1), "a.b": np.ones(1)})
    with pytest.raises(InputError, match=r"would have the name 'a\.b', which another array has"):
        open_source(tmp_path / "m.npz")


def bomb(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        header = stored(np.zeros(0, np.float32), shape=(1 << 27,))
        with archive.open("w.npy", "w") as record:
            record.write(header)
            for _ in range(512):
                record.write(bytes(1 << 20))


def many(path):
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(40_000):
            archive.writestr(f"{number}.npy", b"\x93NUMPY\1\0")


@pytest.mark.parametrize(("make", "text"), [(bomb, "compressed to"), (many, "holds 40000 arrays")])
def test_archives_made_to_cost_time_or_memory_are_refused(tmp_path, make, text):
    make(tmp_path / "m.npz")
    check_refusal(tmp_path / "m.npz", text)
