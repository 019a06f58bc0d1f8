"""Files: equal to what safetensors reads, the same bytes every time, and nothing half written."""

# ruff: noqa: PT017 -- an input may be read or refused; a refusal is checked too
# ruff: noqa: PTH208 -- listdir gives names, which is what is compared
# ruff: noqa: PT012 -- what fails is the end of the block

import errno
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from corpus import make
from damage import unnoticed
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import tpack
from tpack.cli.main import main
from tpack.container import (
    Checkpoint,
    Piece,
    atomic as atomic_module,
    is_checkpoint,
    new_file,
    write_tensors,
)
from tpack.container.atomic import check_not_input
from tpack.errors import ExistsError, FormatError, InputError, StorageError, TpackError

ACCEPTED = sorted(make.checkpoints())
REJECTED = sorted(path.name for path in make.REJECT.glob("*.safetensors"))
REJECTED_FOLDERS = sorted(path.name for path in make.REJECT.iterdir() if path.is_dir())


# ---- the corpus


def test_the_corpus_is_what_make_makes():
    made = make.rejected()
    assert sorted(f"{name}.safetensors" for name in made) == REJECTED
    for name, blob in made.items():
        assert (make.REJECT / f"{name}.safetensors").read_bytes() == blob
    kept = sorted(path.stem for path in make.ACCEPT.glob("*.safetensors"))
    assert kept == ACCEPTED
    for name, files in make.rejected_folders().items():
        there = {path.name: path.read_bytes() for path in (make.REJECT / name).iterdir()}
        assert there == files


@pytest.mark.parametrize("name", ACCEPTED)
def test_the_writer_still_makes_the_accepted_bytes(name):
    assert make.accepted(name) == (make.ACCEPT / f"{name}.safetensors").read_bytes()


@pytest.mark.parametrize("name", ACCEPTED)
def test_accepted_files_verify_against_their_source(name):
    source, _ = make.checkpoints()[name]
    path = make.ACCEPT / f"{name}.safetensors"
    assert tpack.verify(path).ok
    report = tpack.verify(path, source)
    assert report.ok, report.problems
    assert report.lossless == (name != "quantized")
    assert is_checkpoint(path)


@pytest.mark.parametrize("name", ACCEPTED)
def test_safetensors_reads_the_same_tensors(name):
    path = make.ACCEPT / f"{name}.safetensors"
    tensors = load_file(path)
    with safe_open(path, "pt") as theirs, Checkpoint(path) as ours:
        assert theirs.metadata() == ours.metadata
        assert list(ours.metadata) == ["format", "tpack"]
        assert ours.metadata["format"] == "pt"
        assert set(theirs.keys()) == set(ours.entries)
        for stored, entry in ours.entries.items():
            tensor = tensors[stored]
            assert tuple(tensor.shape) == entry.shape
            assert str(tensor.dtype) == f"torch.{entry.dtype}"
            flat = tensor.contiguous().reshape(-1)
            assert (flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"") == bytes(
                ours.read(stored)
            )


@pytest.mark.parametrize("name", ACCEPTED)
def test_the_trits_and_scales_of_safetensors_multiply_to_the_source(name):
    source, _ = make.checkpoints()[name]
    path = make.ACCEPT / f"{name}.safetensors"
    tensors = load_file(path)
    with Checkpoint(path) as file:
        entries = dict(file.ternary())
    if name == "quantized":
        return
    for tensor_name, entry in entries.items():
        packed = tensors[f"{tensor_name}_packed"].reshape(entry.rows, -1)
        per_byte = 4 if entry.layout == "t2" else 5
        rows = []
        for row in packed.tolist():
            trits = []
            for byte in row:
                rest = byte
                for place in range(per_byte):
                    if entry.layout == "t2":
                        trits.append((byte >> 2 * place & 3) - 1)
                    else:
                        rest *= 3
                        trits.append((rest >> 8) - 1)
                        rest &= 255
            assert not any(trits[entry.columns :])
            rows.append(trits[: entry.columns])
        scale = (
            tensors[f"{tensor_name}_scale"]
            .double()
            .reshape(-1, tensors[f"{tensor_name}_scale"].shape[-1])
        )
        size = int(entry.scale.partition(":")[2] or entry.columns)
        size = 1 if entry.scale == "column" else size
        spread = (
            scale.repeat_interleave(size, 1)[:, : entry.columns] if scale.numel() > 1 else scale
        )
        weights = torch.tensor(rows).double() * spread
        assert torch.equal(weights.reshape(entry.shape), source[tensor_name].double())


