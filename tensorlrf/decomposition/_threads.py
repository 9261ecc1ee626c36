"""The places of a batch shared out among threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

WORTHWHILE = 2e8
"""Multiply-adds below which threads cost more than they give, some milliseconds of work."""

PIECE = 1 << 20
"""Elements that a thread takes at once, unless one place has more: they stay in its cache."""


def over_places(
    function: Callable[..., tuple[Tensor, ...]], stacks: tuple[Tensor, ...], work: float
) -> tuple[Tensor, ...]:
    """`function(*stacks)`, computed for some of the places (b, ...) at a time, in threads of one
    core.

    For LAPACK, which takes one matrix after the other and has little to share out within one of a
    few hundred columns, cores are better spent on different matrices. `function` gives tensors
    (b, ...), each place by itself; `work` is about its multiply-adds. As it is, in one go, where
    that is little, where a graph is kept, and on other devices than the CPU.
    """
    count, cores = len(stacks[0]), torch.get_num_threads()
    graph = torch.is_grad_enabled() and any(stack.requires_grad for stack in stacks)
    if min(count, cores) < 2 or work < WORTHWHILE or graph or stacks[0].device.type != "cpu":
        return function(*stacks)
    step = max(1, min(count // (4 * cores), PIECE // stacks[0][0].numel()))
    pieces = list(zip(*(torch.split(stack, step) for stack in stacks), strict=True))
    with _Single(min(cores, len(pieces)), cores) as pool:
        found = list(pool.map(lambda piece: function(*piece), pieces))
    return tuple(torch.cat(parts) for parts in zip(*found, strict=True))


class _Single(ThreadPoolExecutor):
    """Threads of one core each.

    torch's number of cores belongs to the thread that sets it, but threads that others begin later
    take over the last one set: so all of these begin at once, and it is set back before they work.
    """

    def __init__(self, workers: int, cores: int) -> None:
        begun = threading.Barrier(workers + 1)

        def begin() -> None:
            torch.get_num_threads()  # takes over the last one set, which must not come later
            torch.set_num_threads(1)
            begun.wait()

        super().__init__(workers)
        with _beginning:
            try:
                # Each waits for the others, so each has a thread of its own.
                waiting = [self.submit(begin) for _ in range(workers)]
                begun.wait()
            finally:
                torch.set_num_threads(cores)
        for one in waiting:
            one.result()


_beginning = threading.Lock()
