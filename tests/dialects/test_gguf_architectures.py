"""Architectures of GGUF: names as the gguf package has them, and a new one is one record."""

import gguf
import numpy as np
import pytest
import torch
from gguf_exports import CONFIG, export, folder, hf_weights, read
from gguf_files import HEADS, KEYS, interleave

import tpack
from tpack.cli.reference import architectures_reference
from tpack.dialects.gguf_architectures import (
    ARCHITECTURES,
    BITNET_CPP,
    FIELDS,
    Architecture,
    named,
)
from tpack.dialects.gguf_types import WRITTEN
from tpack.errors import UnsupportedError
from tpack.exporting.gguf_weights import AUTO
from tpack.sources.shapes import expected_shape

LLAMA, BITNET = ARCHITECTURES["llama"], ARCHITECTURES["bitnet"]


@pytest.mark.parametrize("row", ARCHITECTURES.values(), ids=lambda row: row.name)
def test_names_are_those_of_the_gguf_package(row):
    numbers = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
    table = gguf.get_tensor_name_map(numbers.get(row.name, gguf.MODEL_ARCH.BITNET), 3)
    for stem, names in row.tensors.items():
        inside = stem.replace("*", "2")
        for number, hf in enumerate(name.replace("*", "2") for name in names):
            known = table.get_name(hf)
            later = row is not LLAMA and stem == "output"  # llama.cpp has none, bitnet.cpp does
            assert known == inside or (known is None and (later or "sub_norm" in hf)), hf
            assert row.to_gguf(f"{hf}.weight") == f"{inside}.weight"
            assert number or row.to_hf(f"{inside}.weight") == f"{hf}.weight"


@pytest.mark.parametrize("row", ARCHITECTURES.values(), ids=lambda row: row.name)
def test_records_hold_together(row):
    assert set(row.types) <= set(WRITTEN)
    assert {*row.biased, *row.permuted} <= set(row.tensors)
    assert set(row.permuted.values()) <= set(row.fields)
    assert (row.runner == BITNET_CPP) == (len(row.types) < len(WRITTEN))
    assert {kind.upper() for kind in AUTO} & set(row.types)  # auto has one to try


@pytest.mark.parametrize(
    "name",
    [
        "rope_freqs.weight",
        "blk.0.attn_q.scale",
        "blk.01.attn_q.weight",
        "blk.*.attn_q.weight",
        "blk.0.token_embd.weight",
    ],
)
def test_names_without_another(name):
    assert LLAMA.to_hf(name) == name
    assert LLAMA.to_gguf(name) is None
    assert not LLAMA.takes(name) or "*" in name


@pytest.mark.parametrize(
    ("spelling", "wanted"),
    [
        ("llama", ["llama"]),
        ("LlamaForCausalLM", ["llama"]),
        ("LLaMAForCausalLM", ["llama"]),
        ("bitnet", ["bitnet"]),
        ("bitnet-b1.58", ["bitnet-b1.58"]),
        ("bitnet_b1_58", ["bitnet-b1.58"]),
        ("bitnet-25", ["bitnet-25"]),
        ("BitNetForCausalLM", ["bitnet", "bitnet-b1.58"]),
        ("BitnetForCausalLM", ["bitnet", "bitnet-b1.58"]),
        ("qwen3", []),
        ("llama4", []),
        ("", []),
    ],
)
def test_spellings(spelling, wanted):
    assert [row.name for row in named(spelling)] == wanted


# ---- a new architecture

