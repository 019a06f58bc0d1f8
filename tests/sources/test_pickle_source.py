"""Files of torch as a source: opened whatever is in them, and read by calls, not mapped."""

import argparse
import collections
import datetime as dt
import enum
import os
import pickle
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import tpack
from tpack.container.header import CHUNK
from tpack.errors import InputError, UnsupportedError
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


# ---- what trainers save


@dataclass
class Settings:
    width: int = 8
    root: Path = Path("/data")


class Colour(enum.Enum):
    RED = 1


def trained():
    """A checkpoint as of Lightning, with all that one meets in them."""
    return {
        "state_dict": {"up.weight": WIDE[:4], "up.bias": torch.ones(4)},
        "epoch": np.int64(3),
        "loss": np.float32(0.5),
        "history": collections.defaultdict(list, loss=[np.float64(1.0), 2.0]),
        "curve": np.arange(3.0),
        "hyper_parameters": argparse.Namespace(lr=0.1, path=Path("/data")),
        "settings": Settings(),
        "colour": Colour.RED,
        "steps": collections.Counter("aab"),
        "callbacks": {"best": torch.tensor(0.25), "when": dt.datetime(2026, 1, 2)},
        "size": torch.Size([1, 2]),
        "device": torch.device("cpu"),
        "dtype": torch.float16,
        "function": os.path.join,
    }


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("zipped", [True, False])
def test_what_trainers_save_opens(tmp_path, protocol, zipped):
    path = tmp_path / "m.ckpt"
    options = {"pickle_protocol": protocol, "_use_new_zipfile_serialization": zipped}
    torch.save(trained(), path, **options)
    b"".decode("raw-unicode-escape")
    with open_source(path) as source:
        assert values(source, "up.weight") == WIDE[:4].numpy().tobytes()
        assert list(source.tensors) == ["up.weight", "up.bias"]
        (note,) = (note for note in source.notes if "no code of a file runs" in note)
    assert "argparse.Namespace" in note
    assert "numpy" not in note
    assert "collections" not in note
    assert "torch" not in note


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(7, 8)
        self.layers = nn.ModuleList([nn.TransformerEncoderLayer(8, 2, 16), nn.LSTM(8, 8)])
        self.convolution = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.GroupNorm(1, 2))
        self.cell = nn.GRUCell(8, 8)
        self.register_buffer("kept", torch.arange(3.0))
        self.register_buffer("transient", torch.arange(3.0), persistent=False)
        self.register_parameter("nothing", None)
        self.head = nn.Linear(8, 7, bias=False)
        self.head.weight = self.table.weight


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_whole_module_is_its_state_dict_with_its_roles(tmp_path, inside, zipped):
    path, net = tmp_path / "m.pt", Net()
    whole = {"model": net, "epoch": 1} if inside else net
    torch.save(whole, path, _use_new_zipfile_serialization=zipped)
    with open_source(path) as source, open_source(net) as live:
        assert list(source.tensors) == list(live.tensors)
        assert dict(source.aliases) == dict(live.aliases) == {"head.weight": "table.weight"}
        assert source.roles == {
            name: role for name, role in live.roles.items() if name != "head.weight"
        } | {"head.weight": source.roles["table.weight"]}
        assert source.trained == live.trained
        for name in live.tensors:
            assert values(source, name) == values(live, name)
        assert not any("no code of a file runs" in note for note in source.notes)


def test_a_module_that_holds_itself(tmp_path):
    net = nn.Linear(2, 2)
    net._modules["again"] = net
    torch.save(net, tmp_path / "m.pt")
    with pytest.raises(InputError, match="100 modules inside of each other"):
        open_source(tmp_path / "m.pt")


def test_torch_is_not_imported(path):
    code = (
        "import sys, tpack.sources as s\n"
        "with s.open_source(sys.argv[1]) as source:\n"
        "    [list(tensor.chunks()) for tensor in source.tensors.values()]\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code, path], check=True)


class Kind(torch.Tensor):
    """A subclass without code of its own."""


def test_tensors_that_are_taken_are_not_said_to_be_left(tmp_path):
    marked = torch.ones(2, 2)
    marked.origin = "here"
    state = {"a": nn.Buffer(torch.ones(2)), "b": marked, "c": torch.ones(2).as_subclass(Kind)}
    torch.save(state, tmp_path / "m.pt")
    with open_source(tmp_path / "m.pt") as source:
        assert set(source.tensors) == set(state)
        assert source.notes == []


@pytest.mark.parametrize("length", [4, 1 << 19])
def test_a_plain_pickle_is_not_called_damaged(tmp_path, length):
    (tmp_path / "m.pkl").write_bytes(pickle.dumps({"a": np.ones(length)}))
    with pytest.raises(UnsupportedError, match=r"is a plain pickle.*numpy\.savez"):
        open_source(tmp_path / "m.pkl")


class Odd(torch.nn.Module):
    def __init__(self, left):
        super().__init__()
        self.up = torch.nn.Linear(4, 4)
        self.register_buffer("table", torch.arange(4.0))
        self._non_persistent_buffers_set = left


@pytest.mark.parametrize("left", [["table"], {"table": 1}, 7, None, {("table",), 1.5}])
def test_what_should_be_a_set_of_names_may_be_anything(tmp_path, left):
    torch.save(Odd(left), tmp_path / "m.pt")
    with open_source(tmp_path / "m.pt") as source:
        assert set(source.tensors) == {"up.weight", "up.bias", "table"}


def test_names_in_messages_are_printable(tmp_path):
    torch.save({"a\x1b[31m\n": torch.ones(2).to_sparse()}, tmp_path / "m.pt")
    with pytest.raises(tpack.TpackError) as caught:
        open_source(tmp_path / "m.pt")
    assert str(caught.value).isprintable()
