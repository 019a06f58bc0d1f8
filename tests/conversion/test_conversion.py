"""Conversion: the policy of the interface, on state dicts, modules and files."""

# ruff: noqa: PTH208 -- listdir gives names, which is what is compared

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import tpack
from tpack.container import Checkpoint
from tpack.errors import (
    ExistsError,
    InputError,
    LayerDefError,
    NotTernaryError,
    StorageError,
    UnsupportedError,
    UsageError,
)
from tpack.layerdef import LayerDef, Param, Program, Unspecified


def trits(*shape, seed=0):
    """Random trits, float32."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-1, 2, shape, generator=generator).float()


def noise(*shape, seed=0):
    """Weights that are not ternary."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def rows(report):
    """The report as name → (action, scale, method)."""
    return {t.name: (t.action, t.scale, t.method) for t in report.tensors}


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out.safetensors"


# ---- the default policy


def test_default_policy(out):
    state = {
        "embed.weight": noise(5, 8),
        "a.weight": trits(6, 8) * 0.25,
        "a.bias": noise(6),
        "b.weight": trits(6, 8) * torch.tensor([1.0, 2, 4, 8, 16, 32])[:, None],
        "c.weight": noise(6, 8),
        "norm.weight": noise(8),
        "steps": torch.tensor(4),
        "lm_head.weight": trits(5, 8),
    }
    report = tpack.convert(state, out)
    kept = ("kept", None, None)
    assert rows(report) == {
        "embed.weight": kept,
        "a.weight": ("packed", "tensor", "exact"),
        "a.bias": kept,
        "b.weight": ("packed", "row", "exact"),
        "c.weight": kept,
        "norm.weight": kept,
        "steps": kept,
        "lm_head.weight": kept,
    }
    assert report.output == str(out)
    assert report.output_bytes == out.stat().st_size
    assert report.input_bytes == sum(t.nbytes for t in state.values())
    back = tpack.unpack(out)
    assert back.keys() == state.keys()
    for name, tensor in state.items():
        assert torch.equal(back[name], tensor)
        assert back[name].dtype == tensor.dtype
    assert not any(tensor.relative_error for tensor in report.tensors)


def test_bits_per_weight_of_the_report(out):
    report = tpack.convert({"w": trits(4, 10), "b": torch.zeros(3).half()}, out)
    bpw = {t.name: t.bpw for t in report.tensors}
    assert bpw == {"w": round(8 * (4 * 3 + 4) / 40, 4), "b": 16.0}


def test_exact_text_and_code(out):
    state = {"ok.weight": trits(3, 4), "up.weight": torch.tensor([[0.5, 0], [-0.5, 0.25]])}
    with pytest.raises(NotTernaryError) as caught:
        tpack.convert(state, out, exact=True)
    error = caught.value
    assert (error.code, error.tensor, error.index, error.value) == (4, "up.weight", (1, 1), 0.25)
    assert "'up.weight' is not ternary: value 0.25 at index (1, 1), expected 0 or ±0.5" in str(
        error
    )
    assert not out.exists()
    assert os.listdir(out.parent) == []


def test_exact_accepts_what_is_excluded(out):
    state = {"a": trits(3, 4), "b": noise(3, 4)}
    report = tpack.convert(state, out, exact=True, exclude=["b"])
    assert rows(report)["b"][0] == "kept"
    assert tpack.verify(out, state).ok


@pytest.mark.parametrize("method", ["absmean", "twn", "mse"])
@pytest.mark.parametrize("scale", ["tensor", "row", "group:4"])
@pytest.mark.parametrize("layout", ["t2", "t5"])
def test_methods_scales_and_layouts(out, method, scale, layout):
    state = {"w": noise(5, 11)}
    report = tpack.convert(state, out, quantize=method, scale=scale, layout=layout)
    assert rows(report) == {"w": ("quantized", scale, method)}
    assert tpack.verify(out).ok
    restored = tpack.unpack(out)["w"]
    lost = (restored - state["w"]).norm() / state["w"].norm()
    assert report.tensors[0].relative_error == pytest.approx(float(lost), rel=1e-3)


def test_the_layout_changes_neither_trits_nor_digest(tmp_path):
    state = {"w": trits(5, 13)}
    digests = set()
    for layout in ("t2", "t5"):
        path = tmp_path / layout
        tpack.convert(state, path, layout=layout)
        with Checkpoint(path) as file:
            digests.add(file.document.tensors["w"].sha256)
        assert torch.equal(tpack.unpack(path)["w"], state["w"])
    assert len(digests) == 1


