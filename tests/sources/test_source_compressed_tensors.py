"""Folders of compressed-tensors with 2-bit weights, packed by that library or by hand."""

import json
import re

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import tpack
from tpack import codec
from tpack.errors import InputError
from tpack.quantize import widen
from tpack.sources import PackedTensor, dialects
from tpack.sources.compressed_tensors import adapt
from tpack.sources.torch_source import state_dict_source

NAME = "model.layers.0.mlp.up_proj.weight"
SHAPE = (6, 70)
SCALES = {"tensor": (1,), "channel": (6, 1), "group": (6, 3)}


def words(weight):
    """Symmetric 2-bit integers in 32-bit words, one at a time."""
    out = np.zeros((len(weight), -(-weight.shape[1] // 16)), dtype=np.uint32)
    for (row, column), trit in np.ndenumerate(weight):
        out[row, column // 16] |= np.uint32(int(trit) + 2 << 2 * (column % 16))
    return torch.from_numpy(out.view(np.int32))


def trits(seed=0):
    return np.random.default_rng(seed).integers(-1, 2, SHAPE, dtype=np.int8)


def state_of(strategy="channel", dtype=torch.bfloat16):
    scale = torch.rand(SCALES[strategy], generator=torch.Generator().manual_seed(1)) + 0.5
    return {
        f"{NAME}_packed": words(trits()),
        f"{NAME}_scale": scale.to(dtype),
        f"{NAME}_shape": torch.tensor(SHAPE),
        "model.norm.weight": torch.ones(70),
    }


def config(strategy="channel", **weights):
    settings = {"num_bits": 2, "type": "int", "symmetric": True, "strategy": strategy}
    settings |= {"group_size": 32 if strategy == "group" else None} | weights
    return {
        "quantization_config": {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": settings}},
            "ignore": ["lm_head"],
        }
    }


def read(state, found):
    return adapt(state_dict_source(state).tensors, found or {})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("strategy", SCALES)
def test_each_strategy(strategy, dtype):
    state = state_of(strategy, dtype)
    tensors, notes = read(state, config(strategy))
    assert list(tensors) == [NAME, "model.norm.weight"]
    weight = tensors[NAME]
    assert isinstance(weight, PackedTensor)
    assert (weight.shape, weight.divisor) == (SHAPE, None)
    granularity = {"tensor": "tensor", "channel": "row", "group": "group:32"}[strategy]
    assert str(weight.granularity) == granularity
    assert weight.scale.shape == SCALES[strategy]
    scale = state[f"{NAME}_scale"]
    assert (widen(weight.scale, weight.scale_dtype) == scale.float().numpy()).all()
    assert weight.dtype == weight.scale_dtype == str(dtype).removeprefix("torch.")
    assert (weight.rows(0, 6) == codec.pack(trits())).all()
    assert (weight.rows(2, 5) == codec.pack(trits()[2:5])).all()
    assert notes == ["read 1 weights in compressed-tensors' 2-bit packing"]


def test_the_padding_of_words_does_not_matter():
    state = state_of()
    state[f"{NAME}_packed"][:, -1] |= -1 << 12  # columns 70 and on
    weight = read(state, config())[0][NAME]
    assert (weight.rows(0, 6) == codec.pack(trits())).all()


def test_scales_without_their_last_dim():
    state = state_of()
    state[f"{NAME}_scale"] = state[f"{NAME}_scale"].reshape(6)
    assert read(state, config())[0][NAME].scale.shape == (6, 1)
    state[f"{NAME}_scale"] = torch.tensor(0.5)
    assert read(state, config("tensor"))[0][NAME].scale.shape == (1,)


def test_groups_of_layers_with_their_own_strategy():
    state = state_of("group")
    found = config("channel")
    groups = found["quantization_config"]["config_groups"]
    groups["group_1"] = config("group")["quantization_config"]["config_groups"]["group_0"]
    assert str(read(state, found)[0][NAME].granularity) == "group:32"


@pytest.mark.parametrize("strategy", SCALES)
def test_against_the_library(strategy):
    helpers = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers")
    state = state_of(strategy)
    state[f"{NAME}_packed"] = helpers.pack_to_int32(torch.from_numpy(trits()), 2)
    weight = read(state, config(strategy))[0][NAME]
    unpacked = helpers.unpack_from_int32(state[f"{NAME}_packed"], 2, torch.Size(SHAPE))
    scale = state[f"{NAME}_scale"].float()
    wide = scale if strategy != "group" else scale.repeat_interleave(32, 1)[:, :70]
    wanted = (unpacked * wide).bfloat16()
    found = weight.dense().read(0, 420).view(np.int16)
    assert torch.equal(torch.from_numpy(found).view(torch.bfloat16).reshape(SHAPE), wanted)


# ---- refusals


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_bits": 4}, "has num_bits 4, expected 2"),
        ({"num_bits": 2.0}, "has num_bits 2.0"),
        ({"num_bits": None}, "has num_bits None"),
        ({"type": "float"}, "has type 'float'"),
        ({"symmetric": False}, "has symmetric False"),
        ({"symmetric": 1}, "has symmetric 1"),
        ({"actorder": "weight"}, "has actorder 'weight'"),
        ({"dynamic": True}, "has dynamic True"),
        ({"strategy": "block"}, "has strategy 'block'"),
        ({"strategy": "group", "group_size": None}, "group_size None"),
        ({"strategy": "group", "group_size": True}, "group_size True"),
        ({"strategy": "group", "group_size": -1}, "group_size -1"),
    ],
)
def test_other_quantizations(settings, message):
    state = state_of()
    tensors, notes = read(state, config(**settings))
    assert (list(tensors), notes) == (list(state), [])
    assert re.search(message, tensors[f"{NAME}_packed"].coded)


@pytest.mark.parametrize(
    "found",
    [
        None,
        {},
        {"quantization_config": {"config_groups": {}}},
        {"quantization_config": {"config_groups": [1]}},
        {"quantization_config": {"config_groups": {"g": 1}}},
        {"quantization_config": {"config_groups": {"g": {"weights": None}}}},
    ],
)
def test_malformed_configs(found):
    with pytest.raises(InputError, match="config"):
        read(state_of(), found)


@pytest.mark.parametrize(
    ("last", "what"),
    [("weight_zero_point", "a zero point"), ("weight_g_idx", "actorder")],
)
def test_companions_of_other_quantizations(last, what):
    other = f"{NAME.removesuffix('weight')}{last}"
    tensors, _ = read(state_of() | {other: torch.zeros(70, dtype=torch.int32)}, config())
    assert what in tensors[f"{NAME}_packed"].coded


@pytest.mark.parametrize("part", ["scale", "shape"])
def test_a_missing_companion(part):
    state = state_of()
    del state[f"{NAME}_{part}"]
    with pytest.raises(InputError, match=f"has no tensor '{NAME}_{part}'"):
        read(state, config())


def test_a_missing_weight():
    state = state_of()
    del state[f"{NAME}_packed"]
    with pytest.raises(InputError, match="belongs to a weight_packed that is missing"):
        read(state, config())


def test_a_weight_that_is_there_twice():
    with pytest.raises(InputError, match="is stored twice") as caught:
        read(state_of() | {NAME: torch.ones(SHAPE)}, config())
    assert caught.value.tensor == NAME


@pytest.mark.parametrize(
    ("part", "tensor", "message"),
    [
        ("shape", torch.tensor([6.0, 70.0]), "expected two integers"),
        ("shape", torch.tensor([6, 70, 1]), "expected two integers"),
        ("shape", torch.tensor([6, 81]), r"expected int32 \(6, 6\)"),
        ("shape", torch.tensor([7, 70]), r"expected int32 \(7, 5\)"),
        ("shape", torch.tensor([-6, 70]), r"expected int32 \(-6, 5\)"),
        ("shape", torch.tensor([6, 0]), r"expected int32 \(6, 0\)"),
        ("packed", torch.zeros(6, 5, dtype=torch.int64), r"is int64 \(6, 5\)"),
        ("packed", torch.zeros(30, dtype=torch.int32), r"is int32 \(30,\)"),
        ("scale", torch.ones(5, 1), r"has shape \(5, 1\), expected \(6, 1\)"),
        ("scale", torch.ones(6, 2), r"has shape \(6, 2\), expected \(6, 1\)"),
        ("scale", torch.ones(6, 1, dtype=torch.float64), "is float64, expected float32"),
        ("scale", torch.full((6, 1), torch.nan), "has NaN or infinity"),
    ],
)
def test_tensors_that_do_not_fit(part, tensor, message):
    with pytest.raises(InputError, match=message) as caught:
        read(state_of() | {f"{NAME}_{part}": tensor}, config())
    assert caught.value.tensor


def test_minus_two_is_no_trit():
    state = state_of()
    state[f"{NAME}_packed"][4, 1] &= ~(3 << 6)
    found = read(state, config())[0][f"{NAME}_packed"].coded
    assert "the value -2 at row 4, column 19" in found


# ---- whole folders


def test_a_folder(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    state = state_of("group")
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config("group")))
    report = tpack.convert(folder, tmp_path / "out", exact=True)
    assert [row.scale for row in report.tensors] == ["group:32", None]
    assert tpack.verify(tmp_path / "out", folder).ok
    wide = state[f"{NAME}_scale"].float().repeat_interleave(32, 1)[:, :70]
    wanted = (torch.from_numpy(trits()) * wide).bfloat16()
    assert torch.equal(tpack.unpack(tmp_path / "out")[NAME], wanted)


def test_it_is_recognised():
    tensors, _ = dialects.adapt(state_dict_source(state_of()).tensors, config())
    assert list(tensors) == [NAME, "model.norm.weight"]
