"""The places of a batch shared out among threads."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

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
    step = max(1, count // (4 * cores))
    pieces = list(zip(*(torch.split(stack, step) for stack in stacks), strict=True))
    pool = ThreadPoolExecutor(
        min(cores, len(pieces)), initializer=partial(torch.set_num_threads, 1)
    )
    try:
        with pool:
            found = list(pool.map(lambda piece: function(*piece), pieces))
    finally:
        # The number belongs to the thread that sets it, but those begun later take it over.
        torch.set_num_threads(cores)
    return tuple(torch.cat(parts) for parts in zip(*found, strict=True))
