"""What the ranks of a group tell each other about one call, and signs that they are alive.

It lies in the store that torch.distributed keeps for the group, under keys of this one call. No
rank waits for one that is lost: each gives a sign every second; the first rank looks at those of
all others, and they look at its. A rank that fails says so, and all others fail with it.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any

from tensorlrf.errors import GroupError, shown

EVERY = 1.0
"""Seconds between two signs of life."""

BETWEEN = 0.2
"""Seconds between two looks at those of others."""

LOST = 60.0
"""Seconds without a sign after which a rank is lost."""

GRACE = 2.0
"""Seconds that a first rank which fails waits for the others to hear of it."""

_FAILED, _LEFT, _BEAT = "failed", "left", "beat"


class Board:
    """Of one call, while it is entered.

    rank, size  of the group
    """

    def __init__(self, store: Any, rank: int, size: int) -> None:
        """store  of torch.distributed, for this call alone"""
        self.rank, self.size = rank, size
        self._store, self._own = store, store.clone()
        self._patience = store.timeout.total_seconds()
        self._ended = threading.Event()
        self._beats = threading.Thread(target=self._beat, daemon=True)
        self._seen = {k: (0, time.monotonic()) for k in self._watched}
        self._looked, self._agreed = 0.0, 0

    def __enter__(self) -> Board:
        self._beats.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # The store may be gone, with the rank that held it.
        with suppress(RuntimeError):
            if error is not None and not isinstance(error, GroupError):
                self._store.set(_FAILED, f"rank {self.rank} {_told(error)}")
            self._store.set(f"{_LEFT}/{self.rank}", "")
            if not self.rank:
                self._see_off(failing=error is not None)
        self._ended.set()
        self._beats.join()

    def say(self, key: str, value: str = "") -> None:
        """Tell all ranks."""
        self._ask(self._store.set, key, value)

    def has(self, keys: Sequence[str]) -> bool:
        """Whether all of these have been said."""
        return bool(self._ask(self._store.check, list(keys)))

    def hear(self, key: str) -> str:
        """What one has said, or will say. Raises GroupError where a rank is lost, fails, or does
        not come."""
        self.until(lambda: self.has([key]))
        found: bytes = self._ask(self._store.get, key)
        return found.decode()

    def counted(self, key: str, by: int = 1) -> int:
        """A number that all ranks add to, after this has been added."""
        return int(self._ask(self._store.add, key, by))

    def agree(self, values: Mapping[str, Any]) -> None:
        """Raise GroupError, on all ranks, where one of these is not the same on all."""
        key, self._agreed = f"values/{self._agreed}", self._agreed + 1
        self.say(f"{key}/{self.rank}", json.dumps(values))
        told = [json.loads(self.hear(f"{key}/{k}")) for k in range(self.size)]
        first, *others = told
        apart = [
            f"{key} is {shown(first.get(key))} on rank 0 and {shown(one.get(key))} on rank {k}"
            for k, one in enumerate(others, 1)
            for key in sorted({*first, *one})
            if first.get(key) != one.get(key)
        ]
        if apart:
            raise GroupError(
                f"the ranks do not agree: {'; '.join(apart[:5])}; call it alike on all of them"
            )

    def until(self, there: Callable[[], bool]) -> None:
        """Wait until something is so. Raises GroupError as `hear` does."""
        pause = 1e-4
        while not there():
            self.look()
            time.sleep(pause)
            pause = min(2 * pause, 0.05)

    def look(self, *, now: bool = False) -> None:
        """Raise GroupError where a rank has failed, is lost, or has not come in time. Unless it is
        to be `now`, no more often than a few times a second."""
        at = time.monotonic()
        if at - self._looked < BETWEEN and not now:
            return
        self._looked = at
        if self.has([_FAILED]):
            told: bytes = self._ask(self._store.get, _FAILED)
            raise GroupError(told.decode())
        for k in self._watched:
            beats = self.counted(f"{_BEAT}/{k}", 0)
            before, since = self._seen[k]
            if beats != before:
                self._seen[k] = beats, at
                continue
            patience = LOST if beats else self._patience
            if at - since < patience or self.has([f"{_LEFT}/{k}"]):
                continue
            why = (
                f"rank {k} is lost: there has been no sign of it for {patience:g} s"
                if beats
                else f"rank {k} has not made this call within {patience:g} s; make it on all "
                "ranks, or on one under tensorlrf.on_one_rank()"
            )
            self.say(_FAILED, why)
            raise GroupError(why)

    @property
    def _watched(self) -> Sequence[int]:
        return range(1, self.size) if not self.rank else (0,)

    def _see_off(self, *, failing: bool) -> None:
        """Wait until all others have left: what holds the store may end with this rank."""
        others = [f"{_LEFT}/{k}" for k in range(1, self.size)]
        end = time.monotonic() + GRACE
        while not self._store.check(others):
            if not failing:
                self.look()  # one that is lost now has lost nothing
            elif time.monotonic() > end:
                return
            time.sleep(0.01)

    def _beat(self) -> None:
        with suppress(RuntimeError):  # the store is gone, as others will notice
            while True:
                self._own.add(f"{_BEAT}/{self.rank}", 1)
                if self._ended.wait(EVERY):
                    return

    def _ask(self, call: Callable[..., Any], *given: Any) -> Any:
        try:
            return call(*given)
        except RuntimeError as error:
            first = str(error).partition("\n")[0]
            raise GroupError(
                f"the store of the process group is gone, with the rank that held it: {first}"
            ) from error


def _told(error: BaseException) -> str:
    """What has become of a rank that raises this."""
    if isinstance(error, KeyboardInterrupt):
        return "was asked to stop; the same call goes on"
    return f"failed: {str(error) or type(error).__name__}"
