"""Packed folders in transformers: loaded packed, run, saved, and refused where they must be."""

import copy
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
import torch
import transformers
from running import from_source
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import tpack
import tpack.hf
from tpack.build import program_of
from tpack.container import Checkpoint, Piece, digest, write_checkpoint
from tpack.errors import InputError, TpackError, UnsupportedError, UsageError
from tpack.hf.layers import (
    NormedBitLinear,
    PackedConv1D,
    PackedEmbedding,
    ReadableEmbedding,
    ReadableLinear,
    TiedEmbedding,
    TiedHead,
)
from tpack.hfconfig import packed_config, plain_config
from tpack.nn import BitLinear, TernaryLinear

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

SIZES = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
IDS = torch.randint(3, 96, (2, 9), generator=torch.Generator().manual_seed(1))
BITNET = {
    "quant_method": "bitnet",
    "linear_class": "autobitlinear",
    "quantization_mode": "online",
    "modules_to_not_convert": None,
    "use_rms_norm": False,
    "rms_norm_eps": 1e-6,
}


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def ternarize(model, scale=0.03125):
    """Make every matrix but embeddings and heads ternary."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2 and not re.search(r"emb|lm_head|wte|wpe|score", name):
                trits = torch.randint(-1, 2, weight.shape, generator=generator)
                weight.copy_(trits * scale)
            elif weight.dim() == 1:
                weight.add_(torch.rand(weight.shape, generator=generator) / 8)
    return model.eval()


def make(config, cls=transformers.AutoModelForCausalLM, **options):
    torch.manual_seed(0)
    return ternarize(cls.from_config(config), **options)


def llama(**options):
    return make(transformers.LlamaConfig(**SIZES | options))


def packed_folder(model, folder, config=None, **options):
    """A saved model, converted."""
    plain, packed = folder / "plain", folder / "packed"
    model.save_pretrained(plain)
    found = json.loads((plain / "config.json").read_text()) | (config or {})
    (plain / "config.json").write_text(json.dumps(found))
    tpack.convert(plain, packed, **options)
    return packed


def load(folder, cls="AutoModelForCausalLM", **options):
    return getattr(transformers, cls).from_pretrained(folder, **options)


def logits(model, ids=IDS):
    with torch.no_grad():
        return model(ids)[0]


def close(found, expected, tolerance=1e-5):
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * expected.abs().max())


def generate(model):
    return model.generate(IDS, max_new_tokens=6, do_sample=False, pad_token_id=0)


def ops(model):
    return {type(module).__name__ for module in model.modules()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return packed_folder(llama(), tmp_path_factory.mktemp("llama"))


# ---- loading


def test_outputs_are_those_of_the_plain_model(folder):
    model = load(folder)
    close(logits(model), logits(llama()))
    assert torch.equal(generate(model), generate(llama()))


def test_weights_stay_packed(folder):
    model = load(folder)
    linears = [m for m in model.modules() if isinstance(m, TernaryLinear)]
    assert len(linears) == 14
    with Checkpoint(folder) as file:
        expected = sum(entry.nbytes for entry in file.entries.values())
    assert sum(t.nbytes for t in model.state_dict().values()) == expected
    weights = sum(m.in_features * m.out_features for m in linears)
    assert sum(m.weight_packed.nbytes for m in linears) == weights / 4
    assert not model.training


def test_from_pretrained_reports_nothing_missing(folder):
    _, report = load(folder, output_loading_info=True)
    assert not any(report.values())


@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
def test_a_dtype_is_that_of_what_is_not_packed(folder, name):
    model = load(folder, **{name: torch.bfloat16})
    stored = load_file(folder / "model.safetensors")
    for key, tensor in model.state_dict().items():
        if key.endswith(("_packed", "_scale")):
            assert torch.equal(tensor, stored[key])
            assert tensor.dtype == stored[key].dtype
        else:
            assert tensor.dtype == torch.bfloat16
    assert logits(model).dtype == torch.bfloat16
    close(logits(model).float(), logits(llama()), 2e-2)


@pytest.mark.parametrize("place", ["cpu", "auto", {"": "cpu"}])
def test_a_device_map(folder, place):
    pytest.importorskip("accelerate")
    close(logits(load(folder, device_map=place)), logits(llama()))


@pytest.mark.parametrize("scale", ["row", "group:32"])
@pytest.mark.parametrize("layout", ["t2", "t5"])
def test_scales_and_layouts(tmp_path, scale, layout):
    model = llama(attention_bias=True)
    folder = packed_folder(model, tmp_path, scale=scale, layout=layout)
    packed = load(folder)
    close(logits(packed), logits(model))
    packed.save_pretrained(tmp_path / "again")
    assert same_bytes(tmp_path / "again", folder)


@pytest.mark.parametrize("cls", ["LlamaForCausalLM", "AutoModel", "LlamaModel"])
def test_other_classes(folder, cls):
    model = load(folder, cls)
    plain = llama()
    close(logits(model), logits(plain if "Causal" in cls else plain.model))


def test_a_new_head_is_left_to_transformers(folder):
    model = load(folder, "AutoModelForSequenceClassification", num_labels=3)
    assert isinstance(model.model.layers[0].mlp.up_proj, TernaryLinear)
    assert model.score.weight.shape == (3, 64)


def test_tied_embeddings(tmp_path):
    model = llama(tie_word_embeddings=True)
    packed = load(packed_folder(model, tmp_path))
    assert packed.lm_head.weight is packed.model.embed_tokens.weight
    close(logits(packed), logits(model))
    packed.save_pretrained(tmp_path / "again")
    assert same_bytes(tmp_path / "again", tmp_path / "packed")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_embeddings_and_the_head_that_shares_them(tmp_path, dtype):
    model = llama(tie_word_embeddings=True)
    with torch.no_grad():
        table = model.model.embed_tokens.weight
        table.copy_(torch.randint(-1, 2, table.shape) * 0.125)
    folder = packed_folder(model, tmp_path, include=["*_proj.weight", "*embed_tokens.weight"])
    packed = load(folder, dtype=dtype)
    assert isinstance(packed.model.embed_tokens, PackedEmbedding)
    assert isinstance(packed.lm_head, TiedHead)
    close(logits(packed).float(), logits(model), 1e-5 if dtype == torch.float32 else 5e-2)
    close(logits(copy.deepcopy(packed)), logits(packed))
    packed.tie_weights()
    close(logits(packed).float(), logits(model), 1e-5 if dtype == torch.float32 else 5e-2)
    if dtype == torch.float32:
        packed.save_pretrained(tmp_path / "again")
        assert same_bytes(tmp_path / "again", folder)


def tables(model):
    """Make the tables of embeddings ternary."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.Embedding):
                module.weight.copy_(torch.randint(-1, 2, module.weight.shape) * 0.125)
    return model


