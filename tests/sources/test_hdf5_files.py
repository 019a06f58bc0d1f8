"""Arrays of any HDF5 file; what leads out of it, or is made to cost much, is refused."""

import json

import h5py
import numpy as np
import pytest
from opened_files import check_refusal, values

from tpack.errors import InputError
from tpack.sources import open_source

TRITS = np.random.default_rng(1).integers(-1, 2, (64, 64)).astype(np.float32)


def test_other_arrays_are_called_by_their_paths(tmp_path):
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file["a/b"] = TRITS
        file.create_dataset(
            "c",
            data=np.arange(600, dtype=">i4").reshape(20, 30),
            chunks=(7, 30),
            compression="gzip",
        )
        file["text"] = "hello"
        file["scalar"] = np.float32(3)
    with open_source(tmp_path / "m.h5") as source:
        found = values(source)
        np.testing.assert_array_equal(found["a.b"], TRITS)
        np.testing.assert_array_equal(found["c"], np.arange(600).reshape(20, 30))
        assert found["scalar"] == 3
        assert source.notes == [
            "wrote '/' in names as '.'", "left out text: texts or records, not numbers"
        ]  # fmt: skip


def external_link(file, path):
    file["w"] = h5py.ExternalLink(str(path / "other.h5"), "/secret")


def soft_link(file, _):
    file["w"] = h5py.SoftLink("/layers")


def external_values(file, path):
    (path / "secret").write_bytes(b"secret" * 10)
    file.create_dataset("w", (4,), "f4", external=[(str(path / "secret"), 0, 16)])


def virtual(file, path):
    layout = h5py.VirtualLayout((4,), "f4")
    layout[:] = h5py.VirtualSource(str(path / "other.h5"), "secret", (4,))
    file.create_virtual_dataset("w", layout)


def cycle(file, _):
    file["a/b/c"] = np.zeros(3)
    file["a/b/again"] = file["a"]


def deep(file, _):
    file["/".join("a" * 100)] = np.zeros(3)


def many(file, _):
    for number in range(11_000):
        file.create_group(str(number))


def many_groups(file, _):
    for number in range(100):
        group = file.create_group(f"layers/{number}")
        for inner in range(110):
            group.create_group(f"{inner}")


def huge(file, _):
    file.create_dataset("w", (1 << 40, 1 << 10), "f4", chunks=(1, 1024), compression="gzip")


def unwritten(file, _):
    file.create_dataset("w", (1 << 40,), "f4")


def wide_chunks(file, _):
    file.create_dataset("w", (1 << 28,), "f4", chunks=(1 << 28,), compression="gzip")


def unnamed_bytes(file, _):
    file["w"] = np.zeros(3, "V2")


HOSTILE = {
    external_link: "tensor 'w' is a link to another place",
    soft_link: "tensor 'w' is a link to another place",
    external_values: "tensor 'w' has its values in another file",
    virtual: "tensor 'w' has its values in another file",
    cycle: "is in the file twice, by links",
    deep: "has groups in more than 48 levels",
    many: "members in a group",
    many_groups: "comes after 10000 others",
    huge: "but is compressed to 0 B",
    unwritten: "holds 0 bytes, expected 4398046511104",
    wide_chunks: "has chunks of more than",
    unnamed_bytes: "has elements of 2 bytes without a kind",
}


@pytest.mark.parametrize("make", HOSTILE, ids=lambda make: make.__name__)
def test_files_that_lead_elsewhere_or_cost_much_are_refused(tmp_path, make):
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["secret"] = np.ones(4, "f4")
    with h5py.File(tmp_path / "m.h5", "w") as file:
        make(file, tmp_path)
    check_refusal(tmp_path / "m.h5", HOSTILE[make])


def test_a_shard_is_never_looked_for_elsewhere(tmp_path):
    with h5py.File(tmp_path / "s.weights.h5", "w") as file:
        file["layers/dense/vars/0"] = np.ones((2, 2))
    for shard in ("../s.weights.h5", str(tmp_path / "s.weights.h5"), "gone.h5", ""):
        (tmp_path / "x").mkdir(exist_ok=True)
        index = {"metadata": {"total_size": 1}, "weight_map": {"/layers/dense/vars": shard}}
        (tmp_path / "x" / "s.weights.json").write_text(json.dumps(index))
        with pytest.raises(InputError, match="names the shard"):
            open_source(tmp_path / "x" / "s.weights.json")
