"""A folder of shards becomes a folder of packed shards."""

import json
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from shards import contents, model, write_shards
from tensors import trits

import tpack
from tpack.container import INDEX, Checkpoint
from tpack.errors import (
    ExistsError,
    FormatError,
    InputError,
    StorageError,
    UsageError,
)


def test_a_folder_becomes_a_folder(source, target):
    report = tpack.convert(source, target)
    assert report.output == str(target)
    assert sorted(contents(target)) == sorted([
        "LICENSE", "README.md", "config.json", "model-00001-of-00003.safetensors",
        "model-00002-of-00003.safetensors", "model-00003-of-00003.safetensors", INDEX,
        "tokenizer.json",
    ])  # fmt: skip
    assert not list(target.parent.glob(".*"))
    assert any("modeling.py" in note for note in report.notes)
    found = tpack.verify(target, source)
    assert found.ok
    assert report.warnings == (
        "1 of 9 weights is not ternary and kept bit for bit: model.mixed.weight. "
        "quantize='absmean', 'twn' or 'mse' rounds it, exclude=['model.mixed.weight'] keeps it "
        "without this warning.",
    )
    assert report.output_bytes == sum(p.stat().st_size for p in target.glob("*.safetensors"))


def test_the_index_is_that_of_the_files(source, target):
    tpack.convert(source, target)
    index = json.loads((target / INDEX).read_text())
    there = {}
    total = 0
    for path in target.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            there |= dict.fromkeys(file.keys(), path.name)
        total += sum(tensor.nbytes for tensor in load_file(path).values())
    assert index["weight_map"] == there
    assert index["metadata"]["total_size"] == total
    assert index["metadata"]["total_parameters"] == sum(t.numel() for t in model().values())


def test_the_sharding_is_that_of_the_source(source, target):
    tpack.convert(source, target)
    for path in source.glob("*.safetensors"):
        with safe_open(path, "pt") as ours, safe_open(target / path.name, "pt") as theirs:
            plain = {n.removesuffix("_packed").removesuffix("_scale") for n in theirs.keys()}  # noqa: SIM118
            assert plain == set(ours.keys())


def test_the_card(source, target):
    tpack.convert(source, target)
    card = (target / "README.md").read_text()
    assert card.startswith(
        "---\nbase_model: org/base\nbase_model_relation: quantized\nlicense: mit\n"
    )
    assert "| `model.layers.*.mlp.up_proj.weight` | 4 | 96×64 | packed: exact, tensor |" in card
    assert "| `model.mixed.weight` | 1 | 8×64 | kept: not ternary |" in card


def test_everything_reads_a_folder(source, target):
    state = model()
    del state["model.mixed.weight"]
    shutil.rmtree(source)
    write_shards(source, state)
    tpack.convert(source, target, exact=True)
    assert tpack.verify(target, source).ok
    for name, tensor in tpack.unpack(target).items():
        assert torch.equal(tensor, state[name]), name
    module = tpack.load(target)
    for name, tensor in module.state_dict().items():
        if not name.endswith(("_packed", "_scale")):
            assert torch.equal(tensor, state[name])
    assert len(tpack.inspect(target).tensors) == 8
    with Checkpoint(target) as file:
        assert "class Model(" in tpack.generate_pytorch_code(file.document.program)
    x = torch.randn(2, 64)
    wanted = x @ state["model.layers.1.mlp.up_proj.weight"].T
    assert torch.allclose(module.model.layers[1].mlp.up_proj(x), wanted, atol=1e-4)


def test_pickled_shards(source, target, tmp_path):
    other = write_shards(tmp_path / "bin", model(), suffix="bin")
    tpack.convert(source, target)
    tpack.convert(other, tmp_path / "other")
    assert contents(target) == contents(tmp_path / "other")


def test_a_folder_of_one_file(tmp_path, target):
    folder = tmp_path / "one"
    folder.mkdir()
    save_file(model(1), folder / "model.safetensors")
    tpack.convert(folder, target)
    assert sorted(contents(target)) == ["README.md", "model.safetensors"]
    assert tpack.verify(target).ok
    assert tpack.verify(target / "model.safetensors").ok


def test_the_default_output_of_the_current_folder_lies_beside_it(source, monkeypatch):
    monkeypatch.chdir(source)
    report = tpack.convert(".")
    assert report.output == str(source.parent / "src.tpack")


def test_the_default_output_lies_beside(source):
    report = tpack.convert(source)
    assert report.output == str(source.parent / "src.tpack")


def test_a_dry_run_says_what_a_run_does(source, target):
    planned = tpack.convert(source, target, dry_run=True)
    assert planned.output is None
    assert not target.exists()
    assert not list(source.parent.glob(".*"))
    done = tpack.convert(source, target)
    assert planned.output_bytes == done.output_bytes
    assert planned.tensors == done.tensors
    assert planned.disk > done.output_bytes


def test_the_same_bytes_every_time(source, target, tmp_path):
    tpack.convert(source, target)
    tpack.convert(source, tmp_path / "again")
    assert contents(target) == contents(tmp_path / "again")


# ---- refused


def test_an_existing_output(source, target):
    target.mkdir()
    with pytest.raises(ExistsError):
        tpack.convert(source, target)
    tpack.convert(source, target, force=True)
    before = contents(target)
    tpack.convert(source, target, force=True)
    assert contents(target) == before
    assert not list(target.parent.glob(".*"))