def test_an_embedding_that_encoder_and_decoder_share(tmp_path):
    config = transformers.T5Config(
        vocab_size=96, d_model=64, d_kv=16, d_ff=96, num_layers=1, num_heads=4
    )
    model = tables(make(config, transformers.AutoModelForSeq2SeqLM))
    folder = packed_folder(model, tmp_path, include=["*shared.weight", "*block*.weight"])
    packed = load(folder, "AutoModelForSeq2SeqLM")
    assert isinstance(packed.shared, PackedEmbedding)
    assert isinstance(packed.encoder.embed_tokens, TiedEmbedding)
    assert isinstance(packed.decoder.embed_tokens, TiedEmbedding)
    assert isinstance(packed.lm_head, TiedHead)
    with torch.no_grad():
        found, expected = (m(IDS, decoder_input_ids=IDS).logits for m in (packed, model))
    close(found, expected)
    packed.save_pretrained(tmp_path / "again")
    assert same_bytes(tmp_path / "again", folder)


def test_a_weight_that_the_model_reads_itself(tmp_path):
    config = transformers.MambaConfig(
        vocab_size=96, hidden_size=64, num_hidden_layers=1, tie_word_embeddings=True
    )
    model = tables(make(config))
    folder = packed_folder(model, tmp_path, include=["*_proj.weight", "*embeddings.weight"])
    packed = load(folder)
    layer = packed.backbone.layers[0].mixer.dt_proj
    assert isinstance(layer, ReadableLinear)
    assert torch.equal(layer.weight, model.backbone.layers[0].mixer.dt_proj.weight)
    close(logits(packed), logits(model))
    packed.save_pretrained(tmp_path / "again")
    assert same_bytes(tmp_path / "again", folder)
    half = load(folder, dtype=torch.bfloat16)
    assert half.backbone.layers[0].mixer.dt_proj.weight.dtype == torch.bfloat16
    close(logits(half).float(), logits(model), 5e-2)
    tpack.nn.unfreeze(packed)
    assert isinstance(layer.weight, torch.nn.Parameter)
    close(logits(packed), logits(model), 1e-4)
    assert isinstance(tpack.nn.freeze(packed).backbone.layers[0].mixer.dt_proj, ReadableLinear)


