"""Being asked to stop: what is at hand is finished first."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Stopping:
    """Whether the process was asked to stop, by Ctrl-C or by the system.

    number  of the signal; 0 for none
    """

    number = 0

    def __call__(self) -> bool:
        return bool(self.number)

    def check(self) -> None:
        """Raise KeyboardInterrupt where it was."""
        if self.number:
            raise KeyboardInterrupt


@contextmanager
def stopping_between() -> Iterator[Stopping]:
    """The first SIGINT or SIGTERM is noted, a second one does what it did before."""
    asked = Stopping()
    before: dict[Any, Any] = {}

    def note(number: int, _: object) -> None:
        asked.number = number
        for one, handler in before.items():
            signal.signal(one, handler)

    if threading.current_thread() is threading.main_thread():
        for one in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(one) not in (signal.SIG_IGN, None):
                before[one] = signal.signal(one, note)
    try:
        yield asked
    finally:
        if not asked.number:
            for one, handler in before.items():
                signal.signal(one, handler)
