"""Files of a folder come all together or not at all."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import threading
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tensorlrf.errors import FileError, MissingFileError, TensorlrfError
from tensorlrf.files import _locks
from tensorlrf.files.folder import READY, check_folder, filling, put_right
from tensorlrf.files.replace import check_target, new_part, replacing
from tests.files.kills import REFUSALS, content, killed, quick_disk, refused, told_of

__all__ = ["quick_disk"]

NAMES = ("a", "b", "c")
OLD = {"a": b"old a", "c": b"old c", "mine/deep": b"mine"}
NEW = {"a": b"new a", "b": b"new b"}
MIXED = {**NEW, "mine/deep": b"mine"}
"""What becomes of OLD where NEW replaces the three names: c goes, what is not named stays."""


def put(
    target: Path,
    files: dict[str, bytes],
    overwrite: bool = False,
    names: Collection[str] | None = NAMES,
) -> None:
    with filling(target, names=names, overwrite=overwrite) as folder:
        for name, data in files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(data)


def reset(target: Path, files: dict[str, bytes] | None) -> None:
    """The target and all beside it as at first."""
    for path in target.parent.iterdir():
        shutil.rmtree(path)
    for name, data in (files or {}).items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_bytes(data)


def test_a_folder_comes_to_be(tmp_path: Path) -> None:
    target = tmp_path / "t"
    put(target, NEW)
    assert content(tmp_path) == {f"t/{name}": data for name, data in NEW.items()}


def test_names_are_replaced_and_others_stay(tmp_path: Path) -> None:
    target = tmp_path / "t"
    reset(target, OLD)
    with pytest.raises(FileError, match="overwrite=True"):
        put(target, NEW)
    assert content(target) == OLD
    number = target.stat().st_ino
    put(target, NEW, overwrite=True)
    assert content(target) == MIXED
    assert set(os.listdir(target)) == {"a", "b", "mine"}
    assert target.stat().st_ino == number  # it may be a mount, or where a shell is


def test_a_whole_folder_is_replaced(tmp_path: Path) -> None:
    target = tmp_path / "t"
    reset(target, OLD)
    with pytest.raises(FileError, match="exists"):
        put(target, NEW, names=None)
    more = {**NEW, "mine/else": b"new"}
    put(target, more, overwrite=True, names=None)
    assert content(target) == more
    put(target, {}, overwrite=True, names=None)
    assert os.listdir(target) == []
    put(target, NEW, names=None)  # into an empty folder
    assert content(target) == NEW


def test_the_working_directory_is_still_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    put(Path(), NEW)
    put(Path(), {"a": b"newer"}, overwrite=True, names=None)
    assert content(Path()) == content(tmp_path) == {"a": b"newer"}


def test_a_folder_behind_a_link(tmp_path: Path) -> None:
    reset(tmp_path / "t", OLD)
    (tmp_path / "link").symlink_to("t")
    put(tmp_path / "link", NEW, overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert content(tmp_path / "t") == MIXED
    (tmp_path / "later").symlink_to("u")
    with pytest.raises(FileError, match="is a file"):
        put(tmp_path / "later", NEW)


def test_what_is_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="is a file"):
        put(tmp_path / "file", NEW, overwrite=True)
    with pytest.raises(MissingFileError, match="missing"):
        put(tmp_path / "nowhere" / "t", NEW)
    (tmp_path / "t" / "a").mkdir(parents=True)
    os.mkfifo(tmp_path / "t" / "b")
    for names in (("a",), ("b",)):
        with pytest.raises(FileError, match="no file replaces"):
            put(tmp_path / "t", NEW, overwrite=True, names=names)
    assert set(os.listdir(tmp_path / "t")) == {"a", "b"}
    assert set(os.listdir(tmp_path)) == {"file", "t"}


def test_modes(tmp_path: Path) -> None:
    target = tmp_path / "t"
    before = os.umask(0o027)
    try:
        put(target, OLD)
        os.chmod(target / "a", 0o600)
        put(target, NEW, overwrite=True)
    finally:
        os.umask(before)
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in (target, *target.iterdir())}
    assert modes == {"t": 0o750, "a": 0o600, "b": 0o640, "mine": 0o750}


def put_and_raise(target: Path, kind: type[BaseException]) -> None:
    with filling(target, names=NAMES, overwrite=True) as folder:
        (folder / "a").write_text("half")
        raise kind


def test_an_error_of_the_caller_leaves_nothing(tmp_path: Path) -> None:
    reset(tmp_path / "t", OLD)
    for target in (tmp_path / "t", tmp_path / "u"):
        for kind in (KeyboardInterrupt, TensorlrfError, ZeroDivisionError):
            with pytest.raises(kind):
                put_and_raise(target, kind)
    assert os.listdir(tmp_path) == ["t"]
    assert content(tmp_path / "t") == OLD


# ---- kills -------------------------------------------------------------------------------------

CASES: dict[str, tuple[dict[str, bytes] | None, bool, Collection[str] | None]] = {
    "a new folder": (None, False, NAMES),
    "a folder of others": ({"mine/deep": b"mine"}, False, NAMES),
    "names replaced": (OLD, True, NAMES),
    "all replaced": (OLD, True, None),
    "into an empty one": ({}, False, None),
}


def wanted(case: str) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """(before, after)."""
    before, _, names = CASES[case]
    kept = {} if names is None else {k: v for k, v in (before or {}).items() if "mine" in k}
    return before or {}, {**kept, **NEW}


@pytest.mark.usefixtures("quick_disk")
@pytest.mark.parametrize("case", CASES)
def test_a_kill_at_every_call(case: str, tmp_path: Path) -> None:
    target = tmp_path / "above" / "t"
    target.parent.mkdir()
    before, overwrite, names = CASES[case]
    old, new = wanted(case)
    seen = []
    for _ in killed(lambda: reset(target, before), lambda: put(target, NEW, overwrite, names)):
        if target.exists():
            put_right(target)  # as a load does
        found = {n: d for n, d in content(target).items() if not n.startswith(".tensorlrf.")}
        assert found in (old, new)
        seen.append(found)
        put(target, NEW, overwrite=True, names=names)  # as a save does
        assert content(target) == new
        assert os.listdir(target.parent) == ["t"]
        assert not [name for name in os.listdir(target) if name.startswith(".")]
    assert old in seen
    assert new in seen
    assert content(target) == new


@pytest.mark.usefixtures("quick_disk")
@pytest.mark.parametrize("overwrite", [True, False])
@pytest.mark.parametrize("links", [True, False])
def test_a_kill_at_every_call_of_a_file(
    overwrite: bool, links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: object) -> None:
        raise OSError(errno.EPERM, "no links on this disk")

    if not links:
        monkeypatch.setattr(os, "link", no_links)
    path = tmp_path / "f"

    def prepare() -> None:
        path.unlink(missing_ok=True)
        if overwrite:
            path.write_text("old")

    def write() -> None:
        with replacing(path, overwrite=overwrite) as part:
            part.write_text("new")

    seen = []
    for _ in killed(prepare, write):
        found = path.read_text() if path.exists() else None
        seen.append(found)
        with replacing(path, overwrite=True) as part:
            part.write_text("newer")
        assert os.listdir(tmp_path) == ["f"]
    # Without links a name is reserved by an empty file, for the time of one call.
    assert set(seen) - ({""} if not links else set()) == {"old" if overwrite else None, "new"}
    assert seen.count("") <= 1


# ---- refusals of the system --------------------------------------------------------------------


@pytest.mark.usefixtures("quick_disk")
@pytest.mark.parametrize(("code", "for_good"), REFUSALS)
@pytest.mark.parametrize("case", CASES)
def test_a_refusal_at_every_call(case: str, code: int, for_good: bool, tmp_path: Path) -> None:
    target = tmp_path / "above" / "t"
    target.parent.mkdir()
    before, overwrite, names = CASES[case]
    old, new = wanted(case)
    told = set()
    act = lambda: put(target, NEW, overwrite, names)  # noqa: E731
    for error in refused(lambda: reset(target, before), act, code, for_good):
        assert isinstance(error, FileError)
        text = str(error)
        left = [path for path in target.parent.rglob("*.part") if path.name.startswith(".t")]
        plain = {n: d for n, d in content(target).items() if not n.startswith(".tensorlrf.")}
        if "is as it was" in text:
            assert plain == old
            assert all(str(path) in text for path in left if any(path.iterdir()))
            told.add("old")
        elif "is written, but" in text:
            assert plain == new
            told.add("new")
        else:
            assert READY in text
            told.add("unfinished")
        if target.exists():
            put_right(target)
        plain = {n: d for n, d in content(target).items() if not n.startswith(".tensorlrf.")}
        assert plain in (old, new)
        put(target, NEW, overwrite=True, names=names)
        assert content(target) == new
        assert os.listdir(target.parent) == ["t"]
    assert "old" in told
    assert content(target) == new


def test_a_rename_that_fails_once_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "t"
    reset(target, OLD)
    real, left = os.rename, [3]

    def refuse(source: Any, to: Any) -> None:
        left[0] -= 1
        if not left[0]:
            raise OSError(errno.EIO, "no")
        real(source, to)

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(FileError, match="is as it was"):
        put(target, NEW, overwrite=True)
    assert content(tmp_path) == {f"t/{name}": data for name, data in OLD.items()}


# ---- two at once -------------------------------------------------------------------------------


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("names", [NAMES, None])
def test_of_all_who_fill_a_folder_at_once_one_does(
    there: bool, names: Collection[str] | None, tmp_path: Path
) -> None:
    for k in range(25):
        target, told = tmp_path / str(k), list[bytes]()
        if there:
            target.mkdir()
        start = threading.Barrier(3, timeout=20)

        def run(data: bytes, target: Path = target, told: Any = told, start: Any = start) -> None:
            try:
                with filling(target, names=names, overwrite=False) as folder:
                    for name in NAMES:
                        (folder / name).write_bytes(data)
                    start.wait()
            except FileError:
                return
            told.append(data)

        threads = [threading.Thread(target=run, args=(b"%d" % n,)) for n in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        (winner,) = told
        assert content(target) == dict.fromkeys(NAMES, winner)
        assert not [name for name in os.listdir(target) if name.startswith(".")]
    assert len(os.listdir(tmp_path)) == 25


@pytest.mark.usefixtures("quick_disk")
@pytest.mark.parametrize("there", [True, False])
def test_of_all_processes_that_fill_a_folder_at_once_one_does(there: bool, tmp_path: Path) -> None:
    for k in range(10):
        target = tmp_path / str(k)
        if there:
            target.mkdir()
        files = [dict.fromkeys(NAMES, b"%d" % n) for n in range(3)]
        told = told_of([partial(put, target, one) for one in files])
        assert [content(target) == one for one in files] == told
        assert told.count(True) == 1
    assert len(os.listdir(tmp_path)) == 10


def test_who_overwrite_at_once_leave_what_one_of_them_wrote(tmp_path: Path) -> None:
    target = tmp_path / "t"
    reset(target, OLD)
    failures = list[BaseException]()

    def write(data: bytes) -> None:
        try:
            for _ in range(30):
                put(target, dict.fromkeys(NAMES, data), overwrite=True)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(b"%d" % n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        put_right(target)
    for thread in threads:
        thread.join()
    put_right(target)
    assert not failures
    found = content(target)
    assert len({found[name] for name in NAMES}) == 1
    assert set(os.listdir(target)) == {*NAMES, "mine"}


@pytest.mark.parametrize("check", [check_folder, check_target])
def test_what_is_put_aside_after_a_look_was_a_file(
    check: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    look, seen = os.stat, list[Path]()

    def last(at: Any, *args: Any, **options: Any) -> os.stat_result:
        found = look(at, *args, **options)
        if at == path and not seen:
            seen.append(path)
            path.unlink()
        return found

    monkeypatch.setattr(os, "stat", last)
    if check is check_folder:
        check_folder(tmp_path, NAMES, overwrite=True)
    else:
        check_target(path, overwrite=True)
    assert seen == [path]


# ---- what others put there ---------------------------------------------------------------------


def ready(target: Path, text: str | None = None) -> Path:
    """A folder with what a kill may leave, made by hand."""
    folder = target / READY
    (folder / "new").mkdir(parents=True)
    (folder / "old").mkdir()
    (folder / "new" / "a").write_text("new")
    if text is not None:
        (folder / "names").write_text(text)
    return folder


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "[]",
        "{" * 100_000,
        "[" * 100_000,
        '{"old": []}',
        '{"old": [], "new": 3}',
        '{"old": [], "new": ["a", 3]}',
        '{"old": ["../precious"], "new": ["a"]}',
        '{"old": ["/etc"], "new": ["a"]}',
        '{"old": [".."], "new": ["a"]}',
        '{"old": [""], "new": ["a"]}',
        '{"old": ["a\\u0000"], "new": ["a"]}',
        json.dumps({"old": [READY], "new": ["a"]}),
        '{"old": ["\\ud800"], "new": ["a"]}',
        '{"old": [], "new": ["a"], "checksum": 3}',
        json.dumps({"old": [], "new": ["a"], "checksum": "0" * 32}),
        '{"old": [], "new": ["a"], "more": 3}',
        '{"old": [], "new": ["b"]}',  # of another file than lies there, which would be lost
    ],
)
def test_a_list_of_names_that_is_none_moves_nothing(text: str | None, tmp_path: Path) -> None:
    target = tmp_path / "t"
    (tmp_path / "precious").write_text("mine")
    ready(target, text)
    before = content(tmp_path)
    with pytest.raises(FileError, match=r"cannot be finished"):
        put_right(target)
    with pytest.raises(FileError, match=r"cannot be finished"):
        put(target, NEW, overwrite=True)
    assert content(tmp_path) == before


@pytest.mark.parametrize("link", ["", "new", "old", "names"])
def test_links_that_lead_out_are_not_followed(link: str, tmp_path: Path) -> None:
    target = tmp_path / "t"
    folder = ready(target, '{"old": [], "new": ["a"]}')
    out = tmp_path / "out"
    shutil.move(folder / link, out)
    (folder / link).symlink_to(out)
    before = content(out) if link != "names" else out.read_bytes()
    with pytest.raises(FileError, match="cannot be finished"):
        put_right(target)
    assert (content(out) if link != "names" else out.read_bytes()) == before
    assert not (target / "a").exists()


def test_what_is_at_work_is_waited_for(tmp_path: Path) -> None:
    target = tmp_path / "t"
    folder = ready(target, '{"old": [], "new": ["a"]}')
    lock = os.open(folder / "names", os.O_RDWR)
    assert _locks.take(lock)
    thread = threading.Thread(target=put_right, args=(target,))
    thread.start()
    thread.join(0.05)
    assert thread.is_alive()
    assert not (target / "a").exists()
    os.close(lock)
    thread.join()
    assert content(target) == {"a": b"new"}


def test_parts_of_the_dead_are_swept_and_those_of_the_living_stay(tmp_path: Path) -> None:
    target = tmp_path / "t"
    for where, name in ((tmp_path, "t"), (target, "tensorlrf")):
        target.mkdir(exist_ok=True)
        dead, lock = new_part(where, name, as_folder=True)
        (dead / "new").mkdir()
        os.close(lock)
        alive, lock = new_part(where, name, as_folder=True)
        put(target, NEW, overwrite=True)
        assert not dead.exists()
        assert alive.exists()
        os.close(lock)
        put(target, NEW, overwrite=True)
        assert not alive.exists()
    assert content(target) == NEW
