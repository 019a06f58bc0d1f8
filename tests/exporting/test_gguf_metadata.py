"""The metadata of a GGUF file from config.json, and the tokenizer from its JSON."""

import json

import gguf
import numpy as np
import pytest
import torch
from gguf_exports import CONFIG, TOKENIZER, contents, export, folder, hf_weights, read
from gguf_files import HEADS, KEYS, SHAPES, interleave
from safetensors.torch import save_file

import tpack
from tpack.container import Checkpoint
from tpack.dialects.gguf_architectures import ARCHITECTURES
from tpack.errors import InputError, UnsupportedError

# ---- Hugging Face → tpack → GGUF


def test_a_llama_folder(tmp_path):
    weights = hf_weights()
    report = export(folder(tmp_path), tmp_path / "m.gguf")
    found = read(tmp_path / "m.gguf")
    assert set(found) == set(SHAPES)
    for name, array in found.items():
        wanted = weights[ARCHITECTURES["llama"].to_hf(name)].float().numpy()
        heads = HEADS if ".attn_q." in name else KEYS if ".attn_k." in name else None
        wanted = wanted if heads is None else interleave(wanted, heads)
        assert np.array_equal(array, wanted), name
    types = {t.name: t.type for t in report.tensors}
    assert types["blk.0.ffn_up.weight"] == "TQ2_0"
    assert types["token_embd.weight"] == "bfloat16"
    assert types["output_norm.weight"] == types["blk.0.attn_q.bias"] == "float32"
    assert any("tokenizer is left out" in note for note in report.notes)
    tpack.convert(tmp_path / "m.gguf", tmp_path / "again.safetensors")
    before, after = contents(tmp_path / "model.tpack"), contents(tmp_path / "again.safetensors")
    weights = [name for name in before if isinstance(before[name], tuple)]
    assert len(weights) == 7
    assert {name: after[name] for name in weights} == {name: before[name] for name in weights}


def test_metadata_of_a_llama_folder(tmp_path):
    export(folder(tmp_path), tmp_path / "m.gguf")
    fields = gguf.GGUFReader(tmp_path / "m.gguf").fields
    found = {key: field.contents() for key, field in fields.items() if not key.startswith("GGUF.")}
    keys, arch = gguf.Keys, "llama"
    wanted = {
        keys.General.ARCHITECTURE: arch,
        keys.General.FILE_TYPE: gguf.LlamaFileType.MOSTLY_TQ2_0,
        keys.General.QUANTIZATION_VERSION: gguf.GGML_QUANT_VERSION,
        keys.General.TYPE: gguf.GGUFType.MODEL,
        keys.LLM.VOCAB_SIZE.format(arch=arch): 32,
        keys.LLM.CONTEXT_LENGTH.format(arch=arch): 128,
        keys.LLM.EMBEDDING_LENGTH.format(arch=arch): 256,
        keys.LLM.BLOCK_COUNT.format(arch=arch): 1,
        keys.LLM.FEED_FORWARD_LENGTH.format(arch=arch): 512,
        keys.Attention.HEAD_COUNT.format(arch=arch): HEADS,
        keys.Attention.HEAD_COUNT_KV.format(arch=arch): KEYS,
        keys.Attention.KEY_LENGTH.format(arch=arch): 64,
        keys.Attention.VALUE_LENGTH.format(arch=arch): 64,
        keys.Attention.LAYERNORM_RMS_EPS.format(arch=arch): np.float32(1e-5),
        keys.Rope.DIMENSION_COUNT.format(arch=arch): 64,
        keys.Rope.FREQ_BASE.format(arch=arch): 500000.0,
        keys.Tokenizer.MODEL: "none",
    }
    assert found == wanted


