"""Weights packed by other systems are recognised by their tensors: kept, or refused by name."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import tpack
from tpack.errors import InputError, NotTernaryError, UnsupportedError
from tpack.nn import TernaryLinear
from tpack.sources import SourceTensor, open_source, packed_layouts
from tpack.sources.packed_layouts import UNKNOWN, packed_groups
from tpack.sources.packed_systems import LAYOUTS

U8 = torch.full((16, 8), 3, dtype=torch.uint8)
I8 = torch.arange(128).reshape(16, 8).to(torch.int8)
I16 = torch.ones(16, 8, dtype=torch.int16)
I32 = torch.ones(16, 8, dtype=torch.int32)
I64 = I32.long()
U32 = I32.to(torch.uint32)
F8 = torch.rand(16, 8).to(torch.float8_e4m3fn)
F4 = U8.view(torch.float4_e2m1fn_x2)
SCALES = torch.rand(16, 2)
ZEROS = torch.rand(16, 2)
ONE = torch.ones(1)
SIZES = torch.tensor([16, 128])

#: What each system writes for one linear layer ``mlp.up``: names and dtypes; sizes are made up.
#: A version is that of the system they were compared with. Rows without one, and those marked
#: "not run", were read in code or written from memory: no file of the system stands behind them.
PACKED = {
    "MLX": {"weight": U32, "scales": SCALES, "biases": -SCALES},  # 0.32.4
    "MLX mxfp4": {"weight": U32, "scales": U8},  # 0.32.4
    "Hugging Face's bitnet": {"weight": U8, "weight_scale": ONE},  # transformers 5.23.0
    # compressed-tensors 0.20.0
    "compressed-tensors": {"weight_packed": I32, "weight_scale": SCALES, "weight_shape": SIZES},
    "compressed-tensors with zero points": {
        "weight_packed": I32,
        "weight_scale": SCALES,
        "weight_zero_point": I32[:2],
        "weight_shape": SIZES,
    },
    "compressed-tensors NVFP4": {
        "weight_packed": U8,
        "weight_scale": SCALES.to(torch.float8_e4m3fn),
        "weight_global_scale": ONE,
    },
    "compressed-tensors MXFP4": {"weight_packed": U8, "weight_scale": U8[:, :2]},
    "compressed-tensors sparse": {"compressed": SCALES, "bitmask": U8, "shape": SIZES},
    "FP8 of compressed-tensors": {"weight": F8, "weight_scale": SCALES[:, :1]},
    "FP8 of DeepSeek": {"weight": F8, "weight_scale_inv": SCALES},
    "MXFP4 or NVFP4": {"weight": F4, "weight_scale": F8[:, :1]},
    "MXFP4 or NVFP4 alone": {"weight": F4},
    "tpack": {"weight_packed": U8, "weight_scale": ONE},
    # auto-round 0.16.1, auto-gptq 0.7.1, autoawq 0.2.9, gptqmodel 7.7.0; not run
    "GPTQ or AWQ": {"qweight": I32, "qzeros": I32[:2], "scales": SCALES, "g_idx": I32[0]},
    "GPTQ or AWQ fast": {"qweight": I16, "qzeros": ZEROS, "scales": SCALES},
    "Marlin": {"B": I32, "s": SCALES, "workspace": I32[0]},
    "bitsandbytes 4 bits": {  # 0.50.2
        "weight": U8.reshape(-1, 1),
        "weight.absmax": torch.ones(4),
        "weight.quant_map": torch.rand(16),
        "weight.quant_state.bitsandbytes__nf4": U8[0],
    },
    "bitsandbytes in bfloat16": {
        "weight": SCALES.bfloat16().reshape(-1, 1),
        "weight.absmax": torch.ones(4),
        "weight.quant_map": torch.rand(16),
    },
    "bitsandbytes 8 bits": {"weight": I8, "SCB": torch.ones(16), "weight_format": U8[0, 0]},
    "MXFP4": {"up_blocks": U8, "up_scales": U8},
    "gemlite": {  # 0.6.0; not run
        "W_q": I32,
        "scales": SCALES,
        "zeros": ZEROS,
        "metadata": I32[0],
        "orig_shape": SIZES.int(),
        "meta_scale": torch.ones(()),
    },
    "HQQ": {"W_q": U8, "scale": SCALES, "zero": ZEROS, "nbits": SIZES[0], "shape": SIZES},  # 0.2.8
    "quanto": {"weight._data": I8, "weight._scale": torch.ones(16, 1)},  # optimum-quanto 0.2.7
    "quanto 4 bits": {"weight._data._data": U8, "weight._scale": SCALES, "weight._shift": ZEROS},
    # torchao 0.18.0, flattened for safetensors
    "torchao": {"_weight_qdata": I8, "_weight_scale": SCALES, "_weight_zero_point": I8[:, :2]},
    "torchao FP8": {"_weight_qdata": F8, "_weight_scale": SCALES[:, :1]},
    "EETQ": {"weight": I8, "weight_scales": torch.ones(16)},
    "ModelOpt": {  # 0.47.0
        "weight": U8,
        "weight_quantizer._amax": SCALES,
        "weight_quantizer._scale": SCALES,
    },
    "ModelOpt NVFP4": {"weight": U8, "weight_scale": SCALES, "weight_scale_2": torch.ones(())},
    "AQLM": {
        "codes": I16[..., None],
        "codebooks": SCALES[None, :, None],
        "scales": SCALES,
    },  # 1.1.7
    "VPTQ": {  # 0.0.5
        "indices": I32[None],
        "centroids.weight": SCALES,
        "res_centroids.weight": SCALES,
        "perm": I16[0],
        "weight_scale": SCALES[:, 0],
        "weight_bias": SCALES[:, 0],
    },
    "SpQR": {"dense_weights": I64, "row_offsets": I32[0], "col_vals": I32[0], "in_perm": I32[0]},
    "QuIP": {"Qidxs": I64, "SU": SCALES[0], "SV": SCALES[0], "codebook_id": SIZES[0]},
    "ExLlamaV2": {"q_weight": I32, "q_scale": I32, "q_scale_max": SCALES[0], "q_groups": I16[0]},
    "ExLlamaV3": {"trellis": I16[None], "suh": SCALES[0].half(), "svh": SCALES[0].half()},
    "nunchaku": {
        "qweight": I8,
        "wscales": SCALES,
        "smooth_factor": SCALES[0],
        "proj_down": SCALES,
        "proj_up": SCALES,
    },
    "ParoQuant": {  # 0.1.16; not run
        "qweight": I32,
        "qzeros": I32[:2],
        "scales": SCALES,
        "theta": SCALES,
        "pairs": I16,
        "channel_scales": SCALES,
    },
    "SqueezeLLM": {"qweight": I32, "lookup_table": SCALES},
    "BitBLAS": {"qweight": I8, "scales": SCALES, "zeros": ZEROS},
    "FLUTE or HIGGS": {"weight": I16, "scales": SCALES, "tables": SCALES[0], "tables2": SCALES},
}
#: Layers of systems that nobody knows; each has codes, and companions that are no weights.
UNKNOWN_LAYERS = {
    "zero points": {"w_int": U8, "w_int_zeros": ZEROS, "w_int_scales": SCALES},
    "shared words": {"codes": I32, "scale": SCALES, "zero_point": ZEROS},
    "a table": {"idx4": I16, "lut": SCALES},
    "indices and tables": {"weight_codes": U8, "weight_table": SCALES},
    "a shape": {"packed": I32, "packed_shape": SIZES},
    "one dim": {"packed_weight": U8.reshape(-1), "weight_scale": ONE, "weight_shape": SIZES},
    "beneath its name": {"weight": I32, "weight.scale": SCALES, "weight.zero": ZEROS},
    "three dims": {"experts": I32[None], "experts_scale": SCALES[None]},
    "64 bits": {"qdata": I64, "absmax": SCALES},
    "groups of centroids": {"assignments": U8, "centroids": SCALES},
}


def layer(parts, prefix="mlp.up."):
    """The tensors of a layer."""
    return {f"{prefix}{last}": t.clone() for last, t in parts.items()}


def float_weight():
    return {"mlp.down.weight": torch.randn(16, 32, generator=torch.Generator().manual_seed(0))}


def ternary_weight():
    return {"mlp.gate.weight": 0.5 * torch.randint(-1, 2, (32, 32)).float()}


def first_word(system):
    return next(row.system for row in LAYOUTS if system.startswith(row.system))


def packed_trits():
    """A weight in transformers' packing, which a config can explain."""
    return torch.randint(0, 171, (4, 32)).to(torch.uint8)


