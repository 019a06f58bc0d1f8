"""What lies in a folder beside its weights: taken along, converted too, or said to be left out."""

import json
import os
from pathlib import Path

import fsspec
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from tensors import ternary

import tpack
from tpack.errors import InputError, NotTernaryError
from tpack.sources import open_source

#: Runs code for whoever unpickles it.
EVIL = b"\x80\x04cos\nsystem\n(S'echo ran > ran'\ntR."


def write(root, files):
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, dict):
            save_file(content, path)
        else:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def names(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def contents(folder):
    return {name: (folder / name).read_bytes() for name in names(folder)}


@pytest.fixture
def source(tmp_path):
    return write(tmp_path / "src", {"model.safetensors": {"a.weight": ternary(8, 8)}})


@pytest.fixture
def target(tmp_path):
    return tmp_path / "dst"


# ---- what trainers leave


TRAINER = [
    "optimizer.pt", "optimizer.bin", "optimizer_1.bin", "optimizer.safetensors", "scheduler.pt",
    "scheduler.bin", "rng_state.pth", "rng_state_3.pth", "random_states_0.pkl", "scaler.pt",
    "training_args.bin", "trainer_state.json", "zero_to_fp32.py", "sampler.bin", "latest",
    "custom_checkpoint_0.pkl", "zero_pp_rank_0_mp_rank_00_optim_states.pt",
]  # fmt: skip


@pytest.mark.parametrize("weights", ["weights.safetensors", "model.safetensors", "shards"])
def test_what_a_trainer_saved_is_never_opened(tmp_path, target, monkeypatch, weights):
    monkeypatch.chdir(tmp_path)
    files = dict.fromkeys(TRAINER, EVIL) | {"global_step5/mp_rank_00_model_states.pt": EVIL}
    if weights == "shards":
        for n in (1, 2):
            files[f"model-0000{n}-of-00002.safetensors"] = {f"a.{n}.weight": ternary(8, 8)}
    else:
        files[weights] = {"a.weight": ternary(8, 8)}
    report = tpack.convert(write(tmp_path / "src", files), target, exact=True)
    (note,) = (note for note in report.notes if "trainer" in note)
    assert note.startswith("left out what a trainer saved: custom_checkpoint_0.pkl, global_step5/")
    assert not {Path(name).name for name in names(target)} & set(TRAINER)
    assert not (tmp_path / "ran").exists()
    assert not report.warnings
    assert tpack.verify(target, tmp_path / "src").ok


def test_a_scheduler_of_a_model_is_no_trainers(source, target):
    write(source, {"scheduler/scheduler_config.json": "{}", "scheduler_config.json": "{}"})
    tpack.convert(source, target)
    assert {"scheduler/scheduler_config.json", "scheduler_config.json"} <= set(names(target))


# ---- adapters, other weights


@pytest.mark.parametrize(
    "files",
    [
        {"adapter_model.safetensors": {"x.lora_A.weight": ternary(4, 8)}},
        {"adapter_model.bin": EVIL, "adapter_config.json": "{}"},
        {"lora/adapter_model.bin": EVIL, "lora/adapter_config.json": "{}"},
    ],
)
def test_an_adapter_is_said_to_be_left_out(source, target, files):
    report = tpack.convert(write(source, files), target)
    (warning,) = report.warnings
    assert "left out an adapter" in warning
    assert "merge" in warning
    assert not any("adapter" in name for name in names(target))
    with open_source(source) as opened:
        assert opened.left_out


def test_an_adapter_alone_is_refused(tmp_path, target):
    folder = tmp_path / "a"
    write(folder, {"adapter_model.safetensors": {"x.lora_A.weight": ternary(4, 8)}})
    with pytest.raises(InputError, match=r"holds an adapter, .* Merge it into its model first"):
        tpack.convert(folder, target)


def test_other_files_of_weights_are_named(source, target):
    other = ["model.gguf", "consolidated.safetensors", "pytorch_model.bin", "onnx/model.onnx"]
    other += ["original/consolidated.00.pth"]
    report = tpack.convert(write(source, dict.fromkeys(other, EVIL)), target)
    (note,) = (note for note in report.notes if "other files" in note)
    assert all(name.partition("/")[0] in note for name in other)
    assert not report.warnings
    assert names(target) == ["README.md", "model.safetensors"]


def test_a_folder_with_weights_that_nothing_names(source, target):
    write(source, {"vision/model.safetensors": {"b.weight": ternary(8, 8)}})
    report = tpack.convert(source, target)
    (warning,) = report.warnings
    assert "left out vision/" in warning
    assert f"tpack.convert({str(source / 'vision')!r})" in warning
    with open_source(source) as opened:
        assert opened.left_out == ("vision/",)


def test_a_pipeline_without_weights_of_its_own(tmp_path, target):
    files = {f"{name}/model.safetensors": {"a.weight": ternary(8, 8)} for name in ("unet", "vae")}
    write(tmp_path / "src", files | {"model_index.json": "{}", "scheduler/a.json": "{}"})
    with pytest.raises(InputError, match=r"folders unet, vae do. Convert each: .*unet") as caught:
        tpack.convert(tmp_path / "src", target)
    assert caught.value.file == str(tmp_path / "src")


# ---- taken along


def test_what_goes_with_a_model(source, target):
    taken = ["tokenizer.json", "generation_config.json", "chat_template.jinja", "tokenizer.model"]
    taken += ["additional_chat_templates/tools.jinja", "assets/plot.png", "LICENSE", "USAGE.md"]
    left = ["modeling.py", "paper.pdf", "videos/a.mp4", ".cache/a.json"]
    report = tpack.convert(write(source, dict.fromkeys([*taken, *left], "x")), target)
    assert names(target) == sorted([*taken, "README.md", "model.safetensors"])
    assert "did not copy code, modeling.py: if the model needs it, copy it yourself" in report.notes
    assert "did not copy paper.pdf, videos/" in report.notes


def test_a_file_that_cannot_be_copied_is_named(source, target):
    write(source, {"tokenizer.json": "version https://git-lfs.github.com/spec/v1\n"})
    with pytest.raises(InputError, match="pointer of Git LFS") as caught:
        tpack.convert(source, target)
    assert caught.value.file == str(source / "tokenizer.json")
    assert not target.exists()


@pytest.mark.parametrize("name", ["assets", "assets/plot.png"])
def test_links_out_of_the_folder(source, target, tmp_path, name):
    write(tmp_path / "outside", {"plot.png": "x"})
    (source / name).parent.mkdir(exist_ok=True)
    (source / name).symlink_to(tmp_path / "outside" / ("plot.png" if "/" in name else ""))
    with pytest.raises(InputError, match="leads out of the folder"):
        tpack.convert(source, target)


# ---- the card


CARDS = {
    "block": "---\nlicense: mit\ntags:\n- a\n- tpack\nbase_model:\n- org/older\n---\n# Hi\n\nText.",
    "flow": '---\ntags: [a, "b: c"]\nmodel-index:\n- name: x\n  results:\n  - y: 1\n---\n# Hi\n',
    "deep": "---\ntags:\n  - a\nlibrary_name: transformers\nx:\n    y: 1\n---\n\n# Hi\n---\nmore\n",
    "none": "# Hi\n\nno front matter\n",
    "open": "---\nlicense: mit\n# Hi\n",
    "empty": "",
}


@pytest.mark.parametrize("repository", ["", "org/base"])
@pytest.mark.parametrize("name", CARDS)
def test_the_card_is_kept(source, target, name, repository):
    config = {"_name_or_path": repository} if repository else {}
    write(source, {"README.md": CARDS[name], "config.json": json.dumps(config)})
    tpack.convert(source, target)
    card = (target / "README.md").read_text()
    _, front, text = card.split("---\n", 2)
    found = yaml.safe_load(front)
    _, _, old_front = CARDS[name].rpartition("---\n") if name in ("none", "open") else ("", "", "")
    before = {}
    if name in ("block", "flow", "deep"):
        _, old_front, old_text = CARDS[name].split("---\n", 2)
        before = yaml.safe_load(old_front)
        assert text.rstrip().endswith(old_text.strip())
    else:
        assert text.rstrip().endswith(CARDS[name].strip())
    ours = {"library_name", "tags"} | (
        {"base_model", "base_model_relation"} if repository else set()
    )
    assert {k: v for k, v in found.items() if k not in ours} == {
        k: v for k, v in before.items() if k not in ours
    }
    tags = before.get("tags", [])
    assert found["tags"] == [*tags, *(t for t in ("tpack", "ternary", "2-bit") if t not in tags)]
    assert found["library_name"] == "tpack"
    assert found.get("base_model", "") == (repository or before.get("base_model", ""))
    assert "| `a.weight` | 1 |" in text


# ---- sub-folders with weights


@pytest.fixture
def transformer(source):
    """A folder of sentence-transformers, with a layer in a folder of its own."""
    entries = [{"path": p, "type": p} for p in ("", "1_Pooling", "2_Dense")]
    return write(
        source,
        {
            "modules.json": json.dumps(entries),
            "1_Pooling/config.json": '{"mode": "mean"}',
            "2_Dense/config.json": '{"in_features": 8}',
            "2_Dense/model.safetensors": {
                "linear.weight": ternary(4, 8),
                "linear.bias": ternary(4),
            },
        },
    )


def test_a_sub_folder_is_converted_too(transformer, target):
    planned = tpack.convert(transformer, target, dry_run=True)
    assert not target.exists()
    report = tpack.convert(transformer, target)
    assert planned.tensors == report.tensors
    assert planned.output_bytes == report.output_bytes
    assert report.output_bytes == sum(p.stat().st_size for p in target.rglob("*.safetensors"))
    assert names(target) == [
        "1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors",
        "README.md", "model.safetensors", "modules.json",
    ]  # fmt: skip
    rows = {row.name: row.action for row in report.tensors}
    assert rows == {
        "a.weight": "packed", "2_Dense/linear.weight": "packed", "2_Dense/linear.bias": "kept"
    }  # fmt: skip
    assert json.loads((target / "2_Dense/config.json").read_text()) == {"in_features": 8}
    assert tpack.verify(target / "2_Dense", transformer / "2_Dense").ok
    assert "`2_Dense/linear.weight`" in (target / "README.md").read_text()
    assert not list(target.rglob(".*"))


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_a_sub_folder_that_is_not_ternary_is_kept_bit_for_bit(transformer, target, suffix):
    state = {"linear.weight": torch.randn(4, 8), "linear.bias": torch.randn(4)}
    (transformer / "2_Dense/model.safetensors").unlink()
    if suffix == "bin":
        torch.save(state, transformer / "2_Dense/pytorch_model.bin")
    else:
        save_file(state, transformer / "2_Dense/model.safetensors")
    planned = tpack.convert(transformer, target, dry_run=True)
    report = tpack.convert(transformer, target)
    assert planned.output_bytes == report.output_bytes
    found = load_file(target / "2_Dense/model.safetensors")
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in state)
    assert tpack.verify(target / "2_Dense", transformer / "2_Dense").ok
    with pytest.raises(NotTernaryError) as caught:
        tpack.convert(transformer, target, exact=True, force=True)
    assert caught.value.file.startswith(str(transformer / "2_Dense"))
    report = tpack.convert(transformer, target, quantize="absmean", force=True)
    assert {r.name: r.action for r in report.tensors}["2_Dense/linear.weight"] == "quantized"


