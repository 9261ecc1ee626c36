"""Being asked to stop: what is at hand is finished first."""

from __future__ import annotations

import signal
import threading
from types import TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopping:
    """While entered, the first SIGINT or SIGTERM is noted; a second one does what it did before.

    number  of the signal that came; 0 for none
    """

    def __init__(self) -> None:
        self.number = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stopping:
        if threading.current_thread() is threading.main_thread():
            for one in SIGNALS:
                if signal.getsignal(one) not in (signal.SIG_IGN, None):  # who ignores one means it
                    self._before[one] = signal.signal(one, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._restore()

    def __call__(self) -> bool:
        """Whether one came."""
        return bool(self.number)

    def end(self, told: str) -> None:
        """Where one came, what it does without us: what is raised has what is `told` by it."""
        if not self.number:
            return
        try:
            signal.raise_signal(self.number)
            raise KeyboardInterrupt
        except BaseException as stop:
            stop.add_note(f"{told}; the same call goes on")
            raise

    def _note(self, number: int, _: object) -> None:
        self.number = number
        self._restore()

    def _restore(self) -> None:
        for one, handler in self._before.items():
            signal.signal(one, handler)
        self._before.clear()
