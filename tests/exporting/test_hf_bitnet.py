"""Folders in the bitnet packing: the same bytes, or the same numbers."""

import json
import warnings

import hf_models
import pytest
import torch
from bitnet_exports import folder_of, refused, save_plain, ternary
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import tpack
from tpack.container import Checkpoint, Document, Piece, write_checkpoint
from tpack.errors import ExistsError, StorageError, UnsupportedError
from tpack.exporting.hf_bitnet import export_hf_bitnet

PROJ = "model.layers.0.mlp.up_proj"


def export(source, folder, **options):
    tpack.convert(source, folder / "packed", exact=True, capture=False)
    with Checkpoint(folder / "packed") as file:
        return export_hf_bitnet(file, folder / "out", **options)


def settings(folder):
    return json.loads((folder / "config.json").read_text())["quantization_config"]


def tensors(folder):
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= load_file(path)
    return found


def raw(tensor):
    return (
        tensor.dtype,
        tuple(tensor.shape),
        tensor.contiguous().view(torch.uint8).numpy().tobytes(),
    )


# ---- packed folders come back as they were


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16])
@pytest.mark.parametrize("linear_class", ["bitlinear", "autobitlinear"])
@pytest.mark.parametrize("family", ["Llama", "BitNet"])
def test_the_same_bytes(tmp_path, family, linear_class, dtype):
    model = hf_models.make(family, dtype, seed=3)
    hf_models.save_packed(model, tmp_path / "hf", linear_class)
    report = export(tmp_path / "hf", tmp_path)
    before, after = tensors(tmp_path / "hf"), tensors(tmp_path / "out")
    assert set(before) == set(after)
    for name, tensor in before.items():
        assert raw(after[name]) == raw(tensor), name
    assert report.details["linear_class"] == linear_class
    assert (report.details["packed"], report.notes) == (14, ())
    assert settings(tmp_path / "out") == {
        "quant_method": "bitnet",
        "linear_class": linear_class,
        "quantization_mode": "offline",
        "modules_to_not_convert": None,
    }


def test_all_scales_come_back(tmp_path):
    """1 / (1 / s) is not s for every eighth number: the divisor itself is kept."""
    model = hf_models.make("Llama", num_hidden_layers=10)
    hf_models.save_packed(model, tmp_path / "hf")
    state = load_file(tmp_path / "hf" / "model.safetensors")
    scales = [name for name in state if name.endswith("weight_scale")]
    values = torch.rand(len(scales)) * 100
    assert (1 / (1 / values) != values).any()
    for name, value in zip(scales, values, strict=True):
        state[name] = value.reshape(1)
    save_file(state, tmp_path / "hf" / "model.safetensors")
    export(tmp_path / "hf", tmp_path)
    after = tensors(tmp_path / "out")
    assert all(torch.equal(after[name], state[name]) for name in scales)


@pytest.mark.parametrize("linear_class", ["bitlinear", "autobitlinear"])
@pytest.mark.parametrize("family", ["Llama", "BitNet"])
@pytest.mark.parametrize("config", [{}, {"tie_word_embeddings": True}, {"attention_bias": True}])
def test_the_library_computes_the_same(tmp_path, family, linear_class, config):
    model = hf_models.make(family, **config)
    hf_models.save_packed(model, tmp_path / "hf", linear_class)
    export(tmp_path / "hf", tmp_path)
    theirs = hf_models.load(tmp_path / "hf")
    ours = hf_models.load(tmp_path / "out")
    assert type(ours.model.layers[0].mlp.up_proj).__name__.lower() == linear_class
    assert torch.equal(hf_models.logits(ours), hf_models.logits(theirs))


# ---- models of floats


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("config", [{}, {"tie_word_embeddings": True}])
@pytest.mark.parametrize("family", ["Llama", "BitNet"])
def test_a_float_model(tmp_path, family, config, dtype):
    model = hf_models.make(family, dtype, **config)
    save_plain(model, tmp_path / "hf")
    report = export(tmp_path / "hf", tmp_path)
    assert report.details["linear_class"] == "autobitlinear"
    assert "int8" in report.notes[0]
    # the library's own packing of the same model is the reference, bit for bit
    hf_models.save_packed(model, tmp_path / "reference", "autobitlinear")
    loaded = hf_models.load(tmp_path / "out")
    assert loaded.dtype == dtype
    ours = hf_models.logits(loaded)
    assert torch.equal(ours, hf_models.logits(hf_models.load(tmp_path / "reference")))
    # and the float model, to the rounding of activations to eight bits
    wanted = hf_models.logits(model)
    assert (ours - wanted).abs().max() < 0.1 * wanted.abs().max()
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "{}"
    assert (tmp_path / "out" / "LICENSE").exists()
    assert (tmp_path / "out" / "generation_config.json").exists()