@pytest.mark.parametrize("name", ACCEPTED)
def test_order_and_alignment(name):
    blob = (make.ACCEPT / f"{name}.safetensors").read_bytes()
    length = int.from_bytes(blob[:8], "little")
    assert (8 + length) % 64 == 0
    header, description, _ = make.parts(blob)
    text = blob[8 : 8 + length].rstrip(b" ")
    assert text.startswith(b'{"__metadata__":')
    assert text.isascii()
    assert header["__metadata__"]["tpack"] == make.canonical(description)
    with Checkpoint(make.ACCEPT / f"{name}.safetensors") as file:
        sizes = {
            "float64": 8,
            "complex64": 8,
            "int64": 8,
            "float32": 4,
            "float16": 2,
            "bfloat16": 2,
        }
        keys = [(-sizes.get(e.dtype, 1), e.name) for e in file.entries.values()]
    assert keys == sorted(keys)
    assert [name for name in header if name != "__metadata__"] == [name for _, name in keys]


@pytest.mark.parametrize("name", REJECTED)
def test_rejected_files_break_the_rule_they_are_named_for(name):
    path = make.REJECT / name
    with pytest.raises(InputError) as caught:
        Checkpoint(path)
    assert caught.value.code == 3
    assert caught.value.file == str(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)
    if isinstance(caught.value, FormatError):
        assert f"R{int(caught.value.rule[1:]):02}" == name[:3]
    else:
        assert name.startswith("R13")


@pytest.mark.parametrize("name", REJECTED)
@pytest.mark.parametrize("function", ["load", "verify", "inspect", "unpack"])
def test_rejected_files_are_refused_by_every_function(name, function):
    path = make.REJECT / name
    with pytest.raises(InputError) as caught:
        getattr(tpack, function)(path)
    assert caught.value.file == str(path)


@pytest.mark.parametrize("name", REJECTED)
@pytest.mark.parametrize("command", ["verify", "inspect", "codegen", "unpack"])
def test_rejected_files_are_refused_by_every_command(name, command, capsys, tmp_path):
    path = make.REJECT / name
    out = tmp_path / "out.safetensors"
    options = ["-o", str(out)] if command == "unpack" else []
    with pytest.raises(SystemExit) as ended:
        main([command, str(path), *options])
    assert ended.value.code == 3
    printed = capsys.readouterr()
    assert printed.out == ""
    assert str(path) in printed.err
    assert len(printed.err.splitlines()) == 1
    assert not out.exists()


def test_every_rule_has_a_file():
    # R14 to R17 are of the data; R18 is of an index, in test_index.py
    names = {name[:3] for name in (*REJECTED, *REJECTED_FOLDERS)}
    assert names == {f"R{n:02}" for n in (*range(1, 14), 19, 20)}


@pytest.mark.parametrize("name", REJECTED_FOLDERS)
def test_rejected_folders_break_the_rule_they_are_named_for(name):
    for function in (tpack.verify, tpack.load, tpack.inspect, tpack.unpack):
        with pytest.raises(FormatError) as caught:
            function(make.REJECT / name)
        assert caught.value.rule == name[:3]


def test_every_rule_in_the_reader_is_a_known_one():
    folder = make.HERE.parent.parent / "tpack" / "container"
    used = set()
    for path in folder.glob("*.py"):
        used |= set(re.findall(r'"(R\d+)"', path.read_text()))
    assert used == {f"R{n}" for n in (*range(1, 14), 18, 19, 20)}


# ---- damage


@pytest.mark.parametrize("name", ["linear", "group_f16_t5"])
def test_every_truncation_is_refused(name, tmp_path):
    blob = (make.ACCEPT / f"{name}.safetensors").read_bytes()
    path = tmp_path / "x.safetensors"
    for length in range(len(blob)):
        path.write_bytes(blob[:length])
        with pytest.raises(InputError):
            Checkpoint(path)


@pytest.mark.parametrize("name", ["linear", "group_f16_t5"])
def test_a_flipped_bit_in_any_byte_is_found(name, tmp_path):
    path = tmp_path / "x.safetensors"
    shutil.copy(make.ACCEPT / f"{name}.safetensors", path)
    assert unnoticed(path, path) == []


