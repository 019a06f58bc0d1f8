"""An interrupted command says what is left on the disk, and how to go on."""

import json
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import save_file
from shards import contents, model, write_shards

import tpack
from tpack.conversion import folder as folder_module

#: A command that stops, for the signal, at a call of a function.
SLOW = """
import importlib, sys, time
import tpack.conversion.folder, tpack.unpacking
from tpack.cli.main import main
module, name, calls, *arguments = sys.argv[1:]
module = importlib.import_module(module)
real, left = getattr(module, name), int(calls)
def slow(*given, **more):
    global left
    left -= 1
    if not left:
        print("ready", flush=True)
        time.sleep(30)
    return real(*given, **more)
setattr(module, name, slow)
main(arguments)
"""
WRITING = ("tpack.container.writer", "header_bytes", 1)
PACKING = ("tpack.quantize.encoding", "_pack_natively", 1)
NOTHING = "interrupted. No unfinished file is left."


def interrupted(at, *arguments, number=signal.SIGINT, cwd=None):
    """Interrupt a command at a place; return what it prints."""
    command = [sys.executable, "-c", SLOW, *map(str, at), *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **pipes, text=True, cwd=cwd) as process:
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.2)
        process.send_signal(number)
        out, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "Traceback" not in err
    return out, err.strip()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def file(tmp_path):
    save_file({"fc.weight": torch.arange(32.0).reshape(4, 8)}, tmp_path / "m.safetensors")
    return tmp_path / "m.safetensors"


@pytest.fixture
def folder(tmp_path):
    return write_shards(tmp_path / "the source", model())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("at", [PACKING, WRITING], ids=["packing", "writing"])
def test_of_a_file_nothing_is_left(file, tmp_path, number, at):
    assert interrupted(at, "convert", file, number=number) == ("", f"tpack: {NOTHING}")
    assert names(tmp_path) == ["m.safetensors"]


def test_json_says_it_too(file):
    out, err = interrupted(PACKING, "convert", file, "--json")
    error = {"code": 130, "kind": "interrupted", "message": NOTHING, "tensor": None}
    assert (json.loads(out), err) == ({"error": error}, "")


def test_of_a_folder_the_packed_shards_are_left_and_the_command_goes_on(folder, tmp_path):
    at = ("tpack.conversion.folder", "pack_batch", 3)
    given = ("convert", folder.name, "-o", "out", "--scale", "auto")
    _, err = interrupted(at, *given, cwd=tmp_path)
    told = "tpack: interrupted. Packed so far: 2 of 3 shards, kept in .out.tpack-partial. Run "
    command = "tpack convert --resume 'the source' -o out --scale auto"
    assert err == f"{told}{command} to continue."
    assert names(tmp_path) == [".out.tpack-partial", "the source"]
    at = ("tpack.conversion.folder", "pack_batch", 1)
    _, err = interrupted(at, *shlex.split(command)[1:], cwd=tmp_path)
    assert err == f"{told}{command} to continue."  # what one types again is the same
    run = [sys.executable, "-m", "tpack", *shlex.split(command)[1:]]
    assert subprocess.run(run, cwd=tmp_path, capture_output=True, check=False).returncode == 0
    tpack.convert(folder, tmp_path / "whole")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert names(tmp_path) == ["out", "the source", "whole"]


def test_of_a_folder_without_a_packed_shard_nothing_is_left(folder, tmp_path):
    at = ("tpack.conversion.folder", "pack_batch", 1)
    assert interrupted(at, "convert", folder)[1] == f"tpack: {NOTHING}"
    assert names(tmp_path) == ["the source"]


def test_of_an_unpacked_folder_nothing_is_left(folder, tmp_path):
    tpack.convert(folder, tmp_path / "packed")
    at = ("tpack.unpacking", "write_plain_shards", 1)
    _, err = interrupted(at, "unpack", tmp_path / "packed", "-o", tmp_path / "plain")
    assert err == f"tpack: {NOTHING}"
    assert names(tmp_path) == ["packed", "the source"]


def test_python_is_told_in_a_note(folder, tmp_path, monkeypatch):
    real, calls = folder_module.pack_batch, []

    def pack_batch(*args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(folder_module, "pack_batch", pack_batch)
    with pytest.raises(KeyboardInterrupt) as caught:
        tpack.convert(folder, tmp_path / "out")
    (note,) = caught.value.__notes__
    told = r"Packed so far: 1 of 3 shards, kept in .*\.out\.tpack-partial\. Call it again with "
    assert re.fullmatch(told + r"resume=True to continue\.", note)
