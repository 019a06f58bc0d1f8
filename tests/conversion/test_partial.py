"""Interrupted conversions are taken up, and several processes share one."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import fields, make_dataclass
from pathlib import Path

import pytest
from shards import contents

import tpack
from tpack import describing
from tpack.conversion import folder as folder_module
from tpack.errors import (
    NotTernaryError,
    StorageError,
)
from tpack.options import Options

# ---- interrupted


class Stopped(Exception):
    pass


def stop_after(monkeypatch, count):
    """Let a conversion die before it packs one shard more than ``count``."""
    calls = []
    real = folder_module.pack_batch

    def pack_batch(*args):
        if len(calls) == count:
            raise Stopped
        calls.append(args[3])
        return real(*args)

    monkeypatch.setattr(folder_module, "pack_batch", pack_batch)
    return calls


def interrupted(monkeypatch, source, target, count=2, **options):
    with monkeypatch.context() as patch:
        stop_after(patch, count)
        with pytest.raises(Stopped):
            tpack.convert(source, target, **options)
    assert not target.exists()
    return target.parent / f".{target.name}.tpack-partial"


def test_resume_goes_on_where_it_ended(source, target, tmp_path, monkeypatch):
    interrupted(monkeypatch, source, target)
    calls = stop_after(monkeypatch, 99)
    tpack.convert(source, target, resume=True)
    assert [Path(path).name for path in calls] == ["model-00003-of-00003.safetensors"]
    tpack.convert(source, tmp_path / "whole")
    assert contents(target) == contents(tmp_path / "whole")
    assert not list(tmp_path.glob(".*"))


def test_without_resume_it_begins_anew(source, target, monkeypatch):
    interrupted(monkeypatch, source, target)
    calls = stop_after(monkeypatch, 99)
    tpack.convert(source, target)
    assert len(calls) == 3


@pytest.mark.parametrize("damage", ["spool", "manifest", "cut", "options", "source", "content"])
def test_resume_checks_what_is_there(source, target, tmp_path, monkeypatch, damage):
    work = interrupted(monkeypatch, source, target)
    options = {}
    redone = 2
    if damage == "spool":
        blob = bytearray((work / "00001.spool").read_bytes())
        blob[3] ^= 1
        (work / "00001.spool").write_bytes(blob)
    elif damage == "manifest":
        (work / "00001.json").write_text("{")
    elif damage == "cut":
        os.truncate(work / "00002.spool", 5)
    elif damage == "options":
        options, redone = {"layout": "t5"}, 3
    elif damage == "content":  # the size and the time of modification stay
        path = source / "model-00001-of-00003.safetensors"
        before, blob = path.stat(), bytearray(path.read_bytes())
        blob[-1] ^= 0x80
        path.write_bytes(blob)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        redone = 3
    else:
        path = source / "model-00001-of-00003.safetensors"
        os.utime(path, ns=(1, 1))
        redone = 3
    calls = stop_after(monkeypatch, 99)
    tpack.convert(source, target, resume=True, **options)
    assert len(calls) == redone
    tpack.convert(source, tmp_path / "whole", **options)
    assert contents(target) == contents(tmp_path / "whole")


CHANGED = {
    "exact": True,
    "quantize": "twn",
    "scale": "row",
    "include": ("a",),
    "exclude": ["b"],
    "keep_dtype": "f16",
    "layout": "t5",
    "i2s_order": "arm",
    "key": "a.b",
    "scale_means": "divide",
}


def test_what_is_resumed_depends_on_every_option(tmp_path):
    """Also on one that is added to the dataclass later."""
    named = [option.name for option in fields(Options) if option.compare]
    assert set(Options().to_dict()) == set(named)
    seen = [Options().to_dict()]
    for name in named:
        changed = Options(**{name: CHANGED.get(name, "another")}).to_dict()
        assert json.loads(json.dumps(changed)) == changed
        assert changed not in seen, name
        seen.append(changed)
    more = make_dataclass("More", [("fake", str, "x")], bases=(Options,), frozen=True)
    assert more(fake="y").to_dict() == Options().to_dict() | {"fake": "y"}


def test_a_refused_conversion_leaves_nothing_behind(source, target, monkeypatch):
    with pytest.raises(NotTernaryError):
        tpack.convert(source, target, exact=True)
    assert sorted(path.name for path in target.parent.iterdir()) == ["src"]
    work = interrupted(monkeypatch, source, target, exact=True)
    with pytest.raises(NotTernaryError):
        tpack.convert(source, target, exact=True, resume=True)
    assert (work / "00001.json").exists()  # who asked to resume has other options left
    with pytest.raises(NotTernaryError):
        tpack.convert(source, target, exact=True)
    assert sorted(path.name for path in target.parent.iterdir()) == ["src"]


def test_a_full_disk_leaves_what_resume_takes_up(source, target, monkeypatch):
    def full(*_, **__):
        raise StorageError("no space")

    with monkeypatch.context() as patch:
        patch.setattr(describing, "write_checkpoint", full)
        with pytest.raises(StorageError):
            tpack.convert(source, target)
    calls = stop_after(monkeypatch, 99)
    tpack.convert(source, target, resume=True)
    assert not calls


def test_a_folder_with_the_name_of_a_file_is_noted(source, tmp_path):
    report = tpack.convert(source, tmp_path / "model.safetensors")
    assert "model.safetensors is a folder, as the source is one" in report.notes


# ---- several processes


def start(source, target, rank, world, *more):
    environment = os.environ | {"RANK": str(rank), "WORLD_SIZE": str(world)}
    command = [sys.executable, "-m", "tpack", "convert", str(source), "-o", str(target), *more]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_the_shards(source, target, tmp_path, world):
    runs = [start(source, target, rank, world) for rank in range(world)]
    outputs = [run.communicate(timeout=120) for run in runs]
    assert [run.returncode for run in runs] == [0] * world, outputs
    printed = [out for out, _ in outputs if out]
    assert printed == [f"{target}\n"]  # by the one that finished
    tpack.convert(source, tmp_path / "whole")
    assert contents(target) == contents(tmp_path / "whole")
    assert not list(tmp_path.glob(".*"))


def test_a_process_that_fails_is_run_again_alone(source, target, tmp_path):
    first = start(source, target, 0, 2)
    out, err = first.communicate(timeout=120)
    assert first.returncode == 0
    assert out == ""
    assert "still missing from others" in err
    assert not target.exists()
    second = start(source, target, 1, 2)
    second.communicate(timeout=120)
    assert second.returncode == 0
    assert not list(tmp_path.glob(".*"))
    tpack.convert(source, tmp_path / "whole")
    assert contents(target) == contents(tmp_path / "whole")


def test_ranks_with_other_options_are_told(source, target, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    tpack.convert(source, target)
    monkeypatch.setenv("RANK", "1")
    report = tpack.convert(source, target, layout="t5")
    assert report.output is None
    first, second = report.notes
    assert "still missing from others: model-0000" in first
    assert re.fullmatch(
        r"model-0000.-of-00003.safetensors was packed with layout 't2', not 't5', and cannot be "
        "joined with those of this process: run every rank with the same options",
        second,
    )
    path = source / "model-00001-of-00003.safetensors"
    os.utime(path, ns=(1, 1))
    report = tpack.convert(source, target, layout="t5")
    assert "was packed with layout 't2'" in report.notes[1]
    os.utime(path, ns=(2, 2))
    monkeypatch.setenv("RANK", "0")
    report = tpack.convert(source, target, layout="t5")
    assert "was packed with another state of the source" in report.notes[1]


def test_a_process_that_is_killed(source, target, tmp_path):
    victim = start(source, target, 1, 2)
    time.sleep(0.3)
    victim.send_signal(signal.SIGKILL)
    victim.communicate(timeout=60)
    for rank in (0, 1):
        if not target.exists():  # the victim may have packed its shards before it died
            again = start(source, target, rank, 2)
            again.communicate(timeout=120)
            assert again.returncode == 0
    tpack.convert(source, tmp_path / "whole")
    assert contents(target) == contents(tmp_path / "whole")


def test_another_process_is_kept_out(source, target):
    work = target.parent / f".{target.name}.tpack-partial"
    work.mkdir()
    code = (
        "import fcntl,sys,time\n"
        f"file = open({str(work / 'all.lock')!r}, 'w')\n"
        "fcntl.flock(file, fcntl.LOCK_EX)\nprint('held', flush=True)\ntime.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline()
        with pytest.raises(StorageError, match="another process"):
            tpack.convert(source, target)
        holder.kill()
    tpack.convert(source, target)
