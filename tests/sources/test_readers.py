"""Tests of which kinds of files are read, and what is said of the others."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from tpack.container.kinds import KINDS
from tpack.errors import UnsupportedError
from tpack.sources import open_source, readers

STATE = {"up.weight": np.ones((2, 4), np.float32)}


def test_every_kind_is_read_or_has_advice():
    advised = {name for name, kind in KINDS.items() if kind.advice}
    assert advised | set(readers.READERS) == set(KINDS)


def write_safetensors(path):
    save_file(STATE, path)


def write_pt(path):
    torch.save({name: torch.from_numpy(array) for name, array in STATE.items()}, path)


def write_script(path):
    up = torch.nn.Module()
    up.up = torch.nn.Linear(4, 2, bias=False)
    with pytest.warns(DeprecationWarning, match="script"):
        torch.jit.script(up).save(path)


@pytest.mark.parametrize(
    ("write", "name", "note"),
    [
        (write_safetensors, "m.bin", "is a safetensors file, whatever its name says"),
        (write_pt, "m.gguf", "is a PyTorch file, whatever its name says"),
        (write_script, "m.pt", None),
        (write_script, "m.gguf", "is a TorchScript program, whatever its name says"),
        (write_pt, "m.pth.tar", None),
        (write_pt, "4d1b7a", None),
        (write_pt, "m.PT", None),
        (write_safetensors, "m.safetensors", None),
    ],
)
def test_a_file_is_opened_for_what_it_is(tmp_path, write, name, note):
    write(tmp_path / name)
    with open_source(tmp_path / name) as source:
        assert list(source.tensors) == ["up.weight"]
        assert [n for n in source.notes if "whatever" in n] == ([note] if note else [])


def test_a_kind_that_is_not_read_is_named_with_advice(tmp_path):
    (tmp_path / "m.safetensors").write_text("<!doctype html>")
    with pytest.raises(UnsupportedError) as caught:
        open_source(tmp_path / "m.safetensors")
    assert caught.value.message == (
        "is a web page, expected weights that tpack reads. The download failed: open the page to "
        "see why, and download the file itself."
    )


def test_a_missing_package_is_named_with_its_extra(tmp_path, monkeypatch):
    reader = readers.Reader("tpack.sources.gguf_source", "open_gguf", "tpack_not_there", "onnx")
    monkeypatch.setitem(readers.READERS, "GGUF", reader)
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    with pytest.raises(UnsupportedError) as caught:
        open_source(tmp_path / "m.gguf")
    assert caught.value.message == (
        "is a GGUF file, which needs the package tpack_not_there. Install it: "
        'pip install "tpack-ternary[onnx]".'
    )


def test_packages_of_extras_are_imported_only_for_their_files(tmp_path):
    write_pt(tmp_path / "m.pt")
    code = (
        "import sys; from tpack.conversion.foreseeing import foresee; foresee(sys.argv[1]);"
        "print({'onnx', 'h5py', 'keras', 'tflite'} & set(sys.modules))"
    )
    arguments = [sys.executable, "-c", code, str(tmp_path / "m.pt")]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
