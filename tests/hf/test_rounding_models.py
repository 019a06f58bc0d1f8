"""Models that round their inputs, in transformers, load and codegen alike."""

import json

import pytest
import torch
import transformers
from hf_folders import SIZES, change, close, load, logits, make, packed_folder, same_bytes
from running import from_source
from safetensors.torch import load_file, save_file

import tpack
import tpack.hf
from tpack.build import program_of
from tpack.cli.main import main
from tpack.errors import InputError, UnsupportedError
from tpack.hf.layers import (
    NormedBitLinear,
)
from tpack.hfconfig import plain_config
from tpack.nn import BitLinear, TernaryLinear

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


BITNET = {
    "quant_method": "bitnet",
    "linear_class": "autobitlinear",
    "quantization_mode": "online",
    "modules_to_not_convert": None,
    "use_rms_norm": False,
    "rms_norm_eps": 1e-6,
}


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
    tpack.convert(plain, tmp_path / "packed", exact=True, capture=False)
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
    tpack.convert(plain, packed, capture=False)
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


def test_the_summary_tells_masters_from_weights_that_were_rounded(tmp_path, capsys):
    settings = online(tmp_path / "plain", torch.float32)
    config = json.loads((tmp_path / "plain" / "config.json").read_text())
    config |= {"quantization_config": settings}
    (tmp_path / "plain" / "config.json").write_text(json.dumps(config))
    with pytest.raises(SystemExit):
        main(["convert", str(tmp_path / "plain")])
    summary = capsys.readouterr().err
    assert "0 ternary weights, 14 masters of ternary weights, 0 others" in summary
    assert "each master is packed as its model rounds it whenever it runs\n" in summary
    assert "quantized with relative error" not in summary
    card = (tmp_path / "plain.tpack" / "README.md").read_text()
    assert "0 packed losslessly, 14 as the model rounds them, 0 quantized" in card
    assert "changes the model" not in card
