"""Files of torch as a source: opened whatever is in them, and read by calls, not mapped."""

import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

import tpack
from tpack.container.header import CHUNK
from tpack.errors import InputError
from tpack.sources import open_source

#: Larger than what is read at a time, so that a part is left when the file is cut.
WIDE = torch.arange(3 * 1024 * 1024, dtype=torch.float32).reshape(1024, -1)
STATE = {
    "plain": WIDE,
    "turned": torch.arange(3000.0).reshape(30, 100).T,
    "offset": torch.arange(100, dtype=torch.int32)[7:90:3],
    "bits": torch.tensor([1.5, -2.0]).bfloat16(),
    "none": torch.zeros(0, 3),
}


@pytest.fixture
def path(tmp_path):
    torch.save(STATE, tmp_path / "m.pt")
    return tmp_path / "m.pt"


def values(source, name):
    return b"".join(source.tensors[name].chunks())


@pytest.mark.parametrize("name", STATE)
def test_values_are_those_of_torch(path, name):
    with open_source(path) as source:
        found = values(source, name)
    assert found == STATE[name].contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def test_files_from_before_archives(tmp_path):
    path = tmp_path / "old.pt"
    torch.save(STATE, path, _use_new_zipfile_serialization=False)
    with open_source(path) as source:
        assert values(source, "turned") == STATE["turned"].contiguous().numpy().tobytes()


@pytest.mark.parametrize("name", ["plain", "turned"])
def test_a_file_that_was_truncated_after_it_was_opened(path, name):
    with open_source(path) as source:
        os.truncate(path, 2000)
        with pytest.raises(InputError, match="truncated while it was read"):
            values(source, name)


def test_an_error_of_reading(path, monkeypatch):
    def broken(*_):
        raise OSError(5, "Input/output error")

    with open_source(path) as source:
        monkeypatch.setattr(os, "preadv", broken)
        with pytest.raises(InputError, match="Input/output error"):
            values(source, "plain")


CUT = """
import os, sys, tpack
from tpack.cli.main import main
from tpack.container import TensorFile
path, command = sys.argv[1], sys.argv[2:]
reads = 0
real = os.preadv
def cut(handle, pieces, offset):
    global reads
    large = sum(map(len, pieces)) > 1 << 16  # of a tensor, not of a header
    reads += large and os.path.realpath(f"/proc/self/fd/{handle}") == os.path.realpath(path)
    if reads == 2:
        os.truncate(path, 1 << 16)
    return real(handle, pieces, offset)
os.preadv = cut
main(command)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
@pytest.mark.parametrize("command", ["convert pt", "convert safetensors", "verify"])
def test_a_file_that_is_truncated_while_it_is_read_is_an_error(tmp_path, command):
    assert WIDE.nbytes > 2 * CHUNK
    path, out = tmp_path / f"in.{command.split()[-1]}", tmp_path / "out.safetensors"
    if command == "verify":
        path = tmp_path / "m.safetensors"
        tpack.convert({"w": torch.eye(4), "kept": WIDE.reshape(-1)}, path)
        arguments = ["verify", str(path)]
    else:
        if path.suffix == ".pt":
            torch.save({"w": WIDE}, path)
        else:
            save_file({"w": WIDE}, path)
        arguments = ["convert", str(path), "-o", str(out)]
    done = subprocess.run(
        [sys.executable, "-c", CUT, str(path), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 3, done
    assert "truncated while it was read" in done.stderr
    assert not out.exists()