def test_a_table_that_the_model_reads_itself(tmp_path):
    config = transformers.DebertaV2Config(
        vocab_size=96,
        hidden_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=96,
        relative_attention=True,
        pos_att_type=["p2c", "c2p"],
        position_buckets=8,
    )
    model = tables(make(config, transformers.AutoModel))
    folder = packed_folder(model, tmp_path, include=["*emb*.weight", "*.dense.weight"])
    packed = load(folder, "AutoModel")
    assert isinstance(packed.encoder.rel_embeddings, ReadableEmbedding)
    close(logits(packed), logits(model))


def test_a_packed_table_follows_the_dtype_of_the_model(tmp_path):
    model = tables(llama(tie_word_embeddings=True))
    folder = packed_folder(model, tmp_path, include=["*_proj.weight", "*embed_tokens.weight"])
    packed = load(folder).to(torch.bfloat16)
    assert logits(packed).dtype == torch.bfloat16
    close(logits(packed).float(), logits(model), 5e-2)


def test_a_head_that_shares_a_table_keeps_its_bias(tmp_path):
    config = transformers.BertConfig(
        vocab_size=96,
        hidden_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=96,
        max_position_embeddings=64,
    )
    model = tables(make(config, transformers.AutoModelForMaskedLM))
    folder = packed_folder(model, tmp_path, include=["*word_embeddings.weight", "*.dense.weight"])
    packed = load(folder, "AutoModelForMaskedLM")
    assert isinstance(packed.cls.predictions.decoder, TiedHead)
    assert model.cls.predictions.bias.abs().max() > 0
    close(logits(packed), logits(model))
    packed.save_pretrained(tmp_path / "again")
    assert same_bytes(tmp_path / "again", folder)
    close(logits(load(tmp_path / "again", "AutoModelForMaskedLM")), logits(model))


def test_a_shared_table_that_is_scaled_where_it_is_used_is_refused(tmp_path):
    config = transformers.BartConfig(
        vocab_size=96,
        d_model=64,
        encoder_layers=1,
        decoder_layers=1,
        encoder_ffn_dim=96,
        decoder_ffn_dim=96,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        max_position_embeddings=64,
        scale_embedding=True,
    )
    model = tables(make(config, transformers.AutoModelForSeq2SeqLM))
    folder = packed_folder(model, tmp_path, include=["*shared.weight"])
    with pytest.raises(UnsupportedError, match=r"BartScaledWordEmbedding, which has no packed"):
        load(folder, "AutoModelForSeq2SeqLM")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("*A_log", r"mixer.A_log' is no weight of a layer in MambaForCausalLM"),
        ("*conv1d.weight", r"mixer.conv1d.weight' is the weight of a Conv1d, which has no packed"),
    ],
)
def test_weights_of_other_kinds_are_refused_by_name(tmp_path, name, text):
    model = make(transformers.MambaConfig(vocab_size=96, hidden_size=64, num_hidden_layers=1))
    with torch.no_grad():
        for part in ("A_log", "conv1d.weight"):
            weight = model.get_parameter(f"backbone.layers.0.mixer.{part}")
            weight.copy_(torch.randint(-1, 2, weight.shape))
    with pytest.raises(UnsupportedError, match=text):
        load(packed_folder(model, tmp_path, include=[name]))


def test_layers_with_a_transposed_weight(tmp_path):
    config = transformers.GPT2Config(vocab_size=96, n_positions=64, n_embd=64, n_layer=1, n_head=4)
    model = make(config)
    packed = load(packed_folder(model, tmp_path))
    assert isinstance(packed.transformer.h[0].attn.c_attn, PackedConv1D)
    close(logits(packed), logits(model))
    packed.save_pretrained(tmp_path / "again")
    assert same_bytes(tmp_path / "again", tmp_path / "packed")


def test_a_scale_for_each_output_of_a_transposed_weight(tmp_path):
    config = transformers.GPT2Config(vocab_size=96, n_positions=64, n_embd=64, n_layer=2, n_head=4)
    model = make(config)
    with torch.no_grad():
        for block in model.transformer.h:
            for layer in (block.attn.c_attn, block.attn.c_proj, block.mlp.c_fc, block.mlp.c_proj):
                trits = torch.randint(-1, 2, layer.weight.shape)
                layer.weight.copy_(trits * (torch.rand(layer.nf) + 0.5) / 8)
    packed = load(packed_folder(model, tmp_path))
    layer = packed.transformer.h[1].mlp.c_fc
    assert isinstance(layer, PackedConv1D)
    assert layer.weight_scale.shape == (1, 256)
    close(logits(packed), logits(model))
    packed.save_pretrained(tmp_path / "again")
    assert same_bytes(tmp_path / "again", tmp_path / "packed")


