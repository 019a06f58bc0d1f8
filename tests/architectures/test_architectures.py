"""A folder of transformers gives a model that runs without transformers."""

import json
import subprocess
import sys

import pytest
import torch
import transformers
from hf_folders import IDS, SIZES, close, generate, llama, load, logits, make
from safetensors.torch import load_file, save_file

import tpack
from tpack.architectures.building import blank

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
LOADED = """
import sys
sys.modules["transformers"] = None
import torch, tpack
torch.save(tpack.load(sys.argv[1])(torch.load(sys.argv[2]))["logits"], sys.argv[2])
"""
ROPE = {
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 4.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 16},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
    "longrope": {
        "factor": 4.0,
        "original_max_position_embeddings": 16,
        "short_factor": [1 + i / 8 for i in range(8)],
        "long_factor": [2 + i / 4 for i in range(8)],
    },
}


def folder(tmp_path, model, edit=None, **config):
    """Save a model, perhaps with other tensors and another config."""
    place = tmp_path / "plain"
    model.save_pretrained(place)
    if edit is not None:
        tensors = edit(load_file(place / "model.safetensors"))
        save_file(tensors, place / "model.safetensors", metadata={"format": "pt"})
    found = json.loads((place / "config.json").read_text()) | config
    (place / "config.json").write_text(json.dumps(found))
    return place


def about(report):
    """The notes on the capture."""
    return " ".join(note for note in report.notes if "captured" in note or "equals" in note)


def test_the_converted_folder_runs_without_transformers(tmp_path):
    plain = folder(tmp_path, model := llama())
    report = tpack.convert(plain, tmp_path / "packed")
    assert "captured LlamaForCausalLM of transformers" in about(report)
    assert "program equals LlamaForCausalLM of transformers: no difference" in about(report)
    source = tpack.generate_pytorch_code(tpack.inspect(tmp_path / "packed").program)
    assert "in enumerate(self.layers):" in source
    ids = IDS[:1, :5]  # neither batch nor length of the example
    torch.save(ids, tmp_path / "ids.pt")
    command = [sys.executable, "-c", LOADED, tmp_path / "packed", tmp_path / "ids.pt"]
    subprocess.run(command, check=True, timeout=600)
    close(torch.load(tmp_path / "ids.pt"), logits(model, ids))
    assert tpack.verify(tmp_path / "packed", plain).ok
    tried = tpack.convert(plain, tmp_path / "other", dry_run=True)
    assert tried.notes == report.notes
    assert tried.output_bytes == sum(
        (tmp_path / "packed" / name).stat().st_size for name in ("model.safetensors",)
    )


def test_the_tensors_are_those_of_a_conversion_without_it(tmp_path):
    plain = folder(tmp_path, llama())
    tpack.convert(plain, tmp_path / "whole")
    report = tpack.convert(plain, tmp_path / "mirror", capture=False)
    assert not about(report)
    whole, mirror = (
        load_file(tmp_path / name / "model.safetensors") for name in ("whole", "mirror")
    )
    assert whole.keys() == mirror.keys()
    assert all(torch.equal(whole[name], mirror[name]) for name in whole)
    with pytest.raises(NotImplementedError):
        tpack.load(tmp_path / "mirror")(IDS)


@pytest.mark.parametrize("kind", ROPE)
def test_frequencies_are_those_of_a_model_that_was_initialised(kind):
    rope = {"rope_type": kind, "rope_theta": 1e4} | ROPE[kind]
    config = transformers.LlamaConfig(**SIZES, rope_parameters=rope)
    whole = transformers.LlamaForCausalLM(config)
    built = blank(transformers.LlamaForCausalLM, config, torch.float32, 100).model
    expected = dict(whole.named_buffers())
    assert expected
    for name, buffer in built.named_buffers():
        assert torch.equal(buffer, expected[name])
    assert built.model.rotary_emb.attention_scaling == whole.model.rotary_emb.attention_scaling


def test_gemma_has_two_kinds_of_frequencies_and_a_scale():
    kinds = ["sliding_attention", "full_attention"]
    config = transformers.Gemma3TextConfig(**SIZES, head_dim=16, layer_types=kinds)
    whole = dict(transformers.Gemma3ForCausalLM(config).named_buffers())
    built = blank(transformers.Gemma3ForCausalLM, config, torch.float32, 100).model
    assert any("embed_scale" in name for name in whole)
    assert sum("inv_freq" in name and "original" not in name for name in whole) == 2
    assert all(torch.equal(buffer, whole[name]) for name, buffer in built.named_buffers())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["yarn", "longrope"])
def test_a_position_code_is_captured_right_or_not_at_all(kind, tmp_path):
    rope = {"rope_type": kind, "rope_theta": 1e4} | ROPE[kind]
    model = llama(rope_parameters=rope, max_position_embeddings=32)
    report = tpack.convert(folder(tmp_path, model), tmp_path / "packed")
    if kind == "longrope":  # its frequencies depend on the length
        assert "is not captured" in about(report)
        return
    ids = torch.randint(3, 96, (1, 70))
    close(tpack.load(tmp_path / "packed")(ids)["logits"], logits(model, ids))


