"""Sources whose weights are stored in a rotated basis are refused by the key that says so."""

import json

import pytest
import torch
from safetensors.torch import save_file

import tpack
from tpack.errors import UnsupportedError
from tpack.sources.rotations import refuse_rotated

ROTATED = [
    {"quantization_config": {"transform_config": {"config_groups": {"R1": {"type": "hadamard"}}}}},
    {"quantization_config": {"online_rotation": True}},
    {"quantization_config": {"rotation": "quarot"}},
    {"quantization_config": {"use_hadamard": 1}},
    {"quantization_config": {"incoherence": "had"}},
    {"quantization": {"rotate": True, "bits": 2}},
    {"compression_config": {"transform_config": {"a": 1}}},
    {"online_hadamard": True},
    {"text_config": {"quantization_config": {"hadamard_size": 64}}},
    {"spinquant": {"r1": "R.bin"}},
    {"model": {"rotated_weights": True}},
]

PLAIN = [
    {},
    {"rotary_dim": 64, "rotary_emb_base": 10000, "partial_rotary_factor": 0.5},
    {"rope_parameters": {"rope_type": "default"}},
    {"quantization_config": {"quant_method": "compressed-tensors", "transform_config": {}}},
    {"quantization_config": {"rotation": None, "online_rotation": False, "hadamard": "none"}},
    {"rotation_range": 30, "random_rotation": True},  # of pictures
    {"quantization": {"group_size": 64, "bits": 2, "mode": "affine"}},
]


@pytest.mark.parametrize("config", ROTATED)
def test_a_rotation_is_refused(config):
    with pytest.raises(UnsupportedError, match=r"rotated basis: its config\.json says") as caught:
        refuse_rotated(config, "config.json")
    assert "Convert the original" in str(caught.value)


@pytest.mark.parametrize("config", PLAIN)
def test_other_configs_are_not(config):
    refuse_rotated(config, "config.json")


def test_a_config_that_is_deeply_nested_is_read_to_an_end():
    config = {"online_hadamard": True}
    for _ in range(200):
        config = {"inner": config}
    refuse_rotated(config, "config.json")


def test_a_folder_is_refused(tmp_path):
    folder = tmp_path / "m"
    folder.mkdir()
    save_file({"a.weight": torch.ones(4, 4)}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"hadamard": True}))
    with pytest.raises(UnsupportedError, match="says hadamard True") as caught:
        tpack.convert(folder, tmp_path / "out")
    assert caught.value.code == 3
    assert not (tmp_path / "out").exists()