@pytest.mark.parametrize(
    "name",
    [
        "names",  # with escapes in its header
        pytest.param("linear", marks=pytest.mark.slow),
        pytest.param("group_f16_t5", marks=pytest.mark.slow),
    ],
)
def test_every_flipped_bit_is_found(name, tmp_path):
    path = tmp_path / "x.safetensors"
    shutil.copy(make.ACCEPT / f"{name}.safetensors", path)
    assert unnoticed(path, path, range(8)) == []


def test_flipped_bits_of_the_data_never_load_as_an_uncontrolled_error(tmp_path):
    blob = (make.ACCEPT / "group_f16_t5.safetensors").read_bytes()
    path = tmp_path / "x.safetensors"
    start = 8 + int.from_bytes(blob[:8], "little")
    for at in range(start, len(blob)):
        for bit in range(8):
            path.write_bytes(blob[:at] + bytes([blob[at] ^ 1 << bit]) + blob[at + 1 :])
            report = tpack.verify(path)
            assert not report.ok
            tpack.inspect(path)
            try:
                tpack.unpack(path)
            except TpackError as error:
                assert error.code in (3, 4)


# ---- files that others wrote


@pytest.mark.parametrize("name", [name for name in ACCEPTED if name != "kinds"])
def test_a_file_saved_again_by_safetensors_verifies_and_loads(name, tmp_path):
    path = make.ACCEPT / f"{name}.safetensors"
    again = tmp_path / "again.safetensors"
    with safe_open(path, "pt") as file:
        save_file(load_file(path), again, metadata=file.metadata())
    assert tpack.verify(again).ok
    before, after = tpack.unpack(path), tpack.unpack(again)
    assert before.keys() == after.keys()
    for tensor in before:
        assert torch.equal(before[tensor], after[tensor])
    if name not in ("names", "tied"):
        state = tpack.load(again).state_dict()
        assert {k: v.tolist() for k, v in state.items()} == {
            k: v.tolist() for k, v in load_file(path).items()
        }


def test_kept_tensors_with_extreme_but_legal_shapes(tmp_path):
    header, description, data = make.parts((make.ACCEPT / "linear.safetensors").read_bytes())
    description["program"] = None
    none = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    for name, shape in {"wide": [0, 2**62, 2**62], "deep": [1] * 70 + [0]}.items():
        end = len(data)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end]}
        description["kept"][name] = none
    path = tmp_path / "x.safetensors"
    path.write_bytes(make.build(header, description, data))
    for function in (tpack.verify, tpack.inspect, tpack.unpack):
        try:
            function(path)
        except TpackError as error:
            assert error.code == 3


def test_kept_tensor_of_many_dims(tmp_path):
    header, description, data = make.parts((make.ACCEPT / "linear.safetensors").read_bytes())
    description["program"] = None
    header["fc.bias"]["shape"] = [1] * 80 + [3]
    path = tmp_path / "x.safetensors"
    path.write_bytes(make.build(header, description, data))
    for function in (tpack.verify, tpack.inspect, tpack.unpack):
        try:
            function(path)
        except TpackError as error:
            assert error.code == 3


# ---- determinism

SCRIPT = """
import sys, torch, tpack
generator = torch.Generator().manual_seed(1)
state = {f"layers.{i}.fc.weight": torch.randn(33, 70, generator=generator) for i in range(5)}
state |= {f"b{i}": torch.randn(7, generator=generator) for i in range(5)}
tpack.convert(state, sys.argv[1], quantize=sys.argv[2], scale="group:32")
"""


def test_two_processes_write_the_same_bytes(tmp_path):
    blobs = set()
    for seed, threads, locale in (("1", "1", "C"), ("2", "2", "C.UTF-8")):
        out = tmp_path / f"{seed}.safetensors"
        env = os.environ | {
            "PYTHONHASHSEED": seed,
            "OMP_NUM_THREADS": threads,
            "OPENBLAS_NUM_THREADS": threads,
            "LC_ALL": locale,
        }
        subprocess.run([sys.executable, "-c", SCRIPT, out, "mse"], env=env, check=True, timeout=60)
        blobs.add(out.read_bytes())
    assert len(blobs) == 1


# ---- plain files


