"""Damaged archives of torch: torch loads them without a word, here each flipped bit is noticed."""

import os
import struct
import zipfile
import zlib
from contextlib import suppress

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import given, strategies as st

import tpack
from tpack.errors import InputError
from tpack.sources import archive as archive_module, open_source
from tpack.sources.archive import Archive, checksum

WIDE = torch.arange(40.0)
STATE = {
    "fc.weight": torch.tensor([[0.5, 0.0, -0.5, 0.5], [0.0, 0.0, 0.5, -0.5]]),
    "turned": torch.arange(12.0).reshape(3, 4).T,
    "part": WIDE[3:9],
    "rest": WIDE[20:],
    "bits": torch.tensor([1.5, -2.0]).bfloat16(),
    "none": torch.zeros(0, 3),
}


def values(path):
    """Every tensor of a source, as bytes."""
    with open_source(path) as source:
        return {name: b"".join(tensor.chunks()) for name, tensor in source.tensors.items()}


def plain(state):
    return {
        name: t.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        for name, t in state.items()
    }


@pytest.fixture
def path(tmp_path):
    torch.save(STATE, tmp_path / "m.pt")
    return tmp_path / "m.pt"


def place(path, record):
    """Where the bytes of a record begin and end."""
    with zipfile.ZipFile(path) as file:
        info = next(i for i in file.infolist() if i.filename.endswith(record))
    blob = path.read_bytes()
    name, extra = struct.unpack_from("<2H", blob, info.header_offset + 26)
    start = info.header_offset + 30 + name + extra
    return start, start + info.file_size


def flipped(path, at, bit):
    blob = bytearray(path.read_bytes())
    blob[at] ^= 1 << bit
    path.write_bytes(blob)


def unnoticed(path, wanted, places):
    """Flips after which a file is taken, and has other values."""
    blob, found = path.read_bytes(), []
    with path.open("r+b", buffering=0) as file:
        for at, bit in places:
            os.pwrite(file.fileno(), bytes([blob[at] ^ 1 << bit]), at)
            try:
                if values(path) != wanted:
                    found.append((at, bit))
            except InputError:
                pass
            os.pwrite(file.fileno(), blob[at : at + 1], at)
    return found


def test_no_flipped_bit_changes_a_value(path):
    """In data, headers, padding and the directory: it is an error, or nothing depends on it."""
    size = path.stat().st_size
    assert unnoticed(path, plain(STATE), [(at, at % 7) for at in range(0, size, 3)]) == []


@pytest.mark.slow
def test_no_flipped_bit_at_all_changes_a_value(path):
    size = path.stat().st_size
    every = [(at, bit) for at in range(size) for bit in range(8)]
    assert unnoticed(path, plain(STATE), every) == []


@pytest.mark.parametrize(
    ("record", "name"),
    [("data/0", "fc.weight"), ("data/1", "turned"), ("data/2", "part"), ("data/3", "bits")],
)
def test_the_bytes_of_a_weight_is_compared(path, tmp_path, record, name):
    """torch itself takes each of them."""
    start, stop = place(path, record)
    for at in range(start, stop, 3):
        flipped(path, at, at % 8)
        torch.load(path, mmap=True, weights_only=True)
        with pytest.raises(InputError, match=f"CRC-32 .*{record}.*copy or download") as caught:
            tpack.convert(path, tmp_path / "a.safetensors")
        assert caught.value.tensor == name
        flipped(path, at, at % 8)
    assert not (tmp_path / "a.safetensors").exists()
    assert values(path) == plain(STATE)


@pytest.mark.parametrize("record", ["data.pkl", "byteorder", "version", "serialization_id"])
def test_other_records_are_compared_first(path, record):
    flipped(path, place(path, record)[0], 3)
    with pytest.raises(InputError, match=r"CRC-32 .* copy or download it again\."):
        open_source(path)


