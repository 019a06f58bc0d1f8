"""New files under bad luck: others take the name, leave things behind, or are faster."""

# ruff: noqa: PTH208 -- listdir gives names, which is what is compared
# ruff: noqa: PT012 -- what fails is the end of the block

import errno
import fcntl
import os
import stat
from pathlib import Path

import pytest

from tpack.container import atomic, new_file
from tpack.container.atomic import (
    check_not_input,
    check_target,
    copy_file,
    exchange,
    storage_errors,
    sync_folder,
)
from tpack.container.rereading import CheckedFile
from tpack.errors import ExistsError, InputError, StorageError


def listing(folder):
    return sorted(os.listdir(folder))


@pytest.fixture
def temporary(tmp_path):
    """Where the bytes of tmp_path/x are before it has its name."""
    with pytest.raises(KeyError), new_file(tmp_path / "x"):
        (name,) = listing(tmp_path)
        raise KeyError
    assert listing(tmp_path) == []
    return tmp_path / name


@pytest.fixture
def open_files():
    """Fails where a test leaves files open; one of an earlier test may be closed meanwhile."""
    before = listing("/proc/self/fd")
    yield
    assert not set(listing("/proc/self/fd")) - set(before)


pytestmark = pytest.mark.usefixtures("open_files")


def on_first_lock(monkeypatch, act):
    """Do something between the opening of a temporary file and the lock on it."""
    lock, left = fcntl.flock, [act]

    def flock(*arguments):
        if left:
            left.pop()()
        lock(*arguments)

    monkeypatch.setattr(atomic.fcntl, "flock", flock)


def test_a_temporary_file_that_another_removes_is_made_again(tmp_path, temporary, monkeypatch):
    on_first_lock(monkeypatch, temporary.unlink)
    with new_file(tmp_path / "x") as file:
        file.write(b"abc")
    assert (tmp_path / "x").read_bytes() == b"abc"
    assert listing(tmp_path) == ["x"]


def test_a_temporary_file_that_another_replaces_is_not_written_to(tmp_path, temporary, monkeypatch):
    def replace():
        temporary.rename(tmp_path / "output of another")
        temporary.write_bytes(b"left by a third")

    on_first_lock(monkeypatch, replace)
    with new_file(tmp_path / "x") as file:
        file.write(b"abc")
    assert (tmp_path / "x").read_bytes() == b"abc"
    assert (tmp_path / "output of another").read_bytes() == b""
    assert listing(tmp_path) == ["output of another", "x"]


def test_an_output_that_has_the_temporary_name_too_is_kept(tmp_path, temporary):
    """As after a process was killed between giving the one name and removing the other."""
    (tmp_path / "x").write_bytes(b"old")
    os.link(tmp_path / "x", temporary)
    with pytest.raises(KeyError), new_file(tmp_path / "x", force=True) as file:
        file.write(b"abc")
        raise KeyError
    assert (tmp_path / "x").read_bytes() == b"old"
    assert listing(tmp_path) == ["x"]


def test_what_is_left_of_a_longer_file_is_not_in_the_next(tmp_path, temporary):
    temporary.write_bytes(b"much longer than what comes")
    with new_file(tmp_path / "x") as file:
        file.write(b"abc")
    assert (tmp_path / "x").read_bytes() == b"abc"


def test_the_temporary_file_is_private_until_it_has_the_mode_of_the_output(tmp_path, monkeypatch):
    modes, change = [], os.fchmod

    def fchmod(handle, mode):
        modes.append(stat.S_IMODE(os.fstat(handle).st_mode))
        change(handle, mode)

    monkeypatch.setattr(atomic.os, "fchmod", fchmod)
    with new_file(tmp_path / "x"):
        pass
    assert modes == [0o600]


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o000])
def test_the_mode_of_a_new_file_is_that_of_others(tmp_path, mask):
    before = os.umask(mask)
    try:
        with new_file(tmp_path / "x"):
            pass
        assert os.umask(mask) == mask
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o666 & ~mask


def test_the_second_writer_of_a_target_is_told_which(tmp_path):
    with new_file(tmp_path / "x"), pytest.raises(StorageError) as caught, new_file(tmp_path / "x"):
        raise AssertionError
    assert caught.value.file == str(tmp_path / "x")
    assert caught.value.message == "is being written by another process."


