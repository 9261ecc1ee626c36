"""What becomes of files when the process is killed, or the system refuses, at every single call."""

from __future__ import annotations

import builtins
import errno
import io
import itertools
import os
import signal
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

CALLS: list[tuple[Any, str]] = [
    *((os, name) for name in ("open", "write", "pwrite", "ftruncate", "fsync", "mkdir", "chmod")),
    *((os, name) for name in ("fchmod", "rename", "replace", "link", "unlink", "rmdir")),
    *((builtins, "open"), (io, "open")),
]


def killed(prepare: Callable[[], None], act: Callable[[], None], every: int = 1) -> Iterator[int]:
    """For each n: `act` in a process that is killed before its call n, after `prepare` here.

    Ends when `act` came to its end.
    """
    for n in itertools.count(step=every):
        prepare()
        if not killed_at(act, n):
            return
        yield n


def killed_at(act: Callable[[], None], n: int) -> bool:
    """Whether `act` was killed before its call n, in a process of its own, or came to its end."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads; the child has one
        child = os.fork()
    if child == 0:
        _until_killed(act, n)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -signal.SIGKILL), n
    return status != 0


def _until_killed(act: Callable[[], None], n: int) -> NoReturn:
    count = itertools.count()

    def die() -> None:
        if next(count) == n:
            os.kill(os.getpid(), signal.SIGKILL)

    try:
        for module, name in CALLS:
            setattr(module, name, _with(die, getattr(module, name)))
        act()
    except BaseException:
        os._exit(1)
    os._exit(0)


def calls_of(act: Callable[[], None]) -> int:
    """How many calls of the system there are to be killed before, by a process that does it."""
    found, told = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        write, count = os.write, itertools.count()
        try:
            for module, name in CALLS:
                setattr(module, name, _with(lambda: next(count) and None, getattr(module, name)))
            act()
        except BaseException:
            os._exit(1)
        write(told, str(next(count)).encode())
        os._exit(0)
    os.close(told)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    number = int(os.read(found, 20))
    os.close(found)
    return number


def counted(tell: int) -> None:
    """Have this process, and those that it forks, write a byte there before each of these calls."""
    write = os.write
    for module, name in CALLS:
        setattr(module, name, _with(lambda: write(tell, b".") and None, getattr(module, name)))


def told_of(acts: list[Callable[[], None]]) -> list[bool]:
    """Which of the acts came to their end without an error, each in a process, all at once."""
    waiting, go = os.pipe()
    children = []
    for act in acts:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child == 0:
            os.close(go)
            os.read(waiting, 1)  # until the other end is closed
            try:
                act()
            except BaseException:
                os._exit(1)
            os._exit(0)
        children.append(child)
    os.close(waiting)
    os.close(go)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0 for child in children]


def refused(
    prepare: Callable[[], None], act: Callable[[], None], code: int, for_good: bool
) -> Iterator[OSError]:
    """For each n: what `act` raised where call n, and for good all that follow, fail with `code`.

    Ends when `act` came to its end without meeting the failure.
    """
    for n in itertools.count():
        prepare()
        count = itertools.count()
        met = False

        def fail(count: Iterator[int] = count, n: int = n) -> None:
            nonlocal met
            k = next(count)
            if k == n or (for_good and k > n):
                met = True
                raise OSError(code, os.strerror(code))

        with pytest.MonkeyPatch.context() as patch:
            for module, name in CALLS:
                patch.setattr(module, name, _with(fail, getattr(module, name)))
            try:
                act()
                caught = None
            except OSError as error:
                caught = error
        if caught is not None:
            yield caught
        elif not met:
            return


REFUSALS = [(errno.ENOSPC, False), (errno.ENOSPC, True), (errno.EACCES, True), (errno.EIO, False)]


@pytest.fixture
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """No waiting for the disk: a kill of the process loses nothing that the system was given."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


def content(folder: Path) -> dict[str, bytes]:
    """All files in it, hidden ones too."""
    files = (path for path in sorted(folder.rglob("*")) if not path.is_dir())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def _with(first: Callable[[], None], call: Callable[..., Any]) -> Callable[..., Any]:
    def both(*given: Any, **named: Any) -> Any:
        first()
        return call(*given, **named)

    return both
