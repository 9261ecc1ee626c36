"""A file that is written whole or not at all, and replaces nothing unasked."""

from __future__ import annotations

import errno
import os
import socket
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tensorlrf.errors import FileError, MissingFileError, TensorlrfWarning
from tensorlrf.files import _locks, replace
from tensorlrf.files.replace import new_part, replacing
from tests.files.kills import quick_disk, told_of

__all__ = ["quick_disk"]


def put(path: Path, text: str, overwrite: bool = False) -> None:
    with replacing(path, overwrite=overwrite) as part:
        part.write_text(text)


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# ---- what may be there -------------------------------------------------------------------------


def test_what_no_file_replaces(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "linked").symlink_to(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        home = os.getcwd()
        os.chdir(tmp_path)  # names of sockets are short
        try:
            listener.bind("socket")
        finally:
            os.chdir(home)
        before = set(os.listdir(tmp_path))
        for name, kind in {
            "pipe": "a pipe",
            "linked": "a pipe",
            "socket": "a socket",
            "folder": "a folder",
            "/dev/null": "a device",
        }.items():
            for overwrite in (False, True):
                with pytest.raises(FileError, match=kind):
                    put(tmp_path / name, "new", overwrite)
    assert set(os.listdir(tmp_path)) == before
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_a_link_is_replaced_and_what_it_points_to_stays(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    for name, to in (("link", "real"), ("dangling", "nothing")):
        (tmp_path / name).symlink_to(to)
        with pytest.raises(FileError, match="exists"):
            put(tmp_path / name, "new")
        put(tmp_path / name, "new", overwrite=True)
        assert not (tmp_path / name).is_symlink()
        assert (tmp_path / name).read_text() == "new"
    assert (tmp_path / "real").read_text() == "old"


def test_other_names_of_the_old_file_keep_it(tmp_path: Path) -> None:
    put(tmp_path / "a", "old")
    os.link(tmp_path / "a", tmp_path / "b")
    put(tmp_path / "a", "new", overwrite=True)
    assert (tmp_path / "b").read_text() == "old"


def test_folders_that_are_missing(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="missing"):
        put(tmp_path / "nowhere" / "f", "new")
    put(tmp_path / "file", "old")
    with pytest.raises(FileError, match="missing"):
        put(tmp_path / "file" / "f", "new")


@pytest.mark.parametrize("length", [200, 240, 254, 255])
def test_long_names(length: int, tmp_path: Path) -> None:
    for name in ("x" * length, "é" * (length // 2)):
        put(tmp_path / name, "new")
        put(tmp_path / name, "newer", overwrite=True)
        assert (tmp_path / name).read_text() == "newer"
    assert len(os.listdir(tmp_path)) == 2


def test_names_that_are_too_long(tmp_path: Path) -> None:
    for overwrite in (False, True):
        with pytest.raises(FileError, match="cannot be written"):
            put(tmp_path / ("x" * 256), "new", overwrite)
    assert os.listdir(tmp_path) == []


# ---- permissions -------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o002, 0o077])
def test_the_mode_is_what_the_umask_says(mask: int, tmp_path: Path) -> None:
    with umask(mask):
        put(tmp_path / "f", "new")
    assert mode(tmp_path / "f") == 0o666 & ~mask


@pytest.mark.parametrize("old", [0o600, 0o640, 0o644, 0o664, 0o444])
def test_the_mode_of_what_is_replaced_stays(old: int, tmp_path: Path) -> None:
    put(tmp_path / "f", "old")
    os.chmod(tmp_path / "f", old)
    put(tmp_path / "f", "new", overwrite=True)
    assert mode(tmp_path / "f") == old


# ---- two who write -----------------------------------------------------------------------------


def race(path: Path, writers: int) -> list[str]:
    """Texts of those who were told that they wrote."""
    start, told = threading.Barrier(writers, timeout=20), list[str]()

    def run(k: int) -> None:
        try:
            with replacing(path, overwrite=False) as part:
                part.write_text(str(k))
                start.wait()  # all have looked, and seen nothing there
        except FileError:
            return
        told.append(str(k))

    threads = [threading.Thread(target=run, args=(k,)) for k in range(writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return told


@pytest.mark.parametrize("links", [True, False])
def test_of_all_who_write_at_once_one_does(
    links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "no links on this disk")

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    for k in range(40):
        path = tmp_path / str(k)
        (winner,) = race(path, 3)
        assert path.read_text() == winner
    assert len(os.listdir(tmp_path)) == 40


@pytest.mark.usefixtures("quick_disk")
def test_of_all_processes_that_write_at_once_one_does(tmp_path: Path) -> None:
    for k in range(15):
        path = tmp_path / str(k)
        texts = ["0", "1", "2"]
        told = told_of([partial(put, path, text) for text in texts])
        assert [path.read_text() == text for text in texts] == told
    assert len(os.listdir(tmp_path)) == 15


def test_a_file_that_comes_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "f"
    with pytest.raises(FileError, match="exists"), replacing(path, overwrite=False):
        path.write_text("precious")
    assert path.read_text() == "precious"
    assert os.listdir(tmp_path) == ["f"]


def test_without_links_a_failure_leaves_no_empty_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "no")

    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(FileError, match="cannot be written"):
        put(tmp_path / "f", "new")
    assert os.listdir(tmp_path) == []


# ---- what a kill leaves ------------------------------------------------------------------------


def test_what_a_kill_left_is_swept_and_what_is_at_work_is_not(tmp_path: Path) -> None:
    dead, lock = new_part(tmp_path, "f")
    os.close(lock)  # as the system does for a process that ends
    folder, lock = new_part(tmp_path, "f", as_folder=True)
    (folder / "deep" / "er").mkdir(parents=True)
    os.close(lock)
    alive, lock = new_part(tmp_path, "f")
    others = {".g.0123abcd.part", ".f.0123abcd.party", ".f.0123abc.part", "f.part"}
    for name in others:
        (tmp_path / name).write_text("mine")
    put(tmp_path / "f", "new")
    assert not dead.exists()
    assert not folder.exists()
    assert set(os.listdir(tmp_path)) == {"f", alive.name, *others}
    os.close(lock)
    put(tmp_path / "f", "newer", overwrite=True)
    assert not alive.exists()


def test_what_cannot_be_swept_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dead, lock = new_part(tmp_path, "f")
    os.close(lock)
    monkeypatch.setattr(_locks, "fcntl", None)  # a system without locks
    with pytest.warns(TensorlrfWarning, match=dead.name) as told:
        put(tmp_path / "f", "new")
    assert [w.filename for w in told] == [__file__]
    assert set(os.listdir(tmp_path)) == {"f", dead.name}
    monkeypatch.undo()
    monkeypatch.setattr(replace, "remove", lambda _: None)  # or that does not let it go
    with pytest.warns(TensorlrfWarning, match=dead.name):
        put(tmp_path / "f", "newer", overwrite=True)


def test_a_part_that_is_swept_before_it_is_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, seen = _locks.take, []

    def late(file: int, **more: Any) -> bool | None:
        if not seen:
            seen.extend(os.listdir(tmp_path))
            os.unlink(tmp_path / seen[0])
        return real(file, **more)

    monkeypatch.setattr(_locks, "take", late)
    put(tmp_path / "f", "new")
    assert os.listdir(tmp_path) == ["f"]
    assert (tmp_path / "f").read_text() == "new"


def test_an_interruption_leaves_nothing(tmp_path: Path) -> None:
    put(tmp_path / "f", "old")
    for overwrite in (True, False):
        with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "g", overwrite=overwrite):
            raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "f", overwrite=True):
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == ["f"]
    assert (tmp_path / "f").read_text() == "old"


# ---- what the system refuses -------------------------------------------------------------------


def test_bytes_are_on_the_disk_before_the_name_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    for name in ("fsync", "link", "replace"):
        real = getattr(os, name)

        def told(*given: Any, name: str = name, real: Any = real) -> Any:
            is_folder = name == "fsync" and stat.S_ISDIR(os.fstat(given[0]).st_mode)
            done.append(f"{name} folder" if is_folder else name)
            return real(*given)

        monkeypatch.setattr(os, name, told)
    put(tmp_path / "f", "new")
    put(tmp_path / "f", "newer", overwrite=True)
    assert done == ["fsync", "link", "fsync folder", "fsync", "replace", "fsync folder"]


def test_a_folder_that_cannot_be_synced_tells_that_the_file_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, code = os.fsync, errno.EIO

    def refuse(file: int) -> None:
        if stat.S_ISDIR(os.fstat(file).st_mode):
            raise OSError(code, os.strerror(code))
        real(file)

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(FileError, match="is written, but"):
        put(tmp_path / "f", "new")
    assert (tmp_path / "f").read_text() == "new"
    code = errno.EINVAL  # a system that has no such thing
    put(tmp_path / "g", "new")


def test_what_cannot_be_removed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, "read-only now")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        patch.setattr(os, "unlink", refuse)
        with pytest.raises(FileError, match=r"could not be removed") as caught:
            put(tmp_path / "f", "new")
    (left,) = os.listdir(tmp_path)
    assert left in str(caught.value)
