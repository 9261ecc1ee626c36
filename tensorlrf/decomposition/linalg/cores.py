"""The cores that this process may use, and those of them that nobody else keeps busy.

Threads of one problem wait for each other at the end of every loop and product. Where another
process has the core of one of them, all wait until the scheduler gives it back, some milliseconds
each time, which may be a thousand times the work in between.
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
GROUPS = Path("/sys/fs/cgroup")

FRESH = 0.25
"""Seconds for which a look at the machine holds."""

PAUSE = 1e-3
"""Seconds between two looks that are to agree."""


@dataclass(frozen=True)
class Cores:
    """What a problem has to itself.

    machine   cores there are
    allowed   of them those on which the process may run (affinity)
    quota     cores' worth of time that its control group grants; None without a limit
    busy      cores that other processes keep busy
    """

    machine: int
    allowed: int
    quota: float | None = None
    busy: int = 0

    @property
    def own(self) -> int:
        """Cores that the process may use, busy or not: one at the least."""
        within = self.allowed if self.quota is None else min(self.allowed, int(self.quota))
        return max(1, within)

    @property
    def free(self) -> int:
        """Cores of its own that nobody else is on, as far as can be told: one at the least.

        The scheduler moves others out of the way as long as the machine has cores for all.
        """
        return max(1, min(self.own, self.machine - self.busy))


def look() -> Cores:
    """The machine as it is now, or was a moment ago."""
    global _seen
    at, cores = _seen
    now = time.monotonic()
    if cores is None or now - at > FRESH:
        cores = Cores(os.cpu_count() or 1, allowed(), quota(), busy())
        _seen = now, cores
    return cores


_seen: tuple[float, Cores | None] = (0.0, None)


def allowed() -> int:
    """Cores on which this process may run."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def quota(proc: Path = PROC, groups: Path = GROUPS) -> float | None:
    """The least quota of the control groups that the process is in, in cores; None for none.

    Version 2 has "max 100000" or "150000 100000" in cpu.max, microseconds of each period; version 1
    the same in two files, with -1 for no limit. A group is bound by those above it as well.
    """
    found = []
    for line in _text(proc / "self" / "cgroup").splitlines():
        _, kinds, name = line.split(":", 2)
        if kinds and "cpu" not in kinds.split(","):
            continue
        root = groups / kinds if kinds else groups
        if kinds and not root.exists():
            root = groups / "cpu"
        inner = root / name.lstrip("/")
        for group in (inner, *inner.parents):
            if not group.is_relative_to(root):
                break
            text = _text(group / "cpu.max").split() or [
                *_text(group / "cpu.cfs_quota_us").split(),
                *_text(group / "cpu.cfs_period_us").split(),
            ]
            if len(text) == 2 and text[0] not in ("max", "-1"):
                found.append(int(text[0]) / int(text[1]))
    return min(found, default=None)


def busy(proc: Path = PROC) -> int:
    """Threads of other processes that run or wait for a core just now; 0 where that is not told.

    The median of three looks, unless the first finds nobody: a moment's work is no neighbour.
    """
    looks = [_others(proc)]
    while looks[0] and len(looks) < 3:
        time.sleep(PAUSE)
        looks.append(_others(proc))
    return sorted(looks)[len(looks) // 2]


def _others(proc: Path) -> int:
    with contextlib.suppress(IndexError, ValueError):
        running = int(_text(proc / "loadavg").split()[3].partition("/")[0])
        if running > 1:  # this thread is one of them
            return max(0, running - _own(proc))
    return 0


def _own(proc: Path) -> int:
    """Running threads of this process: torch's wait for the next loop in a loop of their own."""
    try:
        threads = os.listdir(proc / "self" / "task")
    except OSError:
        return 1
    states = (_text(proc / "self" / "task" / thread / "stat") for thread in threads)
    return max(1, sum(state.rpartition(")")[2].split()[:1] == ["R"] for state in states))


def _text(file: Path) -> str:
    """What a file says; nothing where there is none, or it may not be read."""
    try:
        return file.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