@pytest.mark.parametrize("stated", ["BitNetForCausalLM", "BitnetForCausalLM"])
@pytest.mark.parametrize(("act", "wanted"), [("relu2", "bitnet-b1.58"), ("silu", "bitnet")])
def test_a_bitnet_folder(tmp_path, stated, act, wanted):
    early = act == "silu"
    norms = {
        "model.layers.0.self_attn.inner_attn_ln.weight"
        if early
        else "model.layers.0.self_attn.attn_sub_norm.weight": torch.ones(256),
        "model.layers.0.mlp.ffn_layernorm.weight"
        if early
        else "model.layers.0.mlp.ffn_sub_norm.weight": torch.ones(512),
    }
    weights = {k: v for k, v in hf_weights().items() if "lm_head" not in k and "bias" not in k}
    config = CONFIG | {"architectures": [stated], "hidden_act": act, "rope_scaling": None}
    config |= {"tie_word_embeddings": True}
    export(folder(tmp_path, weights | norms, config), tmp_path / "m.gguf")
    fields = gguf.GGUFReader(tmp_path / "m.gguf").fields
    assert fields["general.architecture"].contents() == wanted
    assert fields[f"{wanted}.rope.scaling.type"].contents() == "linear"
    found = read(tmp_path / "m.gguf")
    assert {"blk.0.attn_sub_norm.weight", "blk.0.ffn_sub_norm.weight"} <= set(found)
    q = weights["model.layers.0.self_attn.q_proj.weight"].float().numpy()
    assert np.array_equal(found["blk.0.attn_q.weight"], q)


def test_tied_embeddings_and_computed_buffers(tmp_path):
    weights = hf_weights()
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(32)
    del weights["lm_head.weight"]
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    source = tmp_path / "pt"
    source.mkdir()
    torch.save(weights, source / "pytorch_model.bin")
    (source / "config.json").write_text(json.dumps(CONFIG | {"tie_word_embeddings": True}))
    tpack.convert(source, tmp_path / "tied.tpack")
    report = export(tmp_path / "tied.tpack", tmp_path / "m.gguf")
    assert "output.weight" not in read(tmp_path / "m.gguf")
    assert any("takes the embedding" in note for note in report.notes)
    assert any("inv_freq is left out" in note for note in report.notes)


def test_a_file_beside_a_config(tmp_path):
    save_file(hf_weights(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    tpack.convert(tmp_path / "model.safetensors")
    export(tmp_path / "model.tpack.safetensors", tmp_path / "m.gguf")
    assert len(read(tmp_path / "m.gguf")) == len(SHAPES)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"architectures": ["Qwen3ForCausalLM"]}, UnsupportedError, "model of 'Qwen3ForCausalLM'"),
        ({"architectures": None}, InputError, "names no architectures in its config.json"),
        ({"architectures": []}, InputError, "names no architectures in its config.json"),
        ({"architectures": [3]}, UnsupportedError, "model of 3"),
        ({"rope_scaling": "linear"}, InputError, "RoPE 'linear' in its config.json, expected an"),
        ({"rope_scaling": {"rope_type": "linear"}}, InputError, "factor None"),
        (
            {"rope_parameters": {"rope_theta": 7.0}, "rope_scaling": {"type": "default"}},
            UnsupportedError,
            "has rope_parameters and other rope_scaling",
        ),
        ({"rope_scaling": {"rope_type": "llama3"}}, UnsupportedError, "RoPE scaling 'llama3'"),
        ({"num_hidden_layers": "2"}, InputError, "num_hidden_layers '2'"),
        ({"vocab_size": None}, InputError, "vocab_size None"),
        ({"rms_norm_eps": -1}, InputError, "rms_norm_eps -1"),
        ({"num_attention_heads": 3}, InputError, "256 rows, expected an even number for each of 3"),
    ],
)
def test_configs_that_are_refused(tmp_path, change, error, words):
    with pytest.raises(error, match=words):
        export(folder(tmp_path, config=CONFIG | change), tmp_path / "m.gguf")
    assert not (tmp_path / "m.gguf").exists()