def test_experts_that_are_merged_are_refused(tmp_path):
    sizes = SIZES | {"num_local_experts": 2, "num_experts_per_tok": 1, "num_hidden_layers": 1}
    model = make(transformers.MixtralConfig(**sizes))
    folder = packed_folder(model, tmp_path, include=["*w1.weight"], quantize="absmean")
    with pytest.raises(UnsupportedError, match=r"w1.weight' is merged with others .*--exclude"):
        load(folder)


MOE = SIZES | {"num_experts_per_tok": 1, "num_hidden_layers": 1}


@pytest.mark.parametrize(
    "config",
    [
        transformers.MixtralConfig(**MOE, num_local_experts=2),
        transformers.Qwen3MoeConfig(**MOE, num_experts=2, moe_intermediate_size=64, head_dim=16),
        transformers.GptOssConfig(**MOE, num_local_experts=2, head_dim=16),
    ],
    ids=lambda config: config.model_type,
)
def test_experts_that_cannot_be_run_are_said_when_they_are_converted(tmp_path, config):
    model = make(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "experts" in name:
                weight.copy_(torch.randint(-1, 2, weight.shape) * 0.125)
    model.save_pretrained(tmp_path / "plain")
    report = tpack.convert(tmp_path / "plain", tmp_path / "packed")
    (warning,) = (text for text in report.warnings if "experts" in text)
    assert "exclude '*.experts.*'" in warning
    with pytest.raises(UnsupportedError, match="exclude"):
        load(tmp_path / "packed")
    report = tpack.convert(tmp_path / "plain", tmp_path / "dense", exclude=["*.experts.*"])
    assert not any("belong to experts" in text for text in report.warnings)
    close(logits(load(tmp_path / "dense")), logits(load(tmp_path / "plain")))


def test_a_weight_whose_parts_are_renamed_otherwise_is_refused(folder, tmp_path, monkeypatch):
    from transformers.core_model_loading import WeightRenaming

    rules = [WeightRenaming(r"\.up\.weight$", ".up_proj.weight")]
    monkeypatch.setattr("tpack.hf.replacement.get_model_conversion_mapping", lambda _: rules)

    def rename(tensors):
        for name in [name for name in tensors if ".up_proj." in name]:
            tensors[name.replace("up_proj", "up")] = tensors.pop(name)

    with pytest.raises(UnsupportedError, match=r"but its part in .*mlp.up.weight_packed would be"):
        load(change(folder, tmp_path, rename))


# ---- models that round their inputs


def bitnet(settings):
    """A model of transformers' own layers, with random weights that they make ternary."""
    from transformers.integrations.bitnet import AutoBitLinear, replace_with_bitnet_linear

    config = transformers.BitNetConfig(**SIZES)
    model = transformers.AutoModelForCausalLM.from_config(config)
    replace_with_bitnet_linear(model, ["lm_head"], transformers.BitNetQuantConfig(**settings))
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, AutoBitLinear):
            module.to_empty(device="cpu")
            torch.nn.init.normal_(module.weight, std=0.1)
            if module.rms_norm is not None:
                torch.nn.init.uniform_(module.rms_norm.weight, 0.5, 1.5)
    return model.eval()


@pytest.mark.parametrize("norm", [False, True])
def test_bitnet_rounds_as_the_original_does(tmp_path, norm):
    settings = BITNET | {"use_rms_norm": norm}
    model = bitnet(settings)
    folder = packed_folder(model, tmp_path, config={"quantization_config": settings})
    packed = load(folder)
    layer = packed.model.layers[0].mlp.up_proj
    assert type(layer) is (NormedBitLinear if norm else BitLinear)
    with torch.compiler.set_stance("force_eager"):
        close(logits(packed), logits(model), 1e-4)
    packed.save_pretrained(tmp_path / "again")
    assert same_bytes(tmp_path / "again", folder)
    config = plain_config(json.loads((tmp_path / "again" / "config.json").read_text()))
    assert config["quantization_config"] == settings


def test_a_norm_before_a_packed_layer_that_is_missing_is_named(tmp_path):
    settings = BITNET | {"use_rms_norm": True}
    model = bitnet(settings)
    folder = packed_folder(model, tmp_path, config={"quantization_config": settings})
    name = "model.layers.1.mlp.up_proj.rms_norm.weight"
    with pytest.raises(InputError, match=f"'{name}' is missing"):
        load(change(folder, tmp_path, lambda tensors: tensors.pop(name)))


def test_a_head_that_is_packed_does_not_round_if_the_original_does_not(tmp_path):
    model = bitnet(BITNET)
    with torch.no_grad():
        model.lm_head.weight.copy_(torch.randint(-1, 2, model.lm_head.weight.shape) * 0.125)
    folder = packed_folder(
        model,
        tmp_path,
        config={"quantization_config": BITNET},
        include=["*_proj.weight", "lm_head.weight"],
    )
    packed = load(folder)
    assert type(packed.lm_head) is TernaryLinear
    with torch.compiler.set_stance("force_eager"):
        close(logits(packed), logits(model), 1e-4)


