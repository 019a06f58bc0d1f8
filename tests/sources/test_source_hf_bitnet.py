"""Folders in Hugging Face's bitnet packing: both meanings of a scale, and what is refused."""

from dataclasses import replace

import hf_models
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import tpack
from tpack import codec
from tpack.errors import InputError, NotTernaryError, UnsupportedError
from tpack.quantize import widen
from tpack.sources import PackedTensor
from tpack.sources.hf_bitnet import adapt
from tpack.sources.torch_source import state_dict_source

NAME = "model.layers.0.mlp.up_proj.weight"
WEIGHT = torch.randint(-1, 2, (24, 10), generator=torch.Generator().manual_seed(0)).float()


def config(linear_class=None, mode=None, **more):
    settings = {"quant_method": "bitnet", "linear_class": linear_class, "quantization_mode": mode}
    settings = {key: value for key, value in settings.items() if value is not None}
    return {"quantization_config": settings, **more}


def packed(weight=WEIGHT, scale=3.0, dtype=torch.bfloat16, name=NAME):
    pack = hf_models.transformers().integrations.bitnet.pack_weights
    return {
        name: pack(weight.clone()),
        f"{name}_scale": torch.tensor([scale], dtype=dtype),
        "model.norm.weight": torch.ones(10),
    }


def read(state, found):
    return adapt(state_dict_source(state).tensors, found or {})


def trits_of(weight):
    blocks = [rows for _, rows in weight.blocks()]
    return codec.unpack(np.concatenate(blocks), weight.shape[1])


# ---- what scales mean


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("linear_class", [None, "bitlinear"])
@pytest.mark.parametrize("mode", [None, "offline", "online"])
def test_bitlinear_divides(dtype, linear_class, mode):
    tensors, notes = read(packed(dtype=dtype), config(linear_class, mode))
    assert list(tensors) == [NAME, "model.norm.weight"]
    weight = tensors[NAME]
    assert isinstance(weight, PackedTensor)
    assert weight.shape == (24, 10)
    assert weight.dtype == str(dtype).removeprefix("torch.")
    assert weight.divisor == 3.0
    assert weight.scale_dtype == "float32"
    assert weight.scale == np.float32(1) / np.float32(3)
    assert str(weight.granularity) == "tensor"
    assert weight.nbytes == 60 + dtype.itemsize
    assert (trits_of(weight) == WEIGHT.numpy()).all()
    assert notes == ["read 1 weights in bitnet packing; it divides by weight_scale"]


@pytest.mark.parametrize("mode", [None, "offline"])
def test_autobitlinear_multiplies(mode):
    tensors, notes = read(packed(), config("autobitlinear", mode))
    weight = tensors[NAME]
    assert weight.divisor is None
    assert weight.scale_dtype == "bfloat16"
    assert widen(weight.scale, "bfloat16") == [3.0]
    assert (trits_of(weight) == WEIGHT.numpy()).all()
    assert notes == ["read 1 weights in bitnet packing; it multiplies by weight_scale"]


def test_online_weights_are_floats():
    state = {NAME: torch.randn(8, 4), "norm.weight": torch.ones(4)}
    tensors, notes = read(state, config("autobitlinear", "online"))
    assert {name: type(tensor).__name__ for name, tensor in tensors.items()} == dict.fromkeys(
        state, "SourceTensor"
    )
    assert "absmean" in notes[0]


def test_offline_weights_saved_as_floats_are_trits():
    state = {NAME: WEIGHT.bfloat16(), f"{NAME}_scale": torch.tensor([0.3], dtype=torch.bfloat16)}
    weight = read(state, config("autobitlinear", "offline"))[0][NAME]
    assert (trits_of(weight) == WEIGHT.numpy()).all()
    assert weight.shape == (24, 10)
    state[NAME][13, 7] = 0.25
    weight = read(state, config("autobitlinear", "offline"))[0][NAME]
    with pytest.raises(InputError, match=r"holds 0.25 at row 13, column 7, expected -1, 0 or 1"):
        weight.rows(10, 20)


