"""The folder in which a run keeps what it has done until all is done.

It is called `.tensorlrf.job` in the folder that is to be filled, `.NAME.job` beside the file that
is to be written; `.NAME.RANK-of-RANKS.job` where each rank of a process group does a part of it.
Its lock is held by a process for as long as that lives: two runs into one output exclude each
other, and one that is dead stands in nobody's way.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tensorlrf.errors import FileError
from tensorlrf.files import _locks, system
from tensorlrf.files.folder import JOB, sweep_parts
from tensorlrf.files.replace import remove, sweep

PARTS, NEW, OLD, JOURNAL, LOCK = "parts", "new", "old", "journal", "lock"


def job_folder(target: Path, *, as_folder: bool) -> Path:
    """Where a run into `target` keeps what it has done."""
    return target / JOB if as_folder else target.parent / f".{target.name}.job"


def of_rank(target: Path, rank: int, ranks: int) -> Path:
    """Beside which file a rank keeps what it does for `target`, in a folder of its own."""
    return target if ranks == 1 else target.with_name(f"{target.name}.{rank}-of-{ranks}")


def of_others(target: Path, ranks: int) -> list[Path]:
    """The same of runs into `target` on other numbers of ranks that have not ended."""
    named = re.compile(rf"\.({re.escape(target.name)}(?:\.\d+-of-(\d+))?)\.job")
    found = []
    for folder in sorted(target.parent.glob(".*.job")):
        match = named.fullmatch(folder.name)
        if match and int(match[2] or 1) != ranks:
            found.append(target.with_name(match[1]))
    return found


def rank_journal(folder: Path, rank: int) -> Path:
    """Where a rank of a process group, which has this lock for as long as it lives, says what it
    has done."""
    return folder / PARTS / f"{JOURNAL}.{rank}"


def of_ranks(folder: Path) -> list[Path]:
    """Those of all ranks of earlier runs, and of this one."""
    return sorted((folder / PARTS).glob(f"{JOURNAL}.*"))


@contextmanager
def held(target: Path, *, as_folder: bool, restart: bool) -> Iterator[Path]:
    """The folder of the run into `target`, made where it is missing, and nobody else's meanwhile.

    restart  take away what an earlier run has left in it

    Raises FileError where another run is at it, or the system refuses.
    """
    folder = job_folder(target, as_folder=as_folder)
    made = as_folder and not target.exists()
    lock = _locked(folder, target, as_folder)
    try:
        _check_own(folder, LOCK)
        system.rewrite(lock, f"{os.getpid()}\n".encode())
        lock = system.let_go(lock)
        _check_ranks(folder, target)
        if restart:
            for name in (JOURNAL, PARTS, NEW, OLD):
                remove(folder / name)
        _check_own(folder, JOURNAL, PARTS, NEW, OLD)
        for name in (PARTS, NEW, OLD):
            (folder / name).mkdir(exist_ok=True)
        yield folder
        if not (folder / JOURNAL).exists():  # nothing was begun, or all is in its place
            shutil.rmtree(folder, ignore_errors=True)
            if made and not any(target.iterdir()):
                target.rmdir()
    finally:
        system.close(lock)


def clear(target: Path, *, as_folder: bool) -> None:
    """Take away what a run has left that was killed once all was in its place.

    Raises FileError where one is at it.
    """
    if job_folder(target, as_folder=as_folder).exists():
        with held(target, as_folder=as_folder, restart=True):
            pass
    sweep(target.parent, target.name)
    if as_folder:
        sweep_parts(target)


def _locked(folder: Path, target: Path, as_folder: bool) -> int:
    """The lock of the folder, open, as this process has it."""
    while True:
        try:
            folder.mkdir(parents=as_folder, exist_ok=True)
            _check_own(folder.parent, folder.name)
            flags = os.O_RDWR | os.O_CREAT | system.NO_LINK | system.BINARY
            lock = os.open(folder / LOCK, flags, 0o666)
        except OSError as error:
            raise FileError(f"{folder} cannot be written to: {error}") from error
        if _locks.take(lock) is False:
            who = system.read(lock, 20).decode("ascii", "replace").strip() or "another one"
            os.close(lock)
            raise FileError(
                f"a run into {target} is going on already (process {who}); wait for it, or give "
                "another name"
            )
        if _locks.is_at(lock, folder / LOCK):
            return lock
        os.close(lock)  # one that has just ended took it away


def _check_ranks(folder: Path, target: Path) -> None:
    """Raise FileError where a rank of a run that has lost its first one is still at work."""
    for path in of_ranks(folder):
        try:  # no link is followed, and no pipe waited for
            file = os.open(path, os.O_RDONLY | system.NO_LINK | system.NO_WAIT)
        except OSError as error:
            raise FileError(f"{path} cannot be read: {error}; remove it") from error
        try:
            if _locks.take(file) is False:
                raise FileError(
                    f"a rank of an earlier run into {target} is at its last layer ({path.name}); "
                    "wait for it, or end it"
                )
        finally:
            os.close(file)


def _check_own(folder: Path, *names: str) -> None:
    """Raise FileError where one of these is not of the kind that a run makes: whoever made the
    folder may have had it lead to what is not in it."""
    for name in names:
        try:
            mode = os.lstat(folder / name).st_mode
        except FileNotFoundError:
            continue
        kind, good = ("file", stat.S_ISREG) if name in (LOCK, JOURNAL) else ("folder", stat.S_ISDIR)
        if not good(mode):
            raise FileError(f"{folder / name} is no {kind} that a run has made; remove {folder}")