@pytest.mark.parametrize("linear", ["bitlinear", "autobitlinear"])
def test_bitnet_that_was_packed_by_transformers(tmp_path, linear):
    pytest.importorskip("accelerate")  # transformers wants it for its own packing
    from transformers.integrations.bitnet import pack_weights

    settings = BITNET | {"linear_class": linear, "quantization_mode": "offline"}
    plain = tmp_path / "plain"
    model = make(transformers.BitNetConfig(**SIZES))
    model.save_pretrained(plain)
    tensors = load_file(plain / "model.safetensors")
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        trits = tensors[name].sign()
        tensors[name] = pack_weights(trits.clone())
        tensors[f"{name}_scale"] = torch.tensor([0.4 if linear == "autobitlinear" else 2.5])
    save_file(tensors, plain / "model.safetensors", {"format": "pt"})
    config = json.loads((plain / "config.json").read_text())
    config |= {"quantization_config": settings}
    (plain / "config.json").write_text(json.dumps(config))
    tpack.convert(plain, tmp_path / "packed", exact=True)
    packed = load(tmp_path / "packed")
    assert type(packed.model.layers[0].mlp.up_proj) is BitLinear
    with torch.compiler.set_stance("force_eager"):
        original = load(plain)
        close(logits(packed), logits(original), 1e-4)


def online(folder, dtype):
    """A folder of masters, which transformers rounds as it runs."""
    model = bitnet(BITNET).to(dtype)
    with torch.no_grad():  # one whose values are ternary already
        weight = model.model.layers[0].mlp.up_proj.weight
        weight.copy_(torch.randint(-1, 2, weight.shape) * 0.125)
    model.save_pretrained(folder)
    return BITNET


def offline_masters(folder, dtype, linear):
    """A folder that holds trits, packed by transformers, and scales."""
    from transformers.integrations.bitnet import pack_weights

    make(transformers.BitNetConfig(**SIZES)).to(dtype).save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        tensors[name] = pack_weights(tensors[name].sign())
        scale = 0.4 if linear == "autobitlinear" else 2.5
        tensors[f"{name}_scale"] = torch.tensor([scale], dtype=dtype)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return BITNET | {"linear_class": linear, "quantization_mode": "offline"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["online", "autobitlinear", "bitlinear"])
def test_load_codegen_and_transformers_give_the_same_numbers(tmp_path, kind, dtype):
    pytest.importorskip("accelerate")
    plain, packed = tmp_path / "plain", tmp_path / "packed"
    settings = online(plain, dtype) if kind == "online" else offline_masters(plain, dtype, kind)
    config = json.loads((plain / "config.json").read_text())
    config |= {"quantization_config": settings}
    (plain / "config.json").write_text(json.dumps(config))
    tpack.convert(plain, packed)
    loaded, generated, live = tpack.load(packed), from_folder(packed), load(packed, dtype=dtype)
    inputs = {}

    def watch(path):
        def hook(_, args, output):
            inputs[path] = args[0], output

        return hook

    with torch.compiler.set_stance("force_eager"):
        original = load(plain, dtype=dtype)
        for path, module in original.named_modules():
            if path.endswith("_proj"):
                module.register_forward_hook(watch(path))
        expected = logits(original)
    assert len(inputs) == 14
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    for path, (x, output) in inputs.items():
        for model in (loaded, generated, live):
            layer = model.get_submodule(path)
            assert type(layer).__name__ == "BitLinear"
            with torch.no_grad():
                close(layer(x).float(), output.float(), tolerance)
    close(logits(live).float(), expected.float(), 10 * tolerance)


def from_folder(packed):
    """The generated source of a folder as a module, with its weights."""
    module = from_source(program_of(tpack.load(packed)))
    module.load_state_dict(load_file(packed / "model.safetensors"))
    return module


def test_bitnet_with_a_linear_kept_as_floats_is_refused(tmp_path):
    model = make(transformers.BitNetConfig(**SIZES))
    folder = packed_folder(
        model, tmp_path, {"quantization_config": BITNET}, exclude=["*layers.1.mlp.up_proj*"]
    )
    with pytest.raises(UnsupportedError, match=r"layers.1.mlp.up_proj.weight' is kept as floats"):
        load(folder)


# ---- saving


def same_bytes(one, other, names=("model.safetensors",)):
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in names)