def test_every_layout_has_an_example():
    of_torch = {row.system for row in LAYOUTS} - {"MXFP6"}  # has no dtype of six bits
    assert {first_word(system) for system in PACKED} == of_torch


@pytest.mark.parametrize("prefix", ["mlp.up.", ""])
@pytest.mark.parametrize("system", PACKED)
def test_all_parts_are_found(system, prefix):
    state = layer(PACKED[system], prefix) | float_weight()
    (group,) = packed_groups(open_source(state).tensors)
    assert group.system == first_word(system)
    small = {n for n, t in state.items() if t.ndim < 2 and not t.is_floating_point()}
    assert set(group.parts) | small == set(layer(PACKED[system], prefix)) | small
    assert group.parts[0] == group.codes


@pytest.mark.parametrize("parts", UNKNOWN_LAYERS.values(), ids=UNKNOWN_LAYERS)
def test_unknown_systems(parts, tmp_path):
    state = layer(parts) | float_weight()
    (group,) = packed_groups(open_source(state).tensors)
    assert (group.system, set(group.parts)) == (UNKNOWN, set(layer(parts)))
    with pytest.raises(NotTernaryError, match=r"tpack does not know|is .*int8 with the scale"):
        tpack.convert(state, tmp_path / "out.safetensors")


@pytest.mark.parametrize("system", PACKED)
def test_refused_by_name(tmp_path, system):
    state = layer(PACKED[system]) | float_weight()
    path = tmp_path / "model.safetensors"
    save_file(state, path)
    for source in (path, tmp_path, state):
        with pytest.raises(NotTernaryError) as caught:
            tpack.convert(source, tmp_path.with_suffix(".out"))
        assert f"looks packed by {first_word(system)}: " in str(caught.value) or "int8" in str(
            caught.value
        )
        assert caught.value.tensor in state
        assert caught.value.code == 4
        assert f"exclude=['{caught.value.tensor}']" in str(caught.value)
        assert "onvert" in str(caught.value)
    assert not tmp_path.with_suffix(".out").exists()