def test_plain_tensors_are_read_back_by_safetensors(tmp_path):
    path = tmp_path / "x.safetensors"
    big = np.arange(3_000_000, dtype=np.float32)
    pieces = [
        Piece.of("big", "float32", big.shape, big),
        Piece.of("one", "int64", (), np.array([5])),
        Piece("none", "float16", (0, 4), lambda: iter(())),
    ]
    size = write_tensors(path, pieces)
    assert path.stat().st_size == size
    tensors = load_file(path)
    assert np.array_equal(tensors["big"].numpy(), big)
    assert tensors["one"].item() == 5
    assert tensors["none"].shape == (0, 4)


# ---- new_file


def listing(folder):
    return sorted(os.listdir(folder))


def test_new_file_appears_whole(tmp_path):
    path = tmp_path / "x"
    with new_file(path) as file:
        file.write(b"abc")
        assert not path.exists()
    assert path.read_bytes() == b"abc"
    assert listing(tmp_path) == ["x"]
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), SystemExit(3)])
@pytest.mark.parametrize("force", [False, True])
def test_failure_inside_leaves_nothing(tmp_path, error, force):
    path = tmp_path / "x"
    if force:
        path.write_bytes(b"old")
    with pytest.raises(type(error)), new_file(path, force=force) as file:
        file.write(b"abc")
        raise error
    assert listing(tmp_path) == (["x"] if force else [])
    if force:
        assert path.read_bytes() == b"old"


def test_existing_file_is_kept_without_force(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"old")
    with pytest.raises(ExistsError, match="Use --force") as caught, new_file(path):
        raise AssertionError
    assert caught.value.code == 6
    assert path.read_bytes() == b"old"


def test_force_replaces_and_keeps_the_mode(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"old")
    path.chmod(0o604)
    with new_file(path, force=True) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o604
    assert listing(tmp_path) == ["x"]


def test_a_file_that_appears_meanwhile_is_kept(tmp_path):
    path = tmp_path / "x"
    with pytest.raises(ExistsError), new_file(path) as file:
        file.write(b"abc")
        path.write_bytes(b"other")
    assert path.read_bytes() == b"other"
    assert listing(tmp_path) == ["x"]


@pytest.mark.parametrize("force", [False, True])
def test_no_file_goes_where_none_can(tmp_path, force):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    (tmp_path / "dangling").symlink_to(tmp_path / "gone")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "plain").write_bytes(b"")
    names = ["fifo", "folder", "dangling", "loop", "plain/x", "missing/x", "", "."]
    before = listing(tmp_path)
    for name in names:
        with pytest.raises(StorageError) as caught, new_file(tmp_path / name, force=force):
            raise AssertionError
        assert caught.value.code == 7
    assert listing(tmp_path) == before


@pytest.mark.parametrize("length", [256, 5000])
def test_a_name_too_long_for_the_file_system(tmp_path, length):
    with (
        pytest.raises(StorageError, match="too long") as caught,
        new_file(tmp_path / ("x" * length)),
    ):
        raise AssertionError
    assert caught.value.code == 7


def test_the_longest_name_that_the_file_system_takes(tmp_path):
    path = tmp_path / ("x" * 255)
    with new_file(path) as file:
        file.write(b"abc")
    assert path.read_bytes() == b"abc"