@pytest.mark.parametrize(
    ("change", "scaling", "base"),
    [
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, 4.0, 500000.0),
        ({"rope_parameters": {"rope_theta": 7.0, "rope_type": "default"}}, None, 7.0),
        ({"rope_theta": None, "rope_parameters": {"rope_theta": 7.0}}, None, 7.0),
    ],
)
def test_rope(tmp_path, change, scaling, base):
    export(folder(tmp_path, config=CONFIG | change), tmp_path / "m.gguf")
    fields = gguf.GGUFReader(tmp_path / "m.gguf").fields
    assert fields["llama.rope.freq_base"].contents() == base
    factor = fields.get("llama.rope.scaling.factor")
    assert (None if factor is None else factor.contents()) == scaling


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_act": "gelu"},
        {"hidden_act": "relu"},
        {"hidden_act": "relu2"},
        {"hidden_act": ["silu"]},
        {"partial_rotary_factor": 0.5},
        {"rope_parameters": {"rope_theta": 500000.0, "partial_rotary_factor": 0.5}},
        {"rope_parameters": {"full_attention": {"rope_theta": 500000.0}}},
        {"sliding_window": 64},
        {"layer_types": ["sliding_attention"]},
        {"attn_logit_softcapping": 30.0},
        {"final_logit_softcapping": 30.0},
        {"clip_qkv": 8.0},
        {"embedding_multiplier": 12},
        {"residual_multiplier": 0.22},
        {"logits_scaling": 8.0},
        {"num_local_experts": 4},
        {"use_rope": False},
        {"is_causal": False},
        {"some_new_field": "on"},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["LlamaForCausalLM", "BitNetForCausalLM"])
def test_what_a_config_says_and_gguf_cannot_is_refused_by_name(tmp_path, kind, change):
    usual = {"hidden_act": "silu", "architectures": [kind], "tie_word_embeddings": True}
    weights = hf_weights()
    del weights["lm_head.weight"], weights["model.layers.0.self_attn.q_proj.bias"]
    path = folder(tmp_path, weights, CONFIG | usual | change)
    if kind.startswith("BitNet") and change == {"hidden_act": "relu2"}:
        export(path, tmp_path / "m.gguf")
        return
    *_, key = change.get("rope_parameters", change)
    with pytest.raises(UnsupportedError, match=rf"has {key} .* in its config.json"):
        export(path, tmp_path / "m.gguf")
    assert not (tmp_path / "m.gguf").exists()


def test_fields_that_change_nothing_are_no_hindrance(tmp_path):
    """What LlamaConfig and the configs of published ternary models state besides."""
    usual = {
        "transformers_version": "5.23.0",
        "_name_or_path": "",
        "torch_dtype": "bfloat16",
        "dtype": None,
        "output_hidden_states": False,
        "return_dict": True,
        "chunk_size_feed_forward": 0,
        "is_encoder_decoder": False,
        "id2label": {"0": "LABEL_0"},
        "label2id": {"LABEL_0": 0},
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "use_cache": True,
        "pad_token_id": None,
        "pretraining_tp": 1,
        "attention_dropout": 0.1,
        "mlp_bias": False,
        "head_dim": 64,
        "sliding_window": None,
        "use_sliding_window": False,
        "partial_rotary_factor": 1.0,
        "activation": "swiglu",
        "input_bits": 8,
        "weight_bits": 1,
        "is_causal": True,
        "auto_map": {"AutoConfig": "configuration.Config"},
        "unsloth_fixed": True,
        "attention_bias": True,
    }
    export(folder(tmp_path, config=usual | CONFIG), tmp_path / "m.gguf")


RELU2 = CONFIG | {
    "architectures": ["BitNetForCausalLM"],
    "hidden_act": "relu2",
    "tie_word_embeddings": True,
}


def relu2(tmp_path, columns=256, **options):
    """A BitNet that only bitnet.cpp runs, exported."""
    skipped = ("lm_head", "bias", "down_proj")
    weights = {k: v for k, v in hf_weights().items() if not any(word in k for word in skipped)}
    weights |= {
        "model.layers.0.mlp.down_proj.weight": torch.randint(-1, 2, (256, columns)).bfloat16() / 2
    }
    config = RELU2 | {"intermediate_size": columns}
    return export(folder(tmp_path, weights, config), tmp_path / "m.gguf", **options)