def test_saving_gives_the_same_file(folder, tmp_path):
    model = load(folder)
    model.save_pretrained(tmp_path)
    assert same_bytes(tmp_path, folder)
    assert tpack.verify(tmp_path).ok
    state = tpack.load(tmp_path).state_dict()
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, model.state_dict()[key]) for key, tensor in state.items())
    close(logits(load(tmp_path)), logits(model))


def test_a_safetensors_reader_opens_what_was_saved(folder, tmp_path):
    load(folder).save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert set(file.metadata()) == {"format", "tpack"}
        assert "model.layers.0.mlp.up_proj.weight_packed" in file.keys()  # noqa: SIM118


def test_saving_after_a_change_says_what_is_there(folder, tmp_path):
    model = load(folder, dtype=torch.bfloat16)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight_scale.mul_(2)
        model.model.layers[1].mlp.up_proj.weight_packed.copy_(
            tpack.pack_ternary(torch.ones(96, 64))
        )
    model.save_pretrained(tmp_path)
    assert tpack.verify(tmp_path).ok
    methods = {t.name: t.method for t in tpack.inspect(tmp_path).tensors}
    changed = {name for name, method in methods.items() if method == "unknown"}
    assert changed == {f"model.layers.{i}.mlp.up_proj.weight" for i in (0, 1)}
    assert set(methods.values()) == {"exact", "unknown"}
    plain = tpack.unpack(tmp_path)
    assert plain["model.layers.1.mlp.up_proj.weight"].unique().numel() == 1
    assert plain["model.norm.weight"].dtype == torch.bfloat16
    before = tpack.unpack(folder)
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(plain[name], before[name] * 2)
    tpack.load(tmp_path)
    close(logits(load(tmp_path)), logits(model))


def test_shards(folder, tmp_path):
    model = load(folder)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    files = set(index["weight_map"].values())
    assert len(files) > 2
    assert index["weight_map"].keys() == model.state_dict().keys()
    assert tpack.verify(tmp_path).ok
    again = load(tmp_path)
    assert torch.equal(logits(again), logits(model))
    again.save_pretrained(tmp_path)  # over its own shards
    assert sorted(p.name for p in tmp_path.glob("model*")) == ["model.safetensors"]
    assert same_bytes(tmp_path, folder)


def test_a_checkpoint_keeps_the_metadata_of_its_weights(tmp_path):
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES)).eval()
    folder = packed_folder(model, tmp_path)  # floats: quantized, with an error
    load(folder).save_pretrained(tmp_path / "again")
    with Checkpoint(tmp_path / "again") as file:
        entry = file.document.tensors["model.layers.0.mlp.up_proj.weight"]
    assert entry.method == "absmean"
    assert entry.relative_error > 0.1
    assert same_bytes(tmp_path / "again", folder)


@pytest.mark.parametrize("size", ["50GB", "20KB"])
def test_the_metadata_of_the_file_comes_back(folder, tmp_path, size):
    folder = Path(shutil.copytree(folder, tmp_path / "with"))
    path = folder / "model.safetensors"
    with Checkpoint(path) as file:
        pieces = [
            Piece.of(name, entry.dtype, entry.shape, bytes(file.read(name)))
            for name, entry in file.entries.items()
        ]
        document = replace(file.document, metadata={"gguf": digest([b"{}"])})
    write_checkpoint(path, document, pieces, metadata={"gguf": "{}"}, force=True)
    load(folder).save_pretrained(tmp_path / "again", max_shard_size=size)
    assert tpack.verify(tmp_path / "again").ok
    with Checkpoint(tmp_path / "again") as file:
        assert (file.metadata["gguf"], file.document.metadata) == ("{}", document.metadata)
    load(tmp_path / "again").save_pretrained(tmp_path / "one")
    assert same_bytes(tmp_path / "one", folder)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_save_themselves(folder, tmp_path, duplicate):
    model = load(folder)
    other = duplicate(model)
    with torch.no_grad():
        other.model.norm.weight.fill_(7)
    other.save_pretrained(tmp_path)
    assert tpack.verify(tmp_path).ok
    assert (tpack.unpack(tmp_path)["model.norm.weight"] == 7).all()


def test_a_scale_that_is_not_finite_is_not_saved(folder, tmp_path):
    model = load(folder)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight_scale.fill_(float("nan"))
    with pytest.raises(InputError, match=r"layers.0.mlp.up_proj.weight' has a scale with NaN"):
        model.save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"push_to_hub": True}, "use model.push_to_hub"),
        ({"variant": "fp16"}, "variant 'fp16' is given"),
        ({"max_shard_size": "many"}, "max_shard_size is 'many'"),
    ],
)
def test_options_without_a_form_are_refused(folder, tmp_path, options, text):
    with pytest.raises(UsageError, match=text):
        load(folder).save_pretrained(tmp_path, **options)