def test_biases_are_divided_exactly_or_refused(tmp_path):
    model = hf_models.make("Llama", attention_bias=True)
    with torch.no_grad():
        for name, module in model.named_modules():
            if name.endswith("proj"):
                module.weight.copy_(module.weight.sign() * 0.25)
    save_plain(model, tmp_path / "hf")
    report = export(tmp_path / "hf", tmp_path)
    assert report.details["linear_class"] == "autobitlinear"
    bias = "model.layers.0.self_attn.q_proj.bias"
    assert torch.equal(tensors(tmp_path / "out")[bias] * 0.25, model.state_dict()[bias])
    loaded, wanted = hf_models.logits(hf_models.load(tmp_path / "out")), hf_models.logits(model)
    assert (loaded - wanted).abs().max() < 0.1 * wanted.abs().max()


def test_layers_that_are_not_packed(tmp_path):
    model = hf_models.make("Llama")
    save_plain(model, tmp_path / "hf")
    tpack.convert(
        tmp_path / "hf", tmp_path / "packed", exclude=["*.1.*o_proj.weight"], capture=False
    )
    with Checkpoint(tmp_path / "packed") as file:
        export_hf_bitnet(file, tmp_path / "out")
    plain = ["lm_head", "model.layers.1.self_attn.o_proj"]
    assert settings(tmp_path / "out")["modules_to_not_convert"] == plain
    loaded = hf_models.load(tmp_path / "out")
    kinds = [type(layer.self_attn.o_proj).__name__ for layer in loaded.model.layers]
    assert kinds == ["AutoBitLinear", "Linear"]
    assert type(loaded.lm_head).__name__ == "Linear"
    wanted = hf_models.logits(model)
    assert (hf_models.logits(loaded) - wanted).abs().max() < 0.1 * wanted.abs().max()


def test_a_tied_head_is_named_among_them(tmp_path):
    save_plain(hf_models.make("Llama", tie_word_embeddings=True), tmp_path / "hf")
    tpack.convert(
        tmp_path / "hf", tmp_path / "packed", exclude=["*.1.*o_proj.weight"], capture=False
    )
    with Checkpoint(tmp_path / "packed") as file:
        export_hf_bitnet(file, tmp_path / "out")
    plain = ["model.layers.1.self_attn.o_proj", "lm_head"]
    assert settings(tmp_path / "out")["modules_to_not_convert"] == plain
    assert type(hf_models.load(tmp_path / "out").lm_head).__name__ == "Linear"


BERT = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 100,
    "max_position_embeddings": 16,
}


DISTILBERT = {"dim": 32, "hidden_dim": 32, "n_layers": 1, "n_heads": 2, "vocab_size": 100}


