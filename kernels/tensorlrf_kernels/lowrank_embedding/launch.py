"""How the kernels of `lowrank_embedding` are launched, from shapes, dtype and chip alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import torch

from tensorlrf_kernels.chips import Chip
from tensorlrf_kernels.launches import LaunchConfig, Problem
from tensorlrf_kernels.lowrank_linear.launch import DTYPES, pad

MOST_HELD_RANK = 256  # of rows that are gathered once and held; beyond it BK ranks at a time
FEW_ROWS = 64  # of one tile of rows, whose columns are shared out among all programs


def forward(problem: Problem, chip: Chip) -> LaunchConfig | None:
    """The launch that looks up `rows` indices in a table (inp, out) of that rank, or None where no
    kernel serves: no size may be zero, and the dtype, that of the right factor, is one of DTYPES.
    """
    if problem.empty or problem.dtype not in DTYPES:
        return None
    rows, out, _, rank, dtype, tf32 = problem
    if dtype is torch.float32:
        # Products without tensor cores are unrolled into as many registers as they are given.
        BM, BN, BK = 32, 64 if tf32 else 32, 32
        split = _split(rows, out, BM, BN, chip)
        blocks = {"BM": BM, "BN": BN, "BK": BK, "SPLIT": split}
        return LaunchConfig("forward", blocks, 8 if not tf32 else 4, 3, registers=255 * tf32)
    BK = pad(rank) if rank <= MOST_HELD_RANK else 64
    if rows <= FEW_ROWS:
        BM, BN = pad(rows), 32 if out < 64 * chip.multiprocessors else 64
    else:
        # Before wgmma, whose accumulators are spread over more warps, 128 rows spill.
        tall = chip.capability >= (9, 0)
        BM, BN = 128 if tall and rows > 64 * chip.multiprocessors // 4 else 64, 128
    split = _split(rows, out, BM, BN, chip)
    warps = 8 if BM * BN >= 128 * 128 or BK * BN > 128 * 128 else 4
    blocks = {"BM": BM, "BN": BN, "BK": BK, "SPLIT": split}
    return LaunchConfig("forward", blocks, warps, _stages(BM, BN, BK, rank, chip), registers=255)


def backward(problem: Problem, chip: Chip) -> LaunchConfig | None:
    """The launch that adds up `rows` rows of `rank` values by their index."""
    if problem.empty or problem.dtype not in DTYPES:
        return None
    return LaunchConfig("segments", {"BM": 16, "BC": min(32, pad(problem.rank))}, 4, 2)


def neighbours(config: LaunchConfig, problem: Problem, chip: Chip) -> Iterator[LaunchConfig]:
    """Launches of the same kernel that differ from `config` in one size, for tuning to try."""
    steps = {
        "forward": {"BM": (16, 256), "BN": (16, 256), "BK": (16, 512), "SPLIT": (1, 1024)},
        "segments": {"BM": (8, 32), "BC": (16, 128)},
    }
    for name, (least, most) in steps[config.kernel].items():
        for size in (config.blocks[name] // 2, config.blocks[name] * 2):
            blocks = {**config.blocks, name: size}
            fits = "SPLIT" not in blocks or blocks["SPLIT"] <= -(-problem.out // blocks["BN"])
            if least <= size <= most and fits:
                yield replace(config, blocks=blocks)
    yield from config.rescheduled()


def _split(rows: int, out: int, BM: int, BN: int, chip: Chip) -> int:
    """Ranges of columns, a power of two of them, that should be done first. Every range gathers its
    rows anew, which takes about as long as a tile."""
    best, least = 1, math.inf
    tiles, split = -(-out // BN), 1
    while split <= tiles:
        waves = -(-(-(-rows // BM) * split) // chip.multiprocessors)
        seconds = waves * (1 + -(-tiles // split))
        if seconds < least:
            best, least = split, seconds
        split *= 2
    return best


def _stages(BM: int, BN: int, BK: int, rank: int, chip: Chip) -> int:
    """Stages of a pipeline of tiles of half precision, three at most: of the right factor where the
    rows are held beside it, else of both."""
    held, tile = (BM * BK, BK * BN) if rank <= BK else (0, BK * (BM + BN))
    # The tile of y crosses shared memory on its way out.
    room = chip.shared_memory - 2 * held - 2 * BM * BN
    return max(1, min(3, room // (2 * tile)))