def test_the_weights_are_not_lost_to_another_way_of_saving(folder, tmp_path):
    model = load(folder)
    with pytest.raises(UsageError, match=r"model.save_pretrained"):
        type(model).save_pretrained(model, tmp_path)


def test_a_packed_layer_that_became_floats_is_not_saved(folder, tmp_path):
    model = load(folder)
    model.model.layers[1].mlp.up_proj = torch.nn.Linear(64, 96, bias=False)
    with pytest.raises(UnsupportedError, match=r"layers.1.mlp.up_proj.weight' was packed when"):
        model.save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("part", ["norm.weight", "layers.0.mlp.up_proj.weight_packed"])
def test_a_state_dict_without_a_tensor_is_not_saved(folder, tmp_path, part):
    model = load(folder)
    state = model.state_dict()
    del state[f"model.{part}"]
    with pytest.raises(UsageError, match=f"'model.{part}' is missing in the state_dict"):
        model.save_pretrained(tmp_path / "new", state_dict=state)
    assert not (tmp_path / "new").exists()


def test_an_unfrozen_model_is_not_saved(folder, tmp_path):
    model = tpack.nn.unfreeze(load(folder))
    with pytest.raises(UsageError, match=r"q_proj.weight' is unfrozen, .*tpack.nn.freeze\(model"):
        model.save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()
    tpack.nn.freeze(model).save_pretrained(tmp_path / "new")
    assert same_bytes(tmp_path / "new", folder)


def test_there_are_no_floats_to_go_back_to(folder):
    with pytest.raises(UsageError, match="tpack unpack"):
        load(folder).dequantize()


def test_a_layer_that_was_packed_since_is_saved_so(tmp_path):
    model = llama()
    packed = load(packed_folder(model, tmp_path, exclude=["*layers.1.mlp.up_proj*"]))
    plain = packed.model.layers[1].mlp.up_proj
    assert type(plain) is torch.nn.Linear
    layer = TernaryLinear(64, 96, bias=False)
    layer.weight_packed = tpack.pack_ternary(plain.weight.detach() / 0.03125)
    torch.nn.init.constant_(layer.weight_scale, 0.03125)
    packed.model.layers[1].mlp.up_proj = layer
    packed.save_pretrained(tmp_path / "again")
    assert tpack.verify(tmp_path / "again").ok
    close(logits(load(tmp_path / "again")), logits(model))
    tpack.load(tmp_path / "again")


# ---- what must not load


STOCK = """
import json, sys, transformers
found = {}
for folder in sys.argv[1:]:
    for cls in ("AutoModelForCausalLM", "AutoModel", "LlamaForCausalLM"):
        try:
            found[f"{folder} {cls}"] = str(getattr(transformers, cls).from_pretrained(folder))
        except Exception as error:
            found[f"{folder} {cls}"] = f"{type(error).__name__}: {error}"
config = transformers.AutoConfig.from_pretrained(folder)
found["config"] = [type(config).__name__, config.hidden_size, "tpack" in sys.modules]
print(json.dumps(found))
"""


def test_transformers_alone_refuses_and_says_what_to_do(folder, tmp_path):
    load(folder).save_pretrained(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", STOCK, str(folder), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )
    found = json.loads(done.stdout)
    assert found.pop("config") == ["LlamaConfig", 64, False]
    assert len(found) == 6
    for text in found.values():
        assert text.startswith("ValueError")
        assert text.endswith("the weights are packed by tpack. Run `import tpack.hf` first")


def change(folder, tmp_path, edit):
    """A copy of a packed folder with other tensors, described as if they were all."""
    copied = tmp_path / "changed"
    copied.mkdir()
    plain = tpack.unpack(folder)
    edit(plain)
    tpack.convert(plain, copied / "model.safetensors")
    (copied / "config.json").write_text((folder / "config.json").read_text())
    return copied


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.1.mlp.up_proj.weight",
        "model.layers.1.input_layernorm.weight",
        "model.embed_tokens.weight",
        "lm_head.weight",
    ],
)
def test_a_missing_weight_is_named(folder, tmp_path, name):
    changed = change(folder, tmp_path, lambda tensors: tensors.pop(name))
    with pytest.raises(InputError, match=f"'{name}' is missing"):
        load(changed)


def test_a_missing_bias_is_named(tmp_path):
    folder = packed_folder(llama(attention_bias=True), tmp_path)
    name = "model.layers.1.self_attn.q_proj.bias"
    changed = change(folder, tmp_path, lambda tensors: tensors.pop(name))
    with pytest.raises(InputError, match=f"'{name}' is missing"):
        load(changed)