def test_what_only_bitnet_cpp_runs_is_said(tmp_path):
    report = relu2(tmp_path)
    assert "open the file with bitnet.cpp: llama.cpp itself has no" in report.notes[0]
    assert not any("llama.cpp loads" in note for note in report.notes)
    assert {t.type for t in report.tensors if t.source.endswith("proj.weight")} == {"TQ2_0"}


def test_weights_without_blocks_that_bitnet_cpp_reads_are_written_as_floats(tmp_path):
    report = relu2(tmp_path, columns=192)
    (down,) = (t for t in report.tensors if t.source.endswith("down_proj.weight"))
    assert (down.type, down.error) == ("float16", 0.0)
    assert any(
        "1 weights are written as floats, without loss, such as model.layers.0.mlp.down_proj.weight"
        ", which has 192 columns, expected a multiple of 256 in TQ2_0; bitnet.cpp reads TQ2_0 and "
        "TQ1_0 only" in note
        for note in report.notes
    )
    with Checkpoint(tmp_path / "model.tpack") as file:
        wanted = tpack.unpack(file.path)[down.source].float().numpy()
    assert np.array_equal(read(tmp_path / "m.gguf")[down.name], wanted)


def test_types_that_bitnet_cpp_does_not_read_are_refused(tmp_path):
    with pytest.raises(UnsupportedError, match=r"only bitnet.cpp runs: it reads TQ2_0 and TQ1_0"):
        relu2(tmp_path, type="q2_0")
    assert not (tmp_path / "m.gguf").exists()


def test_biases_that_bitnet_does_not_have(tmp_path):
    config = CONFIG | {"architectures": ["BitNetForCausalLM"], "hidden_act": "relu2"}
    with pytest.raises(UnsupportedError, match=r"q_proj.bias' has no place in GGUF files of bit"):
        export(folder(tmp_path, config=config), tmp_path / "m.gguf")
    weights = {k: v for k, v in hf_weights().items() if "bias" not in k}
    path = folder(tmp_path, weights, config | {"attention_bias": True}, name="stated")
    with pytest.raises(UnsupportedError, match=r"has attention_bias True in its config"):
        export(path, tmp_path / "m.gguf")
    path = folder(tmp_path, weights, config | {"hidden_act": "silu"}, name="head")
    with pytest.raises(UnsupportedError, match=r"lm_head.weight' has no place in GGUF files of b"):
        export(path, tmp_path / "m.gguf")


@pytest.mark.parametrize("field", ["hidden_act", "rms_norm_eps", "rope_theta"])
def test_what_versions_of_bitnet_differ_in_must_be_stated(tmp_path, field):
    config = CONFIG | {"architectures": ["BitNetForCausalLM"], "hidden_act": "relu2"}
    with pytest.raises(InputError, match=f"has no {field}|has {field} None"):
        export(folder(tmp_path, config=config | {field: None}), tmp_path / "m.gguf")


def test_a_factor_without_linear_scaling_is_not_written(tmp_path):
    config = CONFIG | {"architectures": ["BitNetForCausalLM"], "hidden_act": "relu2"}
    rope = {"rope_type": "default", "factor": 4.0}
    weights = {k: v for k, v in hf_weights().items() if "bias" not in k}
    export(folder(tmp_path, weights, config | {"rope_scaling": rope}), tmp_path / "m.gguf")
    fields = gguf.GGUFReader(tmp_path / "m.gguf").fields
    assert fields["bitnet-b1.58.rope.scaling.factor"].contents() == 1.0


def test_a_head_that_is_missing(tmp_path):
    weights = hf_weights()
    del weights["lm_head.weight"]
    with pytest.raises(InputError, match=r"lm_head.weight' is missing"):
        export(folder(tmp_path, weights), tmp_path / "m.gguf")
    tied = CONFIG | {"tie_word_embeddings": True}
    export(folder(tmp_path, weights, tied, name="tied"), tmp_path / "m.gguf")


