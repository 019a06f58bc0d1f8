"""Packed folders in transformers: loaded packed, and equal to the plain model."""

import copy

import pytest
import torch
import transformers
from hf_folders import (
    IDS,
    change,
    close,
    generate,
    llama,
    load,
    logits,
    make,
    packed_folder,
    same_bytes,
)
from safetensors.torch import load_file

import tpack
import tpack.hf
from tpack.container import Checkpoint
from tpack.errors import UnsupportedError
from tpack.hf.layers import (
    PackedConv1D,
    PackedEmbedding,
    ReadableEmbedding,
    ReadableLinear,
    TiedEmbedding,
    TiedHead,
)
from tpack.nn import TernaryLinear

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


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
        ("*A_log", r"mixer.A_log' is not the weight of a layer in MambaForCausalLM"),
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


def test_a_weight_whose_parts_are_renamed_otherwise_is_refused(folder, tmp_path, monkeypatch):
    from transformers.core_model_loading import WeightRenaming

    rules = [WeightRenaming(r"\.up\.weight$", ".up_proj.weight")]
    monkeypatch.setattr("tpack.architectures.names.get_model_conversion_mapping", lambda _: rules)

    def rename(tensors):
        for name in [name for name in tensors if ".up_proj." in name]:
            tensors[name.replace("up_proj", "up")] = tensors.pop(name)

    with pytest.raises(UnsupportedError, match=r"but its part in .*mlp.up.weight_packed would be"):
        load(change(folder, tmp_path, rename))
