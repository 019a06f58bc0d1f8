"""Time the capture of a folder of transformers, and show that its memory does not grow.

`python tests/bench/bench_capture.py [LAYERS]`

Llamas of three sizes are converted with and without their capture, in a process of its own each
time, in turn. The files of weights are sparse: they hold zeros, which take no disk, and are read
like others. The smallest model is also compared with transformers' own, as is every folder up to
256 MB.
"""

from __future__ import annotations

import json
import math
import statistics
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import transformers

ROUNDS = 3
SIZES = {
    "20 M": {"hidden_size": 256, "intermediate_size": 512},
    "1 B": {"hidden_size": 1536, "intermediate_size": 4096},
    "7 B": {"hidden_size": 4096, "intermediate_size": 11008},
}


def make(folder: Path, layers: int, sizes: dict[str, int]) -> int:
    """Write a config and one sparse file of bfloat16 zeros; returns the bytes of its weights."""
    config = transformers.LlamaConfig(
        **sizes,
        vocab_size=32000,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=8,
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
    )
    config.save_pretrained(folder)
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    header, end = {}, 0
    for name, tensor in model.state_dict().items():
        start, end = end, end + 2 * math.prod(tensor.shape)
        header[name] = {
            "dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [start, end]
        }  # fmt: skip
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return end


CONVERT = """
import json, sys, time
import tpack.conversion
start, began = time.perf_counter(), time.process_time()
report = tpack.convert(sys.argv[1], sys.argv[2], capture=sys.argv[3] == "capture", force=True)
took, busy = time.perf_counter() - start, time.process_time() - began
with open("/proc/self/status") as file:
    peak = next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))
assert any("captured" in note for note in report.notes) == (sys.argv[3] == "capture")
print(json.dumps([took, busy, 1024 * peak]))
"""


def converted(source: Path, target: Path, how: str) -> list[float]:
    """Convert in a process of its own; returns seconds, those of the CPU, and bytes at its peak."""
    command = [sys.executable, "-c", CONVERT, str(source), str(target), how]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: list[float] = json.loads(done.stdout.splitlines()[-1])
    return found


def described(folder: Path) -> int:
    """Return the bytes of the description in a packed file."""
    with (folder / "model.safetensors").open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        metadata = json.loads(file.read(length))["__metadata__"]
    return sum(len(text.encode()) for text in metadata.values())


def main() -> None:
    """Make, convert in turns, print."""
    layers = int(sys.argv[1]) if len(sys.argv) > 1 else 30
    columns = "with its capture | without | CPU of it | memory | without | description | without"
    print(f"| weights | {columns} |\n|{'---|' * 8}")
    for name, sizes in SIZES.items():
        with tempfile.TemporaryDirectory() as place:
            source = Path(place, "source")
            count = make(source, layers, sizes)
            found: dict[str, list[list[float]]] = {"capture": [], "plain": []}
            for _ in range(ROUNDS):
                for how, runs in found.items():
                    runs.append(converted(source, Path(place, how), how))
            times, cpu = (
                [statistics.median(run[i] for run in runs) for runs in found.values()]
                for i in range(2)
            )
            peaks = [max(run[2] for run in runs) for runs in found.values()]
            lengths = [described(Path(place, how)) for how in found]
        print(
            f"| {name}, {count / 1e9:.2f} GB | {times[0]:.1f} s | {times[1]:.1f} s "
            f"| {cpu[0] - cpu[1]:.1f} s "
            f"| {peaks[0] / 1e6:.0f} MB | {peaks[1] / 1e6:.0f} MB "
            f"| {lengths[0] / 1e3:.0f} kB | {lengths[1] / 1e3:.0f} kB |"
        )


if __name__ == "__main__":
    main()
