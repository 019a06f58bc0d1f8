"""Time `tpack.load` of a large checkpoint: `python tests/bench/bench_load.py [GB]`.

The checkpoint is made of packed bytes directly, so that no float weight is needed. Each load runs
in a process of its own, which reports its time and how far its resident memory grew.
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
    print(f"{count / 1e9:.2f} GB: {seconds:.3f} s, resident memory grew by {grown / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