@pytest.mark.parametrize("field", [26, 28])  # lengths of the name, and of what follows it
def test_a_header_that_moves_the_bytes(path, field):
    """torch reads from a few bytes further on."""
    with zipfile.ZipFile(path) as file:
        at = file.getinfo("m/data/0").header_offset + field
    flipped(path, at, 2)
    if field == 28:
        loaded = torch.load(path, mmap=True, weights_only=True)
        assert not torch.equal(loaded["fc.weight"], STATE["fc.weight"])
    with pytest.raises(InputError, match="copy or download"):
        values(path)


def test_every_truncation(path):
    blob = path.read_bytes()
    for size in range(4, len(blob), 41):
        path.write_bytes(blob[:size])
        with pytest.raises(InputError, match="copy or download"):
            values(path)


def rewritten(path, change=lambda _, data: data, method=zipfile.ZIP_STORED, large=False):
    """The same records, written by another program."""
    with zipfile.ZipFile(path) as file:
        records = [(info.filename, file.read(info)) for info in file.infolist()]
    with zipfile.ZipFile(path, "w", method) as file:
        for name, data in records:
            with file.open(name, "w", force_zip64=large) as record:
                record.write(change(name, data))


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_archives_of_other_programs(path, method, large):
    """Also with the 64-bit sizes of large ones; torch takes them, compressed if it need not map."""
    rewritten(path, method=method, large=large)
    loaded = torch.load(path, weights_only=True)
    assert plain(loaded) == plain(STATE) == values(path)
    size = path.stat().st_size
    assert unnoticed(path, plain(STATE), [(at, at % 7) for at in range(0, size, 13)]) == []


@pytest.mark.parametrize("record", ["data/0", "data/4"])  # one in the middle, the last
@pytest.mark.parametrize("change", [lambda data: data[:-8], lambda data: data + bytes(8)])
def test_a_record_of_another_size_than_the_tensor(tmp_path, record, change):
    path = tmp_path / "m.pt"
    torch.save({f"a.{i}": torch.arange(16.0) + i for i in range(5)}, path)
    rewritten(path, lambda name, data: change(data) if name.endswith(record) else data)
    with pytest.raises(InputError, match=rf"needs 64 bytes, but record 'm/{record}' has") as caught:
        values(path)
    assert caught.value.tensor == f"a.{record[-1]}"


def test_a_storage_of_odd_bytes(tmp_path):
    """What is left over of a last element is stored, and no damage."""
    tensor = torch.empty(0).set_(torch.arange(10, dtype=torch.uint8).untyped_storage(), 0, (2,))
    torch.save({"a": tensor}, tmp_path / "m.pt")
    assert values(tmp_path / "m.pt") == plain({"a": tensor})


def test_without_checksums(tmp_path):
    """torch can be told to leave them out: zeros are written. Sizes still are compared."""
    path = tmp_path / "m.pt"
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(STATE, path)
    finally:
        torch.serialization.set_crc32_options(True)
    with open_source(path) as source:
        assert any("has no checksums" in note for note in source.notes)
    assert values(path) == plain(STATE)
    flipped(path, place(path, "data/0")[0], 1)
    assert values(path) != plain(STATE)


def test_one_checksum_that_is_zero_is_wrong(path):
    blob = path.read_bytes()
    with zipfile.ZipFile(path) as file:
        crc = struct.pack("<I", file.getinfo("m/data/0").CRC)
    path.write_bytes(blob.replace(crc, bytes(4)))
    with pytest.raises(InputError, match="expected 00000000"):
        values(path)


def test_files_from_before_archives_have_no_checksums(tmp_path):
    path = tmp_path / "m.pt"
    torch.save(STATE, path, _use_new_zipfile_serialization=False)
    with open_source(path) as source:
        assert any("has no checksums" in note for note in source.notes)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(InputError):
        values(path)


def test_what_is_left_out_may_be_damaged(tmp_path):
    path = tmp_path / "m.pt"
    torch.save({"model": STATE, "optimizer": {"a": torch.ones(9)}}, path)
    flipped(path, place(path, "data/5")[0], 1)
    assert values(path) == plain(STATE)