def test_include_packs_embeddings_and_heads_and_nothing_else(out):
    state = {"embed.weight": trits(4, 4), "fc.weight": trits(4, 4), "lm_head.weight": trits(4, 4)}
    report = tpack.convert(state, out, include=["embed.*", "lm_head.*"])
    assert {name for name, row in rows(report).items() if row[0] == "packed"} == {
        "embed.weight",
        "lm_head.weight",
    }
    assert tpack.verify(out, state).ok


@pytest.mark.parametrize("wish", ["f32", "f16", "bf16"])
def test_keep_dtype(out, wish):
    kind = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[wish]
    state = {
        "w": trits(4, 4),
        "double": noise(5).double(),
        "single": noise(5),
        "half": noise(5).half(),
        "brain": noise(5).bfloat16(),
        "count": torch.arange(3),
        "none": torch.zeros(0, 2),
    }
    tpack.convert(state, out, keep_dtype=wish)
    back = tpack.unpack(out)
    for name, tensor in state.items():
        wanted = tensor if name in ("w", "count") else tensor.to(kind)
        assert back[name].dtype == wanted.dtype
        assert torch.equal(back[name], wanted)


def test_keep_dtype_that_overflows(out):
    with pytest.raises(InputError, match="beyond float16") as caught:
        tpack.convert({"w": trits(4, 4), "b": torch.tensor([1e6])}, out, keep_dtype="f16")
    assert caught.value.tensor == "b"
    assert os.listdir(out.parent) == []


def test_kept_values_that_are_not_finite_stay(out):
    state = {"w": trits(4, 4), "b": torch.tensor([float("nan"), float("inf"), -0.0])}
    tpack.convert(state, out)
    assert (
        tpack.unpack(out)["b"].view(torch.int32).tolist() == state["b"].view(torch.int32).tolist()
    )


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite(out, bad):
    w = trits(3, 4)
    w[2, 1] = bad
    with pytest.raises(InputError) as caught:
        tpack.convert({"fc.weight": w}, out)
    assert caught.value.tensor == "fc.weight"
    assert "(2, 1)" in str(caught.value)
    assert not out.exists()


@pytest.mark.parametrize(
    "options",
    [
        {"quantize": "best"},
        {"scale": "cell"},
        {"layout": "t3"},
        {"keep_dtype": "f64"},
    ],
)
def test_unknown_options(out, options):
    with pytest.raises(UsageError) as caught:
        tpack.convert({"w": trits(2, 2)}, out, **options)
    assert caught.value.code == 2
    assert not out.exists()


def test_float8_and_complex_weights_are_refused_with_a_hint(out):
    for tensor in (trits(4, 4).to(torch.float8_e4m3fn), torch.zeros(2, 2, dtype=torch.complex64)):
        with pytest.raises(UnsupportedError, match="--exclude") as caught:
            tpack.convert({"fc.weight": tensor}, out)
        assert caught.value.tensor == "fc.weight"
    tpack.convert({"w": trits(2, 2), "b": tensor}, out, exclude=["b"])
    assert torch.equal(tpack.unpack(out)["b"], tensor)


def test_nothing_to_pack(out):
    with pytest.raises(InputError, match="no weight to pack: all 2 tensors are kept"):
        tpack.convert({"b": noise(3), "n": torch.arange(3)}, out)
    assert not out.exists()


@pytest.mark.parametrize("stored", ["w_packed", "w_scale"])
def test_names_that_clash(out, stored):
    with pytest.raises(InputError, match="Rename it") as caught:
        tpack.convert({"w": trits(2, 2), stored: noise(3)}, out)
    assert caught.value.tensor == stored
    assert not out.exists()


def test_alias_with_the_name_of_a_packed_tensor(out):
    bias = noise(3)
    state = {"w": trits(2, 2), "b": bias, "w_scale": bias}
    try:
        tpack.convert(state, out)
    except InputError:
        assert not out.exists()
    else:
        assert tpack.verify(out, state).ok


# ---- int8 with a companion


