"""A new file appears whole or not at all, and never in the place of the input."""

# ruff: noqa: PT012 -- what fails is the end of the block
# ruff: noqa: PTH208 -- listdir gives names, which is what is compared

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from corpus import make
from safetensors.torch import save_file

import tpack
from tpack.cli.main import main
from tpack.container import (
    atomic as atomic_module,
    new_file,
)
from tpack.container.atomic import check_not_input
from tpack.errors import ExistsError, StorageError

# ---- new_file


def listing(folder):
    return sorted(os.listdir(folder))


def test_new_file_appears_whole(tmp_path):
    path = tmp_path / "x"
    with new_file(path) as file:
        file.write(b"abc")
        assert not path.exists()
    assert path.read_bytes() == b"abc"
    assert listing(tmp_path) == ["x"]
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), SystemExit(3)])
@pytest.mark.parametrize("force", [False, True])
def test_failure_inside_leaves_nothing(tmp_path, error, force):
    path = tmp_path / "x"
    if force:
        path.write_bytes(b"old")
    with pytest.raises(type(error)), new_file(path, force=force) as file:
        file.write(b"abc")
        raise error
    assert listing(tmp_path) == (["x"] if force else [])
    if force:
        assert path.read_bytes() == b"old"


def test_existing_file_is_kept_without_force(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"old")
    with pytest.raises(ExistsError, match="Use force=True") as caught, new_file(path):
        raise AssertionError
    assert caught.value.code == 6
    assert path.read_bytes() == b"old"


def test_force_replaces_and_keeps_the_mode(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"old")
    path.chmod(0o604)
    with new_file(path, force=True) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o604
    assert listing(tmp_path) == ["x"]


def test_a_file_that_appears_meanwhile_is_kept(tmp_path):
    path = tmp_path / "x"
    with pytest.raises(ExistsError), new_file(path) as file:
        file.write(b"abc")
        path.write_bytes(b"other")
    assert path.read_bytes() == b"other"
    assert listing(tmp_path) == ["x"]


@pytest.mark.parametrize("force", [False, True])
def test_no_file_goes_where_none_can(tmp_path, force):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    (tmp_path / "dangling").symlink_to(tmp_path / "gone")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "plain").write_bytes(b"")
    names = ["fifo", "folder", "dangling", "loop", "plain/x", "missing/x", "", "."]
    before = listing(tmp_path)
    for name in names:
        with pytest.raises(StorageError) as caught, new_file(tmp_path / name, force=force):
            raise AssertionError
        assert caught.value.code == 7
    assert listing(tmp_path) == before


@pytest.mark.parametrize("length", [256, 5000])
def test_a_name_too_long_for_the_file_system(tmp_path, length):
    with (
        pytest.raises(StorageError, match="too long") as caught,
        new_file(tmp_path / ("x" * length)),
    ):
        raise AssertionError
    assert caught.value.code == 7


def test_the_longest_name_that_the_file_system_takes(tmp_path):
    path = tmp_path / ("x" * 255)
    with new_file(path) as file:
        file.write(b"abc")
    assert path.read_bytes() == b"abc"


