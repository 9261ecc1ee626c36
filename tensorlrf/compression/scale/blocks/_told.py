"""What is told on the way through a block: layers that are done, and layers that are called."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from tensorlrf.compression._progress import Advance
from tensorlrf.compression.scale.blocks._course import Course


class Stopped(Exception):
    """It was asked to stop."""


@dataclass
class Told:
    """Told of each layer of a block that is done: how long it took since the one before. Raises
    Stopped where it was asked to stop, unless it is the last of so many."""

    advance: Advance
    stopped: Callable[[], bool]
    count: int
    seconds: dict[str, float] = field(default_factory=dict)
    begun: float = field(default_factory=time.perf_counter)

    def __call__(
        self, name: str, /, *, earlier: bool = False, logged: bool = True, **told: Any
    ) -> None:
        now = time.perf_counter()
        self.seconds[name], self.begun = now - self.begun, now
        self.advance(name, took=round(self.seconds[name], 3), **told)
        if self.stopped() and len(self.seconds) < self.count:
            raise Stopped


@dataclass
class Seen:
    """Notes calls of layers on what blocks have put out."""

    course: Course
    names: list[str] = field(default_factory=list)

    def __call__(self, name: str, x: Tensor) -> None:
        if self.course.live and name not in self.names:
            self.course.check_input(name, x)
            self.names.append(name)