def test_force_through_a_link_writes_where_it_points_or_replaces_it(tmp_path):
    real = tmp_path / "real"
    real.write_bytes(b"old")
    link = tmp_path / "link"
    link.symlink_to(real)
    with new_file(link, force=True) as file:
        file.write(b"new")
    assert link.read_bytes() == b"new"
    assert listing(tmp_path) == ["link", "real"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_a_full_disk_is_a_storage_error(tmp_path, monkeypatch, code):
    path = tmp_path / "x"

    def full(_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(atomic_module.os, "fsync", full)
    with pytest.raises(StorageError) as caught, new_file(path) as file:
        file.write(b"abc")
    assert caught.value.code == 7
    assert os.strerror(code) in str(caught.value)
    assert caught.value.file == str(path)
    assert listing(tmp_path) == []


def test_a_disk_that_is_full_while_writing(tmp_path):
    path = tmp_path / "x"
    with (
        Path("/dev/full").open("wb", buffering=0) as full,
        pytest.raises(StorageError, match="No space left") as caught,
        new_file(path),
    ):
        full.write(b"abc")
    assert caught.value.code == 7
    assert listing(tmp_path) == []


def test_conversion_on_a_full_disk(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    source = tmp_path / "in.safetensors"
    save_file({"fc.weight": make.trits(4, 4)}, source)
    monkeypatch.setattr(atomic_module.os, "fsync", full)
    with pytest.raises(SystemExit) as ended:
        main(["convert", str(source)])
    assert ended.value.code == 7
    assert listing(tmp_path) == ["in.safetensors"]


def test_no_permission(tmp_path, monkeypatch):
    def denied(*_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(atomic_module.os, "open", denied)
    with pytest.raises(StorageError, match="Permission denied"), new_file(tmp_path / "x"):
        raise AssertionError


def test_two_writers_do_not_interleave(tmp_path):
    path = tmp_path / "x"
    with new_file(path) as file:
        file.write(b"abc")
        with pytest.raises(StorageError, match="another process"), new_file(path):
            raise AssertionError
        with new_file(tmp_path / "y") as other:  # another target is no business of the first
            other.write(b"def")
    assert path.read_bytes() == b"abc"
    assert listing(tmp_path) == ["x", "y"]


def test_what_a_killed_process_left_is_taken_over(tmp_path):
    path = tmp_path / "x"
    code = (
        "import os, sys\nfrom tpack.container import new_file\n"
        "with new_file(sys.argv[1]) as file:\n"
        "    file.write(b'half of a file that is longer')\n    file.flush()\n    os._exit(9)"
    )
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", code, str(path)], check=False, timeout=60)
        assert done.returncode == 9
        (left,) = listing(tmp_path)
        assert left.startswith(".tpack-")
        assert left.endswith(".tmp")
    with new_file(path) as file:
        file.write(b"abc")
    assert path.read_bytes() == b"abc"
    assert listing(tmp_path) == ["x"]


def test_a_temporary_file_that_is_a_link_is_not_followed(tmp_path):
    path, victim = tmp_path / "x", tmp_path / "victim"
    with new_file(path):
        (name,) = listing(tmp_path)
    victim.write_bytes(b"precious")
    (tmp_path / name).symlink_to(victim)
    path.unlink()
    with pytest.raises(StorageError), new_file(path):
        raise AssertionError
    assert victim.read_bytes() == b"precious"


def test_a_file_system_without_hard_links(tmp_path, monkeypatch):
    def no_links(*_):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(atomic_module.os, "link", no_links)
    with new_file(tmp_path / "x") as file:
        file.write(b"abc")
    assert (tmp_path / "x").read_bytes() == b"abc"
    with pytest.raises(ExistsError), new_file(tmp_path / "y") as file:
        (tmp_path / "y").write_bytes(b"other")
    assert (tmp_path / "y").read_bytes() == b"other"
    assert listing(tmp_path) == ["x", "y"]


# ---- the output is not the input


@pytest.mark.parametrize("how", ["same", "dotted", "symlink", "hardlink"])
@pytest.mark.parametrize("command", ["convert", "unpack", "codegen"])
def test_the_input_is_never_replaced(tmp_path, how, command, capsys):
    source = tmp_path / "in.safetensors"
    if command == "convert":
        save_file({"fc.weight": make.trits(4, 4)}, source)
    else:
        source.write_bytes((make.ACCEPT / "linear.safetensors").read_bytes())
    before = source.read_bytes()
    other = tmp_path / "other.safetensors"
    target = {"same": source, "dotted": tmp_path / "." / "x" / ".." / "in.safetensors"}.get(
        how, other
    )
    (tmp_path / "x").mkdir()
    if how == "symlink":
        other.symlink_to(source)
    if how == "hardlink":
        os.link(source, other)
    with pytest.raises(SystemExit) as ended:
        main([command, str(source), "-o", str(target), "--force"])
    assert ended.value.code == 6
    assert "is the input itself" in capsys.readouterr().err
    assert source.read_bytes() == before


def test_check_not_input_lets_other_files_pass(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(b"same")
    check_not_input(tmp_path / "a", tmp_path / "b", tmp_path / "gone")
    check_not_input(tmp_path / "new", tmp_path / "b")


def test_layerdef_file_is_never_replaced(tmp_path):
    tree = tmp_path / "tree.json"
    text = '{"name":"M","params":[{"name":"w","param_type":"TernaryTensor","shape":[2,2]}]}'
    tree.write_text(text)
    with pytest.raises(ExistsError, match="is the input itself"):
        tpack.convert({"w": make.trits(2, 2)}, tree, layerdef=tree, force=True)
    assert tree.read_text() == text
