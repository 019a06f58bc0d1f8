"""A new folder takes its place whole or not at all, and loses nothing that was beside."""

# ruff: noqa: PT012, SIM117 -- what fails is the beginning or the end of the block

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tpack.container import folders
from tpack.container.folders import Workplace, changed_folder, new_folder
from tpack.errors import ExistsError, StorageError


def tree(folder):
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def hidden(folder):
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


def write(folder, **files):
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_text(text)


@pytest.fixture
def old(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    write(folder, config_json="{}", old_txt="old")
    return folder


# ---- a folder of its own


def test_a_new_folder(tmp_path):
    with new_folder(tmp_path / "new") as folder:
        write(folder, a_txt="a")
        assert not (tmp_path / "new").exists()
    assert tree(tmp_path / "new") == {"a.txt": "a"}
    assert hidden(tmp_path) == []


def test_it_replaces_a_model_only_if_asked(old):
    with pytest.raises(ExistsError, match="force=True"), new_folder(old):
        pass
    with new_folder(old, force=True) as folder:
        write(folder, a_txt="a")
        assert tree(old)["old.txt"] == "old"
    assert tree(old) == {"a.txt": "a"}
    assert hidden(old.parent) == []


def test_it_never_replaces_another_folder(tmp_path):
    (tmp_path / "photos").mkdir()
    write(tmp_path / "photos", a_txt="a")
    photos = new_folder(tmp_path / "photos", force=True)
    with pytest.raises(ExistsError, match="not the folder of a model"), photos:
        pass
    assert tree(tmp_path / "photos") == {"a.txt": "a"}


@pytest.mark.parametrize("kind", ["file", "link", "nowhere"])
def test_places_where_no_folder_can_go(tmp_path, kind):
    target = tmp_path / "x" / "y" if kind == "nowhere" else tmp_path / "x"
    if kind == "file":
        target.write_text("x")
    if kind == "link":
        (tmp_path / "real").mkdir()
        target.symlink_to(tmp_path / "real")
    with pytest.raises(StorageError), new_folder(target, force=True):
        pass


def test_an_error_in_the_block_leaves_everything_as_it_was(old):
    for kind in (ValueError, KeyboardInterrupt):
        with pytest.raises(kind), new_folder(old, force=True) as folder:
            write(folder, a_txt="a")
            raise kind
        assert tree(old) == {"config.json": "{}", "old.txt": "old"}
        assert hidden(old.parent) == []


def test_what_a_killed_run_left_is_cleared(old):
    left = Workplace.beside(old)
    left.output.mkdir(parents=True)
    write(left.output, half_txt="half")
    with new_folder(old, force=True) as folder:
        write(folder, a_txt="a")
    assert tree(old) == {"a.txt": "a"}
    assert hidden(old.parent) == []


def test_an_output_that_a_killed_run_had_moved_away_comes_back(old):
    left = Workplace.beside(old)
    left.folder.mkdir()
    old.rename(left.replaced)
    with pytest.raises(ExistsError), new_folder(old):
        pass
    assert tree(old) == {"config.json": "{}", "old.txt": "old"}


def test_without_an_exchange_the_old_folder_comes_back_if_the_new_cannot_go_there(old, monkeypatch):
    monkeypatch.setattr(folders, "exchange", lambda *_: False)
    with new_folder(old, force=True) as folder:
        write(folder, a_txt="a")
    assert tree(old) == {"a.txt": "a"}
    rename = Path.rename

    def fail(path, target):
        if path.name == "out":
            raise OSError(5, "Input/output error")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail)
    write(old, config_json="{}")
    with pytest.raises(StorageError, match="Input/output"), new_folder(old, force=True) as folder:
        write(folder, b_txt="b")
    assert tree(old) == {"a.txt": "a", "config.json": "{}"}
    assert hidden(old.parent) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(5, "Input/output error")])
def test_between_two_renames_the_old_folder_is_never_lost(old, monkeypatch, error):
    monkeypatch.setattr(folders, "exchange", lambda *_: False)
    rename, calls = Path.rename, []

    def fail(path, target):
        calls.append(path.name)
        if len(calls) > 1:
            raise error
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises((KeyboardInterrupt, StorageError)), new_folder(old, force=True) as folder:
        write(folder, a_txt="a")
    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(ExistsError), new_folder(old):
        pass
    assert tree(old) == {"config.json": "{}", "old.txt": "old"}


