"""A command that torchrun has started as one of several ranks."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from torch import distributed

from tensorlrf.errors import ArgumentError

T = TypeVar("T")

SHARED = ("compress", "calibrate")
"""Commands that share out their work."""


@dataclass(frozen=True)
class Started:
    """rank, size  of the group of which this process is one"""

    rank: int = 0
    size: int = 1

    @property
    def prints(self) -> bool:
        """Whether it tells what comes of the command, and writes that."""
        return self.rank == 0

    def own(self, values: list[T] | None) -> list[T] | None:
        """The part of this rank, of values in a row."""
        if values is None:
            return None
        first, last = (len(values) * k // self.size for k in (self.rank, self.rank + 1))
        return values[first:last]

    def check_shared(self, *, calibrated: bool) -> None:
        """Raise ArgumentError for a model all of which each rank would compress by itself."""
        if self.size > 1 and not calibrated:
            raise ArgumentError(
                "torchrun shares out --stream, and the batches of --text; give one of them, or "
                "start one process"
            )


@contextmanager
def process_group() -> Iterator[Started]:
    """The group of the ranks that torchrun has started, while it is entered; one process without
    it."""
    if not _several():
        yield Started()
        return
    from torch.distributed import (  # type: ignore[attr-defined]  # both are re-exported
        PrefixStore,
        rendezvous,
    )

    store, rank, size = next(rendezvous("env://"))
    # The store lives on when ranks are started again, with the addresses of those that have ended.
    store = PrefixStore(f"tensorlrf/{os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
    # Layers and models are on the CPU here, whatever else there is.
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=size)
    try:
        yield Started(rank, size)
    finally:
        distributed.destroy_process_group()


def check_started(command: str | None) -> None:
    """Raise ArgumentError for a command that torchrun has started several times, and that would be
    carried out as often."""
    if _several() and command not in (None, *SHARED):
        raise ArgumentError(
            f"torchrun is for {' and '.join(SHARED)}; start `tensorlrf {command}` without it"
        )


def _several() -> bool:
    there = distributed.is_available() and distributed.is_torchelastic_launched()
    return there and int(os.environ.get("WORLD_SIZE", "1")) > 1
