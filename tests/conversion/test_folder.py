"""Folders of shards: converted one to one, resumed, shared among processes, opened as one."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import fields, make_dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from damage import unnoticed
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import tpack
from tpack.container import INDEX, Checkpoint
from tpack.conversion import folder as folder_module
from tpack.conversion.options import Options
from tpack.errors import (
    ExistsError,
    FormatError,
    InputError,
    NotTernaryError,
    StorageError,
    UsageError,
)

CONFIG = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "_name_or_path": "org/base"}


def trits(*shape, seed=0):
    values = np.random.default_rng(seed).integers(-1, 2, shape)
    return torch.from_numpy(values).float()


def model(layers=4):
    """A state dict with weights ternary in every way, one Gaussian, and what is kept."""
    torch.manual_seed(1)
    state = {"model.embed_tokens.weight": torch.randn(20, 64)}
    for i in range(layers):
        name = f"model.layers.{i}"
        state[f"{name}.mlp.up_proj.weight"] = trits(96, 64, seed=i) * 0.5
        state[f"{name}.mlp.down_proj.weight"] = trits(64, 96, seed=9 + i) * torch.rand(64, 1)
        state[f"{name}.norm.weight"] = torch.ones(64)
    state["model.mixed.weight"] = torch.randn(8, 64)
    return state


def write_shards(folder, state, count=3, suffix="safetensors"):
    """A folder as libraries write it, in shards of neighbouring tensors."""
    folder.mkdir()
    names = list(state)
    size = -(-len(names) // count)
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    weight_map = {}
    for number in range(count):
        file = f"{stem}-{number + 1:05}-of-{count:05}.{suffix}"
        part = {name: state[name] for name in names[number * size : (number + 1) * size]}
        if suffix == "safetensors":
            save_file(part, folder / file)
        else:
            torch.save(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "LICENSE").write_text("free")
    (folder / "modeling.py").write_text("raise SystemExit")
    (folder / "README.md").write_text("---\nlicense: mit\n---\nA model.")
    return folder


def contents(folder):
    """Every file of a folder."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture
def source(tmp_path):
    return write_shards(tmp_path / "src", model())


@pytest.fixture
def target(tmp_path):
    return tmp_path / "dst"


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
        "1 of 9 weights is not ternary and kept bit for bit: model.mixed.weight. --quantize "
        "absmean|twn|mse rounds them, --exclude keeps them without a warning.",
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
    with pytest.raises(InputError, match="holds no checkpoint"):
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


# ---- a mixed-up folder


@pytest.fixture
def packed(source, target):
    tpack.convert(source, target)
    return target


def refused(folder, rule):
    with pytest.raises(FormatError) as caught:
        tpack.verify(folder)
    assert caught.value.rule == rule
    assert str(folder) in caught.value.file


def test_a_shard_of_another_model(packed, tmp_path):
    other = model()
    other["model.layers.0.norm.weight"] = torch.ones(63)
    tpack.convert(write_shards(tmp_path / "other", other), tmp_path / "out")
    name = "model-00003-of-00003.safetensors"
    shutil.copy(tmp_path / "out" / name, packed / name)
    refused(packed, "R19")


def test_a_shard_alone(packed):
    refused(packed / "model-00002-of-00003.safetensors", "R19")


def test_a_shard_under_another_name(packed):
    names = [packed / f"model-0000{n}-of-00003.safetensors" for n in (1, 2)]
    blobs = [path.read_bytes() for path in names]
    for path, blob in zip(names, reversed(blobs), strict=True):
        path.write_bytes(blob)
    refused(packed, "R19")


def test_a_shard_of_another_model_of_the_same_form(packed, tmp_path):
    """Its names, shapes and program are equal: only the index can tell."""
    other = {name: -tensor for name, tensor in model().items()}
    tpack.convert(write_shards(tmp_path / "other", other), tmp_path / "out")
    for path in (tmp_path / "out").glob("*.safetensors"):
        own = (packed / path.name).read_bytes()
        shutil.copy(path, packed / path.name)
        refused(packed, "R20")
        with pytest.raises(FormatError, match=path.name):
            tpack.load(packed)
        (packed / path.name).write_bytes(own)
    assert tpack.verify(packed).ok
    shutil.copy(tmp_path / "out" / INDEX, packed / INDEX)
    refused(packed, "R20")


def edited(path, change):
    """Rewrite an index with a change; returns it."""
    index = json.loads(path.read_text())
    change(index["metadata"])
    path.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.update(tpack=[]),
        lambda m: m["tpack"].pop("shards"),
        lambda m: m["tpack"]["shards"].popitem(),
        lambda m: m["tpack"]["shards"].update({"model-00003-of-00003.safetensors": "0"}),
        lambda m: m["tpack"]["shards"].update({"model-00003-of-00003.safetensors": 5}),
        lambda m: m["tpack"]["shards"].update({"more.safetensors": "0" * 64}),
    ],
)
def test_an_index_that_ties_other_shards(packed, change):
    edited(packed / INDEX, change)
    refused(packed, "R20")


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.pop("tpack"),
        lambda m: m["tpack"].pop("sha256"),
        lambda m: m.update(total_size=m["total_size"] + 1),
        lambda m: m.update(more=1),
    ],
)
def test_a_changed_index_is_reported(packed, change):
    edited(packed / INDEX, change)
    report = tpack.verify(packed)
    assert not report.ok
    assert all(row.ok for row in report.tensors)
    assert INDEX in report.problems[0]
    tpack.load(packed)  # what another program has written, loads