@pytest.mark.parametrize(
    ("family", "sizes", "kept"),
    [
        ("Bert", BERT, "*.query.weight"),
        ("Roberta", BERT, "*.query.weight"),
        ("DistilBert", DISTILBERT, "*.q_lin.weight"),
    ],
)
def test_a_tied_head_of_another_name_stays_plain(tmp_path, family, sizes, kept):
    library = hf_models.transformers()
    torch.manual_seed(0)
    make = getattr(library, f"{family}ForMaskedLM")
    model = make(getattr(library, f"{family}Config")(**sizes)).eval()
    head = model.get_output_embeddings()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.Linear) and module is not head:
                module.weight.copy_(torch.randint(-1, 2, module.weight.shape) * 0.125)
    save_plain(model, tmp_path / "hf")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    del config["tie_word_embeddings"]  # as older versions write it, for true is the default
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config))
    tpack.convert(tmp_path / "hf", tmp_path / "packed", exclude=[kept], capture=False)
    with Checkpoint(tmp_path / "packed") as file:
        report = export_hf_bitnet(file, tmp_path / "out")
    with torch.compiler.set_stance("force_eager"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = make.from_pretrained(tmp_path / "out").eval()
    kinds = [type(module).__name__ for module in loaded.modules()]
    assert kinds.count("AutoBitLinear") == report.details["packed"]
    assert type(loaded.get_output_embeddings()) is torch.nn.Linear
    wanted = hf_models.logits(model)
    assert (hf_models.logits(loaded) - wanted).abs().max() < 0.1 * wanted.abs().max()


def test_a_packed_head(tmp_path):
    model = hf_models.make("Llama")
    with torch.no_grad():
        model.lm_head.weight.copy_(torch.randint(-1, 2, model.lm_head.weight.shape) * 0.5)
    save_plain(model, tmp_path / "hf")
    tpack.convert(
        tmp_path / "hf",
        tmp_path / "packed",
        include=["*proj.weight", "lm_head.weight"],
        capture=False,
    )
    with Checkpoint(tmp_path / "packed") as file:
        export_hf_bitnet(file, tmp_path / "out")
    assert settings(tmp_path / "out")["modules_to_not_convert"] == []
    loaded = hf_models.load(tmp_path / "out")
    assert type(loaded.lm_head).__name__ == "AutoBitLinear"
    wanted = hf_models.logits(model)
    assert (hf_models.logits(loaded) - wanted).abs().max() < 0.1 * wanted.abs().max()


@pytest.mark.parametrize("layout", ["t2", "t5"])
def test_shards(tmp_path, layout):
    model = hf_models.make("Llama")
    model.save_pretrained(tmp_path / "hf", max_shard_size="60kB")
    tpack.convert(tmp_path / "hf", tmp_path / "packed", layout=layout, capture=False)
    with Checkpoint(tmp_path / "packed") as file:
        assert len(file.files) > 2
        report = export_hf_bitnet(file, tmp_path / "out")
        names = [part.path.name for part in file.files]
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert sorted(set(index["weight_map"].values())) == names
    for name, home in index["weight_map"].items():
        with safe_open(tmp_path / "out" / home, "pt") as file:
            assert name in file.keys()  # noqa: SIM118
    size = sum((tmp_path / "out" / name).stat().st_size for name in names)
    assert report.output_bytes == size
    assert index["metadata"]["total_size"] == sum(
        tensor.nbytes for tensor in tensors(tmp_path / "out").values()
    )
    hf_models.save_packed(model, tmp_path / "reference", "autobitlinear")
    ours = hf_models.logits(hf_models.load(tmp_path / "out"))
    assert torch.equal(ours, hf_models.logits(hf_models.load(tmp_path / "reference")))


def test_norms_before_layers_keep_their_settings(tmp_path):
    hf_models.save_packed(hf_models.make("Llama"), tmp_path / "hf")
    state = load_file(tmp_path / "hf" / "model.safetensors")
    state |= {
        f"{name.removesuffix('.weight')}.rms_norm.weight": torch.rand(state[name].shape[1])
        for name in list(state)
        if name.endswith("proj.weight")
    }
    save_file(state, tmp_path / "hf" / "model.safetensors")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    config["quantization_config"] |= {"use_rms_norm": True, "rms_norm_eps": 1e-5}
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config))
    export(tmp_path / "hf", tmp_path)
    assert settings(tmp_path / "out")["use_rms_norm"] is True
    assert settings(tmp_path / "out")["rms_norm_eps"] == 1e-5
    ours, theirs = (hf_models.logits(hf_models.load(tmp_path / n)) for n in ("out", "hf"))
    assert torch.equal(ours, theirs)


# ---- output folders


def test_an_output_is_replaced_only_if_asked(tmp_path):
    path = folder_of(tmp_path, {"a.weight": ternary(8, 8, 0.5)})
    with Checkpoint(path) as file:
        export_hf_bitnet(file, tmp_path / "out")
        (tmp_path / "out" / "old.txt").touch()
        with pytest.raises(ExistsError, match="force=True"):
            export_hf_bitnet(file, tmp_path / "out")
        export_hf_bitnet(file, tmp_path / "out", force=True)
        assert not (tmp_path / "out" / "old.txt").exists()
        with pytest.raises(ExistsError, match="is the input itself"):
            export_hf_bitnet(file, path, force=True)
        (tmp_path / "config.json").touch()  # as if it were a model, too
        with pytest.raises(ExistsError, match="or holds it"):
            export_hf_bitnet(file, tmp_path, force=True)
        (tmp_path / "photos").mkdir()
        (tmp_path / "photos" / "me.jpg").touch()
        with pytest.raises(ExistsError, match="not the folder of a model"):
            export_hf_bitnet(file, tmp_path / "photos", force=True)
        (tmp_path / "file").touch()
        with pytest.raises(StorageError, match="is not a folder"):
            export_hf_bitnet(file, tmp_path / "file", force=True)
        with pytest.raises(StorageError, match="does not exist"):
            export_hf_bitnet(file, tmp_path / "no" / "out")