def test_force_through_a_link_writes_where_it_points_or_replaces_it(tmp_path):
    real = tmp_path / "real"
    real.write_bytes(b"old")
    link = tmp_path / "link"
    link.symlink_to(real)
    with new_file(link, force=True) as file:
        file.write(b"new")
    assert link.read_bytes() == b"new"
    assert listing(tmp_path) == ["link", "real"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_a_full_disk_is_a_storage_error(tmp_path, monkeypatch, code):
    path = tmp_path / "x"

    def full(_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(atomic_module.os, "fsync", full)
    with pytest.raises(StorageError) as caught, new_file(path) as file:
        file.write(b"abc")
    assert caught.value.code == 7
    assert os.strerror(code) in str(caught.value)
    assert caught.value.file == str(path)
    assert listing(tmp_path) == []


def test_a_disk_that_is_full_while_writing(tmp_path):
    path = tmp_path / "x"
    with (
        Path("/dev/full").open("wb", buffering=0) as full,
        pytest.raises(StorageError, match="No space left") as caught,
        new_file(path),
    ):
        full.write(b"abc")
    assert caught.value.code == 7
    assert listing(tmp_path) == []


def test_conversion_on_a_full_disk(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    source = tmp_path / "in.safetensors"
    save_file({"fc.weight": make.trits(4, 4)}, source)
    monkeypatch.setattr(atomic_module.os, "fsync", full)
    with pytest.raises(SystemExit) as ended:
        main(["convert", str(source)])
    assert ended.value.code == 7
    assert listing(tmp_path) == ["in.safetensors"]


def test_no_permission(tmp_path, monkeypatch):
    def denied(*_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(atomic_module.os, "open", denied)
    with pytest.raises(StorageError, match="Permission denied"), new_file(tmp_path / "x"):
        raise AssertionError


def test_two_writers_do_not_interleave(tmp_path):
    path = tmp_path / "x"
    with new_file(path) as file:
        file.write(b"abc")
        with pytest.raises(StorageError, match="another process"), new_file(path):
            raise AssertionError
        with new_file(tmp_path / "y") as other:  # another target is no business of the first
            other.write(b"def")
    assert path.read_bytes() == b"abc"
    assert listing(tmp_path) == ["x", "y"]


def test_what_a_killed_process_left_is_taken_over(tmp_path):
    path = tmp_path / "x"
    code = (
        "import os, sys\nfrom tpack.container import new_file\n"
        "with new_file(sys.argv[1]) as file:\n"
        "    file.write(b'half of a file that is longer')\n    file.flush()\n    os._exit(9)"
    )
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", code, str(path)], check=False, timeout=60)
        assert done.returncode == 9
        (left,) = listing(tmp_path)
        assert left.startswith(".tpack-")
        assert left.endswith(".tmp")
    with new_file(path) as file:
        file.write(b"abc")
    assert path.read_bytes() == b"abc"
    assert listing(tmp_path) == ["x"]


def test_a_temporary_file_that_is_a_link_is_not_followed(tmp_path):
    path, victim = tmp_path / "x", tmp_path / "victim"
    with new_file(path):
        (name,) = listing(tmp_path)
    victim.write_bytes(b"precious")
    (tmp_path / name).symlink_to(victim)
    path.unlink()
    with pytest.raises(StorageError), new_file(path):
        raise AssertionError
    assert victim.read_bytes() == b"precious"


def test_a_file_system_without_hard_links(tmp_path, monkeypatch):
    def no_links(*_):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(atomic_module.os, "link", no_links)
    with new_file(tmp_path / "x") as file:
        file.write(b"abc")
    assert (tmp_path / "x").read_bytes() == b"abc"
    with pytest.raises(ExistsError), new_file(tmp_path / "y") as file:
        (tmp_path / "y").write_bytes(b"other")
    assert (tmp_path / "y").read_bytes() == b"other"
    assert listing(tmp_path) == ["x", "y"]


# ---- the output is not the input


@pytest.mark.parametrize("how", ["same", "dotted", "symlink", "hardlink"])
@pytest.mark.parametrize("command", ["convert", "unpack", "codegen"])
def test_the_input_is_never_replaced(tmp_path, how, command, capsys):
    source = tmp_path / "in.safetensors"
    if command == "convert":
        save_file({"fc.weight": make.trits(4, 4)}, source)
    else:
        source.write_bytes((make.ACCEPT / "linear.safetensors").read_bytes())
    before = source.read_bytes()
    other = tmp_path / "other.safetensors"
    target = {"same": source, "dotted": tmp_path / "." / "x" / ".." / "in.safetensors"}.get(
        how, other
    )
    (tmp_path / "x").mkdir()
    if how == "symlink":
        other.symlink_to(source)
    if how == "hardlink":
        os.link(source, other)
    with pytest.raises(SystemExit) as ended:
        main([command, str(source), "-o", str(target), "--force"])
    assert ended.value.code == 6
    assert "is the input itself" in capsys.readouterr().err
    assert source.read_bytes() == before


def test_check_not_input_lets_other_files_pass(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(b"same")
    check_not_input(tmp_path / "a", tmp_path / "b", tmp_path / "gone")
    check_not_input(tmp_path / "new", tmp_path / "b")


def test_layerdef_file_is_never_replaced(tmp_path):
    tree = tmp_path / "tree.safetensors"  # whose name does not say that it is JSON
    text = '{"name":"M","params":[{"name":"w","param_type":"TernaryTensor","shape":[2,2]}]}'
    tree.write_text(text)
    with pytest.raises(ExistsError, match="is the input itself"):
        tpack.convert({"w": make.trits(2, 2)}, tree, layerdef=tree, force=True)
    assert tree.read_text() == text