def test_names_of_the_base_model_alone(tmp_path):
    config = transformers.GPT2Config(vocab_size=96, n_embd=64, n_layer=2, n_head=4, n_positions=64)
    model = make(config)
    plain = folder(
        tmp_path, model, lambda t: {k.removeprefix("transformer."): v for k, v in t.items()}
    )
    report = tpack.convert(plain, tmp_path / "packed")
    assert "captured GPT2LMHeadModel" in about(report)
    loaded = tpack.load(tmp_path / "packed")
    close(loaded(IDS)["logits"], logits(model))
    assert torch.equal(tpack.generate(loaded, IDS, max_new_tokens=6), generate(model))
    assert tpack.verify(tmp_path / "packed", plain).ok


@pytest.mark.slow
def test_a_folder_without_its_head_is_the_base_model(tmp_path):
    model = llama()
    plain = folder(tmp_path, model, lambda t: {k: v for k, v in t.items() if "lm_head" not in k})
    report = tpack.convert(plain, tmp_path / "packed")
    assert "captured LlamaModel" in about(report)
    found = tpack.load(tmp_path / "packed")(IDS)["last_hidden_state"]
    close(found, logits(model.model))


@pytest.mark.slow
def test_a_picture_classifier_whose_tensors_have_other_names(tmp_path):
    config = transformers.ViTConfig(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
        image_size=32,
        patch_size=8,
    )
    model = make(config, transformers.AutoModelForImageClassification)
    report = tpack.convert(folder(tmp_path, model), tmp_path / "packed")
    assert "captured ViTForImageClassification" in about(report)
    picture = torch.randn(3, 3, 32, 32)
    close(tpack.load(tmp_path / "packed")(picture)["logits"], logits(model, picture))


@pytest.mark.slow
def test_a_model_that_rounds_as_it_runs_is_captured_with_its_rounding(tmp_path):
    settings = {
        "quant_method": "bitnet",
        "linear_class": "autobitlinear",
        "quantization_mode": "online",
    }
    plain = folder(tmp_path, llama(), quantization_config=settings)
    report = tpack.convert(plain, tmp_path / "packed")
    assert "captured LlamaForCausalLM" in about(report)
    with torch.compiler.set_stance("force_eager"):
        close(tpack.load(tmp_path / "packed")(IDS)["logits"], logits(load(plain)))


@pytest.mark.parametrize(
    ("config", "edit", "why"),
    [
        ({"model_type": "llamb"}, None, "has no architecture 'llamb'"),
        ({"architectures": ["LlamaForFun"]}, None, "has no class 'LlamaForFun'"),
        ({"intermediate_size": 128}, None, r"has shape (64, 96), but (64, 128)"),
        ({"num_hidden_layers": 10**6}, None, "describes more than"),
        (
            {},
            lambda t: {k: v for k, v in t.items() if "1.mlp.up" not in k},
            "1 tensor of LlamaForCausalLM is not in the files",
        ),
        (
            {"dtype": "bfloat16"},
            lambda t: {k: v if "norm" in k else v.bfloat16() for k, v in t.items()},
            "keep_dtype='bf16' stores it so",
        ),
        (
            {"quantization_config": {"quant_method": "bitnet", "use_rms_norm": True}},
            None,
            "use_rms_norm are not captured",
        ),
    ],
)
def test_what_cannot_be_captured_is_converted_with_a_note(config, edit, why, tmp_path):
    report = tpack.convert(folder(tmp_path, llama(), edit, **config), tmp_path / "packed")
    assert "what the model computes is not captured" in about(report)
    assert why in about(report)
    assert tpack.load(tmp_path / "packed") is not None


def test_no_code_of_the_folder_runs(tmp_path):
    marker = tmp_path / "ran"
    code = f"open({str(marker)!r}, 'w')\nclass LlamaForCausalLM: pass\n"
    plain = folder(
        tmp_path,
        llama(),
        auto_map={"AutoModelForCausalLM": "modeling.LlamaForCausalLM"},
        attn_implementation="someone/kernel",
    )
    (plain / "modeling.py").write_text(code)
    report = tpack.convert(plain, tmp_path / "packed")
    assert "program equals LlamaForCausalLM of transformers" in about(report)
    assert not marker.exists()


@pytest.mark.slow
def test_a_file_beside_its_config(tmp_path):
    plain = folder(tmp_path, model := llama())
    report = tpack.convert(plain / "model.safetensors", tmp_path / "m.safetensors")
    assert "captured LlamaForCausalLM" in about(report)
    close(tpack.load(tmp_path / "m.safetensors")(IDS)["logits"], logits(model))


def test_without_transformers_a_note_says_what_is_missing(tmp_path, monkeypatch):
    plain = folder(tmp_path, llama())
    monkeypatch.setattr("tpack.conversion.architecture.find_spec", lambda _: None)
    report = tpack.convert(plain, tmp_path / "packed")
    assert "transformers is not installed" in about(report)