@pytest.fixture
def small(tmp_path):
    """A folder of two shards of few bytes."""
    state = {"a.weight": torch.tensor([[1.0, -1.0]]), "b.weight": torch.tensor([[0.5, 0.0]])}
    tpack.convert(write_shards(tmp_path / "small", state, count=2), tmp_path / "packed")
    return tmp_path / "packed"


def test_a_flipped_bit_in_any_byte_of_an_index_or_shard_is_found(small):
    for path in (small / INDEX, small / "model-00002-of-00002.safetensors"):
        assert unnoticed(path, small) == []


@pytest.mark.slow
def test_every_flipped_bit_of_a_folder_is_found(small):
    for path in (small / INDEX, *small.glob("*.safetensors")):
        assert unnoticed(path, small, range(8)) == []


def test_a_flipped_bit_in_any_shard_is_found(packed):
    for path in packed.glob("*.safetensors"):
        blob = bytearray(path.read_bytes())
        blob[-1] ^= 1
        path.write_bytes(blob)
        assert not tpack.verify(packed).ok
        blob[-1] ^= 1
        path.write_bytes(blob)
    assert tpack.verify(packed).ok


# ---- interrupted


class Stopped(Exception):
    pass


def stop_after(monkeypatch, count):
    """Let a conversion die before it packs one shard more than ``count``."""
    calls = []
    real = folder_module.pack_batch

    def pack_batch(*args):
        if len(calls) == count:
            raise Stopped
        calls.append(args[3])
        return real(*args)

    monkeypatch.setattr(folder_module, "pack_batch", pack_batch)
    return calls


def interrupted(monkeypatch, source, target, count=2, **options):
    with monkeypatch.context() as patch:
        stop_after(patch, count)
        with pytest.raises(Stopped):
            tpack.convert(source, target, **options)
    assert not target.exists()
    return target.parent / f".{target.name}.tpack-partial"


def test_resume_goes_on_where_it_ended(source, target, tmp_path, monkeypatch):
    interrupted(monkeypatch, source, target)
    calls = stop_after(monkeypatch, 99)
    tpack.convert(source, target, resume=True)
    assert [Path(path).name for path in calls] == ["model-00003-of-00003.safetensors"]
    tpack.convert(source, tmp_path / "whole")
    assert contents(target) == contents(tmp_path / "whole")
    assert not list(tmp_path.glob(".*"))


def test_without_resume_it_begins_anew(source, target, monkeypatch):
    interrupted(monkeypatch, source, target)
    calls = stop_after(monkeypatch, 99)
    tpack.convert(source, target)
    assert len(calls) == 3


@pytest.mark.parametrize("damage", ["spool", "manifest", "cut", "options", "source", "content"])
def test_resume_checks_what_is_there(source, target, tmp_path, monkeypatch, damage):
    work = interrupted(monkeypatch, source, target)
    options = {}
    redone = 2
    if damage == "spool":
        blob = bytearray((work / "00001.spool").read_bytes())
        blob[3] ^= 1
        (work / "00001.spool").write_bytes(blob)
    elif damage == "manifest":
        (work / "00001.json").write_text("{")
    elif damage == "cut":
        os.truncate(work / "00002.spool", 5)
    elif damage == "options":
        options, redone = {"layout": "t5"}, 3
    elif damage == "content":  # the size and the time of modification stay
        path = source / "model-00001-of-00003.safetensors"
        before, blob = path.stat(), bytearray(path.read_bytes())
        blob[-1] ^= 0x80
        path.write_bytes(blob)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        redone = 3
    else:
        path = source / "model-00001-of-00003.safetensors"
        os.utime(path, ns=(1, 1))
        redone = 3
    calls = stop_after(monkeypatch, 99)
    tpack.convert(source, target, resume=True, **options)
    assert len(calls) == redone
    tpack.convert(source, tmp_path / "whole", **options)
    assert contents(target) == contents(tmp_path / "whole")


CHANGED = {
    "exact": True,
    "quantize": "twn",
    "scale": "row",
    "include": ("a",),
    "exclude": ["b"],
    "keep_dtype": "f16",
    "layout": "t5",
    "scale_means": "divide",
}


