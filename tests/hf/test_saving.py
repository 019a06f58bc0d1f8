"""save_pretrained of packed models: the same file where nothing changed."""

import copy
import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from hf_folders import IDS, SIZES, close, llama, load, logits, packed_folder, same_bytes
from safetensors import safe_open

import tpack
import tpack.hf
from tpack.container import Checkpoint, Piece, digest, write_checkpoint
from tpack.errors import InputError, UnsupportedError, UsageError
from tpack.nn import TernaryLinear
from tpack.unpacking import unpack_folder

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


# ---- saving


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


# ---- training


def test_gradients_reach_scales_and_what_is_not_packed(folder):
    model = load(folder)
    assert model.hf_quantizer.is_trainable
    model(IDS, labels=IDS).loss.backward()
    assert model.model.layers[0].mlp.up_proj.weight_scale.grad.abs() > 0
    assert model.model.embed_tokens.weight.grad.abs().sum() > 0


# ---- the folder


def test_other_files_of_the_folder_stay(folder, tmp_path):
    model = load(folder)
    (tmp_path / "checkpoint-10").mkdir()
    (tmp_path / "checkpoint-10" / "trainer_state.json").write_text("{}")
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "model-00001-of-00002.safetensors").write_text("old weights")
    (tmp_path / "model.safetensors.index.json").write_text("old index")
    model.save_pretrained(tmp_path)
    names = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert names >= {"checkpoint-10/trainer_state.json", "tokenizer.json", "model.safetensors"}
    assert not {name for name in names if "model-0000" in name or "index" in name}
    close(logits(load(tmp_path)), logits(model))


def test_a_model_is_saved_over_the_folder_it_came_from(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "m")
    model = load(tmp_path / "m")
    before = logits(model)
    model.save_pretrained(tmp_path / "m")
    assert same_bytes(tmp_path / "m", folder)
    close(logits(model), before)


def test_only_the_main_process_writes(folder, tmp_path):
    load(folder).save_pretrained(tmp_path / "new", is_main_process=False)
    assert not (tmp_path / "new").exists()


def test_a_failed_save_leaves_the_folder_as_it_was(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "m")
    model = load(tmp_path / "m")
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight_scale.fill_(float("nan"))
    with pytest.raises(InputError, match="scale"):
        model.save_pretrained(tmp_path / "m")
    assert same_bytes(tmp_path / "m", folder)


def test_an_unpacked_folder_is_a_plain_model(folder, tmp_path):
    unpack_folder(folder, tmp_path / "plain")
    plain = load(tmp_path / "plain")
    assert type(plain.model.layers[0].mlp.up_proj) is torch.nn.Linear
    assert getattr(plain.config, "quantization_config", None) is None
    close(logits(load(folder)), logits(plain))
