"""Runs of commands that write: the n-th system call of a kind fails, or a kill comes at any time.

``python tests/fault_runs.py calls|kills FOLDER [COUNT]``, for calls with native/faults.c preloaded;
prints a JSON line for each run. It forks for each, so that a run costs milliseconds.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import gguf_exports
import hf_folders
import numpy as np
import torch
from safetensors.numpy import save_file
from transformers.utils import logging

import tpack
from tpack.cli.main import main
from tpack.errors import TpackError

ERRORS = {"ENOSPC": errno.ENOSPC, "EIO": errno.EIO, "EINTR": errno.EINTR, "EACCES": errno.EACCES}
FAULTS = [
    *((call, name) for call in ("open", "write", "fsync") for name in ("ENOSPC", "EIO", "EINTR")),
    *((call, name) for call in ("fchmod", "ftruncate") for name in ("EIO", "EACCES")),
    *((call, name) for call in ("rename", "link") for name in ("EIO", "EACCES")),
    ("unlink", "EIO"),
    ("write", "short"),
    ("write", "flip"),
    ("preadv", "EIO"),
]  # fmt: skip
#: What is asked of a write instead of an error.
TRICKS = {"short": -1, "flip": -2}
OLD = b"what was there before"


@dataclass(frozen=True)
class Case:
    """Something that writes an output.

    Attributes:
        output: the name of what it writes.
        write: called with the path and whether to replace what is there.
        is_resumed: whether a failed run leaves a hidden folder that ``--resume`` takes up.
        unread: files that are written by others, and not read again afterwards.
    """

    output: str
    write: Callable[[Path, bool], None]
    is_resumed: bool = False
    unread: tuple[str, ...] = ()


def command(*arguments: str) -> Callable[[Path, bool], None]:
    """A command whose last arguments are its output and ``--force``."""

    def write(target: Path, force: bool) -> None:
        main([*arguments, "-q", "-o", str(target), *(["--force"] if force else [])])

    return write


def cases(folder: Path) -> dict[str, Case]:
    """Write inputs; give what is run on them, by name."""
    random_bits = np.random.default_rng(0)
    weight = random_bits.integers(-1, 2, (512, 256)).astype(np.float32)
    state = {"fc.weight": weight, "fc.bias": random_bits.standard_normal(512).astype(np.float32)}
    save_file(state, folder / "in.safetensors")
    model = folder / "model"
    model.mkdir()
    save_file(state, model / "model.safetensors")
    (model / "config.json").write_text('{"dtype": "float32"}')
    part = model / "2_Dense"  # which goes with it, as sentence-transformers have one
    part.mkdir()
    save_file({"linear.weight": weight[:16, :64].copy()}, part / "model.safetensors")
    (model / "modules.json").write_text('[{"path": "2_Dense"}]')
    packed = folder / "packed"
    tpack.convert(model, packed)
    tpack.convert(folder / "in.safetensors", folder / "in.tpack.safetensors")
    gguf_model = gguf_exports.folder(folder, name="llama")
    return {
        "convert file": Case("out.safetensors", command("convert", str(folder / "in.safetensors"))),
        "convert folder": Case("out", command("convert", str(model)), is_resumed=True),
        "export folder": Case("out", command("export", str(packed), "--to", "hf-bitnet")),
        "export file": Case("out.gguf", command("export", str(gguf_model), "--to", "gguf")),
        "unpack file": Case(
            "out.safetensors", command("unpack", str(folder / "in.tpack.safetensors"))
        ),
        "unpack folder": Case("out", command("unpack", str(packed))),
        "save_pretrained": Case(
            "out", saving(folder / "llama-hf"), unread=("generation_config.json",)
        ),
    }


def saving(folder: Path) -> Callable[[Path, bool], None]:
    """``save_pretrained`` of a packed model, in two shards; other files of the folder stay."""
    torch.set_num_threads(1)  # children are forked
    # a bar takes a lock that all children share: one killed in between would stop the others
    logging.disable_progress_bar()
    folder.mkdir()
    model = hf_folders.load(hf_folders.packed_folder(hf_folders.llama(), folder))

    def write(target: Path, _: bool) -> None:
        try:
            model.save_pretrained(target, max_shard_size="30KB")
        except TpackError as error:
            sys.exit(error.code)
        sys.exit(0)

    return write


def silence() -> None:
    """Let output go nowhere."""
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (1, 2):
        os.dup2(null, descriptor)


def start(action: Callable[[], None], before: Callable[[], None] = lambda: None) -> int:
    """Start an action in a child; gives the number of the process."""
    child = os.fork()
    if not child:
        silence()
        before()
        try:
            action()
        except SystemExit as ended:
            os._exit(ended.code if isinstance(ended.code, int) else 1)
        os._exit(99)
    return child


def ended(child: int) -> int:
    """Wait for a child; gives its exit code, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def contents(path: Path, unread: Sequence[str] = ()) -> object:
    """What is at a path: bytes, the files of a folder, or None."""
    if path.is_dir():
        files = (file for file in sorted(path.rglob("*")) if file.is_file())
        return {
            str(file.relative_to(path)): file.name in unread or file.read_bytes() for file in files
        }
    return path.read_bytes() if path.exists() else None