def test_a_sub_folder_without_a_weight_to_pack(transformer, target):
    save_file({"bias": torch.randn(4)}, transformer / "2_Dense/model.safetensors")
    tpack.convert(transformer, target)
    assert load_file(target / "2_Dense/model.safetensors").keys() == {"bias"}


def test_verify_walks_sub_folders(transformer, target, tmp_path):
    tpack.convert(transformer, target)
    report = tpack.verify(target, transformer)
    assert [row.name for row in report.tensors] == [
        "a.weight", "2_Dense/linear.weight", "2_Dense/linear.bias"
    ]  # fmt: skip
    assert report.lossless
    assert not report.warnings
    alone = tpack.verify(target, transformer / "model.safetensors")
    assert alone.warnings == ["2_Dense was not compared: the source has no such folder"]
    assert not alone.lossless
    path = target / "2_Dense/model.safetensors"
    blob = bytearray(path.read_bytes())
    blob[-1] ^= 1
    path.write_bytes(blob)
    for against in (None, transformer):
        report = tpack.verify(target, against)
        assert not report.ok
        assert report.problems[0].startswith("2_Dense: tensor 'linear.")
    path.unlink()
    assert tpack.verify(target, transformer).problems == [
        "folder '2_Dense' of the source is not in the checkpoint."
    ]
    other = write(tmp_path / "other", {"m/a.txt": "x"})
    save_file({"a.weight": ternary(8, 8), "b.weight": ternary(8, 8)}, other / "model.safetensors")
    assert not tpack.verify(target, other).ok