@pytest.mark.parametrize("system", PACKED)
def test_excluded_all_parts_are_kept(tmp_path, system):
    state = layer(PACKED[system]) | float_weight()
    out = tmp_path / "out.safetensors"
    report = tpack.convert(state, out, exclude=["mlp.up.*"], keep_dtype="bf16")
    kept = load_file(out)
    for name, tensor in layer(PACKED[system]).items():
        if name.endswith(("weight_bias", "SCB")) and name not in report.warnings[0]:
            continue
        same = kept[name].reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8)
        assert torch.equal(*same), name
    assert any(f"packed by {first_word(system)}, and kept" in w for w in report.warnings)
    assert tpack.verify(out).ok


@pytest.mark.parametrize("system", sorted({*PACKED} - {"tpack"}))
def test_kept_beside_ternary_weights(tmp_path, system):
    """What comes packed is known to be ternary before anything is read."""
    save_file(
        layer(PACKED[system])
        | {"mlp.gate.weight": torch.tensor([[1, -1], [0, 1]], dtype=torch.int8)}
        | {"mlp.gate.weight_scale": ONE},
        tmp_path / "model.safetensors",
    )
    out = tmp_path / "out.safetensors"
    report = tpack.convert(tmp_path / "model.safetensors", out)
    actions = {t.name: t.action for t in report.tensors}
    assert actions.pop("mlp.gate.weight") == "packed"
    assert set(actions.values()) == {"kept"}
    assert len(report.warnings) == 1
    assert "mlp.up." in report.warnings[0]
    assert tpack.verify(out, tmp_path / "model.safetensors").ok


