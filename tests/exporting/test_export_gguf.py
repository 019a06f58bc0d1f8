"""Export to GGUF: bytes, values by the gguf package, metadata, and what is refused."""

import json
import re
import struct

import gguf
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from gguf import GGMLQuantizationType as Type
from gguf_files import HEADS, KEYS, SHAPES, container, interleave, values, write_model
from safetensors.torch import save_file

import tpack
from tpack import codec
from tpack.cli.main import cli
from tpack.container import Checkpoint
from tpack.dialects import gguf_blocks, gguf_names
from tpack.errors import ExistsError, InputError, StorageError, UnsupportedError, UsageError
from tpack.exporting import export, gguf_metadata
from tpack.quantize import widen

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KEYS,
    "num_hidden_layers": 1,
    "vocab_size": 32,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "bos_token_id": 1,
    "eos_token_id": [2, 3],
}


def hf_weights(seed=0, dtype=torch.bfloat16):
    """A tiny Llama as Hugging Face has it."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, shape in SHAPES.items():
        hf = gguf_names.to_hf(name)
        if name.startswith("blk") and len(shape) == 2:
            trits = torch.randint(-1, 2, shape, generator=generator)
            found[hf] = (trits * torch.rand((), generator=generator).to(dtype)).to(dtype)
        else:
            found[hf] = torch.randn(shape, generator=generator).to(dtype)
    return found


def folder(tmp_path, weights=None, config=CONFIG, name="model", **files):
    """A packed folder of a model."""
    source = tmp_path / name
    source.mkdir()
    save_file(hf_weights() if weights is None else weights, source / "model.safetensors")
    (source / "config.json").write_text(json.dumps(config))
    for file, content in files.items():
        (source / file.replace("__", ".")).write_text(json.dumps(content))
    packed = tmp_path / f"{name}.tpack"
    tpack.convert(source, packed)
    return packed


def packed(tmp_path, weight, name="blk.0.ffn_up.weight", architecture="bitnet", **options):
    """A checkpoint of one weight with the metadata of a GGUF file."""
    head = [("general.architecture", "string", architecture)]
    other = ("token_embd.weight", (2, 4), 0, bytes(32))
    number = {np.float32: 0, np.float16: 1}[weight.dtype.type]
    data = container(head, [(name, weight.shape, number, weight.tobytes()), other])
    (tmp_path / "one.gguf").write_bytes(data)
    path = tmp_path / "one.tpack.safetensors"
    tpack.convert(tmp_path / "one.gguf", path, force=True, **options)
    return path


def ternary(shape, scale, dtype=np.float32, seed=0):
    trits = np.random.default_rng(seed).integers(-1, 2, shape)
    trits[:, ::32] = 1
    return (trits * np.asarray(scale)).astype(dtype)


def read(path):
    """Tensors of a GGUF file as the gguf package reads them, Q2_0 by hand."""
    reader = gguf.GGUFReader(path)
    return {
        t.name: gguf.quants.dequantize(t.data, t.tensor_type).reshape(t.shape[::-1])
        for t in reader.tensors
    }


def contents(path):
    """Packed bytes, scales and kept tensors of a checkpoint."""
    with Checkpoint(path) as file:
        found = {name: file.array(name).tobytes() for name in file.document.kept}
        for name, entry in file.ternary():
            assert entry.method == "exact"
            stored, dtype, granularity = file.scale(name)
            scale = widen(stored, dtype)
            blocks = b"".join(block.tobytes() for _, block in file.packed_blocks(name))
            found[name] = (blocks, str(granularity), tuple(scale.astype(np.float64).ravel()))
        return found


# ---- GGUF → tpack → GGUF


@pytest.mark.parametrize("layout", ["t2", "t5"])
@pytest.mark.parametrize("architecture", ["llama", "bitnet", "bitnet-25", "qwen3"])
@pytest.mark.parametrize("kind", [Type.TQ1_0, Type.TQ2_0])
def test_a_gguf_file_comes_back_byte_for_byte(tmp_path, kind, architecture, layout):
    path = write_model(tmp_path / "a.gguf", values(), kind, architecture)
    tpack.convert(path, tmp_path / "a.safetensors", layout=layout)
    report = export(tmp_path / "a.safetensors", tmp_path / "b.gguf")
    assert (tmp_path / "b.gguf").read_bytes() == path.read_bytes()
    assert report.output_bytes == path.stat().st_size
    assert {t.relative_error for t in report.tensors} == {0.0}
    assert ["bitnet.cpp" in note for note in report.notes] == [True] * (architecture == "bitnet-25")


@pytest.mark.parametrize("alignment", [1, 8, 256])
def test_alignment_is_kept(tmp_path, alignment):
    path = write_model(
        tmp_path / "a.gguf", values(), extra=lambda w: w.add_custom_alignment(max(alignment, 8))
    )
    tpack.convert(path, tmp_path / "a.safetensors")
    export(tmp_path / "a.safetensors", tmp_path / "b.gguf")
    assert (tmp_path / "b.gguf").read_bytes() == path.read_bytes()


def test_zero_blocks_keep_their_scale(tmp_path):
    weights = values()
    weights["blk.0.ffn_up.weight"][:7] = 0  # whose scale gguf writes as 0
    path = write_model(tmp_path / "a.gguf", weights)
    tpack.convert(path, tmp_path / "a.safetensors")
    export(tmp_path / "a.safetensors", tmp_path / "b.gguf")
    assert (tmp_path / "b.gguf").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("kind", ["tq1_0", "tq2_0", "q2_0"])
def test_from_one_type_to_another(tmp_path, kind):
    path = write_model(
        tmp_path / "a.gguf", values(), Type.TQ1_0, extra=lambda w: w.add_file_type(36)
    )
    tpack.convert(path, tmp_path / "a.safetensors")
    export(tmp_path / "a.safetensors", tmp_path / "b.gguf", type=kind)
    tpack.convert(tmp_path / "b.gguf", tmp_path / "b.safetensors")
    assert contents(tmp_path / "b.safetensors") == contents(tmp_path / "a.safetensors")
    with Checkpoint(tmp_path / "b.safetensors") as file:
        pairs = json.loads(file.metadata["gguf"])["metadata"]
    assert ["general.file_type", "uint32", {"tq1_0": 36, "tq2_0": 37, "q2_0": 41}[kind]] in pairs


@pytest.mark.parametrize(
    ("kind", "number"),
    [(gguf_blocks.PQ2_0, 142), (gguf_blocks.PQ2_0, 42), (gguf_blocks.PTQ1_0, 143)],
)
def test_blocks_of_128_go_out_as_q2_0(tmp_path, kind, number):
    rng = np.random.default_rng(0)
    trits = rng.integers(-1, 2, (64, 384)).astype(np.int8)
    scales = rng.uniform(0.1, 1, (64, 3)).astype(np.float16)
    data = gguf_blocks.pack_blocks(kind, codec.pack(trits), scales).tobytes()
    (tmp_path / "a.gguf").write_bytes(container((), [("w", (64, 384), number, data)]))
    tpack.convert(tmp_path / "a.gguf", tmp_path / "a.safetensors")
    report = export(tmp_path / "a.safetensors", tmp_path / "b.gguf")
    assert [t.type for t in report.tensors] == ["Q2_0"]
    tpack.convert(tmp_path / "b.gguf", tmp_path / "b.safetensors")
    assert contents(tmp_path / "b.safetensors") == contents(tmp_path / "a.safetensors")
    stored = (tmp_path / "b.gguf").read_bytes()[-64 * 384 // 64 * 18 :]
    assert np.frombuffer(stored[:2], np.float16)[0] == scales[0, 0]
    assert stored[2:18] == codec.pack(trits[:1, :64]).tobytes()


def test_i2_s_rounds_its_scale_only_when_allowed(tmp_path):
    trits = np.random.default_rng(0).integers(-1, 2, (4, 256)).astype(np.int8)
    none = np.zeros((4, 2), np.float16)
    data = gguf_blocks.pack_blocks(gguf_blocks.I2_S, codec.pack(trits), none).tobytes()
    data += struct.pack("<f", 0.0123) + bytes(28)
    (tmp_path / "a.gguf").write_bytes(container((), [("w", (4, 256), 36, data)]))
    tpack.convert(tmp_path / "a.gguf", tmp_path / "a.safetensors")
    with pytest.raises(UnsupportedError, match=r"scale 0\.0123.*relative error 1\.2e-04"):
        export(tmp_path / "a.safetensors", tmp_path / "b.gguf")
    report = export(tmp_path / "a.safetensors", tmp_path / "b.gguf", allow_inexact=True)
    (tensor,) = report.tensors
    rounded = float(np.float16(0.0123))
    assert tensor.relative_error == pytest.approx(abs(rounded - 0.0123) / 0.0123, rel=1e-3)
    assert np.array_equal(read(tmp_path / "b.gguf")["w"], trits * np.float32(rounded))


# ---- Hugging Face → tpack → GGUF


def test_a_llama_folder(tmp_path):
    weights = hf_weights()
    report = export(folder(tmp_path), tmp_path / "m.gguf")
    found = read(tmp_path / "m.gguf")
    assert set(found) == set(SHAPES)
    for name, array in found.items():
        wanted = weights[gguf_names.to_hf(name)].float().numpy()
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
    assert (down.type, down.relative_error) == ("float16", 0.0)
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

RULE = (
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+"
    "[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
)
TOKENIZER = {
    "normalizer": None,
    "pre_tokenizer": {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": RULE}, "behavior": "Isolated"},
            {"type": "ByteLevel", "add_prefix_space": False},
        ],
    },
    "model": {
        "type": "BPE",
        "vocab": {"a": 0, "b": 1, "ab": 2, "Ġ": 3},
        "merges": [["a", "b"], ["Ġ", "a"]],
    },
    "added_tokens": [
        {"id": 4, "content": "<|begin|>", "special": True},
        {"id": 6, "content": "<|user|>", "special": False},
    ],
}


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
    assert any("is none that tpack knows" in note for note in report.notes)
    fields = gguf.GGUFReader(tmp_path / "m.gguf").fields
    assert fields["tokenizer.ggml.model"].contents() == "none"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"added_tokens": [{"id": 32, "content": "x", "special": True}]}, "token of number 32"),
        ({"added_tokens": [{"id": 5}]}, "is no tokenizer"),
        ({"added_tokens": [{"id": 5, "content": 3, "special": True}]}, "is no tokenizer"),
    ],
)
def test_a_malformed_tokenizer(tmp_path, change, words):
    with pytest.raises(InputError, match=words):
        export(folder(tmp_path, tokenizer__json=TOKENIZER | change), tmp_path / "m.gguf")


# ---- what is exact


@pytest.mark.parametrize(
    ("columns", "scales", "kind"),
    [
        (256, 0.5, "TQ2_0"),
        (3200, 0.5, "Q2_0"),
        (8640, 0.5, "Q2_0"),
        (512, [[0.5], [0.25], [1], [2]], "TQ2_0"),
        (512, np.repeat([[1, 2], [3, 4], [1, 1], [2, 2]], 256, 1), "TQ2_0"),
        (512, np.repeat([[1, 2, 3, 4]] * 4, 128, 1), "Q2_0"),
        (512, np.repeat([[1, 2, 3, 4, 1, 2, 3, 4]] * 4, 64, 1), "Q2_0"),
    ],
)
def test_auto_takes_the_first_type_that_is_exact(tmp_path, columns, scales, kind):
    path = packed(tmp_path, ternary((4, columns), scales))
    before = contents(path)
    report = export(path, tmp_path / "m.gguf")
    assert report.tensors[0].type == kind
    assert report.tensors[0].relative_error == 0
    tpack.convert(tmp_path / "m.gguf", tmp_path / "again.safetensors")
    after = contents(tmp_path / "again.safetensors")
    for name in before:
        assert after[name] == before[name]


@pytest.mark.parametrize(
    ("columns", "scales", "kind", "words"),
    [
        (5460, 0.5, "auto", "has 5460 columns, expected a multiple of 64 in Q2_0"),
        (3200, 0.5, "tq2_0", "has 3200 columns, expected a multiple of 256 in TQ2_0"),
        (8640, 0.5, "tq1_0", "has 8640 columns, expected a multiple of 256 in TQ1_0"),
        (512, np.repeat([[1, 2, 3, 4]] * 4, 128, 1), "tq2_0", "scales per group:128, expected one"),
        (256, np.repeat([[1, 2, 3, 4, 5, 6, 7, 8]] * 4, 32, 1), "auto", "scales per group:32"),
    ],
)
def test_weights_that_fit_no_blocks(tmp_path, columns, scales, kind, words):
    weight = ternary((4, columns), scales)
    path = packed(tmp_path, weight)
    with pytest.raises(UnsupportedError, match=words) as caught:
        export(path, tmp_path / "m.gguf", type=kind)
    assert "--allow-inexact to write the weight unpacked, in float16" in str(caught.value)
    assert caught.value.tensor == "model.layers.0.mlp.up_proj.weight"
    assert caught.value.file == str(path)
    assert not (tmp_path / "m.gguf").exists()
    report = export(path, tmp_path / "m.gguf", type=kind, allow_inexact=True)
    assert (report.tensors[0].type, report.tensors[0].relative_error) == ("float16", 0)
    assert re.search(words, report.tensors[0].reason)
    assert np.array_equal(read(tmp_path / "m.gguf")["blk.0.ffn_up.weight"], weight)


def test_scales_of_columns_go_into_blocks_that_share_one(tmp_path):
    name = "model.layers.0.mlp.up_proj.weight"
    for scales, wanted in (
        (np.repeat([1, 2, 4, 8], 64), ("Q2_0", 0)),
        (np.arange(1, 257) / 512, ("float16", 0)),
    ):
        weight = ternary((256, 256), scales)  # square: the scale has a value for each row, too
        path = packed(tmp_path, weight)
        assert tpack.inspect(path).tensors[0].scale == "column"
        if wanted[0] == "float16":
            with pytest.raises(UnsupportedError, match="has scales per column, expected one for"):
                export(path, tmp_path / "other.gguf")
        report = export(path, tmp_path / "m.gguf", allow_inexact=True, force=True)
        assert (report.tensors[0].type, report.tensors[0].relative_error) == wanted
        tpack.convert(tmp_path / "m.gguf", tmp_path / "again", force=True, include=[name])
        assert np.array_equal(tpack.unpack(tmp_path / "again")[name].numpy(), weight)


def test_unpacked_in_float32_where_float16_would_round(tmp_path):
    weight = ternary((4, 60), np.float32(0.0123))
    path = packed(tmp_path, weight)
    with pytest.raises(UnsupportedError, match="unpacked, in float32"):
        export(path, tmp_path / "m.gguf")
    export(path, tmp_path / "m.gguf", allow_inexact=True)
    assert np.array_equal(read(tmp_path / "m.gguf")["blk.0.ffn_up.weight"], weight)


def test_unpacked_rows_are_permuted_too(tmp_path):
    weights = hf_weights()
    name = "model.layers.0.self_attn.q_proj.weight"
    weights[name] = torch.from_numpy(
        ternary((256, 256), np.repeat([[1, 2, 3, 4, 5, 6, 7, 8]] * 256, 32, 1))
    )
    report = export(folder(tmp_path, weights), tmp_path / "m.gguf", allow_inexact=True)
    assert "float16" in {t.type for t in report.tensors if t.source == name}
    found = read(tmp_path / "m.gguf")["blk.0.attn_q.weight"]
    assert np.array_equal(found, interleave(weights[name].numpy(), HEADS))


@pytest.mark.parametrize("granularity", ["row", "group:256"])
def test_scales_are_permuted_with_their_rows(tmp_path, granularity):
    rng = np.random.default_rng(0)
    width = 1 if granularity == "row" else 2
    scales = rng.uniform(0.1, 2, (256, width)).astype(np.float16).astype(np.float32)
    weight = ternary((256, 512), np.repeat(scales, 512 // width, 1))
    weights = hf_weights()
    weights["model.layers.0.self_attn.q_proj.weight"] = torch.from_numpy(weight)
    path = folder(tmp_path, weights)
    export(path, tmp_path / "m.gguf")
    found = read(tmp_path / "m.gguf")["blk.0.attn_q.weight"]
    assert np.array_equal(found, interleave(weight, HEADS))
    tpack.convert(tmp_path / "m.gguf", tmp_path / "again.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    assert contents(tmp_path / "again.safetensors")[name] == contents(path)[name]
    assert contents(path)[name][1] == granularity


@pytest.mark.parametrize("scale", [1e6, 1e-12])
def test_scales_beyond_float16(tmp_path, scale):
    path = packed(tmp_path, ternary((4, 256), np.float32(scale)))
    for allow in (False, True):
        with pytest.raises(UnsupportedError, match="which is beyond float16"):
            export(path, tmp_path / "m.gguf", allow_inexact=allow)


def test_the_worst_scale_is_reported(tmp_path):
    scales = np.float32([[0.5], [0.1], [0.3], [2]])
    path = packed(tmp_path, ternary((4, 256), scales))
    with pytest.raises(UnsupportedError, match=r"relative error"):
        export(path, tmp_path / "m.gguf")
    report = export(path, tmp_path / "m.gguf", allow_inexact=True)
    off = np.abs(scales.astype(np.float16).astype(np.float32) - scales) / scales
    assert report.tensors[0].relative_error == pytest.approx(off.max(), rel=1e-3)


def test_convolutions_have_no_blocks(tmp_path):
    weight = ternary((4, 256), 0.5).reshape(4, 4, 8, 8)
    path = packed(tmp_path, weight)
    with pytest.raises(UnsupportedError, match=r"shape \(4, 4, 8, 8\), of which 1 dimensions"):
        export(path, tmp_path / "m.gguf")


@pytest.mark.parametrize("rank", [1, 3])
def test_other_ranks(tmp_path, rank):
    shape = (256,) if rank == 1 else (3, 5, 256)
    rng = np.random.default_rng(0)
    trits = rng.integers(-1, 2, (int(np.prod(shape[:-1])), 256)).astype(np.int8)
    scales = np.full((len(trits), 1), 0.5, np.float16)
    data = gguf_blocks.pack_blocks(gguf_blocks.TQ2_0, codec.pack(trits), scales).tobytes()
    (tmp_path / "a.gguf").write_bytes(container((), [("w", shape, 35, data)]))
    tpack.convert(tmp_path / "a.gguf", tmp_path / "a.safetensors")
    export(tmp_path / "a.safetensors", tmp_path / "b.gguf")
    assert (tmp_path / "b.gguf").read_bytes() == (tmp_path / "a.gguf").read_bytes()


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (torch.zeros(2, dtype=torch.uint8), "is uint8, expected"),
        (torch.zeros(3, 1, 1, 1, 1, dtype=torch.int32), "at most 4 dimensions"),
    ],
)
def test_tensors_that_gguf_has_no_room_for(tmp_path, tensor, words):
    weights = hf_weights() | {"model.norm.weight": tensor}
    with pytest.raises(UnsupportedError, match=words):
        export(folder(tmp_path, weights), tmp_path / "m.gguf")
    assert not (tmp_path / "m.gguf").exists()


def test_names_that_gguf_has_no_room_for(tmp_path):
    path = packed(tmp_path, ternary((4, 256), 0.5), name="x" * 64)
    with pytest.raises(UnsupportedError, match="a name of 64 bytes"):
        export(path, tmp_path / "m.gguf")
    assert not (tmp_path / "m.gguf").exists()


# ---- damaged and hostile checkpoints


def edited(path, edit):
    """Change the bytes of a checkpoint, of which the length stays."""
    data = path.read_bytes()
    changed = edit(data)
    assert len(changed) == len(data)
    path.write_bytes(changed)


def test_metadata_that_does_not_agree_with_its_digest(tmp_path):
    path = packed(tmp_path, ternary((4, 256), 0.5))
    edited(path, lambda data: data.replace(b'\\"bitnet\\"', b'\\"bitnot\\"'))
    with pytest.raises(InputError, match="does not agree with its digest"):
        export(path, tmp_path / "m.gguf")


def test_codes_that_are_illegal(tmp_path):
    path = packed(tmp_path, ternary((4, 256), 0.5))
    edited(path, lambda data: data[:-70] + b"\xff" + data[-69:])
    with pytest.raises(InputError, match="no valid code"):
        export(path, tmp_path / "m.gguf")
    assert not (tmp_path / "m.gguf").exists()


def test_it_never_overwrites(tmp_path):
    path = packed(tmp_path, ternary((4, 256), 0.5))
    with pytest.raises(ExistsError):
        export(path, tmp_path / "one.gguf")
    export(path, tmp_path / "one.gguf", force=True)
    with pytest.raises(ExistsError, match="input itself"):
        export(path, path, force=True)
    with pytest.raises(StorageError):
        export(path, tmp_path / "nowhere" / "m.gguf")


@pytest.mark.parametrize(
    ("to", "options"),
    [
        ("onnx", {}),
        ("gguf", {"type": "q4_k"}),
        ("hf-bitnet", {"type": "tq2_0"}),
        ("hf-bitnet", {"allow_inexact": True}),
    ],
)
def test_options_that_do_not_fit(tmp_path, to, options):
    path = packed(tmp_path, ternary((4, 256), 0.5))
    with pytest.raises(UsageError):
        export(path, tmp_path / "m", to, **options)


# ---- commands


def call(*arguments):
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def test_commands(tmp_path):
    source = write_model(tmp_path / "a.gguf", values())
    done = call("import", source, "-o", tmp_path / "a.safetensors")
    assert done.exit_code == 0
    assert done.stdout == f"{tmp_path / 'a.safetensors'}\n"
    done = call("export", tmp_path / "a.safetensors", "--to", "gguf", "-o", tmp_path / "b.gguf")
    assert done.stdout == f"{tmp_path / 'b.gguf'}\n"
    assert (tmp_path / "b.gguf").read_bytes() == source.read_bytes()
    done = call(
        "export",
        tmp_path / "a.safetensors",
        "--to",
        "gguf",
        "--json",
        "-f",
        "-o",
        tmp_path / "b.gguf",
    )
    report = json.loads(done.stdout)
    assert report["output_bytes"] == source.stat().st_size
    assert report["tensors"][0] == {
        "name": "token_embd.weight",
        "source": "model.embed_tokens.weight",
        "type": "float16",
        "shape": [32, 256],
        "relative_error": 0.0,
        "reason": "",
    }


def test_the_command_shows_what_is_not_exact(tmp_path):
    path = packed(tmp_path, ternary((4, 256), np.float32(0.0123)))
    done = call("export", path, "--to", "gguf", "-o", tmp_path / "m.gguf")
    assert isinstance(done.exception, UnsupportedError)
    done = call("export", path, "--to", "gguf", "-o", tmp_path / "m.gguf", "--allow-inexact")
    assert "blk.0.ffn_up.weight" in done.stderr
    assert "relative error 1.2e-04" in done.stderr
    assert "token_embd.weight" not in done.stderr


@pytest.mark.parametrize("granularity", ["group:32", "group:64", "group:128"])
def test_finer_scales_that_are_equal_within_a_block(tmp_path, granularity):
    scales = np.repeat([[1, 2], [3, 4], [1, 1], [2, 2]], 256, 1)
    path = packed(tmp_path, ternary((4, 512), scales), scale=granularity)
    report = export(path, tmp_path / "m.gguf")
    assert report.tensors[0].type == "TQ2_0"
    assert np.array_equal(
        read(tmp_path / "m.gguf")["blk.0.ffn_up.weight"], ternary((4, 512), scales)
    )


@pytest.mark.parametrize(
    "text",
    ["[]", "{}", '{"metadata":[1],"tensors":[]}', '{"metadata":[],"tensors":[["a","b",1]]}'],
)
def test_carried_metadata_that_is_malformed(text):
    with pytest.raises(InputError, match="malformed GGUF metadata"):
        gguf_metadata._from_gguf(text)


def test_a_chat_template_in_a_file_of_its_own(tmp_path):
    path = folder(tmp_path, tokenizer__json=TOKENIZER)
    (path / "chat_template.jinja").write_text("{{ ß }}")
    export(path, tmp_path / "m.gguf")
    fields = gguf.GGUFReader(tmp_path / "m.gguf").fields
    assert fields["tokenizer.chat_template"].contents() == "{{ ß }}"
