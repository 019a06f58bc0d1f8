"""Codes of more bits beside ternary ones: what is kept can still be decoded."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import tpack


@pytest.mark.parametrize("exclude", [(), ("*head*",)])
@pytest.mark.parametrize("system", ["compressed-tensors", "MLX"])
def test_four_bits_beside_two_are_decoded_from_the_output(tmp_path, system, exclude):
    """Codes, companions and the config that explains them are all there."""
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 16, (64, 128))
    words = (codes.reshape(64, 16, 8) << np.arange(0, 32, 4)).sum(axis=2).astype(np.uint32)
    scales = torch.rand(64, 2).half()
    two = torch.full((64, 8), 0x55555555, dtype=torch.int32)  # sixteen times code 1
    one = torch.ones(64, 1).half()
    if system == "MLX":
        tensors = {"up.weight": two.view(torch.uint32), "up.scales": one, "up.biases": -one}
        head = {"weight": torch.from_numpy(words), "scales": scales, "biases": -scales}
        four = {"bits": 4, "group_size": 64}
        config = {"quantization": {"bits": 2, "group_size": 128, "lm_head": four, "gate": False}}
    else:
        size = torch.tensor([64, 128])
        tensors = {"up.weight_packed": two, "up.weight_scale": one, "up.weight_shape": size}
        packed = torch.from_numpy(words.view(np.int32))
        head = {"weight_packed": packed, "weight_scale": scales, "weight_shape": size.clone()}
        four = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 64}
        groups = {
            "a": {"weights": {"num_bits": 2, "type": "int", "strategy": "channel"}},
            "b": {"weights": four, "targets": ["re:.*head"]},
        }
        method = {"quant_method": "compressed-tensors", "format": "mixed-precision"}
        config = {"quantization_config": method | {"config_groups": groups}}
    tensors |= {f"lm_head.{last}": tensor for last, tensor in head.items()}
    (tmp_path / "in").mkdir()
    save_file(tensors, tmp_path / "in" / "model.safetensors")
    (tmp_path / "in" / "config.json").write_text(json.dumps(config))
    tpack.convert(tmp_path / "in", tmp_path / "out", exclude=exclude)
    assert tpack.verify(tmp_path / "out", tmp_path / "in").ok

    found = load_file(tmp_path / "out" / "model.safetensors")
    kept = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert kept["replaced"] == config
    stored = found["lm_head.weight" if system == "MLX" else "lm_head.weight_packed"].numpy()
    fields = stored.view(np.uint32)[:, :, None] >> np.arange(0, 32, 4, dtype=np.uint32) & 15
    assert np.array_equal(fields.reshape(64, 128), codes)
    assert all(torch.equal(found[f"lm_head.{last}"], tensor) for last, tensor in head.items())
    unpacked = tpack.unpack(tmp_path / "out")
    assert torch.equal(unpacked["lm_head." + next(iter(head))], next(iter(head.values())))
    assert unpacked["up.weight"].shape == (64, 128)