def test_a_damaged_sub_folder(transformer, target):
    path = transformer / "2_Dense/model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match="truncated"):
        tpack.convert(transformer, target)
    assert not target.exists()


def test_processes_and_resumed_runs_convert_it_once(transformer, target, tmp_path, monkeypatch):
    tpack.convert(transformer, tmp_path / "whole")
    tpack.convert(transformer, target, resume=True)
    assert contents(target) == contents(tmp_path / "whole")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in "10":
        monkeypatch.setenv("RANK", rank)
        tpack.convert(transformer, tmp_path / "shared")
    assert contents(tmp_path / "shared") == contents(tmp_path / "whole")


@pytest.mark.parametrize("path", ["../outside", "/etc", "a/b", ""])
def test_paths_of_modules_that_lead_elsewhere(transformer, target, tmp_path, path):
    write(tmp_path / "outside", {"model.safetensors": {"b.weight": ternary(8, 8)}})
    (transformer / "modules.json").write_text(json.dumps([{"path": path}]))
    report = tpack.convert(transformer, target)
    assert "left out 2_Dense/" in report.warnings[0]
    assert all(name.startswith(("1_Pooling", "README", "mod")) for name in names(target))


def test_through_addresses(transformer, target):
    files = fsspec.filesystem("memory")
    try:
        files.put(str(transformer), "/in", recursive=True)
        tpack.convert("memory://in", "memory://out")
        files.get("/out", str(target), recursive=True)
        tpack.convert(transformer, target.parent / "local")
        ours, theirs = contents(target), contents(target.parent / "local")
        assert ours.keys() == theirs.keys()
        assert ours == theirs
    finally:
        files.rm("/", recursive=True)
    assert os.listdir(target / "2_Dense")  # noqa: PTH208
