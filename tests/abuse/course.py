"""The course of a run: instants in it are told by the calls of the system that it has made.

A clock would not do: on a busy machine a run takes several times as long as the one that was
measured, and all instants would fall into its first part. An instant is one of an undisturbed run,
so long after its n-th call; in another run it is so long after the n-th call of that one, by how
fast that one has gone so far, and at the latest with the next call.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
import traceback
import warnings
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.files.kills import counted

Act = Callable[[], None]

LOST = 3
"""Exit code of a run of which a rank was killed."""

STRETCHED = 20.0
"""A run may go so many times slower or faster than the undisturbed one."""


@dataclass(frozen=True)
class Course:
    """calls  seconds after its begin of each call of the system that a run made
    end       seconds that it took
    """

    calls: tuple[float, ...]
    end: float

    @classmethod
    def of(cls, act: Act) -> Course:
        """Of a run that nothing disturbs. Fails where it does."""
        run = Run.of(act)
        assert run.ended() == 0
        *calls, end = run.calls
        return cls(tuple(calls), end)

    def at(self, share: float) -> tuple[int, float]:
        """(calls that were made, seconds since the last of them) after that share of its time."""
        instant = share * self.end
        n = bisect_right(self.calls, instant)
        return n, instant - (self.calls[n - 1] if n else 0.0)


@dataclass
class Run:
    """A run in a process of its own, and in those that it starts.

    process  its number, which is that of their group
    told     where a byte comes from as it begins, for each call of the system, and as it ends
    begun    when that was; None before
    calls    seconds after its begin of each call, and of its end
    """

    process: int
    told: int
    begun: float | None = None
    calls: list[float] = field(default_factory=list)

    @classmethod
    def of(cls, act: Act) -> Run:
        told, tell = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of threads; the child has one
            child = os.fork()
        if child == 0:
            write = os.write
            try:
                os.setpgid(0, 0)
                os.close(told)
                counted(tell)
                write(tell, b"(")
                act()
                write(tell, b")")
            except Lost:
                os._exit(LOST)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        os.close(tell)
        with contextlib.suppress(PermissionError):  # the child was faster
            os.setpgid(child, child)
        return cls(child, told)

    def seconds(self) -> float:
        """Since it began."""
        return 0.0 if self.begun is None else time.monotonic() - self.begun

    def goes_on(self, seconds: float | None = None) -> bool:
        """Wait for a call of the system, or so long; False once it has come to its end."""
        if not select.select([self.told], [], [], seconds)[0]:
            return True
        new = os.read(self.told, 1 << 16)
        calls = len(new)
        if new and self.begun is None:
            self.begun = time.monotonic()
            calls -= 1
        self.calls += [self.seconds()] * calls
        return bool(new)

    def comes_to(self, n: int, behind: float, course: Course) -> bool:
        """Wait for an instant of another run; False where it ends before."""
        while self.begun is None or len(self.calls) < n:
            if not self.goes_on():
                return False
        then = course.calls[n - 1] if n else 0.0
        now = self.calls[n - 1] if n else 0.0
        pace = now / then if then else 1.0
        end = now + behind * min(max(pace, 1 / STRETCHED), STRETCHED)
        while len(self.calls) <= n and (left := end - self.seconds()) > 0:
            if not self.goes_on(left):
                return False
        return True

    def kill(self, one: Callable[[list[int]], int] | None = None) -> None:
        """All of it, or the one that is chosen of the processes that it has started."""
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):
            if one is None:
                os.killpg(self.process, signal.SIGKILL)
                return
            path = f"/proc/{self.process}/task/{self.process}/children"
            there = [int(number) for number in Path(path).read_text().split()]
            if there:
                os.kill(one(there), signal.SIGKILL)

    def ended(self) -> int:
        """Its exit code, once it has come to its end; below zero the signal that has ended it."""
        while self.goes_on():
            pass
        os.close(self.told)
        return os.waitstatus_to_exitcode(os.waitpid(self.process, 0)[1])


class Lost(Exception):
    """A process that this one has started did not come to its end."""