@pytest.mark.parametrize("part", ["packed", "scale"])
def test_a_missing_part_of_a_packed_weight_is_named(folder, tmp_path, part):
    name = f"model.layers.1.mlp.up_proj.weight_{part}"
    with safe_open(folder / "model.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys() if key != name}  # noqa: SIM118
        save_file(tensors, tmp_path / "model.safetensors", metadata=file.metadata())
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(InputError, match=f"'{name}' is missing"):
        load(tmp_path)


def test_a_weight_without_a_place_is_named(folder, tmp_path):
    def add(tensors):
        tensors["model.layers.2.mlp.up_proj.weight"] = torch.ones(96, 64)

    with pytest.raises(InputError, match=r"'model.layers.2.mlp.up_proj.weight' has no place"):
        load(change(folder, tmp_path, add))


def test_a_weight_of_another_shape_is_named(folder, tmp_path):
    def grow(tensors):
        tensors["model.layers.0.mlp.up_proj.weight"] = torch.ones(100, 64)

    with pytest.raises(InputError, match=r"has shape \(100, 64\), expected \(96, 64\)"):
        load(change(folder, tmp_path, grow))


def test_plain_weights_under_our_config_are_refused(tmp_path):
    model = llama()
    model.save_pretrained(tmp_path)
    config = packed_config(json.loads((tmp_path / "config.json").read_text()))
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"holds plain weights, .* Take quantization_config"):
        load(tmp_path)


def test_the_config_of_a_packed_model_does_not_fit_another(folder, tmp_path):
    transformers.LlamaForCausalLM(load(folder).config).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"holds plain weights, .* Take quantization_config"):
        load(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["quantization_config"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    load(tmp_path)


@pytest.mark.parametrize("cls", ["AutoModelForCausalLM", "LlamaModel"])
def test_a_config_that_does_not_say_packed_is_refused(folder, tmp_path, cls):
    with pytest.raises(UsageError, match=r"model.safetensors: holds weights that tpack packed"):
        load(folder, cls, config=transformers.LlamaConfig(**SIZES))
    shutil.copytree(folder, tmp_path / "edited")
    config = plain_config(json.loads((folder / "config.json").read_text()))
    (tmp_path / "edited" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match="Leave out config="):
        load(tmp_path / "edited", cls)
    load(folder, cls, config=transformers.AutoConfig.from_pretrained(folder))


def test_other_files_are_no_concern_of_ours(tmp_path):
    model = llama()
    model.save_pretrained(tmp_path, max_shard_size="60KB")
    close(logits(load(tmp_path)), logits(model))
    for path in tmp_path.glob("*.safetensors"):
        path.write_bytes(b"broken")
    with pytest.raises(Exception, match="header") as caught:  # in the words of safetensors
        load(tmp_path)
    assert not isinstance(caught.value, TpackError)


@pytest.mark.parametrize(
    ("name", "count"),
    [("../outside.safetensors", 1), ("../outside.safetensors", 2), ("sub/inside.safetensors", 2)],
)
def test_an_index_that_leads_elsewhere_is_refused(folder, tmp_path, name, count):
    inside = tmp_path / "model"
    (inside / "sub").mkdir(parents=True)
    (inside / "config.json").write_text((folder / "config.json").read_text())
    homes = [name, "model-00002-of-00002.safetensors"][:count]
    for file in homes:
        shutil.copy(folder / "model.safetensors", inside / file)
    with safe_open(folder / "model.safetensors", "pt") as file:
        keys = list(file.keys())
    weights = {key: homes[number % count] for number, key in enumerate(keys)}
    index = {"metadata": {"total_size": 1}, "weight_map": weights}
    (inside / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"names the file '.*side.safetensors', expected files b"):
        load(inside)


def test_a_plain_folder_is_not_packed_while_it_loads(tmp_path):
    llama().save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="tpack convert FOLDER"):
        load(tmp_path, quantization_config=tpack.hf.TpackConfig())


def test_a_config_of_another_kind_is_refused(folder, tmp_path):
    with pytest.raises(InputError, match="activations 'int4', expected"):
        tpack.hf.TpackConfig(activations="int4")
    with pytest.raises(InputError, match=r"has {'bits': 2} among what it says"):
        tpack.hf.TpackConfig(bits=2)
    with pytest.raises(InputError, match=r"has \[3\] among what it says"):
        tpack.hf.TpackConfig(replaced=[3])


# ---- training


def test_gradients_reach_scales_and_what_is_not_packed(folder):
    model = load(folder)
    assert model.hf_quantizer.is_trainable
    model(IDS, labels=IDS).loss.backward()
    assert model.model.layers[0].mlp.up_proj.weight_scale.grad.abs() > 0
    assert model.model.embed_tokens.weight.grad.abs().sum() > 0