@pytest.mark.parametrize("first", range(0, 25, 3))
@pytest.mark.parametrize("last", [*range(1, 25, 5), 24])
def test_any_range_of_rows(first, last):
    if first > last:
        return
    weight = read(packed(), config())[0][NAME]
    rows = weight.rows(first, last) if first < last else np.empty((0, 3), dtype=np.uint8)
    assert (rows == codec.pack(WEIGHT.numpy()[first:last])).all()


def test_only_what_is_asked_for_is_read():
    state = packed()
    tensors = dict(state_dict_source(state).tensors)
    whole, spans = tensors[NAME], []

    def watch(start, stop):
        spans.append((start, stop))
        return whole.read(start, stop)

    tensors[NAME] = replace(whole, read=watch)
    weight = adapt(tensors, config())[0][NAME]
    assert spans == []
    weight.rows(7, 9)  # stripe 1 of six rows: its rows 1 and 2
    assert spans == [(10, 30)]


# ---- biases


def test_autobitlinear_scales_biases_too():
    bias = torch.tensor([0.5, -0.25, 3.0], dtype=torch.bfloat16).repeat(8)
    state = packed(scale=0.3) | {"model.layers.0.mlp.up_proj.bias": bias, "other.bias": bias + 0}
    tensors, notes = read(state, config("autobitlinear"))
    found = tensors["model.layers.0.mlp.up_proj.bias"]
    wanted = bias.float() * torch.tensor(0.3, dtype=torch.bfloat16).float()
    assert found.dtype == "float32"
    assert (found.read(0, 24) == wanted.numpy()).all()
    assert (found.read(3, 5) == wanted.numpy()[3:5]).all()
    assert tensors["other.bias"].dtype == "bfloat16"
    assert "multiplied model.layers.0.mlp.up_proj.bias" in notes[-1]
    tensors, _ = read(state, config("bitlinear"))
    assert tensors["model.layers.0.mlp.up_proj.bias"].dtype == "bfloat16"


# ---- numbers against the config


@pytest.mark.parametrize(
    ("linear_class", "scale", "doubtful"),
    [
        ("bitlinear", 80.0, False),  # 1 / mean of a Llama weight
        ("autobitlinear", 80.0, True),
        ("autobitlinear", 0.0125, False),
        ("bitlinear", 0.0125, True),
        ("autobitlinear", 1.2, False),  # bitnet-b1.58-2B-4T: numbers do not tell
        ("autobitlinear", 3.0, False),
        ("bitlinear", 1.2, False),
    ],
)
def test_absurd_sizes_are_doubted(linear_class, scale, doubtful):
    weight = torch.randint(-1, 2, (4, 2560)).float()
    _, notes = read(packed(weight, scale, torch.float32), config(linear_class))
    assert any("times as large as usual" in note for note in notes) == doubtful


# ---- refusals


@pytest.mark.parametrize(
    "settings",
    [
        config("bitlinear2"),
        config("autobitlinear", "onlin"),
        config(3),
        config(["bitlinear"]),
        config("bitlinear", {"a": 1}),
        {},
        {"quantization_config": "bitnet"},
        None,
    ],
)
def test_an_unknown_convention_is_refused(settings):
    with pytest.raises(UnsupportedError, match="multipl") as caught:
        read(packed(), settings)
    assert caught.value.code == 3


def test_packed_weights_without_a_config_are_refused(tmp_path):
    with pytest.raises(NotTernaryError, match="may multiply or divide") as caught:
        tpack.convert(packed(), tmp_path / "out.safetensors")
    assert caught.value.tensor == NAME


def test_packed_weights_are_not_online():
    with pytest.raises(InputError, match="'online', which stores floats") as caught:
        read(packed(), config("autobitlinear", "online"))
    assert caught.value.tensor == NAME


def test_a_missing_scale():
    state = packed()
    del state[f"{NAME}_scale"]
    with pytest.raises(InputError, match="has no scale, expected a tensor") as caught:
        read(state, config())
    assert caught.value.tensor == NAME


