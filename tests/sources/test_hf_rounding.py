"""Which weights and inputs a bitnet model rounds, by its config: as transformers chooses them."""

import json

import hf_models
import pytest
import torch
from torch import nn

from tpack.errors import InputError
from tpack.quantize import Rounding
from tpack.sources import open_source
from tpack.sources.hf_rounding import rounding
from tpack.sources.torch_source import state_dict_source


def config(mode="online", linear="autobitlinear", **more):
    return {
        "quantization_config": {
            "quant_method": "bitnet",
            "linear_class": linear,
            "quantization_mode": mode,
            **more,
        }
    }


def replaced(model, settings):
    """The weights whose layers transformers itself replaces."""
    library = hf_models.transformers()
    found = library.BitNetQuantConfig(**settings["quantization_config"])
    quantizer = library.quantizers.AutoHfQuantizer.from_config(found, pre_quantized=True)
    quantizer._process_model_before_weight_loading(model)
    kinds = ("AutoBitLinear", "BitLinear")
    return {f"{n}.weight" for n, m in model.named_modules() if type(m).__name__ in kinds}


LISTS = [
    None,
    [],
    ["lm_head"],
    ["q_proj"],
    ["model.layers.1"],
    ["model.layers.*.mlp.gate"],
    ["model.layers.*.mlp"],
    ["layers.0.mlp.up_proj"],
    ["lm_head", "model.layers.(0|1).self_attn"],
]


@pytest.mark.parametrize("kept", LISTS)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ["BitNet", "Llama"])
def test_the_weights_are_those_that_transformers_replaces(family, tied, kept):
    model = hf_models.make(family, tie_word_embeddings=tied)
    state = {k: v for k, v in model.state_dict().items() if not (tied and k == "lm_head.weight")}
    settings = config(modules_to_not_convert=kept)
    rounded, int8 = rounding(state_dict_source(state).tensors, {}, settings)
    expected = replaced(model, settings) & set(state)
    assert int8 == expected
    assert rounded == dict.fromkeys(expected, Rounding("absmean", "tensor"))


@pytest.mark.parametrize("settings", [config("offline"), config("online", "bitlinear")])
def test_only_online_weights_are_rounded_as_the_model_runs(settings):
    tensors = state_dict_source({"a.fc.weight": torch.randn(4, 4)}).tensors
    assert rounding(tensors, {}, settings) == ({}, {"a.fc.weight"})


@pytest.mark.parametrize("settings", [None, {}, {"quantization_config": {"quant_method": "mxfp4"}}])
def test_other_models_round_nothing(settings):
    tensors = state_dict_source({"a.fc.weight": torch.randn(4, 4)}).tensors
    assert rounding(tensors, {}, settings) == ({}, frozenset())


def test_a_head_that_shares_its_table_is_not_rounded():
    tensors = state_dict_source({"lm_head.weight": torch.randn(4, 4)}).tensors
    shared = {"model.embed_tokens.weight": "lm_head.weight"}
    assert rounding(tensors, shared, config(modules_to_not_convert=[])) == ({}, frozenset())
    assert rounding(tensors, {}, config(modules_to_not_convert=[]))[1] == {"lm_head.weight"}


def test_what_is_no_matrix_of_numbers_is_no_layer():
    state = {
        "norm.weight": torch.ones(4),
        "conv.weight": torch.randn(4, 4, 3),
        "fc.bias": torch.ones(4),
        "fc.lora": torch.ones(4, 4),
        "ids.weight": torch.ones(4, 4, dtype=torch.int64),
    }
    assert rounding(state_dict_source(state).tensors, {}, config())[1] == frozenset()


@pytest.mark.parametrize("kept", ["lm_head", 3, [3], ["("], ["(a+)+b"], [".*.*.*.*x"], ["a" * 999]])
def test_patterns_that_are_none_or_take_long_are_refused(kept):
    tensors = state_dict_source({"a.fc.weight": torch.randn(4, 4)}).tensors
    with pytest.raises(InputError, match=r"modules_to_not_convert of its config\.json, expected"):
        rounding(tensors, {}, config(modules_to_not_convert=kept))


@pytest.mark.parametrize("shards", [1, 2])
def test_an_online_folder_says_what_it_rounds(tmp_path, shards):
    model = hf_models.make("BitNet")
    size = "10MB" if shards == 1 else "100KB"
    model.save_pretrained(tmp_path / "hf", max_shard_size=size)
    found = json.loads((tmp_path / "hf" / "config.json").read_text())
    (tmp_path / "hf" / "config.json").write_text(json.dumps(found | config()))
    linear = {f"{n}.weight" for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    with open_source(tmp_path / "hf") as source:
        assert (len(source.shards) == 1) == (shards == 1)
        assert set(source.rounded) == source.int8_inputs == linear - {"lm_head.weight"}
        assert source.warnings == []
        assert source.files
