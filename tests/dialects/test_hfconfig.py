"""The config of a packed folder says so, refuses to be loaded without us, and can be undone."""

import json

import pytest
import torch
from safetensors.torch import save_file

import tpack
from tpack.errors import FormatError, InputError
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


@pytest.mark.parametrize("replaced", [[], 5, None, "bitnet"], ids=str)
def test_what_was_replaced_must_be_an_object(replaced):
    packed = packed_config(LLAMA)
    packed["quantization_config"]["replaced"] = replaced
    with pytest.raises(InputError, match="as 'replaced' in the quantization_config"):
        plain_config(packed)


@pytest.mark.parametrize("method", [["tpack"], {"tpack": 1}, 5, None], ids=str)
def test_a_method_that_is_no_name_is_not_ours(method):
    config = LLAMA | {"quantization_config": {"quant_method": method}}
    assert not is_packed(config)
    assert plain_config(packed_config(config)) == config


@pytest.mark.parametrize("number", ["1e400", "-1e999"])
def test_a_number_that_json_cannot_say_again_is_refused(tmp_path, number):
    save_file({"a.weight": torch.ones(4, 4)}, tmp_path / "model.safetensors")
    text = '{"architectures": ["LlamaForCausalLM"], "rope_theta": ' + number + "}"
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(FormatError, match=f"has the number {number}, beyond doubles"):
        tpack.convert(tmp_path, tmp_path.parent / f"{tmp_path.name}.tpack")