def test_a_scale_without_its_weight():
    state = packed()
    del state[NAME]
    with pytest.raises(InputError, match="scale of a weight that is missing"):
        read(state, config())
    state[NAME] = WEIGHT
    with pytest.raises(InputError, match="scale of a weight that is float32, expected uint8"):
        read(state, config())


@pytest.mark.parametrize(
    "scale", [torch.ones(2), torch.ones(1, 1), torch.ones(1, dtype=torch.float64)]
)
def test_a_scale_of_another_form(scale):
    with pytest.raises(InputError, match=r"expected a float of shape \(1,\)") as caught:
        read(packed() | {f"{NAME}_scale": scale}, config())
    assert caught.value.tensor == f"{NAME}_scale"


@pytest.mark.parametrize("value", [0.0, float("inf"), float("nan"), 1e-45])
def test_nothing_divides_by(value):
    with pytest.raises(InputError, match="a scale that nothing can divide by"):
        read(packed(scale=value, dtype=torch.float32), config())


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_nothing_multiplies_with(value):
    with pytest.raises(InputError, match="a scale that nothing can multiply with"):
        read(packed(scale=value), config("autobitlinear"))


def test_code_3_is_refused_when_it_is_read():
    state = packed()
    state[NAME][2, 5] |= 0b11_00_00
    weight = read(state, config())[0][NAME]
    weight.rows(0, 12)
    with pytest.raises(InputError, match="code 3 at row 14, column 5") as caught:
        weight.rows(13, 20)
    assert caught.value.tensor == NAME


SHAPES = {"model_type": "llama", "hidden_size": 10, "intermediate_size": 24}


def test_shapes_agree_with_the_config():
    assert NAME in read(packed(), config(**SHAPES))[0]
    with pytest.raises(InputError, match=r"for \(24, 10\) weights, expected \(28, 10\)"):
        read(packed(), config(**SHAPES | {"intermediate_size": 28}))
    with pytest.raises(InputError, match=r"expected \(24, 12\)"):
        read(packed(), config(**SHAPES | {"hidden_size": 12}))


def test_rows_that_do_not_fill_a_byte_are_refused():
    with pytest.raises(InputError, match=r"22 rows by config\.json, which is not a multiple of 4"):
        read(packed(WEIGHT[:22]), config(**SHAPES | {"intermediate_size": 22}))


# ---- whole folders


@pytest.mark.parametrize("linear_class", ["bitlinear", "autobitlinear"])
@pytest.mark.parametrize("family", ["Llama", "BitNet"])
def test_a_folder_of_the_library(tmp_path, family, linear_class):
    model = hf_models.make(family, torch.bfloat16)
    hf_models.save_packed(model, tmp_path / "hf", linear_class)
    report = tpack.convert(tmp_path / "hf", tmp_path / "out", exact=True, capture=False)
    assert [row.action for row in report.tensors].count("packed") == 14
    assert tpack.verify(tmp_path / "out", tmp_path / "hf").ok
    plain = tpack.unpack(tmp_path / "out")
    for name, tensor in model.state_dict().items():
        found = plain[name]
        if linear_class == "autobitlinear" or not name.endswith("proj.weight"):
            assert torch.equal(found, tensor), name
        else:
            assert torch.equal(found.sign(), tensor.sign()), name
            assert torch.allclose(found, tensor, rtol=2**-7), name


def test_a_damaged_folder_leaves_nothing(tmp_path):
    hf_models.save_packed(hf_models.make("Llama"), tmp_path / "hf")
    state = load_file(tmp_path / "hf" / "model.safetensors")
    state["model.layers.1.mlp.down_proj.weight"][3, 3] = 0xFF
    save_file(state, tmp_path / "hf" / "model.safetensors")
    with pytest.raises(InputError, match="code 3 at row 3, column 3") as caught:
        tpack.convert(tmp_path / "hf", tmp_path / "out", capture=False)
    assert caught.value.tensor == "model.layers.1.mlp.down_proj.weight"
    assert not (tmp_path / "out").exists()
