"""Packed folders that are damaged, or are not what their config says, are refused."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
import transformers
from hf_folders import SIZES, change, close, llama, load, logits, packed_folder
from safetensors import safe_open
from safetensors.torch import save_file

import tpack
import tpack.hf
from tpack.errors import FormatError, InputError, TpackError, UsageError
from tpack.hfconfig import packed_config, plain_config

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


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
    with pytest.raises(UsageError, match=r"Convert its folder first: tpack\.convert\."):
        load(tmp_path, quantization_config=tpack.hf.TpackConfig())


def test_a_config_of_another_kind_is_refused(folder, tmp_path):
    with pytest.raises(InputError, match="activations 'int4', expected"):
        tpack.hf.TpackConfig(activations="int4")
    with pytest.raises(InputError, match=r"has {'bits': 2} in its quantization_config"):
        tpack.hf.TpackConfig(bits=2)
    with pytest.raises(InputError, match=r"has \[3\] in its quantization_config"):
        tpack.hf.TpackConfig(replaced=[3])


def test_files_that_verify_does_not_look_at_are_not_loaded(folder, tmp_path):
    """Beside shards a single file, and files that options choose."""
    mixed = tmp_path / "mixed"
    load(folder).save_pretrained(mixed, max_shard_size="20KB")
    close(logits(load(mixed)), logits(load(folder)))
    other = packed_folder(llama(tie_word_embeddings=True), tmp_path) / "model.safetensors"
    shutil.copy(other, mixed / "model.fp16.safetensors")
    torch.save(llama().state_dict(), mixed / "pytorch_model.bin")
    for options in ({"variant": "fp16"}, {"use_safetensors": False}):
        with pytest.raises(InputError, match=r"transformers would load .* Leave out variant=") as e:
            load(mixed, **options)
        assert e.value.file == str(mixed)
    shutil.copy(other, mixed / "model.safetensors")
    for read in (load, tpack.verify, tpack.inspect, tpack.load, tpack.unpack):
        with pytest.raises(InputError, match=r"holds model.safetensors beside model.safetensors.i"):
            read(mixed)


@pytest.mark.parametrize("kind", ["bin", "safetensors"])
def test_shards_that_options_choose_are_not_loaded(folder, tmp_path, kind):
    copied = shutil.copytree(folder, tmp_path / "copied")
    with safe_open(folder / "model.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    names = [f"other-0000{number}-of-00002.{kind}" for number in (1, 2)]
    for name in names:
        if kind == "bin":
            torch.save(tensors, copied / name)
        else:
            save_file(tensors, copied / name, metadata)
    index = {"weight_map": {key: names[i % 2] for i, key in enumerate(tensors)}, "metadata": {}}
    stem = "pytorch_model.bin" if kind == "bin" else "model.safetensors"
    found = f"{stem}.index.json" if kind == "bin" else f"{stem}.index.x.json"
    (copied / found).write_text(json.dumps(index))
    options = {"use_safetensors": False} if kind == "bin" else {"variant": "x"}
    with pytest.raises(InputError, match="transformers would load other-00001"):
        load(copied, **options)


def test_damage_noticed_at_the_first_call_is_located(folder, tmp_path):
    copied = shutil.copytree(folder, tmp_path / "copied")
    name = "model.layers.1.mlp.up_proj.weight_packed"
    with tpack.container.Checkpoint(copied) as file:
        at = file.files[0].data_start + file.entries[name].start
    blob = bytearray((copied / "model.safetensors").read_bytes())
    blob[at] = 0xFF
    (copied / "model.safetensors").write_bytes(blob)
    model = load(copied)
    with pytest.raises(FormatError, match="byte 0xff at index") as caught:
        logits(model)
    assert (caught.value.file, caught.value.tensor) == (str(copied), name)