@pytest.mark.parametrize("where", ["src", "src/below", "."])
def test_an_output_in_the_input(source, where):
    with pytest.raises(ExistsError):
        tpack.convert(source, source.parent / where, force=True)


@pytest.mark.parametrize(
    "name",
    [
        "LICENSE",
        "tokenizer.json",
        "config.json",
        "README.md",
        "model-00002-of-00003.safetensors",
        INDEX,
    ],
)
def test_links_out_of_the_folder(source, target, name):
    outside = source.parent / "outside"
    shutil.copy(source / name, outside)
    (source / name).unlink()
    (source / name).symlink_to(outside)
    with pytest.raises(InputError, match="is a link that leads out of the folder") as caught:
        tpack.convert(source, target)
    assert caught.value.file == str(source / name)
    assert not target.exists()
    (source / name).unlink()
    shutil.copy(outside, source / f"real-{name}.py")
    (source / name).symlink_to(f"real-{name}.py")
    tpack.convert(source, target)


def test_links_of_a_hub_cache(source, target, tmp_path):
    """``models--org--name/snapshots/<revision>`` links to ``../../blobs`` and nowhere else."""
    repository = tmp_path / "models--org--name"
    snapshot, blobs = repository / "snapshots" / "a1b2", repository / "blobs"
    snapshot.mkdir(parents=True)
    shutil.copytree(source, blobs)
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")
    tpack.convert(snapshot, target)
    (snapshot / "LICENSE").unlink()
    (snapshot / "LICENSE").symlink_to(source / "LICENSE")
    with pytest.raises(InputError, match="leads out"):
        tpack.convert(snapshot, tmp_path / "other")


def test_prefixes_of_wrappers_are_those_of_the_whole_folder(tmp_path, target):
    """A shard may hold nothing but a submodule that is called as a wrapper is."""
    state = {"embed.weight": torch.ones(4, 4), "module.a.weight": trits(8, 8)}
    state["module.b.weight"] = trits(8, 8)
    write_shards(tmp_path / "a", state, count=3)
    tpack.convert(tmp_path / "a", target)
    assert tpack.unpack(target).keys() == state.keys()
    wrapped = {f"module.{name}": tensor for name, tensor in model(1).items()}
    for suffix in ("safetensors", "bin"):
        folder = write_shards(tmp_path / suffix, wrapped, count=2, suffix=suffix)
        report = tpack.convert(folder, tmp_path / f"{suffix}.out")
        assert tpack.unpack(report.output).keys() == model(1).keys()
        assert [note for note in report.notes if "stripped" in note] == [
            "stripped 'module.' from names (DataParallel)"
        ]


def test_weights_that_are_there_twice(source, target):
    """Others load the single file, which may be older or newer."""
    save_file({"a.weight": trits(4, 4)}, source / "model.safetensors")
    with pytest.raises(InputError, match=r"model.safetensors beside model.safetensors.index.json"):
        tpack.convert(source, target)


def test_safetensors_go_before_pickles(tmp_path, target):
    folder = write_shards(tmp_path / "a", model(1), count=2, suffix="bin")
    save_file({"a.weight": trits(4, 4)}, folder / "model.safetensors")
    report = tpack.convert(folder, target)
    assert [row.name for row in report.tensors] == ["a.weight"]


def test_a_missing_shard(source, target):
    (source / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(InputError, match="missing: model-00002"):
        tpack.convert(source, target)
    (source / INDEX).unlink()
    with pytest.raises(InputError, match="2 missing"):
        tpack.convert(source, target)
    assert not target.exists()


def test_a_truncated_shard(source, target):
    path = source / "model-00002-of-00003.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(FormatError, match="truncated") as caught:
        tpack.convert(source, target)
    assert caught.value.file == str(path)
    assert not target.exists()


def test_an_index_that_does_not_fit(source, target):
    index = json.loads((source / INDEX).read_text())
    index["weight_map"]["gone.weight"] = "model-00001-of-00003.safetensors"
    (source / INDEX).write_text(json.dumps(index))
    with pytest.raises(InputError, match="is not in model-00001") as caught:
        tpack.convert(source, target)
    assert caught.value.tensor == "gone.weight"
    del index["weight_map"]["gone.weight"], index["weight_map"]["model.mixed.weight"]
    (source / INDEX).write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"but not in model\.safetensors") as caught:
        tpack.convert(source, target)
    assert caught.value.tensor == "model.mixed.weight"


def test_a_folder_without_weights(tmp_path, target):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no weights"):
        tpack.convert(tmp_path / "empty", target)
    with pytest.raises(InputError, match="holds no tpack checkpoint"):
        tpack.verify(tmp_path / "empty")


def test_resume_is_for_folders(tmp_path):
    save_file(model(1), tmp_path / "m.safetensors")
    for source in (tmp_path / "m.safetensors", model(1)):
        with pytest.raises(UsageError, match="resume"):
            tpack.convert(source, tmp_path / "out.safetensors", resume=True)


def test_a_disk_that_is_too_small(source, target, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 9, 9))
    with pytest.raises(StorageError, match="free space"):
        tpack.convert(source, target)
    assert not target.exists()
