"""Sources and destinations behind addresses, and repositories in a local hub cache."""

import os
import subprocess
import sys

import fsspec
import pytest
import torch
from safetensors.torch import save, save_file

import tpack
from tpack.errors import ExistsError, InputError, UnsupportedError, UsageError
from tpack.sources import hub, open_source, remote

STATE = {"fc.weight": torch.tensor([[0.5, 0, -0.5, 0.5], [0, 0, 0.5, -0.5]])}


@pytest.fixture
def memory():
    files = fsspec.filesystem("memory")
    yield files
    files.rm("/", recursive=True)


def put(files, path, data):
    files.makedirs(path.rpartition("/")[0], exist_ok=True)
    with files.open(path, "wb") as file:
        file.write(data)


def test_a_file(memory, tmp_path):
    put(memory, "/bucket/m.safetensors", save(STATE))
    tpack.convert("memory://bucket/m.safetensors", tmp_path / "a.safetensors")
    tpack.convert(STATE, tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert tpack.verify(tmp_path / "a.safetensors", "memory://bucket/m.safetensors").ok


def test_a_folder_there_and_back(memory, tmp_path):
    put(memory, "/bucket/model/model.safetensors", save(STATE))
    put(memory, "/bucket/model/config.json", b'{"model_type": "llama"}')
    report = tpack.convert("memory://bucket/model", "memory://bucket/out")
    assert report.output == "memory://bucket/out"
    names = sorted(path.rpartition("/")[2] for path in memory.ls("/bucket/out", detail=False))
    assert names == ["README.md", "config.json", "model.safetensors"]
    memory.get("/bucket/out", str(tmp_path / "out"), recursive=True)
    assert tpack.verify(tmp_path / "out").ok
    with pytest.raises(ExistsError):
        tpack.convert("memory://bucket/model", "memory://bucket/out")
    tpack.convert("memory://bucket/model", "memory://bucket/out", force=True)


@pytest.mark.parametrize(
    ("source", "to"),
    [("memory://bucket/model", "out"), ("in", "memory://bucket/out"), ("in", "file://{}/out")],
)
def test_nothing_is_resumed_through_an_address(memory, tmp_path, monkeypatch, source, to):
    put(memory, "/bucket/model/model.safetensors", save(STATE))
    (tmp_path / "in").mkdir()
    save_file(STATE, tmp_path / "in/model.safetensors")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"is an address.*Leave it out"):
        tpack.convert(source, to.format(tmp_path), resume=True)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="each has its own temporary copy"):
        tpack.convert(source, to.format(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]
    assert not memory.exists("/bucket/out")


def test_a_dry_run_to_an_address(memory):
    put(memory, "/bucket/out", b"there already")
    report = tpack.convert(STATE, "memory://bucket/out", dry_run=True)
    assert report.output is None
    assert memory.cat("/bucket/out") == b"there already"


def test_an_address_takes_every_option(memory, tmp_path):
    options = {"layout": "t5", "keep_dtype": "bf16", "scale": "row", "exclude": ["nothing"]}
    state = STATE | {"bias": torch.ones(2)}
    tpack.convert(state, "memory://bucket/a.safetensors", **options)
    tpack.convert(state, tmp_path / "b.safetensors", **options)
    assert memory.cat("/bucket/a.safetensors") == (tmp_path / "b.safetensors").read_bytes()


def test_the_local_file_system(tmp_path):
    save_file(STATE, tmp_path / "m.safetensors")
    tpack.convert(f"file://{tmp_path}/m.safetensors", f"file://{tmp_path}/out/p.safetensors")
    assert tpack.verify(tmp_path / "out/p.safetensors", STATE).ok


def test_what_is_not_there(memory):
    with pytest.raises(InputError, match="does not exist") as caught:
        open_source("memory://bucket/gone")
    assert caught.value.file == "memory://bucket/gone"
    with pytest.raises(UnsupportedError, match="cannot be opened"):
        open_source("nonsense://bucket/gone")


def test_temporary_copies_go(memory, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    put(memory, "/bucket/m.safetensors", save(STATE))
    with open_source("memory://bucket/m.safetensors"):
        assert list(tmp_path.iterdir())
    assert not list(tmp_path.iterdir())
    put(memory, "/bucket/bad.safetensors", b"bad")
    with pytest.raises(InputError):
        open_source("memory://bucket/bad.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("hf://org/name", hub.Repository("org/name")),
        ("hf://org/name@v1.0", hub.Repository("org/name", "v1.0")),
        ("org/name", hub.Repository("org/name")),
        ("name", None),
        ("./org/name", None),
        ("/org/name", None),
        ("a/b/c", None),
        ("s3://org/name", None),
        ("../name", None),
    ],
)
def test_what_names_a_repository(text, wanted):
    assert hub.repository_of(text) == wanted


def test_a_path_is_no_repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org").mkdir()
    assert hub.repository_of("org/gone.pt") is None  # a folder is there: a misspelled path


@pytest.mark.parametrize("text", ["hf://org", "hf://", "hf://a/b/c", "hf://../x"])
def test_malformed_addresses_of_the_hub(text):
    with pytest.raises(InputError, match="names no repository"):
        open_source(text)


def test_is_remote():
    assert remote.is_remote("gs://a/b")
    assert not remote.is_remote("C:\\models")
    assert not remote.is_remote("a.pt")


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path):
    """A hub cache with one repository, as huggingface_hub lays it out."""
    root = tmp_path / "hub"
    repository = root / "models--org--name"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    save_file(STATE, snapshot / "model.safetensors")
    (snapshot / "config.json").write_text('{"model_type": "llama"}')
    return root


def offline(cache, *arguments, cwd):
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(cache)}
    command = [sys.executable, "-m", "tpack", *arguments]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=120, cwd=cwd, check=False
    )


@pytest.mark.parametrize("text", ["hf://org/name", "org/name", f"hf://org/name@{COMMIT}"])
def test_a_repository_in_the_cache(cache, tmp_path, text):
    done = offline(cache, "convert", text, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "name.tpack\n"
    assert tpack.verify(tmp_path / "name.tpack", STATE).ok
    card = (tmp_path / "name.tpack" / "README.md").read_text()
    assert "base_model: org/name\n" in card


def test_a_repository_that_cannot_be_had(cache, tmp_path):
    done = offline(cache, "convert", "hf://org/other", cwd=tmp_path)
    assert done.returncode == 3
    assert (
        "hf://org/other: is not a path here, and cannot be downloaded from the hub" in done.stderr
    )
    assert len(done.stderr.splitlines()) == 1