def test_two_processes_do_not_write_to_one_target(old):
    code = (
        "import sys; from tpack.container.folders import new_folder\n"
        "from tpack.errors import StorageError\n"
        "try:\n"
        "    with new_folder(sys.argv[1], force=True): pass\n"
        "except StorageError as error: print(error)"
    )
    with new_folder(old, force=True) as folder:
        write(folder, a_txt="a")
        done = subprocess.run(
            [sys.executable, "-c", code, str(old)], capture_output=True, text=True, check=True
        )
    assert "another process" in done.stdout
    assert tree(old) == {"a.txt": "a"}


# ---- a folder that keeps what else it has


def is_bin(name):
    return name.endswith(".bin")


@pytest.fixture
def kept(old):
    """A folder with files of others, a link, and old weights."""
    write(old, a_bin="old weights", b_bin="old weights")
    (old / "link").symlink_to("old.txt")
    old.chmod(0o750)
    return old


def check_kept(folder):
    assert tree(folder) == {
        "a.bin": "new weights",
        "config.json": "new",
        "link": "old",
        "old.txt": "old",
    }
    assert (folder / "link").is_symlink()
    assert folder.stat().st_mode & 0o777 == 0o750


def test_other_files_stay(kept):
    with changed_folder(kept, is_bin) as folder:
        write(folder, a_bin="new weights", config_json="new")
        assert (kept / "a.bin").read_text() == "old weights"
    check_kept(kept)
    assert hidden(kept.parent) == []


def test_a_file_stays_the_same_file(kept):
    before = (kept / "old.txt").stat().st_ino
    with changed_folder(kept, is_bin) as folder:
        write(folder, a_bin="new weights", config_json="new")
    assert (kept / "old.txt").stat().st_ino == before


def test_without_hard_links_files_are_copied(kept, monkeypatch):
    def refuse(*_, **__):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with changed_folder(kept, is_bin) as folder:
        write(folder, a_bin="new weights", config_json="new")
    check_kept(kept)


def test_the_current_folder_stays_the_same_folder(kept, monkeypatch):
    monkeypatch.chdir(kept)
    before = kept.stat().st_ino
    with changed_folder(".", is_bin) as folder:
        write(folder, a_bin="new weights", config_json="new")
    assert kept.stat().st_ino == before
    check_kept(kept)
    assert Path("a.bin").read_text() == "new weights"


def test_a_folder_and_its_parents_are_made(tmp_path):
    with changed_folder(tmp_path / "a" / "b", is_bin) as folder:
        write(folder, a_bin="a")
    assert tree(tmp_path / "a" / "b") == {"a.bin": "a"}


def test_an_error_changes_nothing(kept):
    before = tree(kept)
    with pytest.raises(ValueError, match="stop"), changed_folder(kept, is_bin) as folder:
        write(folder, a_bin="new weights")
        raise ValueError("stop")
    assert tree(kept) == before
    assert hidden(kept.parent) == []


def test_files_that_others_write_meanwhile_follow(kept, monkeypatch):
    publish = Workplace.publish

    def late(work, target, *, force):
        write(target, late_txt="late")
        publish(work, target, force=force)

    monkeypatch.setattr(Workplace, "publish", late)
    with changed_folder(kept, is_bin) as folder:
        write(folder, a_bin="new weights", config_json="new")
    assert (kept / "late.txt").read_text() == "late"
    (kept / "late.txt").unlink()
    check_kept(kept)
    assert hidden(kept.parent) == []


def test_sub_folders_stay_the_same_folders(kept):
    (kept / "runs").mkdir()
    write(kept / "runs", log_txt="log")
    before = (kept.stat().st_ino, (kept / "runs").stat().st_ino)
    with changed_folder(kept, is_bin) as folder:
        write(folder, a_bin="new weights", config_json="new")
    assert (kept.stat().st_ino, (kept / "runs").stat().st_ino) == before
    assert (kept / "runs" / "log.txt").read_text() == "log"
    shutil.rmtree(kept / "runs")
    check_kept(kept)


# ---- what is not replaced, whatever is asked


def test_the_current_folder_is_not_replaced(old, monkeypatch):
    monkeypatch.chdir(old)
    for target in (".", "../model", old):
        with pytest.raises(StorageError, match="the current folder"):
            with new_folder(target, force=True):
                pytest.fail("the work begins")
    assert tree(old) == {"config.json": "{}", "old.txt": "old"}
    assert hidden(old.parent) == []


def test_a_repository_is_not_replaced(old):
    (old / ".git").mkdir()
    with pytest.raises(ExistsError, match="repository"), new_folder(old, force=True):
        pass
    assert (old / ".git").is_dir()