def test_what_is_resumed_depends_on_every_option(tmp_path):
    """Also on one that is added to the dataclass later."""
    named = [option.name for option in fields(Options) if option.compare]
    assert set(Options().to_dict()) == set(named)
    seen = [Options().to_dict()]
    for name in named:
        changed = Options(**{name: CHANGED.get(name, "another")}).to_dict()
        assert json.loads(json.dumps(changed)) == changed
        assert changed not in seen, name
        seen.append(changed)
    more = make_dataclass("More", [("fake", str, "x")], bases=(Options,), frozen=True)
    assert more(fake="y").to_dict() == Options().to_dict() | {"fake": "y"}


def test_a_refused_conversion_leaves_nothing_behind(source, target, monkeypatch):
    with pytest.raises(NotTernaryError):
        tpack.convert(source, target, exact=True)
    assert sorted(path.name for path in target.parent.iterdir()) == ["src"]
    work = interrupted(monkeypatch, source, target, exact=True)
    with pytest.raises(NotTernaryError):
        tpack.convert(source, target, exact=True, resume=True)
    assert (work / "00001.json").exists()  # who asked to resume has other options left
    with pytest.raises(NotTernaryError):
        tpack.convert(source, target, exact=True)
    assert sorted(path.name for path in target.parent.iterdir()) == ["src"]


def test_a_full_disk_leaves_what_resume_takes_up(source, target, monkeypatch):
    def full(*_, **__):
        raise StorageError("no space")

    with monkeypatch.context() as patch:
        patch.setattr(folder_module, "write_checkpoint", full)
        with pytest.raises(StorageError):
            tpack.convert(source, target)
    calls = stop_after(monkeypatch, 99)
    tpack.convert(source, target, resume=True)
    assert not calls


def test_a_folder_with_the_name_of_a_file_is_noted(source, tmp_path):
    report = tpack.convert(source, tmp_path / "model.safetensors")
    assert "model.safetensors is a folder, as the source is one" in report.notes


# ---- several processes


def start(source, target, rank, world, *more):
    environment = os.environ | {"RANK": str(rank), "WORLD_SIZE": str(world)}
    command = [sys.executable, "-m", "tpack", "convert", str(source), "-o", str(target), *more]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_the_shards(source, target, tmp_path, world):
    runs = [start(source, target, rank, world) for rank in range(world)]
    outputs = [run.communicate(timeout=120) for run in runs]
    assert [run.returncode for run in runs] == [0] * world, outputs
    printed = [out for out, _ in outputs if out]
    assert printed == [f"{target}\n"]  # by the one that finished
    tpack.convert(source, tmp_path / "whole")
    assert contents(target) == contents(tmp_path / "whole")
    assert not list(tmp_path.glob(".*"))


def test_a_process_that_fails_is_run_again_alone(source, target, tmp_path):
    first = start(source, target, 0, 2)
    out, err = first.communicate(timeout=120)
    assert first.returncode == 0
    assert out == ""
    assert "still missing from others" in err
    assert not target.exists()
    second = start(source, target, 1, 2)
    second.communicate(timeout=120)
    assert second.returncode == 0
    assert not list(tmp_path.glob(".*"))
    tpack.convert(source, tmp_path / "whole")
    assert contents(target) == contents(tmp_path / "whole")


def test_ranks_with_other_options_are_told(source, target, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    tpack.convert(source, target)
    monkeypatch.setenv("RANK", "1")
    report = tpack.convert(source, target, layout="t5")
    assert report.output is None
    first, second = report.notes
    assert "still missing from others: model-0000" in first
    assert re.fullmatch(
        r"model-0000.-of-00003.safetensors was packed with layout 't2', not 't5', and cannot be "
        "joined with those of this process: run every rank with the same options",
        second,
    )
    path = source / "model-00001-of-00003.safetensors"
    os.utime(path, ns=(1, 1))
    report = tpack.convert(source, target, layout="t5")
    assert "was packed with layout 't2'" in report.notes[1]
    os.utime(path, ns=(2, 2))
    monkeypatch.setenv("RANK", "0")
    report = tpack.convert(source, target, layout="t5")
    assert "was packed with another state of the source" in report.notes[1]


def test_a_process_that_is_killed(source, target, tmp_path):
    victim = start(source, target, 1, 2)
    time.sleep(0.3)
    victim.send_signal(signal.SIGKILL)
    victim.communicate(timeout=60)
    for rank in (0, 1):
        if not target.exists():  # the victim may have packed its shards before it died
            again = start(source, target, rank, 2)
            again.communicate(timeout=120)
            assert again.returncode == 0
    tpack.convert(source, tmp_path / "whole")
    assert contents(target) == contents(tmp_path / "whole")


def test_another_process_is_kept_out(source, target):
    work = target.parent / f".{target.name}.tpack-partial"
    work.mkdir()
    code = (
        "import fcntl,sys,time\n"
        f"file = open({str(work / 'all.lock')!r}, 'w')\n"
        "fcntl.flock(file, fcntl.LOCK_EX)\nprint('held', flush=True)\ntime.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline()
        with pytest.raises(StorageError, match="another process"):
            tpack.convert(source, target)
        holder.kill()
    tpack.convert(source, target)
