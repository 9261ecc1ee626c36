"""The most memory that this process holds in a stretch of a benchmark."""

from __future__ import annotations

import ctypes
from pathlib import Path

MB = 1e6


class Resident:
    """Counts from where it is made."""

    def __init__(self) -> None:
        self._before: int | None = None
        try:
            ctypes.CDLL("libc.so.6").malloc_trim(0)  # else freed memory would hide what is needed
            Path("/proc/self/clear_refs").write_text("5")  # the peak is counted anew
        except OSError:
            return
        self._before = _status("VmRSS")

    def peak_mb(self) -> float | None:
        """Most resident memory since then above what there was; None where no system tells."""
        peak = _status("VmHWM")
        return None if self._before is None or peak is None else (peak - self._before) / MB


def _status(field: str) -> int | None:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(field)), None)
