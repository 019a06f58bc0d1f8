"""Files: the corpus, damage, what others wrote, and the same bytes each time."""

# ruff: noqa: PT017 -- an input may be read or refused; a refusal is checked too

import os
import re
import shutil
import subprocess
import sys

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
    is_checkpoint,
    write_tensors,
)
from tpack.dtypes import BY_NAME
from tpack.errors import FormatError, InputError, TpackError

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
    assert kept == sorted([*ACCEPTED, *make.others()])
    for name, blob in make.others().items():
        assert (make.ACCEPT / f"{name}.safetensors").read_bytes() == blob
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
            assert tuple(tensor.shape) == BY_NAME[entry.dtype].held_shape(entry.shape)
            assert str(tensor.dtype) == f"torch.{BY_NAME[entry.dtype].held}"
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
    assert str(caught.value).endswith((".", f"tpack.convert({str(path)!r})"))
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
    if command == "inspect" and name.startswith(("R07_no_description", "R07_no_metadata")):
        with pytest.raises(SystemExit) as ended:
            main([command, str(path)])
        assert ended.value.code == 0  # a plain file of codes
        assert "looks packed by tpack" in capsys.readouterr().err
        return
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
        assert _values(before[tensor]) == _values(after[tensor])
    if name not in ("names", "tied"):
        state = tpack.load(again).state_dict()
        assert {k: _values(v) for k, v in state.items()} == {
            k: _values(v) for k, v in load_file(path).items()
        }


def _values(tensor):
    """Its values as a list; its bytes, where torch compares none."""
    return (tensor.view(torch.uint8) if tensor.dtype == torch.float4_e2m1fn_x2 else tensor).tolist()


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
