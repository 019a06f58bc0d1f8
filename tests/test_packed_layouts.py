"""Weights packed by other systems are recognised by their tensors, and refused by name."""

import json

import pytest
import torch
from safetensors.torch import save_file

import tpack
from tpack.errors import InputError, UnsupportedError
from tpack.nn import TernaryLinear
from tpack.sources import open_source

U8 = torch.ones(16, 8, dtype=torch.uint8)
I8 = torch.ones(16, 8, dtype=torch.int8)
I32 = torch.ones(16, 8, dtype=torch.int32)
U32 = I32.to(torch.uint32)
SCALES = torch.rand(16, 2)
SIZES = torch.tensor([16, 128])

#: What each system writes for one linear layer ``mlp.up``, as its own code names it.
PACKED = {
    "MLX": {"weight": U32, "scales": SCALES, "biases": -SCALES},
    "Hugging Face's bitnet": {"weight": U8, "weight_scale": torch.ones(1)},
    "compressed-tensors": {"weight_packed": I32, "weight_scale": SCALES, "weight_shape": SIZES},
    "compressed-tensors NVFP4": {
        "weight_packed": U8,
        "weight_scale": SCALES.to(torch.float8_e4m3fn),
        "weight_global_scale": torch.ones(1),
    },
    "tpack": {"weight_packed": U8, "weight_scale": torch.ones(1)},
    "GPTQ or AWQ": {"qweight": I32, "qzeros": I32[:2], "scales": SCALES, "g_idx": I32[0]},
    "bitsandbytes 4 bits": {
        "weight": U8,
        "weight.absmax": torch.ones(4),
        "weight.quant_map": SCALES,
    },
    "bitsandbytes 8 bits": {"weight": I8, "SCB": torch.ones(16)},
    "MXFP4": {"up_blocks": U8, "up_scales": U8},
    "HQQ": {"W_q": U8, "scale": SCALES, "zero": SCALES},
    "quanto": {"weight._data": I8, "weight._scale": torch.ones(16, 1)},
    "EETQ": {"weight": I8, "weight_scales": torch.ones(16)},
}


def layer(system, prefix="mlp.up."):
    """The tensors of a layer, beside a plain weight that could be packed."""
    return {f"{prefix}{last}": t.clone() for last, t in PACKED[system].items()} | {
        "mlp.down.weight": torch.randn(16, 32)
    }


def first_word(system):
    return system.removesuffix(" NVFP4").removesuffix(" 4 bits").removesuffix(" 8 bits")


@pytest.mark.parametrize("prefix", ["mlp.up.", ""])
@pytest.mark.parametrize("system", PACKED)
def test_refused_by_name(tmp_path, system, prefix):
    state = layer(system, prefix)
    path = tmp_path / "model.safetensors"
    save_file(state, path)
    for source in (path, tmp_path, state):
        with pytest.raises(
            UnsupportedError, match=f"looks packed by {first_word(system)}: "
        ) as caught:
            open_source(source)
        assert caught.value.tensor in state
        assert "Convert" in str(caught.value) or "convert" in str(caught.value)


@pytest.mark.parametrize(
    "config", [{}, {"quantization": "x"}, {"quantization": None}, {"quantization_config": [2]}]
)
@pytest.mark.parametrize("system", ["MLX", "compressed-tensors", "Hugging Face's bitnet"])
def test_a_config_that_says_nothing(tmp_path, system, config):
    save_file(layer(system), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedError, match=r"No config\.json beside it says how"):
        tpack.convert(tmp_path, tmp_path.parent / "out")
    assert not (tmp_path.parent / "out").exists()


def test_a_config_of_another_dialect(tmp_path):
    save_file(layer("GPTQ or AWQ"), tmp_path / "model.safetensors")
    config = {"quantization_config": {"quant_method": "bitnet"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedError, match="packed by GPTQ or AWQ"):
        open_source(tmp_path)


def test_a_layer_that_the_config_of_mlx_leaves_out(tmp_path):
    save_file(layer("MLX"), tmp_path / "model.safetensors")
    settings = {"bits": 2, "group_size": 64, "mlp.up": False}
    (tmp_path / "config.json").write_text(json.dumps({"quantization": settings}))
    with pytest.raises(InputError, match=r"'mlp.up.weight' is packed, but config.json says"):
        open_source(tmp_path)


def test_a_packed_module_is_no_source(tmp_path):
    module = torch.nn.Sequential(TernaryLinear(8, 4), torch.nn.Linear(4, 4))
    with pytest.raises(UnsupportedError, match=r"packed by tpack.*tpack\.save"):
        tpack.convert(module, tmp_path / "x.safetensors")


def test_plain_weights_with_such_names():
    state = {"a.weight": torch.randn(4, 4), "a.scales": torch.ones(4), "b.qweight": SCALES}
    assert set(open_source(state).tensors) == set(state)
