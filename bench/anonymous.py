"""Memory of this process that no file backs, and the most of it in a stretch of a benchmark."""

from __future__ import annotations

import threading
from pathlib import Path


def anonymous() -> int:
    """Bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


class Peak:
    """While entered, looks a hundred times a second, or every so many seconds.

    n_bytes  the most that it saw, above what there was when it was entered
    """

    def __init__(self, every: float = 0.01) -> None:
        self.n_bytes = 0
        self._every = every
        self._before = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Peak:
        self._before = anonymous()
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(self._every):
            self.n_bytes = max(self.n_bytes, anonymous() - self._before)