def test_several_in_one_warning(tmp_path):
    state = ternary_weight()
    for i in range(3):
        state |= layer(PACKED["GPTQ or AWQ"], f"layers.{i}.up.")
    with pytest.raises(NotTernaryError, match=r"'\*qweight'") as caught:
        tpack.convert(state, tmp_path / "out.safetensors", include=["layers*"])
    assert "2 others are not ternary either" in str(caught.value)
    report = tpack.convert(state, tmp_path / "out.safetensors", exclude=["*qweight"])
    (warning,) = report.warnings
    assert warning.startswith("3 weights are packed by GPTQ or AWQ, and kept bit for bit")
    assert "layers.0–2.up.qweight ×3" in warning


#: Integers of ordinary models, beside parameters whose names might be taken for those of codes.
BUFFERS = {
    "Swin": {
        "relative_position_index": torch.zeros(9, 9, dtype=torch.int64),
        "relative_position_bias_table": SCALES,
    },
    "Swin in 32 bits": {
        "relative_position_index": torch.zeros(9, 9, dtype=torch.int32),
        "relative_position_bias_table": SCALES,
    },
    "CLIP": {"position_ids": torch.arange(128)[None], "position_embedding.weight": SCALES},
    "GPT-2": {"bias": torch.ones(1, 1, 8, 8, dtype=torch.uint8), "masked_bias": ONE, "scale": ONE},
    "pruned": {
        "weight_orig": torch.randn(8, 8),
        "weight_mask": torch.ones(8, 8, dtype=torch.uint8),
        "scale": ONE,
    },
    "BatchNorm": {"num_batches_tracked": SIZES[0], "weight": ONE, "running_mean": ONE},
    "fake quantization": {
        "weight": torch.randn(8, 8),
        "weight_fake_quant.scale": SCALES[0],
        "weight_fake_quant.zero_point": torch.zeros(2, dtype=torch.int32),
        "weight_fake_quant.fake_quant_enabled": torch.ones(1, dtype=torch.uint8),
    },
    "observed": {"weight": torch.randn(8, 8), "weight_quantizer._amax": SCALES},
    "token counts": {"token_counts": I64, "scale": ONE},
    "a table of indices alone": {"neighbours": I64, "weight": torch.randn(8, 8)},
    "LayerScale": {"weight": torch.randn(8, 8), "scale": ONE, "zero": ONE},
    "indices beside a table": {"index_map": I64, "table": SCALES},
}


@pytest.mark.parametrize("parts", BUFFERS.values(), ids=BUFFERS)
def test_ordinary_models_convert(parts, tmp_path):
    state = layer(parts) | ternary_weight()
    assert packed_groups(open_source(state).tensors) == []
    report = tpack.convert(state, tmp_path / "out.safetensors")
    assert not [w for w in report.warnings if "packed by" in w]


