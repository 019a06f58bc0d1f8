"""What a conversion writes, needs and reports: sizes, memory, disk, dry runs."""

# ruff: noqa: PTH208 -- listdir gives names, which is what is compared

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tensors import noise, trits

import tpack
from tpack.container import Checkpoint
from tpack.errors import (
    ExistsError,
    InputError,
    NotTernaryError,
    StorageError,
    UsageError,
)

# ---- what it needs


def test_the_promise_of_memory_is_kept_and_not_far_off(tmp_path):
    save_file(
        {"a.weight": trits(2048, 2048), "b.weight": noise(2048, 1024)}, tmp_path / "m.safetensors"
    )
    code = (
        "import re, sys, tpack\n"
        "report = tpack.convert(sys.argv[1], dry_run=True, quantize=sys.argv[2])\n"
        "peak = re.search(r'VmHWM:\\s*(\\d+) kB', open('/proc/self/status').read())[1]\n"
        "print(report.memory, 1024 * int(peak))"
    )
    for method in ("absmean", "mse"):
        command = [sys.executable, "-c", code, str(tmp_path / "m.safetensors"), method]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        promised, used = map(int, said.split())
        assert used < promised < 8 * used


def test_a_disk_without_room(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=100))
    with pytest.raises(
        StorageError, match=r"has 100 B of free space, but up to 1\.2 kB are needed"
    ):
        tpack.convert({"a.weight": noise(4, 400)}, tmp_path / "x")


# ---- output


def test_dry_run_tells_the_real_size_and_writes_nothing(tmp_path):
    state = {"a.weight": noise(7, 33), "b.weight": trits(5, 9).half(), "b.bias": noise(5)}
    save_file(state, tmp_path / "m.safetensors")
    for options in ({}, {"layout": "t5", "scale": "group:8"}, {"keep_dtype": "f16"}):
        dry = tpack.convert(tmp_path / "m.safetensors", dry_run=True, **options)
        assert dry.output is None
        assert os.listdir(tmp_path) == ["m.safetensors"]
        real = tpack.convert(tmp_path / "m.safetensors", **options)
        assert dry.output_bytes == real.output_bytes == Path(real.output).stat().st_size
        assert dry.tensors == real.tensors
        Path(real.output).unlink()


def test_dry_run_still_refuses(tmp_path, out):
    with pytest.raises(NotTernaryError):
        tpack.convert({"w": noise(3, 3)}, out, exact=True, dry_run=True)
    with pytest.raises(InputError):
        tpack.convert({"w": trits(2, 2), "w_scale": noise(3)}, out, dry_run=True)


def test_existing_output(out):
    out.write_bytes(b"old")
    with pytest.raises(ExistsError):
        tpack.convert({"w": trits(2, 2)}, out)
    assert out.read_bytes() == b"old"
    tpack.convert({"w": trits(2, 2)}, out, force=True)
    assert tpack.verify(out).ok


def test_output_in_a_missing_folder(tmp_path):
    with pytest.raises(StorageError, match="does not exist"):
        tpack.convert({"w": trits(2, 2)}, tmp_path / "gone" / "x")


def test_the_report_as_json(out):
    report = tpack.convert({"w": trits(4, 4), "v": noise(4, 4), "b": noise(4)}, out)
    data = json.loads(json.dumps(report.to_dict()))
    assert {"output", "input_bytes", "output_bytes", "tensors"} <= set(data)
    for row in data["tensors"]:
        assert {"name", "action", "scale", "method", "relative_error", "bpw"} <= set(row)
        assert row["action"] in ("packed", "quantized", "kept")


def test_progress_reaches_its_end(out):
    calls = []
    tpack.convert({"w": trits(40, 40), "b": noise(9)}, out, progress=lambda *a: calls.append(a))
    for phase in ("packing", "writing"):
        steps = [(done, total) for name, done, total in calls if name == phase]
        assert steps[-1][0] == steps[-1][1]
        assert steps == sorted(steps)


