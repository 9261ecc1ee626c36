"""How the kernel of `tt_embedding` is launched, from shapes, dtype and chip alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from tensorlrf_kernels.chips import Chip
from tensorlrf_kernels.launches import LaunchConfig, Problem
from tensorlrf_kernels.lowrank_linear.launch import DTYPES, pad

MOST_RANK = 64  # of one product


def forward(problem: Problem, chip: Chip) -> LaunchConfig | None:
    """The launch that looks up `rows` indices in a table (inp, out); the rank is that of the cut.

    None where no kernel serves: no size may be zero, the dtype is one of DTYPES, and the rank
    MOST_RANK at most. How the columns are split in two is not known here: BA and BB are the most
    that a tile has of either.
    """
    if problem.empty or problem.dtype not in DTYPES or problem.rank > MOST_RANK:
        return None
    half = problem.dtype is not torch.float32
    BA, BB = (64, 64) if half else (32, 32)
    # Four programs a multiprocessor at the least, then several indices each.
    programs = problem.rows * -(-problem.out // (BA * BB))
    each = max(1, min(16, programs // (4 * chip.multiprocessors)))
    blocks = {"BA": BA, "BB": BB, "BR": pad(problem.rank), "EACH": 1 << (each.bit_length() - 1)}
    # Products without tensor cores are unrolled into as many registers as they are given.
    unrolled = not half and not problem.tf32
    return LaunchConfig(
        "forward", blocks, 8 if unrolled else 4, 3, registers=0 if unrolled else 255
    )


def backward(problem: Problem, chip: Chip) -> LaunchConfig | None:
    """None: library products and the sums of `lowrank_embedding` make the gradients."""
    return None


def neighbours(config: LaunchConfig, problem: Problem, chip: Chip) -> Iterator[LaunchConfig]:
    """Launches of the same kernel that differ from `config` in one size, for tuning to try."""
    for name, (least, most) in {"BA": (16, 128), "BB": (16, 128), "EACH": (1, 64)}.items():
        for size in (config.blocks[name] // 2, config.blocks[name] * 2):
            if least <= size <= most:
                yield replace(config, blocks={**config.blocks, name: size})
    yield from config.rescheduled()
