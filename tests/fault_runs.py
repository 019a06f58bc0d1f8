"""Runs conversions that fail: the n-th system call of a kind, or a kill at any time.

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
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from tpack.cli.main import main

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


def sources(folder: Path) -> dict[str, list[str]]:
    """Write inputs; give the commands by name, the output as the last argument."""
    random_bits = np.random.default_rng(0)
    weight = random_bits.integers(-1, 2, (512, 256)).astype(np.float32)
    state = {"fc.weight": weight, "fc.bias": random_bits.standard_normal(512).astype(np.float32)}
    save_file(state, folder / "in.safetensors")
    model = folder / "model"
    model.mkdir()
    save_file(state, model / "model.safetensors")
    (model / "config.json").write_text("{}")
    part = model / "2_Dense"  # which goes with it, as sentence-transformers have one
    part.mkdir()
    save_file({"linear.weight": weight[:16, :64].copy()}, part / "model.safetensors")
    (model / "modules.json").write_text('[{"path": "2_Dense"}]')
    return {
        "file": ["convert", str(folder / "in.safetensors"), "-q", "-o"],
        "folder": ["convert", str(model), "-q", "-o"],
    }


def silence() -> None:
    """Let output go nowhere."""
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (1, 2):
        os.dup2(null, descriptor)


def run(arguments: list[str], before: Callable[[], None] | None = None) -> int:
    """Run a command in a child; gives its exit code, or minus the signal that ended it."""
    child = os.fork()
    if not child:
        silence()
        if before is not None:
            before()
        try:
            main(arguments)
        except SystemExit as ended:
            os._exit(ended.code if isinstance(ended.code, int) else 1)
        os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def contents(path: Path) -> object:
    """What is at a path: bytes, the files of a folder, or None."""
    if path.is_dir():
        files = (file for file in sorted(path.rglob("*")) if file.is_file())
        return {str(file.relative_to(path)): file.read_bytes() for file in files}
    return path.read_bytes() if path.exists() else None


def put_old(path: Path) -> None:
    """Put what was there before."""
    if path.name == "out":
        path.mkdir(exist_ok=True)
        for file in sorted(path.rglob("*"), reverse=True):
            file.rmdir() if file.is_dir() else file.unlink()
        (path / "old").write_bytes(OLD)
    else:
        path.write_bytes(OLD)


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
    for kind, command in sources(folder).items():
        target = place / ("out" if kind == "folder" else "out.safetensors")
        for force in (False, True):
            arguments = [*command, str(target), *(["--force"] if force else [])]
            if force:
                put_old(target)
            assert run(arguments) == 0
            new = contents(target)
            clear(place)
            for call, name in FAULTS:
                number = 0
                while True:
                    number += 1
                    if force:
                        put_old(target)
                    old = contents(target)
                    counter.write_bytes(b"")
                    fault = TRICKS[name] if name in TRICKS else ERRORS[name]
                    code = run(arguments, partial(arm, call, number, fault, place, counter))
                    after = contents(target)
                    seen = int(counter.read_text())
                    left = clear(place)
                    if seen < number:
                        break
                    state = "new" if after == new else "old" if after == old else "broken"
                    row = [kind, force, call, name, number, code, state, left]
                    print(json.dumps(row), flush=True)


def kills(folder: Path, count: int) -> None:
    """Kill conversions at random times; then run once more, which takes over what is left."""
    chance = random.Random(0)
    for kind, command in sources(folder).items():
        place = folder / f"place-{kind}"
        place.mkdir()
        target = place / ("out" if kind == "folder" else "out.safetensors")
        arguments = [*command, str(target), "--force"]
        put_old(target)
        start = time.perf_counter()
        assert run(arguments) == 0
        span, new = time.perf_counter() - start, contents(target)
        for number in range(count // 2 + 1):
            put_old(target)
            old = contents(target)
            child = os.fork()
            if not child:
                silence()
                try:
                    main(arguments)
                except SystemExit as ended:
                    os._exit(int(ended.code or 0))
            last = number == count // 2
            if not last:
                time.sleep(chance.uniform(0, 1.1 * span))
                os.kill(child, signal.SIGKILL)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            after = contents(target)
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