def test_zero_dims_and_empty_tensors_are_kept(out):
    state = {"w": trits(4, 4), "scalar": torch.tensor(1.5), "none": torch.zeros(3, 0, 2)}
    tpack.convert(state, out)
    back = tpack.unpack(out)
    assert back["scalar"].shape == ()
    assert back["none"].shape == (3, 0, 2)
    assert tpack.verify(out, state).ok


# ---- figures


def test_packed_part_takes_two_bits_and_with_t5_less(out):
    state = {"w": trits(64, 1280)}
    for layout, bits in (("t2", 2.0), ("t5", 1.6)):
        tpack.convert(state, out, layout=layout, force=True)
        with Checkpoint(out) as file:
            assert 8 * file.entries["w_packed"].nbytes / state["w"].numel() == bits


PEAK = """
import sys, tpack
tpack.convert(sys.argv[1], sys.argv[2], **eval(sys.argv[3]))
status = open("/proc/self/status").read()
print(int(status.partition("VmHWM:")[2].split()[0]) * 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"quantize": "twn", "scale": "row"}])
def test_memory_stays_below_the_largest_tensor_and_a_half_gigabyte(tmp_path, options):
    generator = np.random.default_rng(0)
    path = tmp_path / "m.safetensors"
    state = {"big.weight": torch.from_numpy(generator.random((8192, 6144), dtype=np.float32) - 0.5)}
    state |= {f"l{i}.weight": state["big.weight"][:4096, :3072].clone() for i in range(4)}
    save_file(state, path)
    largest = state["big.weight"].nbytes
    assert path.stat().st_size > 390e6
    del state
    done = subprocess.run(
        [sys.executable, "-c", PEAK, path, tmp_path / "out", repr(options)],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    assert int(done.stdout) < largest + 500e6


class Stacked(torch.nn.Module):
    """Two experts of a scale per row each, and a convolution with a long kernel."""

    def __init__(self):
        super().__init__()
        self.stack = torch.nn.Parameter(trits(4, 16, 20) * (torch.rand(4, 16, 1) + 0.5))
        self.filters = torch.nn.Conv1d(20, 20, 40, padding=20)
        weight = trits(20, 20, 40) * (torch.rand(20, 1, 1) + 0.5)
        self.filters.weight = torch.nn.Parameter(weight)

    def forward(self, x):
        return torch.einsum("bks,enk->bens", self.filters(x), self.stack)


def test_rows_of_a_stack_have_their_own_scale(tmp_path):
    module, x = Stacked().eval(), torch.randn(2, 20, 8)
    path = tmp_path / "out.safetensors"
    report = tpack.convert(module, path, example_args=(x,))
    found = {t.name: (t.scale, t.method) for t in report.tensors if t.action != "kept"}
    assert found == {"stack": ("row", "exact"), "filters.weight": ("row", "exact")}
    assert tpack.unpack(path)["stack"].equal(module.stack)
    torch.testing.assert_close(tpack.load(path)(x), module(x), rtol=1e-4, atol=1e-3)


def test_rows_of_a_stack_by_its_name(tmp_path):
    weight = trits(4, 16, 100) * (torch.rand(4, 16, 1) + 0.5)
    path = tmp_path / "out.safetensors"
    report = tpack.convert({"mlp.experts.down_proj": weight}, path)
    assert [(t.scale, t.method) for t in report.tensors] == [("row", "exact")]
    assert tpack.unpack(path)["mlp.experts.down_proj"].equal(weight)


@pytest.mark.parametrize("name", ["x.gguf", "x.pt", "x.onnx", "x.BIN"])
def test_an_output_that_is_called_otherwise_is_refused(tmp_path, name):
    with pytest.raises(UsageError, match=r"expected \.safetensors\. tpack\.unpack and tpack\.exp"):
        tpack.convert({"up.weight": trits(8, 8)}, tmp_path / name, dry_run=True)
    tpack.convert({"up.weight": trits(8, 8)}, tmp_path / "model-1.5")
