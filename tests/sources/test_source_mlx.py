"""Folders of MLX with 2-bit weights: scale · code + bias, ternary where bias = -scale."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import tpack
from tpack import codec
from tpack.errors import InputError
from tpack.quantize import widen
from tpack.sources import PackedTensor, dialects
from tpack.sources.mlx import adapt
from tpack.sources.torch_source import state_dict_source

LAYER = "model.layers.0.mlp.up_proj"


def layer(prefix=LAYER, shape=(6, 256), size=128, dtype=torch.float16, seed=0):
    """The three tensors of a layer, and its trits."""
    rng = np.random.default_rng(seed)
    trits = rng.integers(-1, 2, shape, dtype=np.int8)
    flat = trits.reshape(-1, shape[-1])
    words = np.zeros((len(flat), shape[-1] // 16), dtype=np.uint32)
    for (row, column), trit in np.ndenumerate(flat):
        words[row, column // 16] |= np.uint32(int(trit) + 1 << 2 * (column % 16))
    scales = torch.from_numpy(rng.standard_normal((*shape[:-1], shape[-1] // size))).to(dtype)
    return trits, {
        f"{prefix}.weight": torch.from_numpy(words).reshape(*shape[:-1], -1),
        f"{prefix}.scales": scales,
        f"{prefix}.biases": -scales,
    }


def config(size=128, bits=2, **more):
    return {"quantization": {"group_size": size, "bits": bits, **more}}


def read(state, found):
    return adapt(state_dict_source(state).tensors, found or {})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [32, 64, 128])
def test_a_layer(size, dtype):
    trits, state = layer(size=size, dtype=dtype)
    tensors, notes = read(state | {"model.norm.weight": torch.ones(8)}, config(size))
    assert list(tensors) == [f"{LAYER}.weight", "model.norm.weight"]
    weight = tensors[f"{LAYER}.weight"]
    assert isinstance(weight, PackedTensor)
    assert weight.shape == (6, 256)
    assert str(weight.granularity) == f"group:{size}"
    assert weight.dtype == weight.scale_dtype == str(dtype).removeprefix("torch.")
    scales = state[f"{LAYER}.scales"].float().numpy()
    assert (widen(weight.scale, weight.scale_dtype) == scales).all()
    assert (weight.rows(0, 6) == codec.pack(trits)).all()
    assert (weight.rows(3, 5) == codec.pack(trits[3:5])).all()
    assert notes == ["read 1 weights in MLX's 2-bit packing"]
    # the formula of MLX, on its own numbers
    codes = torch.from_numpy(trits.astype(np.float32) + 1)
    wide = torch.from_numpy(scales).repeat_interleave(size, 1)
    wanted = (wide * codes - wide).numpy()
    found = widen(weight.dense().read(0, 6 * 256), weight.dtype).reshape(6, 256)
    assert np.allclose(found, wanted, rtol=0, atol=1e-6)


def test_a_stack_of_experts():
    trits, state = layer(shape=(3, 4, 128))
    weight = read(state, config())[0][f"{LAYER}.weight"]
    assert (weight.shape, weight.scale.shape) == ((3, 4, 128), (3, 4, 1))
    assert (weight.rows(5, 9) == codec.pack(trits.reshape(12, 128)[5:9])).all()


def test_layers_with_settings_of_their_own():
    _, state = layer(size=64)
    assert read(state, config(**{LAYER: {"group_size": 64, "bits": 2}}))[0]
    tensors, _ = read(state, config(64, **{LAYER: {"group_size": 64, "bits": 4}}))
    assert "has 4 bits" in tensors[f"{LAYER}.weight"].coded


def test_zero_scales_have_zero_biases_of_either_sign():
    _, state = layer()
    state[f"{LAYER}.scales"][0, 0] = 0
    state[f"{LAYER}.biases"][0, 0] = 0
    assert read(state, config())[0]


# ---- refusals


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (config(bits=4), "has 4 bits in mode 'affine' by config.json, expected 2"),
        (config(bits=True), "has True bits"),
        (config(bits=2.0), "has 2.0 bits"),
        (config(mode="mxfp4"), "in mode 'mxfp4'"),
        (config(size=100), "groups of 100 columns"),
        (config(size=None), "groups of None columns"),
    ],
)
def test_other_quantizations(settings, message):
    state = layer()[1]
    tensors, notes = read(state, settings)
    assert (list(tensors), notes) == (list(state), [])
    assert message in tensors[f"{LAYER}.weight"].coded


@pytest.mark.parametrize("found", [{}, {"quantization": 2}])
def test_no_settings(found):
    with pytest.raises(InputError, match="no quantization"):
        read(layer()[1], found)


def test_affine_weights_are_not_ternary():
    _, state = layer(dtype=torch.float32)
    state[f"{LAYER}.scales"][4, 1] = 0.5
    state[f"{LAYER}.biases"][4, 1] = -0.75
    found = read(state, config())[0][f"{LAYER}.weight"].coded
    assert "biases' is -0.75 at index (4, 1), expected -0.5, the negative scale" in found


def test_code_3_is_no_trit():
    _, state = layer()
    words = state[f"{LAYER}.weight"].view(torch.int32)
    words[4, 9] |= 3 << 20
    assert "code 3 at row 4, column 154" in read(state, config())[0][f"{LAYER}.weight"].coded


@pytest.mark.parametrize("last", ["weight", "biases"])
def test_a_missing_part(last):
    _, state = layer()
    del state[f"{LAYER}.{last}"]
    with pytest.raises(InputError, match=f"lacks '{LAYER}.{last}'"):
        read(state, config())


def test_missing_scales():
    _, state = layer()
    del state[f"{LAYER}.scales"], state[f"{LAYER}.biases"]
    with pytest.raises(InputError, match="is packed, but has no scales"):
        read(state, config())


@pytest.mark.parametrize(
    ("last", "tensor", "message"),
    [
        ("weight", torch.zeros(6, 16, dtype=torch.int32), r"is int32 \(6, 16\)"),
        ("weight", torch.zeros(96, dtype=torch.uint32), r"is uint32 \(96,\)"),
        ("weight", torch.zeros(0, 16, dtype=torch.uint32), r"is uint32 \(0, 16\)"),
        ("scales", torch.ones(6, 3).half(), r"is float16 \(6, 3\), expected floats \(6, 2\)"),
        ("biases", torch.ones(6, 3).half(), r"is float16 \(6, 3\), expected floats \(6, 2\)"),
        ("biases", torch.ones(6, 2), r"is float32 \(6, 2\)"),
        ("scales", torch.full((6, 2), torch.inf).half(), "has NaN or infinity"),
    ],
)
def test_tensors_that_do_not_fit(last, tensor, message):
    with pytest.raises(InputError, match=message):
        read(layer()[1] | {f"{LAYER}.{last}": tensor}, config())


def test_columns_that_do_not_fill_their_groups():
    _, state = layer(shape=(6, 256))
    state[f"{LAYER}.weight"] = torch.zeros(6, 17, dtype=torch.uint32)
    with pytest.raises(InputError, match=r"weight of shape \(6, 272\) in groups of 128"):
        read(state, config())


# ---- whole folders


def test_a_folder_with_an_embedding(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    _, up = layer()
    trits, table = layer("model.embed_tokens", shape=(10, 128), seed=2)
    save_file(up | table, folder / "model.safetensors", metadata={"format": "mlx"})
    (folder / "config.json").write_text(
        json.dumps(config() | {"quantization_config": config()["quantization"]})
    )
    report = tpack.convert(folder, tmp_path / "out", exact=True)
    assert [row.action for row in report.tensors] == ["packed", "packed"]
    assert tpack.verify(tmp_path / "out", folder).ok
    wanted = torch.from_numpy(trits).half() * table["model.embed_tokens.scales"]
    assert torch.equal(tpack.unpack(tmp_path / "out")["model.embed_tokens.weight"], wanted)


def test_patterns_choose_among_packed_weights(tmp_path):
    state = layer()[1] | {f"second.{name}": t for name, t in layer()[1].items()}
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config()))
    for options in ({"include": ["second.*"]}, {"exclude": ["model.*"]}):
        report = tpack.convert(tmp_path, tmp_path.parent / "out", force=True, **options)
        actions = {t.name: t.action for t in report.tensors}
        assert actions == {f"{LAYER}.weight": "kept", f"second.{LAYER}.weight": "packed"}


def test_it_is_recognised():
    _, state = layer()
    assert list(dialects.adapt(state_dict_source(state).tensors, config())[0]) == [
        f"{LAYER}.weight"
    ]
