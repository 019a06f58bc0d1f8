"""Time `tpack.load` of a large checkpoint: `python tests/bench/bench_load.py [GB]`.

The checkpoint is made of packed bytes directly, so that no float weight is needed. Each load runs
in a process of its own, which reports its time and how far its resident memory grew. Then one, two
and four processes load a quarter of a GB, use every weight, and report how much memory they hold.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from tpack.container import Document, Piece, TernaryEntry, write_checkpoint
from tpack.layerdef import Param
from tpack.layerdef.from_names import mirror
from tpack.layerdef.tensors import Slot

ROWS, COLUMNS = 14336, 4096

LOAD = """
import json, resource, sys, time
import torch, tpack.checkpoint

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()

before, start = resident(), time.perf_counter()
model = tpack.load(sys.argv[1])
seconds = time.perf_counter() - start
grown = resident() - before
layer = model.layers[0].up_proj
with torch.no_grad():
    layer(torch.randn(1, layer.in_features))
print(json.dumps([seconds, grown]))
"""

#: Answers each line on stdin: what it holds before it loads, and after it used every weight.
SERVE = """
import sys
import torch, tpack.checkpoint
from tpack.nn import TernaryLinear

def held():
    with open("/proc/self/smaps_rollup") as file:
        sizes = {line.split()[0]: line.split()[1] for line in list(file)[1:]}
    print(sizes["Rss:"], sizes["Pss:"], flush=True)

torch.set_num_threads(1)
torch.nn.functional.linear(torch.randn(1, 4096), torch.randn(64, 4096))
print("ready", flush=True)
sys.stdin.readline()
held()
model = tpack.load(sys.argv[1])
with torch.no_grad():
    for layer in model.modules():
        if isinstance(layer, TernaryLinear):
            layer(torch.randn(1, layer.in_features))
print("ready", flush=True)
sys.stdin.readline()
held()
sys.stdin.readline()
"""


def make(path: Path, size: float) -> int:
    """Write a checkpoint of about `size` GB; returns its bytes."""
    count = max(1, round(size * 1e9 / (ROWS * COLUMNS // 4)))
    codes = np.random.default_rng(0).integers(0, 3, (ROWS * COLUMNS // 4, 4), dtype=np.uint8)
    packed = codes[:, 0] | codes[:, 1] << 2 | codes[:, 2] << 4 | codes[:, 3] << 6
    scale = np.ones(1, np.float32)
    names = [f"layers.{i}.up_proj.weight" for i in range(count)]
    shape = (ROWS, COLUMNS)
    entry = TernaryEntry(shape, 1, "t2", "tensor", "exact", "float32", 0.0, "0" * 64, "0" * 64)
    program = mirror([Slot(name, Param(name, "TernaryTensor", shape)) for name in names])
    pieces = [Piece.of(f"{name}_packed", "uint8", entry.packed_shape, packed) for name in names]
    pieces += [Piece.of(f"{name}_scale", "float32", (1,), scale) for name in names]
    return write_checkpoint(path, Document(program, dict.fromkeys(names, entry), {}), pieces)


def shared(path: Path, count: int) -> tuple[float, float]:
    """Load a file in so many processes at once; the MiB of each by Rss, and of all by Pss."""
    command = [sys.executable, "-c", SERVE, str(path)]
    workers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(count)
    ]

    def ask() -> tuple[int, int]:
        for worker in workers:
            assert worker.stdout.readline() == "ready\n"
        for worker in workers:  # each answers while all hold what they hold
            worker.stdin.write("\n")
            worker.stdin.flush()
        answers = [[int(size) for size in worker.stdout.readline().split()] for worker in workers]
        return max(rss for rss, _ in answers), sum(pss for _, pss in answers)

    before, after = ask(), ask()
    for worker in workers:
        worker.communicate("\n")
    return (after[0] - before[0]) / 1024, (after[1] - before[1]) / 1024


def main() -> None:
    """Make, load, print."""
    size = float(sys.argv[1]) if len(sys.argv) > 1 else 1.0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "m.safetensors")
        count = make(path, size)
        runs = []
        for _ in range(5):
            command = [sys.executable, "-c", LOAD, str(path)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            runs.append(json.loads(done.stdout))
        seconds, grown = sorted(runs)[len(runs) // 2]
        print(
            f"{count / 1e9:.2f} GB: {seconds:.3f} s, resident memory grew by {grown / 1e6:.1f} MB"
        )
        path = Path(folder, "served.safetensors")
        count = make(path, 0.25)
        print(f"{count / 2**20:.0f} MiB of packed weights, all used:")
        for processes in (1, 2, 4):
            each, together = shared(path, processes)
            print(f"{processes} processes: {each:.0f} MiB each by Rss, {together:.0f} MiB by Pss")


if __name__ == "__main__":
    main()
