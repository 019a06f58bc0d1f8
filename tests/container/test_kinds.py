"""Tests of what a file is: by its content first, then by its suffix."""

import io
import tarfile
import time
import zipfile

import numpy as np
import onnx
import pytest
import torch
from safetensors.numpy import save, save_file

import tpack
from tpack.container import Checkpoint
from tpack.container.kinds import KINDS, kind_of
from tpack.errors import InputError


def saved(write):
    file = io.BytesIO()
    write(file)
    return file.getvalue()


def zipped(*names):
    with zipfile.ZipFile(file := io.BytesIO(), "w") as archive:
        for name in names:
            archive.writestr(name, b"")
    return file.getvalue()


def tarred(file):
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a"))


STATE = {"w": torch.ones(2, 2)}
MODEL = torch.nn.Linear(2, 2)
GRAPH = onnx.helper.make_graph([], "g", [], [])
CONTENTS = [
    ("safetensors", save({"w": np.ones(2)})),
    ("PyTorch", saved(lambda file: torch.save(STATE, file))),
    (
        "PyTorch",
        saved(lambda file: torch.save(STATE, file, _use_new_zipfile_serialization=False)),
    ),
    ("TorchScript", zipped("m/data.pkl", "m/code/__torch__.py", "m/constants.pkl")),
    ("exported program", zipped("archive/data/sample_inputs/model.pt", "archive/archive_format")),
    ("exported program", zipped("version", "serialized_exported_program.json")),
    ("GGUF", b"GGUF\3\0\0\0" + bytes(16)),
    ("ONNX", onnx.helper.make_model(GRAPH).SerializeToString()),
    ("ONNX", onnx.helper.make_model(GRAPH, producer_name="p" * 500).SerializeToString()),
    ("Keras", zipped("metadata.json", "config.json", "model.weights.h5")),
    ("HDF5", b"\x89HDF\r\n\x1a\n" + bytes(99)),
    ("NumPy", saved(lambda file: np.save(file, np.ones(2)))),
    ("NumPy", saved(lambda file: np.savez(file, w=np.ones(2)))),
    ("TFLite", b"\x1c\0\0\0TFL3" + bytes(99)),
    ("ORT", b"\x1c\0\0\0ORTM" + bytes(99)),
    ("OpenVINO", b'<?xml version="1.0"?>\n<net name="m" version="11">'),
    ("GGML", b"tjgg\1\0\0\0" + bytes(99)),
    ("llamafile", b"MZqFpD='\n" + bytes(99)),
    ("zip archive", zipped("model/weights.txt")),
    ("archive", saved(tarred)),
    ("compressed file", b"\x1f\x8b\x08" + bytes(99)),
    ("web page", b"\n<!DOCTYPE html>\n<html>"),
    ("web page", b"<html><head>"),
    ("JSON", b'{"error": "Access denied"}'),
    ("empty", b""),
    ("text", b"Access denied\n"),
    ("text", ("ä" * 300).encode()),
]


@pytest.mark.parametrize(("name", "content"), CONTENTS)
@pytest.mark.parametrize("suffix", ["", ".safetensors", ".pt"])
def test_the_content_decides(tmp_path, name, content, suffix):
    path = tmp_path / f"m{suffix}"
    path.write_bytes(content)
    assert kind_of(path) is KINDS[name]


@pytest.mark.parametrize(
    ("name", "suffix"), [(kind.name, suffix) for kind in KINDS.values() for suffix in kind.suffixes]
)
@pytest.mark.parametrize("content", [b"\0\1\2\3" * 9, b"PK\3\4" + bytes(500)])
def test_the_suffix_decides_where_the_content_shows_nothing(tmp_path, name, suffix, content):
    path = tmp_path / f"m{suffix.upper()}"
    path.write_bytes(content)
    assert kind_of(path) is KINDS[name]


def test_what_nothing_shows(tmp_path):
    (tmp_path / "m.what").write_bytes(b"\0\1\2\3")
    assert kind_of(tmp_path / "m.what") is None


@pytest.mark.parametrize("cut", range(60))
def test_a_cut_onnx_file_is_known_by_its_suffix(tmp_path, cut):
    path = tmp_path / "m.onnx"
    path.write_bytes(b"\0" + onnx.helper.make_model(GRAPH).SerializeToString()[:cut])
    assert kind_of(path) is KINDS["ONNX"]


@pytest.mark.parametrize(
    "content",
    [
        b"\x08\x01\x12\x03abc",  # a SavedModel
        b"\x08\x07\x12\x03\x0a\x01a\xb2\x0f\x00",  # a Core ML model
        b"\x0a\x03abc\x3a\x00",  # no version first
        b"\x08" + b"\xff" * 99,
        b"\x08\x07\x08\x07\x3a\x00",  # two versions
        b"\x08\x07\x12" + b"\xff" * 8 + b"\x7f",  # a name longer than any file
    ],
)
def test_other_messages_of_protobuf_are_no_onnx(tmp_path, content):
    (tmp_path / "m").write_bytes(content)
    assert kind_of(tmp_path / "m") is None


def test_folders(tmp_path):
    assert kind_of(tmp_path) is None
    (tmp_path / "saved_model.pb").touch()
    assert kind_of(tmp_path) is KINDS["SavedModel"]


def test_pointers_of_git_lfs_are_no_kind(tmp_path):
    (tmp_path / "m.onnx").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(InputError, match=r"m\.onnx: is a pointer of Git LFS"):
        kind_of(tmp_path / "m.onnx")


# ---- files that are no checkpoints of tpack


@pytest.mark.parametrize(("name", "content"), CONTENTS)
@pytest.mark.parametrize("read", [Checkpoint, tpack.verify, tpack.load])
def test_a_foreign_file_is_called_what_it_is(tmp_path, name, content, read):
    if name == "empty":
        return
    path = tmp_path / "m.what"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read(path)
    kind = KINDS[name]
    what = "a plain safetensors file" if name == "safetensors" else kind.what
    advice = kind.advice or f"Convert it first: tpack.convert({str(path)!r})"
    assert str(caught.value) == f"{path}: is {what}, expected a tpack checkpoint. {advice}"


def test_a_foreign_folder_is_called_what_it_is(tmp_path):
    save_file({"w": np.ones(2)}, tmp_path / "model.safetensors")
    for found in (
        f"{tmp_path / 'model.safetensors'}: is a plain safetensors file, expected a tpack ",
        f"{tmp_path}: holds no tpack checkpoint, expected model.safetensors.index.json or ",
    ):
        with pytest.raises(InputError) as caught:
            Checkpoint(tmp_path)
        assert str(caught.value).startswith(found)
        assert str(caught.value).endswith(f"onvert it first: tpack.convert({str(tmp_path)!r})")
        (tmp_path / "model.safetensors").unlink(missing_ok=True)
    (tmp_path / "saved_model.pb").touch()
    with pytest.raises(InputError, match="is a SavedModel of TensorFlow, expected a tpack check"):
        Checkpoint(tmp_path)


def test_an_archive_of_many_records_is_known_at_once(tmp_path):
    with zipfile.ZipFile(tmp_path / "m.npz", "w") as archive:
        for number in range(20_000):
            archive.writestr(f"{number}.npy", b"")
    start = time.process_time()
    assert kind_of(tmp_path / "m.npz") == KINDS["NumPy"]
    assert time.process_time() - start < 2
