"""Open a 1 GB ``.pt`` of 2,000 tensors: tpack's reader beside ``torch.load(mmap=True)``.

``python tests/bench/bench_open_pickle.py [FOLDER]``. Both in turn, from a warm cache, medians;
then the memory that a conversion of the file takes, in a process of its own.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from tpack.sources import open_source

TENSORS, ELEMENTS, ROUNDS = 2000, 131_072, 15
CONVERT = """
import sys
from tpack.cli.main import _run
assert _run(["convert", *sys.argv[1:], "-q"]) == 0
print(int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) // 1024)
"""


def seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def main() -> None:
    with tempfile.TemporaryDirectory(dir=(sys.argv[1:] or [None])[0]) as folder:
        path = Path(folder) / "model.pt"
        torch.manual_seed(0)
        # a block of layers shares nothing with another: 2,000 storages
        state = {f"layers.{i}.weight": torch.randn(256, ELEMENTS // 256) for i in range(TENSORS)}
        torch.save(state, path)
        del state

        def ours() -> None:
            with open_source(path) as source:
                assert len(source.tensors) == TENSORS

        def theirs() -> None:
            assert len(torch.load(path, mmap=True, weights_only=True)) == TENSORS

        sides = {"tpack": ours, "torch.load": theirs}
        for run in sides.values():
            run()
        times = {name: [] for name in sides}  # type: dict[str, list[float]]
        for _ in range(ROUNDS):
            for name, run in sides.items():
                times[name].append(seconds(run))
        found = {name: statistics.median(each) for name, each in times.items()}
        print(f"{path.stat().st_size / 1e9:.2f} GB, {TENSORS} tensors, {ROUNDS} rounds in turn")
        for name, each in found.items():
            print(f"{name:12} {each * 1000:7.1f} ms")
        ratios = [b / a for a, b in zip(times["tpack"], times["torch.load"], strict=True)]
        print(f"{statistics.median(ratios):.2f} times as fast as torch.load")
        command = [sys.executable, "-c", CONVERT, path, "-o", Path(folder) / "out.safetensors"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        print(f"convert takes {done.stdout.split()[-1]} MB of memory")


if __name__ == "__main__":
    main()
