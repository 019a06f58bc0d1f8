"""The config of a packed folder says so, refuses to be loaded without us, and can be undone."""

import json

import pytest

from tpack.hfconfig import REFUSAL, is_packed, packed_config, plain_config

LLAMA = {"model_type": "llama", "hidden_size": 64, "architectures": ["LlamaForCausalLM"]}
BITNET = {"quant_method": "bitnet", "linear_class": "autobitlinear", "use_rms_norm": True}
CONFIGS = {
    "plain": LLAMA,
    "bitnet": LLAMA | {"quantization_config": BITNET},
    "mlx": LLAMA | {"quantization": {"bits": 2}, "quantization_config": {"bits": 2}},
    "named": LLAMA | {"transformers_weights": "other.safetensors"},
    "null": LLAMA | {"quantization_config": None},
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_plain_config_is_the_inverse(config):
    before = json.dumps(config)
    packed = packed_config(config)
    assert plain_config(json.loads(json.dumps(packed))) == config
    assert json.dumps(config) == before
    assert is_packed(packed)
    assert not is_packed(config)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_what_describes_the_model_stays(config):
    packed = packed_config(config)
    assert LLAMA.items() <= packed.items()
    assert "quantization" not in packed
    assert not packed["transformers_weights"].endswith(".safetensors")


def test_only_bitnet_rounds_its_inputs():
    rounding = {
        name: packed_config(config)["quantization_config"]["activations"]
        for name, config in CONFIGS.items()
    }
    assert rounding == dict.fromkeys(CONFIGS, "float") | {"bitnet": "int8"}


def test_packing_twice_is_packing_once():
    packed = packed_config(CONFIGS["bitnet"])
    assert packed_config(packed) == packed
    del packed["transformers_weights"]
    assert packed_config(packed)["transformers_weights"] == REFUSAL


def test_a_plain_config_is_its_own():
    assert plain_config(CONFIGS["bitnet"]) == CONFIGS["bitnet"]