@pytest.mark.parametrize(
    "config", [{}, {"quantization": "x"}, {"quantization": None}, {"quantization_config": [2]}]
)
@pytest.mark.parametrize("system", ["MLX", "compressed-tensors", "Hugging Face's bitnet"])
def test_a_config_that_says_nothing(tmp_path, system, config):
    save_file(layer(PACKED[system]) | float_weight(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(NotTernaryError, match=r"config\.json"):
        tpack.convert(tmp_path, tmp_path.with_suffix(".out"))
    assert not tmp_path.with_suffix(".out").exists()


def test_a_config_of_another_dialect(tmp_path):
    save_file(layer(PACKED["GPTQ or AWQ"]) | float_weight(), tmp_path / "model.safetensors")
    config = {"quantization_config": {"quant_method": "bitnet"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(NotTernaryError, match="packed by GPTQ or AWQ"):
        tpack.convert(tmp_path, tmp_path.with_suffix(".out"))


def test_a_layer_that_the_config_of_mlx_leaves_out(tmp_path):
    save_file(layer(PACKED["MLX"]), tmp_path / "model.safetensors")
    settings = {"bits": 2, "group_size": 64, "mlp.up": False}
    (tmp_path / "config.json").write_text(json.dumps({"quantization": settings}))
    with pytest.raises(InputError, match=r"'mlp.up.weight' is packed, but config.json says"):
        open_source(tmp_path)


def test_the_state_dict_of_a_packed_module_is_no_source(tmp_path):
    module = torch.nn.Sequential(TernaryLinear(8, 4), torch.nn.Linear(4, 4))
    with pytest.raises(NotTernaryError, match="packed by tpack"):
        tpack.convert(module.state_dict(), tmp_path / "x.safetensors")
    tpack.convert(module, tmp_path / "x.safetensors")  # which knows its shapes
    assert torch.equal(tpack.unpack(tmp_path / "x.safetensors")["0.weight"], torch.zeros(4, 8))


def test_plain_weights_with_such_names():
    state = {"a.weight": torch.randn(4, 4), "a.scales": torch.ones(4), "b.qweight": SCALES}
    assert packed_groups(open_source(state).tensors) == []


# ---- ternary weights beside others, in one dialect


def mixed_folder(path, dialect):
    """A ternary weight of two bits, ``up``, and one of four, ``down``, of shape (64, 128)."""
    words = lambda *shape: torch.full(shape, 0x55555555, dtype=torch.int32)  # noqa: E731
    ones, sizes = torch.ones(64, 2).half(), torch.tensor([64, 128])
    if dialect == "compressed-tensors":
        tensors = {
            f"{name}.weight_{part}": tensor.clone()
            for name, width in (("up", 8), ("down", 16))
            for part, tensor in (
                ("packed", words(64, width)),
                ("scale", ones[:, :1]),
                ("shape", sizes),
            )
        }
        groups = [
            {"num_bits": b, "type": "int", "symmetric": True, "strategy": "channel"} for b in (2, 4)
        ]
        config = {
            "quant_method": "compressed-tensors",
            "config_groups": {str(i): {"weights": group} for i, group in enumerate(groups)},
        }
        config = {"quantization_config": config}
    else:
        tensors = {
            f"{name}.{part}": tensor.clone()
            for name, width in (("up", 1), ("down", 2))
            for part, tensor in (
                ("weight", words(64, 8 * width).view(torch.uint32)),
                ("scales", ones[:, :width]),
                ("biases", -ones[:, :width]),
            )
        }
        config = {
            "quantization": {"bits": 2, "group_size": 128, "down": {"bits": 4, "group_size": 64}}
        }
    path.mkdir()
    save_file(tensors, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(config))
    return tensors


@pytest.mark.parametrize("options", [{}, {"exclude": ["*down*"]}, {"exclude": ["down.weight*"]}])
@pytest.mark.parametrize("dialect", ["compressed-tensors", "MLX"])
def test_four_bits_beside_two(dialect, options, tmp_path):
    tensors = mixed_folder(tmp_path / "in", dialect)
    report = tpack.convert(tmp_path / "in", tmp_path / "out", **options)
    (packed,) = [t.name for t in report.tensors if t.action == "packed"]
    assert packed == "up.weight"
    (warning,) = report.warnings
    assert f"1 weight is packed by {dialect}, and kept bit for bit" in warning
    assert "4" in warning
    kept = load_file(tmp_path / "out" / "model.safetensors")
    for name, tensor in tensors.items():
        if name.startswith("down"):
            assert torch.equal(kept[name], tensor)
    assert tpack.verify(tmp_path / "out", tmp_path / "in").ok


@pytest.mark.parametrize("dialect", ["compressed-tensors", "MLX"])
def test_four_bits_alone(dialect, tmp_path):
    tensors = mixed_folder(tmp_path / "in", dialect)
    tensors = {name: t for name, t in tensors.items() if name.startswith("down")}
    save_file(tensors | float_weight(), tmp_path / "in" / "model.safetensors")
    with pytest.raises(NotTernaryError, match=f"is packed by {dialect}: it.*has .*4"):
        tpack.convert(tmp_path / "in", tmp_path / "out")


@pytest.mark.parametrize("method", ["gptq", "awq", "hqq"])
def test_another_method_in_the_config(method, tmp_path):
    (tmp_path / "in").mkdir()
    save_file(layer(PACKED["GPTQ or AWQ"]) | float_weight(), tmp_path / "in" / "model.safetensors")
    config = {"quantization_config": {"quant_method": method}}
    (tmp_path / "in" / "config.json").write_text(json.dumps(config))
    with pytest.raises(NotTernaryError, match="packed by GPTQ or AWQ"):
        tpack.convert(tmp_path / "in", tmp_path / "out")
    report = tpack.convert(tmp_path / "in", tmp_path / "out", exclude=["*qweight"])
    assert "packed by GPTQ or AWQ, and kept" in report.warnings[0]
    save_file(float_weight(), tmp_path / "in" / "model.safetensors")
    with pytest.raises(UnsupportedError, match="is quantized by"):
        tpack.convert(tmp_path / "in", tmp_path / "out", force=True)


def test_integers_of_compressed_tensors_that_are_not_packed(tmp_path):
    (tmp_path / "in").mkdir()
    q = torch.randint(-1, 2, (8, 32)).to(torch.int8)
    scale = torch.rand(8, 1)
    state = {"up.weight": q, "up.weight_scale": scale}
    save_file(state, tmp_path / "in" / "model.safetensors")
    group = {"weights": {"num_bits": 8, "type": "int", "strategy": "channel"}}
    config = {"quant_method": "compressed-tensors", "config_groups": {"0": group}}
    (tmp_path / "in" / "config.json").write_text(json.dumps({"quantization_config": config}))
    tpack.convert(tmp_path / "in", tmp_path / "out", exact=True)
    assert torch.equal(tpack.unpack(tmp_path / "out")["up.weight"], scale * q)


# ---- what a pickle may hold besides plain tensors


class Packed(torch.Tensor):
    """A tensor of parts, as torchao's are."""

    def __new__(cls, codes):
        return torch.Tensor._make_wrapper_subclass(cls, codes.shape, dtype=torch.float32)

    def __init__(self, codes):
        self.codes = codes

    def __tensor_flatten__(self):
        return ["codes"], {}

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        raise NotImplementedError(f"{function} of {cls.__name__}")


def test_a_tensor_of_parts_is_refused_by_name(tmp_path):
    state = {"up.weight": Packed(torch.ones(4, 4, dtype=torch.int8))} | ternary_weight()
    with pytest.raises(UnsupportedError, match=r"'up\.weight' is a Packed of test_packed"):
        tpack.convert(state, tmp_path / "out")


LOST = {
    "torch.ao": {"up._packed_params._packed_params": (torch.ones(4, 4), None)},
    "HQQ": {"up.W_q": U8, "up.meta": {"scale": torch.ones(8, 1), "nbits": 4}},
    "deeper": {"up.meta": {"parts": [{"scale": torch.ones(1)}]}},
}


@pytest.mark.parametrize("state", LOST.values(), ids=LOST)
def test_tensors_in_a_tuple_or_dict_are_not_lost_without_a_word(state, tmp_path):
    report = tpack.convert(state | ternary_weight(), tmp_path / "out")
    (warning,) = report.warnings
    assert "left out up." in warning
    assert "not in the output" in warning


@pytest.mark.parametrize("more", [{"up.names": ["a"]}, {"optimizer": {"m": torch.ones(2)}}])
def test_other_values_are_only_noted(more, tmp_path):
    report = tpack.convert(more | ternary_weight(), tmp_path / "out")
    assert report.warnings == ()
    assert any("left out" in note for note in report.notes)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_quantized_by_torch_is_not_rounded_again(tmp_path):
    weight = torch.quantize_per_tensor(torch.randn(8, 8), 0.1, 0, torch.qint8)
    with pytest.raises(NotTernaryError, match=r"'?up\.weight'? is qint8 of torch, and not ternary"):
        tpack.convert({"up.weight": weight}, tmp_path / "out")
    report = tpack.convert({"up.weight": weight} | ternary_weight(), tmp_path / "out")
    assert {t.name: t.action for t in report.tensors}["up.weight"] == "kept"
    assert torch.equal(tpack.unpack(tmp_path / "out")["up.weight"], weight.dequantize())


def test_names_of_flat_sources_are_not_compared_each_with_each(monkeypatch):
    looks = []
    monkeypatch.setattr(packed_layouts, "words", lambda name: looks.append(name) or [name])
    names = [f"w{i}" for i in range(200)]
    assert packed_groups({n: SourceTensor(n, "float32", (4, 8), None) for n in names}) == []
    assert len(looks) < 5 * len(names)