@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (3,), (3, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_companion_scale(out, shape, dtype):
    count = 3 if 3 in shape else 1
    scale = torch.tensor([0.5, 2, 0.25])[:count].reshape(shape).to(dtype)
    state = {"w": (trits(3, 4) * 5).to(torch.int8), "w_scale": scale}
    report = tpack.convert(state, out)
    assert [t.name for t in report.tensors] == ["w"]
    assert any("w_scale" in note for note in report.notes)
    wanted = state["w"].float() * scale.float().reshape(-1, 1)
    assert torch.equal(tpack.unpack(out)["w"], wanted)
    assert tpack.verify(out, state).ok


def test_companion_that_does_not_fit(out):
    with pytest.raises(NotTernaryError, match=r"'w' is int8 with the scale 'w_scale', float32 of"):
        tpack.convert({"w": trits(3, 4).to(torch.int8), "w_scale": noise(7)}, out)


# ---- sources


def test_module_and_state_dict_and_files_give_the_same_bytes(tmp_path):
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))
    with torch.no_grad():
        model[0].weight.copy_(trits(6, 8))
    state = model.state_dict()
    torch.save(state, tmp_path / "m.pt")
    torch.save(state, tmp_path / "m.bin", _use_new_zipfile_serialization=False)
    blobs = []
    for i, source in enumerate((model, dict(state), tmp_path / "m.pt", tmp_path / "m.bin")):
        tpack.convert(source, tmp_path / f"{i}")
        blobs.append((tmp_path / f"{i}").read_bytes())
    assert len(set(blobs)) == 1


def test_safetensors_source_gives_the_same_tensors(tmp_path):
    state = {"z.weight": trits(3, 4), "a.weight": noise(3, 4), "a.bias": noise(3)}
    save_file(state, tmp_path / "m.safetensors")
    report = tpack.convert(tmp_path / "m.safetensors")
    assert report.output == str(tmp_path / "m.tpack.safetensors")
    tpack.convert(state, tmp_path / "other")
    one, two = load_file(report.output), load_file(tmp_path / "other")
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_aliases_are_kept_and_restored(out):
    w = trits(4, 4)
    state = {"a.weight": w, "b.weight": w, "bias": noise(3)}
    state["c.bias"] = state["bias"]
    report = tpack.convert(state, out)
    shared = {t.name: t.reason for t in report.tensors if t.reason.startswith("shares")}
    assert [t.name for t in report.tensors] == ["a.weight", "bias", "b.weight", "c.bias"]
    assert shared == {"b.weight": "shares a.weight", "c.bias": "shares bias"}
    back = tpack.unpack(out)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)
    assert tpack.verify(out, state).ok


def test_a_tied_tensor_is_kept_by_any_of_its_names(out):
    table = noise(9, 4)
    state = {"out.weight": table, "fc.weight": noise(4, 4), "embed.weight": table}

    def action(**options):
        report = tpack.convert(state, out, force=True, **options)
        return {t.name: t.action for t in report.tensors}["out.weight"]

    assert action() == "kept"
    assert action(include=["embed.*"]) == action(include=["out.*"]) == "quantized"
    assert action(include=["*"], exclude=["embed.*"]) == "kept"
    assert torch.equal(tpack.unpack(out)["embed.weight"], table)


def test_wrappers_are_stripped_and_reported(out):
    state = {"module._orig_mod.fc.weight": trits(3, 4)}
    report = tpack.convert(state, out)
    assert rows(report).keys() == {"fc.weight"}
    assert any("module." in note for note in report.notes)
    assert any("_orig_mod." in note for note in report.notes)
    assert tpack.verify(out, state).ok


def test_state_dict_without_destination():
    with pytest.raises(UsageError, match="destination"):
        tpack.convert({"w": trits(2, 2)})


def test_a_text_is_no_list_of_patterns(out):
    """Its letters would be patterns, and ``*`` would match everything."""
    state = {"a.weight": noise(4, 4), "b.weight": noise(4, 4)}
    for option in ("include", "exclude"):
        with pytest.raises(UsageError, match=rf"{option} is 'a\*', expected a list: \['a\*'\]"):
            tpack.convert(state, out, **{option: "a*"})


def test_values_that_differ_little_are_told_apart(out):
    weight = torch.full((4, 4), 0.1)
    weight[2, 1] = torch.nextafter(weight[2, 1], torch.tensor(1.0))
    with pytest.raises(NotTernaryError) as caught:
        tpack.convert({"a.weight": weight}, out, exact=True, scale="tensor")
    text = str(caught.value)
    value, scale = re.search(r"index .* (\S+) is found, expected ±(\S+) or 0", text).groups()
    assert (np.float32(value), np.float32(scale)) == (weight[2, 1], np.float32(0.1))


def test_patterns_that_match_nothing_are_noted(out):
    state = {"q_proj.weight": noise(4, 4), "k_proj.weight": noise(4, 4)}
    report = tpack.convert(state, out, exclude=["q_proj", "k_proj.*"])
    assert [note for note in report.notes if "matches" in note] == [
        "--exclude 'q_proj' matches no name"
    ]