def test_names_are_brought_to_the_disk(tmp_path, monkeypatch):
    synced, sync = [], os.fsync

    def fsync(handle):
        synced.append(os.fstat(handle).st_ino)
        sync(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    with new_file(tmp_path / "x"):
        pass
    assert synced == [(tmp_path / "x").stat().st_ino, tmp_path.stat().st_ino]


def test_a_folder_that_cannot_be_opened_needs_no_sync(tmp_path, monkeypatch):
    def denied(*_):
        raise PermissionError(errno.EACCES, "denied")

    monkeypatch.setattr(atomic.os, "open", denied)
    sync_folder(tmp_path)


@pytest.mark.parametrize(
    ("code", "good"),
    [(errno.EINVAL, True), (errno.ENOTSUP, True), (errno.EIO, False), (errno.ENOSPC, False)],
)
def test_a_file_system_that_cannot_sync_folders_is_no_fault(tmp_path, monkeypatch, code, good):
    def fails(_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(atomic.os, "fsync", fails)
    if good:
        sync_folder(tmp_path)
    else:
        with pytest.raises(OSError, match=os.strerror(code)):
            sync_folder(tmp_path)


@pytest.mark.parametrize("force", [False, True])
def test_the_error_when_an_output_exists(tmp_path, force):
    (tmp_path / "x").write_bytes(b"old")
    (tmp_path / "folder").mkdir()
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    if force:
        check_target(tmp_path / "x", force=True)
    else:
        with pytest.raises(ExistsError) as caught:
            check_target(tmp_path / "x", force=False)
        assert caught.value.file == str(tmp_path / "x")
    for name in ("folder", "gone"):
        with pytest.raises(StorageError, match="is not a regular file") as caught:
            check_target(tmp_path / name, force=force)
        assert caught.value.file == str(tmp_path / name)
    with pytest.raises(StorageError, match="missing' does not exist") as caught:
        check_target(tmp_path / "missing" / "x", force=force)
    assert caught.value.file == str(tmp_path / "missing" / "x")
    check_target(tmp_path / "new", force=force)


def test_one_input_of_several_is_the_output(tmp_path):
    for name in "ab":
        (tmp_path / name).write_bytes(b"same")
    (tmp_path / "link").symlink_to(tmp_path / "b")
    with pytest.raises(ExistsError, match="is the input itself") as caught:
        check_not_input(tmp_path / "link", tmp_path / "gone", tmp_path / "a", tmp_path / "b")
    assert caught.value.file == str(tmp_path / "link")


def test_without_hard_links_a_file_is_still_not_replaced(tmp_path, monkeypatch):
    def no_links(*_):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(atomic.os, "link", no_links)
    for links in (False, True):
        if links:
            monkeypatch.undo()
        path = tmp_path / f"x{links}"
        with pytest.raises(ExistsError, match="appeared while") as caught, new_file(path) as file:
            file.write(b"abc")
            path.write_bytes(b"other")
        assert caught.value.file == str(path)
        assert path.read_bytes() == b"other"
    assert listing(tmp_path) == ["xFalse", "xTrue"]


def test_errors_of_writing_name_the_output():
    with pytest.raises(StorageError) as caught, storage_errors("out"):
        raise OSError(errno.EIO, "I/O error")
    assert (caught.value.file, caught.value.message) == ("out", "cannot be written: I/O error.")


# ---- copies


@pytest.mark.parametrize("size", [0, 1, (1 << 22) - 1, 1 << 22, (1 << 22) + 1, 9_000_000])
def test_copies_are_equal(tmp_path, size):
    data = (b"0123456789abcde" * (size // 15 + 1))[:size]
    (tmp_path / "x").write_bytes(data)
    copy_file(tmp_path / "x", tmp_path / "y")
    assert (tmp_path / "y").read_bytes() == data


def test_copies_replace_nothing(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    (tmp_path / "y").write_bytes(b"old")
    with pytest.raises(ExistsError):
        copy_file(tmp_path / "x", tmp_path / "y")
    with pytest.raises(InputError):
        copy_file(tmp_path / "gone", tmp_path / "z")
    assert listing(tmp_path) == ["x", "y"]
    assert (tmp_path / "y").read_bytes() == b"old"


# ---- exchange


def test_two_folders_change_places(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    assert exchange(tmp_path / "a", tmp_path / "b")
    assert (listing(tmp_path / "a"), listing(tmp_path / "b")) == (["b"], ["a"])
    with pytest.raises(FileNotFoundError) as caught:
        exchange(tmp_path / "a", tmp_path / "c")
    assert caught.value.filename == str(tmp_path / "c")
    assert listing(tmp_path) == ["a", "b"]


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOSYS, None])
def test_a_system_that_cannot_exchange_says_so(tmp_path, monkeypatch, code):
    class Library:
        def __init__(self, *_, **__):
            if code is not None:
                self.renameat2 = lambda *_: -1

    monkeypatch.setattr(atomic.ctypes, "CDLL", Library)
    monkeypatch.setattr(atomic.ctypes, "get_errno", lambda: code)
    assert exchange(tmp_path / "a", tmp_path / "b") is False
    monkeypatch.setattr(atomic.ctypes, "get_errno", lambda: errno.EACCES)
    if code is not None:
        with pytest.raises(PermissionError):
            exchange(tmp_path / "a", tmp_path / "b")


# ---- what the disk gives back


@pytest.fixture
def checked(tmp_path):
    path = tmp_path / "x"
    file = CheckedFile(path, os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    yield file
    file.close()


ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_sections_have_digests_of_their_own(checked):
    assert checked.section() == EMPTY
    assert checked.write(memoryview(b"ab")) == 2
    assert checked.write(b"c") == 1
    assert checked.section() == ABC
    assert checked.section() == EMPTY
    checked.write(b"abc")
    assert checked.section() == ABC
    checked.check()
    checked.check()
    assert checked.path.read_bytes() == b"abcabc"


def test_a_section_of_several_pieces_ends_where_the_next_begins(checked):
    checked.write(bytes(5_000_000))
    checked.section()
    checked.write(b"abc")
    checked.check()


def test_what_is_written_last_may_stand_first(checked):
    checked.seek(3)
    checked.write(b"def")
    checked.seek(0)
    checked.write(b"abc")
    checked.check()
    assert checked.path.read_bytes() == b"abcdef"


def test_bytes_that_were_written_twice_or_never_are_a_bug(checked):
    checked.write(b"abc")
    checked.seek(4)
    checked.write(b"def")
    with pytest.raises(AssertionError, match="bytes 3 to 4"):
        checked.check()


@pytest.mark.parametrize("at", [0, 2, 3, 5_000_002])
def test_another_byte_on_the_disk_is_noticed(checked, at):
    checked.write(b"abc")
    checked.section()
    checked.write(bytes(5_000_000))
    checked.flush()
    handle = checked._file.fileno()
    os.pwrite(handle, b"X", at)
    with pytest.raises(StorageError, match="holds other bytes") as caught:
        checked.check()
    start, stop = (0, 3) if at < 3 else (3, 5_000_003)
    assert f"from {start} to {stop} " in caught.value.message
    assert caught.value.file == str(checked.path)


@pytest.mark.parametrize("size", [2, 7])
def test_another_size_on_the_disk_is_noticed(checked, size):
    checked.write(b"abc")
    checked.section()
    checked.write(b"de")
    checked.flush()
    os.truncate(checked.path, size)
    with pytest.raises(StorageError) as caught:
        checked.check()
    assert caught.value.file == str(checked.path)
    assert ("holds 7 bytes, expected 5" in caught.value.message) == (size == 7)


def test_a_file_is_on_the_disk_once_it_is_checked(checked, monkeypatch):
    calls = []
    monkeypatch.setattr(os, "fsync", lambda handle: calls.append(os.fstat(handle).st_size))
    monkeypatch.setattr(os, "posix_fadvise", lambda *arguments: calls.append(arguments[1:]))
    checked.write(b"abc")
    checked.check()
    assert calls == [3, (0, 0, os.POSIX_FADV_DONTNEED)]


def test_reading_again_needs_no_advice(checked, monkeypatch):
    monkeypatch.delattr(os, "posix_fadvise")
    checked.write(b"abc")
    checked.check()
    checked.close()
    assert Path(checked.path).read_bytes() == b"abc"
    with pytest.raises(ValueError, match="closed"):
        checked.write(b"abc")