def test_the_same_model_gives_the_same_bytes(tmp_path):
    path = folder_of(tmp_path, {"a.weight": ternary(8, 8, 0.5), "b.weight": ternary(12, 5, 0.25)})
    with Checkpoint(path) as file:
        for name in ("x", "y"):
            export_hf_bitnet(file, tmp_path / name)
    for item in (tmp_path / "x").iterdir():
        assert item.read_bytes() == (tmp_path / "y" / item.name).read_bytes()


def test_aliases_are_written_out_unless_the_model_ties_them(tmp_path):
    for tied, wanted in ((True, False), (False, True)):
        folder = tmp_path / str(tied)
        folder.mkdir()
        table = torch.rand(8, 4)
        state = {"embed.weight": table, "lm_head.weight": table, "a.weight": ternary(8, 8, 0.5)}
        tpack.convert(state, folder / "model.safetensors")
        config = {"dtype": "float32", "tie_word_embeddings": tied}
        (folder / "config.json").write_text(json.dumps(config))
        with Checkpoint(folder) as file:
            export_hf_bitnet(file, tmp_path / f"out-{tied}")
        assert ("lm_head.weight" in tensors(tmp_path / f"out-{tied}")) == wanted


@pytest.mark.parametrize(("scale", "fits"), [(0.5, True), (0.3, False)])
def test_divisors_and_factors_in_one_model(tmp_path, scale, fits):
    model = hf_models.make("Llama")
    hf_models.save_packed(model, tmp_path / "hf")
    state = load_file(tmp_path / "hf" / "model.safetensors")
    state["lm_head.weight"] = ternary(100, 64, scale)
    save_file(state, tmp_path / "hf" / "model.safetensors")
    tpack.convert(
        tmp_path / "hf",
        tmp_path / "packed",
        include=["*proj.weight", "lm_head.weight"],
        capture=False,
    )
    if fits:
        with Checkpoint(tmp_path / "packed") as file:
            export_hf_bitnet(file, tmp_path / "out")
        found = tensors(tmp_path / "out")
        assert found["lm_head.weight_scale"] == 1 / scale
        model.lm_head.weight.data.copy_(state["lm_head.weight"])
        wanted = hf_models.logits(model)
        ours = hf_models.logits(hf_models.load(tmp_path / "out"))
        assert (ours - wanted).abs().max() < 0.1 * wanted.abs().max()
    else:
        text = refused(tmp_path / "packed")
        assert "'lm_head.weight' multiplies by 0.300000012, but 'model.layers.0." in text


def test_a_model_without_packed_weights(tmp_path):
    document = Document(None, {}, {"a.weight": "0" * 64})
    piece = Piece.of("a.weight", "float32", (1,), torch.ones(1).numpy())
    write_checkpoint(tmp_path / "model.safetensors", document, [piece])
    (tmp_path / "config.json").write_text("{}")
    with Checkpoint(tmp_path) as file, pytest.raises(UnsupportedError, match="no packed weight"):
        export_hf_bitnet(file, tmp_path / "out")


def test_codes_of_other_systems_are_refused(tmp_path):
    weights = {
        "a.weight": ternary(64, 64, 0.375),
        "lm_head.weight_packed": torch.zeros(64, 8, dtype=torch.int32),
        "lm_head.weight_scale": torch.ones(64, 1),
        "lm_head.weight_shape": torch.tensor([64, 64]),
    }
    path = folder_of(tmp_path, weights)
    with Checkpoint(path) as file, pytest.raises(UnsupportedError, match="looks packed by") as e:
        export_hf_bitnet(file, tmp_path / "out")
    assert e.value.tensor == "lm_head.weight_packed"
    assert not (tmp_path / "out").exists()


def test_a_config_without_a_dtype_has_that_of_the_weights(tmp_path):
    weights = {"a.weight": ternary(8, 8, 0.375).half(), "a.bias": torch.zeros(8).half()}
    path = folder_of(tmp_path, weights, {"dtype": None})
    with Checkpoint(path) as file:
        report = export_hf_bitnet(file, tmp_path / "out")
    assert tensors(tmp_path / "out")["a.weight_scale"].dtype == torch.float16
    found = json.loads(json.dumps(report.to_dict()))
    rows = found.pop("tensors")
    assert [(r["name"], r["type"], r["exact"]) for r in rows] == [
        ("a.weight", "bitnet", True),
        ("a.bias", "float16", True),
    ]
    assert found == {
        "target": "hf-bitnet",
        "output": str(tmp_path / "out"),
        "output_bytes": (tmp_path / "out" / "model.safetensors").stat().st_size,
        "linear_class": "autobitlinear",
        "packed": 1,
        "kept": 1,
        "notes": list(report.notes),
    }
