"""Sources: what trainers save comes in whole, and what asks for code does not."""

# ruff: noqa: PT017 -- an input may be read or refused; a refusal is checked too

import os
import pickle
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import tpack
from tpack.errors import InputError, TpackError, UnsupportedError
from tpack.sources import clean_names, open_source

W = torch.tensor([[1.0, -1, 0], [0, 1, 1]])


def values(source):
    """Every tensor of a source as bytes."""
    return {name: b"".join(map(bytes, t.chunks())) for name, t in source.tensors.items()}


def raw(tensor):
    """The bytes of a torch tensor."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


STATE = {
    "fc.weight": W,
    "fc.bias": torch.arange(2.0),
    "half": torch.arange(3).half(),
    "brain": torch.tensor([1.5, -2]).bfloat16(),
    "count": torch.tensor(3),
    "flags": torch.tensor([True, False]),
    "none": torch.zeros(0, 2),
    "phase": torch.tensor([1 + 2j]),
    "eighth": torch.tensor([1.0, 2]).to(torch.float8_e5m2),
    "big": torch.arange(300, dtype=torch.int64),
}


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt"])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_torch_files(tmp_path, suffix, zipped):
    path = tmp_path / f"m{suffix}"
    state = {k: v for k, v in STATE.items() if zipped or k != "eighth"}
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    with open_source(path) as source:
        assert {n: (t.dtype, t.shape) for n, t in source.tensors.items()} == {
            n: (str(t.dtype).removeprefix("torch."), tuple(t.shape)) for n, t in state.items()
        }
        assert values(source) == {n: raw(t) if t.numel() else b"" for n, t in state.items()}
        assert source.files == (path,)
        assert source.nbytes == path.stat().st_size
        assert source.label == str(path)


def test_safetensors_file(tmp_path):
    path = tmp_path / "m.safetensors"
    save_file(STATE, path)
    with open_source(path) as source:
        assert values(source) == {n: raw(t) if t.numel() else b"" for n, t in STATE.items()}
        assert set(source.tensors) == set(STATE)


def test_a_tpack_checkpoint_is_no_source(tmp_path):
    path = tmp_path / "m.safetensors"
    tpack.convert({"fc.weight": W}, path)
    with pytest.raises(UnsupportedError, match="already") as caught:
        open_source(path)
    assert caught.value.file == str(path)


@pytest.mark.parametrize("key", ["model", "state_dict", "model_state_dict", "module"])
def test_nested_state_dicts(key):
    source = open_source({key: {"fc.weight": W}, "epoch": 3, "optimizer": {"state": {}}})
    assert list(source.tensors) == ["fc.weight"]
    assert any(repr(key) in note and "epoch" in note for note in source.notes)


def test_twice_nested():
    assert list(open_source({"model": {"state_dict": {"w": W}}}).tensors) == ["w"]


def test_tensors_under_a_key_that_nobody_knows_are_taken(tmp_path):
    torch.save({"ema": {"fc.weight": W}, "step": 3}, tmp_path / "m.pt")
    source = open_source(tmp_path / "m.pt")
    assert list(source.tensors) == ["fc.weight"]
    assert "took the state dict under 'ema' (1 tensor, 24 B), left out step (int)" in source.notes


def test_nested_beside_a_tensor():
    source = open_source({"state_dict": {"fc.weight": W}, "best_accuracy": torch.tensor(0.9)})
    assert "fc.weight" in source.tensors


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (["module.fc.weight", "module.fc.bias"], ["fc.weight", "fc.bias"]),
        (["_orig_mod.fc.weight"], ["fc.weight"]),
        (["_orig_mod.module.fc.weight"], ["fc.weight"]),
        (["module._orig_mod.fc.weight"], ["fc.weight"]),
        (["layers.0._orig_mod.fc.weight"], ["layers.0.fc.weight"]),
        (["module.fc.weight", "other.weight"], ["module.fc.weight", "other.weight"]),
        (["modules.fc"], ["modules.fc"]),
        (["my_orig_mod.weight"], ["my_orig_mod.weight"]),
        (["fc._orig_mod"], ["fc._orig_mod"]),
    ],
)
def test_prefixes_of_wrappers(names, wanted):
    cleaned, notes = clean_names(names)
    assert [cleaned[name] for name in names] == wanted
    assert bool(notes) == (names != wanted)


def test_names_that_become_one():
    with pytest.raises(InputError, match=r"both 'fc\.weight'"):
        clean_names(["fc.weight", "_orig_mod.fc.weight"])


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_what_torch_wrappers_really_save():
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    wrapped = nn.DataParallel(torch.compile(model))
    assert set(open_source(wrapped).tensors) == set(model.state_dict())


def test_tied_tensors_are_aliases(tmp_path):
    source = open_source({"a": W, "b": W, "c": W.clone(), "d": W.view(3, 2)})
    assert dict(source.aliases) == {"b": "a"}
    assert list(source.tensors) == ["a", "c", "d"]
    path = tmp_path / "m.pt"
    torch.save({"a": W, "b": W}, path)
    assert dict(open_source(path).aliases) == {"b": "a"}


def test_empty_tensors_are_not_tied():
    empty = torch.zeros(0, 3)
    assert not open_source({"a": empty, "b": empty, "w": W}).aliases


def test_conjugate_and_negated_views_are_not_the_same_tensor():
    z = torch.tensor([1 + 2j, 3 - 1j])
    source = open_source({"w": W, "z": z, "conj": z.conj(), "imag": z.imag, "neg": z.conj().imag})
    assert not source.aliases
    read = values(source)
    assert read["conj"] == raw(z.conj().resolve_conj())
    assert read["neg"] == raw(z.conj().imag.resolve_neg())


@pytest.mark.parametrize(
    "tensor",
    [
        W.T,
        torch.arange(24.0).reshape(2, 3, 4).permute(2, 0, 1),
        torch.arange(24.0).reshape(4, 6)[1:3, ::2],
        torch.arange(12.0).reshape(3, 4)[1:],
        torch.ones(1).expand(4, 5),
        torch.arange(16.0).reshape(1, 4, 2, 2).contiguous(memory_format=torch.channels_last),
        nn.Parameter(torch.ones(2, 2)),
        torch.arange(6.0).reshape(2, 3).bfloat16().T,
    ],
)
def test_views_and_strides(tmp_path, tensor):
    wanted = raw(tensor.detach().clone(memory_format=torch.contiguous_format))
    assert values(open_source({"t": tensor})) == {"t": wanted}
    torch.save({"t": tensor}, tmp_path / "m.pt")
    assert values(open_source(tmp_path / "m.pt")) == {"t": wanted}


@pytest.mark.filterwarnings("ignore:.*quantize:UserWarning", "ignore::DeprecationWarning")
def test_quantized_tensors():
    tensor = torch.quantize_per_tensor(W * 0.5, 0.5, 0, torch.qint8)
    rows = torch.quantize_per_channel(
        W * torch.tensor([[0.5], [2.0]]),
        torch.tensor([0.5, 2.0]),
        torch.tensor([0, 0]),
        0,
        torch.qint8,
    )
    source = open_source({"t": tensor, "r": rows, "n": tensor.T})
    assert {t.dtype for t in source.tensors.values()} == {"float32"}
    assert values(source) == {
        "t": raw(W * 0.5),
        "r": raw(W * torch.tensor([[0.5], [2.0]])),
        "n": raw((W * 0.5).T),
    }


@pytest.mark.parametrize(
    ("tensor", "text"),
    [
        (W.to_sparse(), "dense"),
        (torch.empty(2, 2, device="meta"), "meta"),
        (torch.zeros(2, 2, dtype=torch.complex128), "complex128"),
    ],
)
def test_tensors_that_cannot_be_stored(tensor, text):
    with pytest.raises(UnsupportedError, match=text) as caught:
        open_source({"w": W, "odd": tensor})
    assert caught.value.tensor == "odd"


def test_two_tensors_of_one_name_are_not_merged_silently():
    with pytest.raises(InputError):
        open_source({1: W, "1": torch.zeros(2, 2)})


def test_entries_that_are_no_tensors_are_noted():
    source = open_source({"w": W, "epoch": 3, "config": {"a": 1}})
    assert list(source.tensors) == ["w"]
    assert [note for note in source.notes if "epoch" in note]
    assert [note for note in source.notes if "config" in note]


@pytest.mark.parametrize("data", [{}, {"epoch": 3}, {"state_dict": {}}, {"model": {"a": 1}}])
def test_no_tensors(data):
    with pytest.raises(InputError, match="no tensors"):
        open_source(data)


@pytest.mark.parametrize("data", [[W], W, 3, None])
def test_no_state_dict(data, tmp_path):
    with pytest.raises(InputError, match="expected a state dict"):
        open_source(data)
    torch.save(data, tmp_path / "m.pt")
    with pytest.raises(InputError, match="expected a state dict") as caught:
        open_source(tmp_path / "m.pt")
    assert caught.value.file == str(tmp_path / "m.pt")


# ---- hostile and damaged files


class Evil:
    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


@pytest.mark.parametrize("how", ["zip", "legacy", "plain", "nested"])
def test_a_pickle_that_asks_for_code_runs_none(tmp_path, how):
    canary, path = tmp_path / "canary", tmp_path / "m.pt"
    evil = Evil(canary)
    if how == "plain":
        path.write_bytes(pickle.dumps(evil))
    else:
        data = {"w": W, "x": evil} if how == "nested" else evil
        torch.save(data, path, _use_new_zipfile_serialization=how != "legacy")
    if how == "nested":
        with open_source(path) as source:
            assert values(source) == {"w": raw(W)}
            assert "left out x (posix.system)" in source.notes
            assert "left out objects of posix.system: no code of a file runs" in source.notes
    else:
        with pytest.raises(InputError) as caught:
            open_source(path)
        expected = "is a plain pickle" if how == "plain" else "holds posix.system, expected a"
        assert expected in str(caught.value)
        assert caught.value.file == str(path)
    assert not canary.exists()


@pytest.mark.parametrize(
    "blob",
    [
        b"",
        b"\0",
        b"garbage" * 99,
        b"PK\x03\x04",
        b"PK\x03\x04" + bytes(500),
        b"\x80\x02}q\x00.",
        b"\x80\x02",
        b"\x80\x05\x95" + b"\xff" * 8,
        b"(" * 10_000,
        b"\x1f\x8b" + bytes(100),
        struct.pack("<Q", 10) + b"{}" + bytes(8),
        bytes(range(256)) * 4,
    ],
)
@pytest.mark.parametrize("suffix", [".pt", ".ckpt", ".safetensors"])
def test_garbage(tmp_path, blob, suffix):
    path = tmp_path / f"m{suffix}"
    path.write_bytes(blob)
    with pytest.raises(InputError) as caught:
        open_source(path)
    assert caught.value.file == str(path)


POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 1178623988\n"


@pytest.mark.parametrize("suffix", [".safetensors", ".gguf", ".pt", ".pt2"])
def test_a_pointer_of_git_lfs_is_called_so(tmp_path, suffix):
    path = tmp_path / f"model{suffix}"
    path.write_text(POINTER)
    for read in (open_source, tpack.inspect, tpack.verify):
        with pytest.raises(InputError, match="is a pointer of Git LFS"):
            read(path)


def test_a_text_is_no_checkpoint(tmp_path):
    path = tmp_path / "model.pt"
    path.write_text("version: 1\n")
    with pytest.raises(InputError, match="is text, expected weights"):
        open_source(path)


def test_a_zip_that_is_no_checkpoint(tmp_path):
    with zipfile.ZipFile(tmp_path / "m.pt", "w") as file:
        file.writestr("hello.txt", "hello")
    with pytest.raises(InputError, match="is a zip archive, expected weights"):
        open_source(tmp_path / "m.pt")


DAMAGE = """
import random, sys, warnings
from pathlib import Path
import tpack
from tpack.sources import open_source
warnings.simplefilter("ignore")
path, mode = Path(sys.argv[1]), sys.argv[2]
blob = path.read_bytes()
chance = random.Random(1)
if mode == "cut":
    cases = (blob[:n] for n in range(0, len(blob), max(1, len(blob) // 150)))
else:
    def flipped():
        for _ in range(250):
            at = chance.randrange(len(blob))
            yield blob[:at] + bytes([blob[at] ^ 1 << chance.randrange(8)]) + blob[at + 1 :]
    cases = flipped()
bad = set()
for case in cases:
    path.write_bytes(case)
    try:
        with open_source(path) as source:
            for tensor in source.tensors.values():
                for _ in tensor.chunks():
                    pass
    except tpack.TpackError as error:
        assert error.code == 3
    except Exception as error:
        bad.add(f"{type(error).__name__}: {error}"[:200])
print("\\n".join(sorted(bad)))
"""


@pytest.mark.parametrize("mode", ["cut", "flip"])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_damaged_torch_files_are_refused(tmp_path, mode, zipped):
    path = tmp_path / "m.pt"
    torch.save({"fc.weight": W, "n": {"x": 1}}, path, _use_new_zipfile_serialization=zipped)
    done = subprocess.run(
        [sys.executable, "-c", DAMAGE, path, mode],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == ""


# ---- paths


def test_missing_folder_suffix_and_long_names(tmp_path):
    cases = {
        "gone.pt": (InputError, "does not exist"),
        ".": (InputError, "folder"),
        "m.txt": (UnsupportedError, "is text"),
        "plain": (UnsupportedError, "suffix ''"),
    }
    (tmp_path / "m.txt").write_bytes(b"x")
    (tmp_path / "plain").write_bytes(b"\0")
    for name, (kind, text) in cases.items():
        with pytest.raises(kind, match=text) as caught:
            open_source(tmp_path / name)
        assert caught.value.file == str(tmp_path / name)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_path_too_long(tmp_path, suffix):
    with pytest.raises(TpackError) as caught:
        open_source(tmp_path / ("x" * 300 + suffix))
    assert caught.value.code == 3


def test_a_dangling_link(tmp_path):
    (tmp_path / "m.pt").symlink_to(tmp_path / "gone.pt")
    with pytest.raises(InputError, match="does not exist"):
        open_source(tmp_path / "m.pt")


@pytest.mark.parametrize(("command", "suffix"), [("inspect", ".safetensors"), ("convert", ".pt")])
def test_a_fifo_does_not_hang(tmp_path, command, suffix):
    os.mkfifo(tmp_path / f"m{suffix}")
    try:
        done = subprocess.run(
            [sys.executable, "-m", "tpack", command, tmp_path / f"m{suffix}"],
            capture_output=True,
            timeout=60,
            check=False,
        )
    except subprocess.TimeoutExpired:
        pytest.fail("waits for a writer that never comes")
    assert done.returncode == 3


def test_paths_that_are_no_utf8(tmp_path):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/m\xff.pt")
    with Path(path).open("wb") as file:
        torch.save({"fc.weight": W}, file)
    report = tpack.convert(path)
    assert tpack.verify(report.output, path).ok


@pytest.mark.parametrize(
    "name", ["__metadata__", "\udcff.weight", "", ".", "a..b", "\0", "x" * 5000]
)
@pytest.mark.parametrize("packed", [True, False])
def test_odd_names_are_written_readably_or_refused(tmp_path, name, packed):
    path = tmp_path / "out.safetensors"
    state = {"fc.weight": W, name: W if packed else torch.arange(3.0)}
    try:
        tpack.convert(state, path)
    except TpackError as error:
        assert error.code == 3
        assert not path.exists()
        return
    assert tpack.verify(path, state).ok
    assert load_file(path)
    assert np.array_equal(tpack.unpack(path)[name], state[name])