def put_old(path: Path) -> None:
    """Put what was there before: a file, or the folder of a model with a file besides."""
    if path.suffix:
        path.write_bytes(OLD)
        return
    path.mkdir(exist_ok=True)
    for file in sorted(path.rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    (path / "old").write_bytes(OLD)
    (path / "config.json").write_bytes(OLD)


def clear(place: Path) -> list[str]:
    """Remove everything in a folder; gives the names of what was hidden."""
    hidden = []
    for path in sorted(place.rglob("*"), reverse=True):
        if path.parent == place and path.name.startswith("."):
            hidden.append(path.name)
        if path.is_dir():
            path.rmdir()
        else:
            path.unlink()
    return hidden


def arm(call: str, number: int, error: int, place: Path, counter: Path) -> None:
    """Let a call fail in this process; when it exits, it says how many calls there were."""
    faults, leave = ctypes.CDLL(None), os._exit

    def count_and_leave(status: int) -> None:
        seen = int(faults.faults_seen())
        faults.faults_arm(b"", 0, 0, b"")
        counter.write_text(str(seen))
        leave(status)

    os._exit = count_and_leave
    faults.faults_arm(call.encode(), number, error, os.fsencode(place))


def calls(folder: Path) -> None:
    """Let every call of every kind fail, with and without an output that is there already."""
    place, counter = folder / "place", folder / "count"
    place.mkdir()
    for kind, case in cases(folder).items():
        target = place / case.output
        for force in (False, True):
            action = partial(case.write, target, force)
            if force:
                put_old(target)
            assert ended(start(action)) == 0, kind
            new = contents(target, case.unread)
            clear(place)
            for call, name in FAULTS:
                number = 0
                while True:
                    number += 1
                    if force:
                        put_old(target)
                    old = contents(target, case.unread)
                    counter.write_bytes(b"")
                    fault = TRICKS[name] if name in TRICKS else ERRORS[name]
                    code = ended(start(action, partial(arm, call, number, fault, place, counter)))
                    after = contents(target, case.unread)
                    seen = int(counter.read_text())
                    left = clear(place)
                    if seen < number:
                        break
                    state = "new" if after == new else "old" if after == old else "broken"
                    may_stay = [f".{case.output}.tpack-partial"] if case.is_resumed else []
                    tidy = left in ([], may_stay)
                    print(
                        json.dumps([kind, force, call, name, number, code, state, tidy]), flush=True
                    )


def kills(folder: Path, count: int) -> None:
    """Kill runs at random times; then run once more, which takes over what is left."""
    chance = random.Random(0)
    found = cases(folder)
    for kind, case in found.items():
        place = folder / f"place-{case.output}-{kind.replace(' ', '-')}"
        place.mkdir()
        target = place / case.output
        action = partial(case.write, target, True)
        put_old(target)
        begin = time.perf_counter()
        assert ended(start(action)) == 0, kind
        span, new = time.perf_counter() - begin, contents(target, case.unread)
        runs = -(-count // len(found))
        for number in range(runs + 1):
            put_old(target)
            old = contents(target, case.unread)
            child = start(action)
            last = number == runs
            if not last:
                time.sleep(chance.uniform(0, 1.1 * span))
                os.kill(child, signal.SIGKILL)
            code = ended(child)
            after = contents(target, case.unread)
            state = "new" if after == new else "old" if after == old else "broken"
            hidden = sorted(path.name for path in place.iterdir() if path.name.startswith("."))
            how = "run again" if last else "kill"
            print(json.dumps([kind, True, how, "", number, code, state, hidden]), flush=True)


if __name__ == "__main__":
    home = Path(sys.argv[2])
    if sys.argv[1] == "calls":
        calls(home)
    else:
        kills(home, int(sys.argv[3]))