def test_names_that_gguf_does_not_know(tmp_path):
    names = ("model.layers.0.self_attn.q_norm.weight", "lm_head.bias", "score.weight")
    for number, name in enumerate(names):
        weights = hf_weights() | {name: torch.ones(64)}
        with pytest.raises(UnsupportedError, match=f"{name}' has no place in GGUF files of llama"):
            export(folder(tmp_path, weights, name=str(number)), tmp_path / "m.gguf")


def test_two_names_that_are_one_in_gguf(tmp_path):
    weights = hf_weights() | {
        "model.layers.0.mlp.ffn_layernorm.weight": torch.ones(512),
        "model.layers.0.mlp.ffn_sub_norm.weight": torch.ones(512),
    }
    weights = {name: tensor for name, tensor in weights.items() if "bias" not in name}
    config = CONFIG | {"architectures": ["BitNetForCausalLM"], "hidden_act": "relu2"}
    with pytest.raises(InputError, match=r"would both be 'blk\.0\.ffn_sub_norm\.weight'"):
        export(folder(tmp_path, weights, config), tmp_path / "m.gguf")


def test_nothing_that_describes_the_model(tmp_path):
    tpack.convert({"fc.weight": torch.ones(4, 256)}, tmp_path / "m.safetensors")
    with pytest.raises(InputError, match="neither the metadata of a GGUF file nor a config"):
        export(tmp_path / "m.safetensors", tmp_path / "m.gguf")


# ---- tokenizer


def test_a_tokenizer_with_the_rules_of_llama_3(tmp_path):
    settings = {"add_bos_token": True, "chat_template": "{{ messages }}"}
    path = folder(tmp_path, tokenizer__json=TOKENIZER, tokenizer_config__json=settings)
    report = export(path, tmp_path / "m.gguf")
    assert report.notes == ()
    fields = gguf.GGUFReader(tmp_path / "m.gguf").fields
    found = {key: field.contents() for key, field in fields.items() if "tokenizer" in key}
    special = gguf.SpecialVocab(path, load_merges=True, n_vocab=32)
    unused = [f"[PAD{n}]" for n in range(7, 32)]
    kinds = gguf.TokenType
    assert found == {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "llama-bpe",
        "tokenizer.ggml.tokens": ["a", "b", "ab", "Ġ", "<|begin|>", "[PAD5]", "<|user|>", *unused],
        "tokenizer.ggml.token_type": [
            *[kinds.NORMAL] * 4,
            kinds.CONTROL,
            kinds.UNUSED,
            kinds.USER_DEFINED,
            *[kinds.UNUSED] * 25,
        ],
        "tokenizer.ggml.merges": special.merges,
        "tokenizer.ggml.bos_token_id": special.special_token_ids["bos"],
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_bos_token": special.add_special_token["bos"],
        "tokenizer.chat_template": special.chat_template,
    }


@pytest.mark.parametrize(
    "change",
    [
        {"normalizer": {"type": "NFC"}},
        {"pre_tokenizer": None},
        {"pre_tokenizer": {"pretokenizers": [{"type": "ByteLevel"}]}},
        {"model": {"type": "Unigram"}},
    ],
)
def test_another_tokenizer_is_left_out(tmp_path, change):
    report = export(folder(tmp_path, tokenizer__json=TOKENIZER | change), tmp_path / "m.gguf")
    assert any("is not one that tpack knows" in note for note in report.notes)
    fields = gguf.GGUFReader(tmp_path / "m.gguf").fields
    assert fields["tokenizer.ggml.model"].contents() == "none"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"added_tokens": [{"id": 32, "content": "x", "special": True}]}, "token of number 32"),
        ({"added_tokens": [{"id": 5}]}, "not a file of the tok"),
        ({"added_tokens": [{"id": 5, "content": 3, "special": True}]}, "not a file of the tok"),
    ],
)
def test_a_malformed_tokenizer(tmp_path, change, words):
    with pytest.raises(InputError, match=words):
        export(folder(tmp_path, tokenizer__json=TOKENIZER | change), tmp_path / "m.gguf")
