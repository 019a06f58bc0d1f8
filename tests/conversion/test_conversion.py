"""Conversion: what becomes of each tensor by default and by options."""

# ruff: noqa: PTH208 -- listdir gives names, which is what is compared

import os
import re

import numpy as np
import pytest
import torch
from conversion_sources import rows
from safetensors.torch import load_file, save_file
from tensors import noise, trits
from torch import nn

import tpack
from tpack.container import Checkpoint
from tpack.errors import (
    InputError,
    NotTernaryError,
    UnsupportedError,
    UsageError,
)

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
        with pytest.raises(UnsupportedError, match=r"exclude=\[") as caught:
            tpack.convert({"fc.weight": tensor}, out)
        assert caught.value.tensor == "fc.weight"
    tpack.convert({"w": trits(2, 2), "b": tensor}, out, exclude=["b"])
    assert torch.equal(tpack.unpack(out)["b"], tensor)


def test_nothing_to_pack(out):
    with pytest.raises(InputError, match="no weight to pack: 2 tensors to keep"):
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
        "exclude=['q_proj'] matches no name"
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
