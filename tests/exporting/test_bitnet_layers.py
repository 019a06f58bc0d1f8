"""What transformers could not load from the bitnet packing is refused by name."""

import shutil

import hf_models
import pytest
import torch
from bitnet_exports import folder_of, refused, save_plain, ternary

import tpack
from tpack.container import Checkpoint
from tpack.errors import FormatError, InputError
from tpack.exporting.hf_bitnet import export_hf_bitnet


def test_scales_per_row_or_group(tmp_path):
    rows = ternary(8, 64, torch.rand(8, 1))
    text = refused(folder_of(tmp_path, {"a.weight": rows}))
    assert "tensor 'a.weight' has scales per row, expected one for the tensor" in text


def test_rows_that_do_not_fill_a_byte(tmp_path):
    text = refused(folder_of(tmp_path, {"a.weight": ternary(6, 8, 0.5)}))
    assert "tensor 'a.weight' has 6 rows, expected a multiple of 4" in text
    assert "exclude=['a.weight']" in text


def test_embeddings(tmp_path):
    weights = {"embed.weight": ternary(8, 8, 0.5), "a.weight": ternary(8, 8, 0.5)}
    text = refused(folder_of(tmp_path, weights, include=["*"]))
    assert "'embed.weight' is a packed embedding" in text


@pytest.mark.parametrize(
    ("name", "model", "words"),
    [
        ("layers.0.block_sparse_moe.experts.1.w1", "mixtral", "is one of several experts"),
        ("layers.0.mlp.experts.1.up_proj", "qwen3_moe", "is one of several experts"),
        ("layers.0.mlp.gate", "qwen3_moe", "chooses experts"),
        ("h.0.attn.c_attn", "gpt2", "is a Conv1D in gpt2"),
        ("h.0.mlp.c_fc", "openai-gpt", "is a Conv1D in openai-gpt"),
        ("encoder.block.0.layer.1.DenseReluDense.wo", "t5", "is kept in float32"),
    ],
)
def test_layers_that_transformers_does_not_pack(tmp_path, name, model, words):
    weights = {f"{name}.weight": ternary(8, 8, 0.5), "a.weight": ternary(8, 8, 0.5)}
    weights["layers.0.mlp.experts.0.up_proj.weight"] = torch.rand(8, 8)
    path = folder_of(
        tmp_path,
        weights,
        {"model_type": model},
        include=["a.weight", f"{name}.weight"],
    )
    text = refused(path)
    assert f"tensor '{name}.weight' {words}" in text
    assert "exclude=['" in text


def test_layers_that_only_have_such_names(tmp_path):
    names = ("h.0.attn.c_attn.weight", "h.0.mlp.wo.weight", "h.0.mlp.gate.weight")
    path = folder_of(tmp_path, {name: ternary(8, 8, 0.5) for name in names}, {"model_type": "x"})
    with Checkpoint(path) as file:
        assert export_hf_bitnet(file, tmp_path / "out").details["packed"] == 3


def test_a_model_whose_experts_are_not_packed(tmp_path):
    library = hf_models.transformers()
    torch.manual_seed(0)
    sizes = hf_models.SMALL | {"num_local_experts": 2, "num_experts_per_tok": 1}
    model = library.MixtralForCausalLM(library.MixtralConfig(**sizes)).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("_proj.weight"):
                weight.copy_(torch.randint(-1, 2, weight.shape) * 0.125)
    save_plain(model, tmp_path / "hf")
    tpack.convert(tmp_path / "hf", tmp_path / "packed", include=["*_proj.weight"], capture=False)
    with Checkpoint(tmp_path / "packed") as file:
        export_hf_bitnet(file, tmp_path / "out")
    loaded = hf_models.load(tmp_path / "out")
    assert type(loaded.model.layers[0].self_attn.q_proj).__name__ == "AutoBitLinear"
    wanted = hf_models.logits(model)
    assert (hf_models.logits(loaded) - wanted).abs().max() < 0.1 * wanted.abs().max()


def test_other_shapes(tmp_path):
    conv = torch.randint(-1, 2, (8, 4, 3, 3)).float()
    text = refused(folder_of(tmp_path, {"conv.weight": conv}))
    assert "has shape (8, 4, 3, 3), expected the weight of a linear layer" in text


def test_scales_that_the_dtype_cannot_hold(tmp_path):
    path = folder_of(
        tmp_path, {"a.weight": ternary(8, 8, 0.3)}, {"torch_dtype": "bfloat16", "dtype": "bfloat16"}
    )
    text = refused(path)
    assert "has the scale 0.300000012, which bfloat16, the dtype of the model, cannot" in text


def test_biases_that_cannot_be_divided(tmp_path):
    weights = {
        "a.weight": ternary(8, 8, 0.375).bfloat16(),
        "a.bias": torch.linspace(0.1, 0.9, 8).bfloat16(),
    }
    text = refused(folder_of(tmp_path, weights, {"dtype": "bfloat16"}))
    assert "has a bias that divided by the scale 0.375 is not exact in bfloat16" in text


def test_a_folder_without_a_config(tmp_path):
    path = folder_of(tmp_path, {"a.weight": ternary(8, 8, 0.5)})
    (path / "config.json").unlink()
    assert "has no config.json" in refused(path, InputError)


def test_a_file(tmp_path):
    path = folder_of(tmp_path, {"a.weight": ternary(8, 8, 0.5)})
    shutil.copy(path / "model.safetensors", tmp_path / "alone.safetensors")
    assert "has no config.json" in refused(tmp_path / "alone.safetensors", InputError)


def test_names_that_cannot_be_told_apart(tmp_path):
    weights = {"a.proj.weight": ternary(8, 8, 0.5), "proj.weight": ternary(8, 8, 0.5)}
    text = refused(folder_of(tmp_path, weights, exclude=["proj.weight"]))
    assert "'a.proj.weight' is packed and 'proj' is not" in text


def test_norms_without_their_settings(tmp_path):
    weights = {"a.weight": ternary(8, 8, 0.5), "a.rms_norm.weight": torch.ones(8)}
    assert "use_rms_norm and its eps" in refused(folder_of(tmp_path, weights))


def test_dtypes_that_no_scale_has(tmp_path):
    path = folder_of(tmp_path, {"a.weight": ternary(8, 8, 0.5)}, {"dtype": "float64"})
    assert "is a model in float64" in refused(path)


def test_biases_of_integers(tmp_path):
    weights = {"a.weight": ternary(8, 8, 0.5), "a.bias": torch.arange(8)}
    assert "is a bias in int64" in refused(folder_of(tmp_path, weights))


def test_damaged_codes(tmp_path):
    path = folder_of(tmp_path, {"a.weight": ternary(8, 8, 0.5)})
    data = bytearray((path / "model.safetensors").read_bytes())
    data[-1] = 0xFF
    (path / "model.safetensors").write_bytes(data)
    assert "holds no valid code" in refused(path, FormatError)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["packed", "source"]


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
@pytest.mark.parametrize("to", ["hf-bitnet", "gguf"])
def test_a_link_out_of_the_folder_is_not_followed(tmp_path, name, to):
    path = folder_of(tmp_path, {"a.weight": ternary(8, 8, 0.5)})
    outside = tmp_path / "secret.json"
    outside.write_text('{"secret": 1}')
    (path / name).unlink(missing_ok=True)
    (path / name).symlink_to(outside)
    with pytest.raises(InputError, match="leads out of the folder"):
        tpack.export(path, to, tmp_path / "out")
    assert not (tmp_path / "out").exists()
