"""A command that torchrun has started as one of several ranks."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from torch import distributed

from tensorlrf.errors import ArgumentError

SHARED = ("compress",)
"""Commands that share out their work."""


@contextmanager
def process_group() -> Iterator[bool]:
    """The group of the ranks that torchrun has started, while it is entered; nothing without it.
    Whether this is the rank that prints."""
    if not _several():
        yield True
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
        yield distributed.get_rank() == 0
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
