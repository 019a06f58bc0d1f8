"""Time the conversion of a sharded folder.

`python tests/bench/bench_convert.py [GB] [dtype] [kind]`

kind is `ternary` (groups of 128), `column` (a scale for each) or `gaussian`. The folder is
made in a temporary place, read
once so that it lies in the page cache, and converted in a process of its own, whose peak memory is
read from the operating system.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

ROWS, COLUMNS = 4096, 8192  # 128 MiB of float32
PER_SHARD = 4


def make(folder: Path, size: float, dtype: torch.dtype, kind: str) -> int:
    """Write shards of random weights; returns their bytes."""
    generator = torch.Generator().manual_seed(0)
    count = max(1, round(size * 1e9 / (ROWS * COLUMNS * dtype.itemsize)))
    shards = -(-count // PER_SHARD)
    weight_map = {}
    for shard in range(shards):
        part = {}
        for i in range(shard * PER_SHARD, min(count, (shard + 1) * PER_SHARD)):
            if kind == "ternary":
                trits = torch.randint(-1, 2, (ROWS, COLUMNS // 128, 128), generator=generator)
                scale = torch.rand(ROWS, COLUMNS // 128, 1, generator=generator) + 0.5
                weight = (trits * scale.to(dtype)).reshape(ROWS, COLUMNS)
            elif kind == "column":
                scale = torch.rand(1, COLUMNS, generator=generator) + 0.5
                weight = torch.randint(-1, 2, (ROWS, COLUMNS), generator=generator) * scale.to(
                    dtype
                )
            else:
                weight = torch.randn(ROWS, COLUMNS, generator=generator)
            part[f"model.layers.{i}.up_proj.weight"] = weight.to(dtype)
        name = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        save_file(part, folder / name)
        weight_map |= dict.fromkeys(part, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


CONVERT = """
import sys
import tpack.conversion
tpack.convert(sys.argv[1], sys.argv[2], force=True)
with open("/proc/self/status") as file:
    print(next(line.split()[1] for line in file if line.startswith("VmHWM")))
"""


def main() -> None:
    """Make, warm, convert, print."""
    size = float(sys.argv[1]) if len(sys.argv) > 1 else 1.0
    dtype = getattr(torch, sys.argv[2]) if len(sys.argv) > 2 else torch.float32
    kind = sys.argv[3] if len(sys.argv) > 3 else "ternary"
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "src"), Path(folder, "dst")
        source.mkdir()
        count = make(source, size, dtype, kind)
        times = []
        for _ in range(3):
            for path in source.glob("*.safetensors"):
                with path.open("rb") as file:
                    while file.read(1 << 24):
                        pass
            start = time.perf_counter()
            command = [sys.executable, "-c", CONVERT, str(source), str(target)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            times.append(time.perf_counter() - start)
        peak = int(done.stdout) * 1024
        start = time.perf_counter()
        for path in source.glob("*.safetensors"):
            subprocess.run(["cat", str(path)], check=True, stdout=subprocess.DEVNULL)
        cat = time.perf_counter() - start
    best = sorted(times)[len(times) // 2]
    print(
        f"{count / 1e9:.2f} GB of {dtype} {kind}: {best:.2f} s, {count / best / 1e9:.2f} GB/s, "
        f"peak memory {peak / 1e6:.0f} MB, largest tensor "
        f"{ROWS * COLUMNS * dtype.itemsize / 1e6:.0f} MB; cat {count / cat / 1e9:.1f} GB/s"
    )


if __name__ == "__main__":
    main()