def test_int8_that_is_not_ternary_is_kept(out):
    codes = torch.arange(-8, 8, dtype=torch.int8).reshape(4, 4)
    state = {"a.weight": codes, "a.weight_scale": torch.ones(1), "b.weight": trits(8, 8) * 3}
    report = tpack.convert(state, out)
    assert {n: r[0] for n, r in rows(report).items()} == {
        "a.weight": "kept",
        "a.weight_scale": "kept",
        "b.weight": "packed",
    }
    assert "1 weight is packed by a system of 8-bit integers with scales" in report.warnings[0]
    back = tpack.unpack(out)
    assert all(torch.equal(back[name], tensor) for name, tensor in state.items())
    report = tpack.convert(state, out, force=True, quantize="absmean")
    assert rows(report)["a.weight"] == ("quantized", "tensor", "absmean")


def test_an_empty_path_is_not_this_folder(out, tmp_path, monkeypatch):
    save_file({"a.weight": trits(4, 4)}, tmp_path / "model.safetensors")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="source is an empty path"):
        tpack.convert("", tmp_path.parent / "out")


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


# ---- layerdef


def block(rows=4):
    return LayerDef("Block", [Param("w", "TernaryTensor", [rows, 64])], [Unspecified()])


def model(*more):
    params = [Param("blocks", "Layer", layer="Block", repeat=2), *more]
    return LayerDef("Model", params, [Unspecified()])


PROGRAM = Program([block(), model()], "Model")


def test_the_program_decides_what_is_packed(out):
    tree = LayerDef(
        "Model",
        [Param("embed", "TernaryTensor", [4, 8]), Param("fc", "Tensor", [4, 8])],
        [Unspecified()],
    )
    state = {"embed": trits(4, 8), "fc": trits(4, 8)}
    report = tpack.convert(state, out, layerdef=tree)
    assert rows(report)["embed"] == ("packed", "tensor", "exact")
    assert rows(report)["fc"][0] == "kept"
    assert tpack.verify(out, state).ok


@pytest.mark.parametrize(
    ("state", "text"),
    [
        ({"blocks.0.w": (4, 64)}, "lacks blocks.1.w"),
        ({"blocks.0.w": (4, 64), "blocks.1.w": (4, 64), "x": (2,)}, "surplus x"),
        ({"blocks.0.w": (4, 64), "blocks.1.w": (64, 4)}, "expected (4, 64)"),
    ],
)
def test_tensors_that_do_not_match_the_program(out, state, text):
    state = {name: trits(*shape) for name, shape in state.items()}
    with pytest.raises(LayerDefError) as caught:
        tpack.convert(state, out, layerdef=PROGRAM)
    assert text in str(caught.value)
    assert not out.exists()


@pytest.mark.parametrize("layout", ["t2", "t5"])
@pytest.mark.parametrize(
    "kinds",
    [("tensor", "row"), ("row", "group:32"), ("tensor", "group:32"), ("group:32", "tensor")],
)
def test_copies_of_different_granularity_are_refined_losslessly(out, kinds, layout):
    factors = {
        "tensor": torch.tensor(0.5),
        "row": torch.tensor([[1.0], [2], [4], [8]]),
        "group:32": torch.tensor([1.0, 2]).repeat_interleave(32),
    }
    state = {f"blocks.{i}.w": trits(4, 64, seed=i) * factors[kind] for i, kind in enumerate(kinds)}
    tpack.convert(state, out, layerdef=PROGRAM, layout=layout)
    assert tpack.verify(out, state).ok
    back = tpack.unpack(out)
    assert all(torch.equal(back[name], state[name]) for name in state)
    assert len({row.scale for row in tpack.inspect(out).tensors}) == 1
    loaded = tpack.load(out).state_dict()
    assert set(loaded) == set(load_file(out))