def test_a_name_that_torch_cannot_open(path, tmp_path):
    path = path.rename(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.pt"))
    assert values(path) == plain(STATE)
    flipped(path, place(path, "data/0")[0], 1)
    with pytest.raises(InputError, match="CRC-32"):
        values(path)


# ---- other archives


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.table = torch.nn.Linear(8, 8), torch.nn.Buffer(torch.arange(4.0))

    def forward(self, x):
        return self.up(x) + self.table.sum()


@pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning")
def test_programs_of_torchscript(tmp_path):
    path = tmp_path / "m.pt"
    torch.jit.save(torch.jit.script(Model()), path)
    flipped(path, place(path, "data/0")[0], 1)
    torch.jit.load(path)  # which does not notice
    with pytest.raises(InputError, match=r"CRC-32 .*data/0"):
        values(path)


def test_exported_programs(tmp_path):
    path = tmp_path / "m.pt2"
    model = Model().eval()
    torch.export.save(torch.export.export(model, (torch.ones(2, 8),)), path)
    assert values(path) == plain(model.state_dict())
    for record, name in (("weight_0", "up.weight"), ("weight_1", "up.bias")):
        flipped(path, place(path, record)[0], 1)
        torch.export.load(path)
        with pytest.raises(InputError, match=f"CRC-32 .*{record}") as caught:
            open_source(path)
        assert caught.value.tensor == name
        flipped(path, place(path, record)[0], 1)
    flipped(path, place(path, "model.json")[0], 1)
    with pytest.raises(InputError, match=r"CRC-32 .*model\.json"):
        open_source(path)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_distributed_checkpoints(tmp_path):
    state = {name: tensor.contiguous() for name, tensor in STATE.items()}
    dcp.save(state, checkpoint_id=tmp_path / "dcp", no_dist=True)
    assert values(tmp_path / "dcp") == plain(STATE)
    (path,) = (tmp_path / "dcp").glob("*.distcp")
    at = path.read_bytes().index(plain(STATE)["fc.weight"])
    flipped(path, at, 1)
    with pytest.raises(InputError, match="CRC-32") as caught:
        values(tmp_path / "dcp")
    assert (caught.value.tensor, caught.value.file) == ("fc.weight", str(path))
    flipped(path, at, 1)
    every = [(at, at % 7) for at in range(0, path.stat().st_size, 113)]
    blob = path.read_bytes()
    for at, bit in every:
        flipped(path, at, bit)
        with suppress(InputError):
            assert values(tmp_path / "dcp") == plain(STATE), at
        path.write_bytes(blob)


# ---- the parts


@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 5, 100, 4099])
@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_a_checksum_by_threads(tmp_path, monkeypatch, size, threads):
    monkeypatch.setattr(archive_module, "_LARGE", 0)
    monkeypatch.setattr(archive_module, "default_threads", lambda: threads)
    blob = os.urandom(size + 9)
    (tmp_path / "a").write_bytes(blob)
    with (tmp_path / "a").open("rb") as file:
        assert checksum(file.fileno(), 3, size) == zlib.crc32(blob[3 : 3 + size])


@given(st.lists(st.binary(max_size=300), min_size=1, max_size=5))
def test_checksums_of_parts_in_a_row(parts):
    lengths = [len(part) for part in parts]
    joined = archive_module._joined([zlib.crc32(part) for part in parts], lengths)
    assert joined == zlib.crc32(b"".join(parts))


def test_two_records_of_one_name(path):
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(path, "a") as file:
        file.writestr("m/data/0", bytes(32))
    with path.open("rb") as file, pytest.raises(InputError, match="two records"):
        Archive(file.fileno())


def test_fields_of_the_directory(path):
    """Two bits of every other byte of what the directory says."""
    at = path.read_bytes().index(b"PK\x01\x02")
    end = path.read_bytes().index(b"PK\x05\x06")
    places = [(place, bit) for place in range(at, end, 2) for bit in (0, 4)]
    assert unnoticed(path, plain(STATE), places) == []