TWISTED = Architecture(
    "twisted",
    ("TwistedForCausalLM",),
    {
        "token_embd": ("twisted.words",),
        "output_norm": ("twisted.last_norm",),
        "output": ("lm_head",),
        "blk.*.attn_norm": ("twisted.blocks.*.norm_in",),
        "blk.*.attn_q": ("twisted.blocks.*.attention.query",),
        "blk.*.attn_k": ("twisted.blocks.*.attention.key", "twisted.blocks.*.attention.k"),
        "blk.*.attn_q_norm": ("twisted.blocks.*.attention.query_norm",),
        "blk.*.attn_v": ("twisted.blocks.*.attention.value",),
        "blk.*.attn_output": ("twisted.blocks.*.attention.out",),
        "blk.*.ffn_norm": ("twisted.blocks.*.norm_inner",),
        "blk.*.ffn_gate": ("twisted.blocks.*.gate",),
        "blk.*.ffn_up": ("twisted.blocks.*.up",),
        "blk.*.ffn_down": ("twisted.blocks.*.down",),
    },
    tied=True,
    biased=("blk.*.attn_q",),
    permuted={"blk.*.attn_k": "attention.head_count_kv"},
    activations=("gelu",),
    int8_inputs=True,
    fields=FIELDS | {"attention.sliding_window": ("uint32", "sliding_window")},
    constants={"pooling": ("string", "none")},
    defaults={"hidden_act": "gelu", "rope_theta": 7.0},
    said=("query_bias",),
    model_types=("twisted",),
    runner="twister",
    types=("TQ2_0",),
)
TWISTED_CONFIG = {
    **{key: found for key, found in CONFIG.items() if key != "rope_theta"},
    "architectures": ["TwistedForCausalLM"],
    "model_type": "twisted",
    "sliding_window": 64,
    "query_bias": True,
    "tie_word_embeddings": True,
}


@pytest.fixture
def twisted(monkeypatch):
    monkeypatch.setitem(ARCHITECTURES, "twisted", TWISTED)
    llama = {name: tensor for name, tensor in hf_weights().items() if name != "lm_head.weight"}
    weights = {TWISTED.to_hf(LLAMA.to_gguf(name)): tensor for name, tensor in llama.items()}
    weights["twisted.blocks.0.attention.query_norm.weight"] = torch.ones(64).bfloat16()
    return weights


def test_a_new_architecture_is_exported_and_read_back(twisted, tmp_path):
    packed = folder(tmp_path, twisted, TWISTED_CONFIG)
    report = export(packed, tmp_path / "m.gguf")
    fields = gguf.GGUFReader(tmp_path / "m.gguf").fields
    assert fields["general.architecture"].contents() == "twisted"
    assert fields["twisted.attention.sliding_window"].contents() == 64
    assert fields["twisted.pooling"].contents() == "none"
    assert fields["twisted.rope.freq_base"].contents() == 7.0
    assert report.notes[0].startswith("open the file with twister")
    found = read(tmp_path / "m.gguf")
    assert len(found) == len(twisted)
    for name, heads in (("query", None), ("key", KEYS)):
        wanted = twisted[f"twisted.blocks.0.attention.{name}.weight"].float().numpy()
        wanted = wanted if heads is None else interleave(wanted, heads)
        assert np.array_equal(found[f"blk.0.attn_{name[0]}.weight"], wanted)

    with pytest.raises(UnsupportedError, match="only twister runs: it reads TQ2_0, not Q2_0"):
        export(packed, tmp_path / "other.gguf", type="q2_0")

    back = tmp_path / "back.safetensors"
    converted = tpack.convert(tmp_path / "m.gguf", back)
    assert any("twisted: names as Hugging Face has them" in note for note in converted.notes)
    unpacked = tpack.unpack(back)
    assert set(unpacked) == set(twisted)
    for name, tensor in twisted.items():
        assert torch.equal(unpacked[name].float(), tensor.float()), name
    assert any("round their inputs" in note for note in converted.notes)


def test_a_new_architecture_refuses_what_it_cannot_say(twisted, tmp_path):
    def refused(words, weights=twisted, **change):
        with pytest.raises(UnsupportedError, match=words):
            export(folder(tmp_path, weights, TWISTED_CONFIG | change, name=words), tmp_path / "m")

    refused("has hidden_act 'silu' in its config.json, expected 'gelu'", hidden_act="silu")
    refused("GGUF files of twisted cannot express: twister would", mlp_bias=True)
    bias = {"twisted.blocks.0.attention.key.bias": torch.ones(128)}
    refused("key.bias' has no place in GGUF files of twisted", twisted | bias)
    refused("expected LlamaForCausalLM or BitNetForCausalLM or TwistedF", architectures=["Other"])


def test_a_new_architecture_is_known_where_shapes_and_the_manual_ask(twisted):
    name = "model.layers.0.self_attn.k_proj.weight"
    assert expected_shape(name, TWISTED_CONFIG) == (CONFIG["hidden_size"] // HEADS * KEYS, 256)
    assert "| `twisted`, which twister runs | `TwistedForCausalLM`" in architectures_reference()