@pytest.mark.parametrize(
    ("kinds", "common"),
    [
        (("tensor", "column"), "column"),
        (("column", "tensor"), "column"),
        (("group:48", "group:64"), "group:16"),
        (("group:64", "row"), "group:64"),
        (("column", "row"), None),
        (("group:64", "column"), None),
    ],
)
def test_copies_share_the_coarsest_scale_that_fits_all_or_are_refused(out, kinds, common):
    generator = torch.Generator().manual_seed(1)
    factors = {
        "tensor": torch.tensor(0.5),
        "row": torch.rand(16, 1, generator=generator) + 0.5,
        "column": torch.rand(192, generator=generator) + 0.5,
        "group:48": (torch.rand(16, 4, generator=generator) + 0.5).repeat_interleave(48, 1),
        "group:64": (torch.rand(16, 3, generator=generator) + 0.5).repeat_interleave(64, 1),
    }
    wide = LayerDef("Block", [Param("w", "TernaryTensor", [16, 192])], [Unspecified()])
    tree = Program([wide, model()], "Model")
    state = {f"blocks.{i}.w": trits(16, 192, seed=i) * factors[k] for i, k in enumerate(kinds)}
    if common is None:
        words = f"'blocks.1.w' has scales per {kinds[1]}, other copies of Block per {kinds[0]}"
        with pytest.raises(LayerDefError, match=words):
            tpack.convert(state, out, layerdef=tree)
        assert not out.exists()
        return
    tpack.convert(state, out, layerdef=tree)
    assert {row.scale for row in tpack.inspect(out).tensors} == {common}
    assert tpack.verify(out, state).ok
    back = tpack.unpack(out)
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_refined_group_sizes(out):
    tree = Program(
        [LayerDef("Block", [Param("w", "TernaryTensor", [2, 300])], [Unspecified()]), model()],
        "Model",
    )
    wide = torch.tensor([1.0, 2, 4, 8, 16, 32, 64, 128, 256, 512])
    state = {
        "blocks.0.w": trits(2, 300) * wide.repeat_interleave(128)[:300],
        "blocks.1.w": trits(2, 300) * wide.repeat_interleave(32)[:300],
    }
    tpack.convert(state, out, layerdef=tree)
    assert tpack.verify(out, state).ok
    assert {row.scale for row in tpack.inspect(out).tensors} == {"group:32"}


def test_dry_run_with_refinement(out):
    state = {
        "blocks.0.w": trits(4, 64),
        "blocks.1.w": trits(4, 64) * torch.tensor([[1.0], [2], [3], [4]]),
    }
    dry = tpack.convert(state, out, layerdef=PROGRAM, dry_run=True)
    real = tpack.convert(state, out, layerdef=PROGRAM)
    assert dry.output_bytes == real.output_bytes
    with Checkpoint(out) as file:
        told = {t.name: t.scale for t in real.tensors}
        assert told == {name: entry.scale for name, entry in file.document.tensors.items()}


def test_copies_of_different_dtypes_are_refused(out):
    state = {"blocks.0.w": trits(4, 64), "blocks.1.w": trits(4, 64).half()}
    with pytest.raises(LayerDefError, match="other copies of Block"):
        tpack.convert(state, out, layerdef=PROGRAM)


def test_layerdef_files(tmp_path, out):
    path = tmp_path / "tree.json"
    state = {"blocks.0.w": trits(4, 64), "blocks.1.w": trits(4, 64)}
    path.write_text(json.dumps(PROGRAM.to_dict()))
    tpack.convert(state, out, layerdef=path)
    blob = out.read_bytes()
    tpack.convert(state, out, layerdef=PROGRAM, force=True)
    assert out.read_bytes() == blob
    path.write_text(json.dumps(block().to_dict()))
    tpack.convert({"w": trits(4, 64)}, out, layerdef=str(path), force=True)
    assert tpack.verify(out).ok


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"name": 1}', '{"a":1,"a":2}', "\xff"])
def test_malformed_layerdef_files(tmp_path, out, text):
    path = tmp_path / "tree.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(InputError) as caught:
        tpack.convert({"w": trits(4, 64)}, out, layerdef=path)
    assert caught.value.file == str(path)
    with pytest.raises(InputError, match="No such file"):
        tpack.convert({"w": trits(4, 64)}, out, layerdef=tmp_path / "gone.json")


def test_names_that_are_no_identifiers_give_no_program(out):
    state = {"class.weight": trits(4, 4), "my fc.weight": trits(4, 4)}
    report = tpack.convert(state, out)
    assert any("no LayerDefs" in note for note in report.notes)
    assert tpack.inspect(out).program is None
    assert tpack.verify(out, state).ok


def test_deep_names_convert(out):
    state = {"fc.weight": trits(4, 4), ".".join("a" * 300) + ".weight": trits(4, 4)}
    tpack.convert(state, out)
    assert tpack.verify(out, state).ok


def test_a_tensor_with_the_name_of_a_module(out):
    state = {"fc": trits(4, 4), "fc.weight": trits(4, 4)}
    tpack.convert(state, out)
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
