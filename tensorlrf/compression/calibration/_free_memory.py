"""How much memory there is."""

from __future__ import annotations

import math
import os
from pathlib import Path

import torch

_CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
    ),
)


def free_bytes(device: torch.device) -> float:
    """Memory that is free there; infinite where nobody tells."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    if device.type != "cpu":
        return math.inf
    free = [_available()]
    for limit, used in _CGROUPS:
        numbers = [_number(limit), _number(used)]
        if not any(map(math.isnan, numbers)):
            free.append(max(0.0, numbers[0] - numbers[1]))
    return min(free)


def _available() -> float:
    """As Linux tells it; elsewhere all that the machine has."""
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
        line = next(line for line in text.splitlines() if line.startswith("MemAvailable:"))
        return 1024.0 * int(line.split()[1])
    except (OSError, StopIteration, ValueError, IndexError):
        pass
    try:
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, OSError, ValueError):
        return math.inf


def _number(path: str) -> float:
    """Of a file that holds one; NaN where it does not, as for a limit that is none."""
    try:
        return float(Path(path).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return math.nan
