"""How the kernels of `lowrank_linear` are launched, from shapes, dtype and chip alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product

import torch

from tensorlrf_kernels._chip import Chip
from tensorlrf_kernels._counters import SLOT
from tensorlrf_kernels._launch import LaunchConfig, Problem

MOST_DECODE_ROWS = 128  # of one tile of rows
MOST_PREFILL_RANK = 256  # that stays on chip
MOST_BACKWARD_RANK = 128
MOST_RANK_BLOCKS = SLOT - 2  # one counter each; two count programs
DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def forward(problem: Problem, chip: Chip) -> LaunchConfig | None:
    """The launch of y = activation(x right^T left^T + bias + residual).

    None where no kernel serves: no size may be zero, the dtype is one of DTYPES, and beyond
    MOST_DECODE_ROWS rows the rank is at most MOST_PREFILL_RANK.
    """
    if problem.empty or problem.dtype not in DTYPES:
        return None
    if problem.rows <= MOST_DECODE_ROWS:
        return _decode(problem, chip)
    return _prefill(problem, chip) if problem.rank <= MOST_PREFILL_RANK else None


def backward(problem: Problem, chip: Chip) -> LaunchConfig | None:
    """The launch of both products of dy (rows, out), or None, as for `forward`."""
    rows, out, _, rank, dtype, _ = problem
    if problem.empty or dtype not in DTYPES or rank > MOST_BACKWARD_RANK:
        return None
    # The widest tiles, and the fewest warps, that keep everything in registers.
    BR = pad(rank)
    if dtype is torch.float32:
        BM, BN, BK, BC, warps = 32, 32, 32, 64, 8
        if BR > 64:
            BN, BC = 16, 32
    else:
        BM, BN, BK, BC = 64, 64, 64, 64
        warps = 4 if (64 if dtype is torch.bfloat16 else 32) >= BR else 8
    # dy of a chunk stays in the cache; there are chunks enough for all multiprocessors.
    fits = chip.l2 // 2 // (out * dtype.itemsize)
    wanted = -(-chip.multiprocessors // -(-out // BC))
    chunk = max(BM, min(fits, -(-rows // wanted), 8192))
    CHUNK = 1 << (chunk.bit_length() - 1)
    blocks = {"BM": BM, "BN": BN, "BK": BK, "BR": BR, "BC": BC, "CHUNK": CHUNK}
    stages = _stages(BM * BN + BN * BR, BM * BR, dtype, chip)
    return LaunchConfig("backward", blocks, warps, stages)


def candidates(direction: str, problem: Problem, chip: Chip) -> Iterator[LaunchConfig]:
    """Launches that tuning should time, the heuristic's own first; `direction` is "forward" or
    "backward"."""
    first = {"forward": forward, "backward": backward}[direction](problem, chip)
    if first is None:
        return
    variants = {"prefill": _prefills, "decode": _decodes, "backward": _backwards}[first.kernel]
    seen = []
    for config in (first, *variants(first, problem, chip)):
        if config not in seen:
            seen.append(config)
            yield config


def pad(rank: int) -> int:
    """The tile's width for a rank: the next power of two, 16 at least."""
    return max(16, 1 << (rank - 1).bit_length())


def _decode(problem: Problem, chip: Chip) -> LaunchConfig:
    rows, out, inp, rank, dtype, tf32 = problem
    BM = pad(rows)
    BR = 16 if BM < 128 or rank < 512 else 32
    while -(-rank // BR) > MOST_RANK_BLOCKS:
        BR *= 2
    BK = 128 if dtype is not torch.float32 else 64 if tf32 else 32
    # A tile for every multiprocessor, unless the last to arrive would then add up too many.
    tiles = -(-chip.multiprocessors // -(-rank // BR))
    splits = min(tiles, -(-inp // BK), max(4, 2**16 // (4 * BM * BR)))
    BN, widest = 32 if out < 64 * chip.multiprocessors else 64, 256
    if dtype is torch.float32:
        widest = 64
        if BM == 128 and not tf32:  # products without tensor cores keep their operands in registers
            BN, widest = 16, 32
    blocks = {
        "BM": BM,
        "BK": BK,
        "CHUNK": -(-inp // (splits * BK)) * BK,
        "BR": BR,
        "BS": max(1, min(pad(splits), 8192 // (BM * BR))),
        "BN": BN,
        "BE": min(pad(rank), widest, 2**14 // BM),
    }
    warps = 8 if BM >= 64 or dtype is torch.float32 else 4
    return LaunchConfig("decode", blocks, warps, 3, chip.multiprocessors, cooperative=True)


def _prefill(problem: Problem, chip: Chip) -> LaunchConfig:
    rows, out, inp, rank, dtype, tf32 = problem
    BR = pad(rank)
    half = dtype is not torch.float32
    BK, BN = (64, 128 if BR <= 128 else 64) if half else (32, 64 if tf32 else 32)
    # Before wgmma, whose accumulators are spread over more warps, 128 rows spill.
    tall = half and BR <= 128 and chip.capability >= (9, 0)
    sizes = (64, 128) if tall else (64,) if half else (32,)
    best, least = (sizes[0], 1), math.inf
    for BM in sizes:
        for split in (1, 2, 4, 8, 16):
            if split > -(-out // BN):
                break
            # Every range of columns shrinks anew: time for it, if that fills the chip.
            waves = -(-(-(-rows // BM) * split) // chip.multiprocessors)
            seconds = waves * BM * (inp + out / split) * (1.0 if BM == 128 else 1.05)
            if seconds < least:
                best, least = (BM, split), seconds
    BM, split = best
    widest = 64 if chip.capability >= (10, 0) else 128
    warps = 8 if BM * max(BR, BN) >= 128 * 128 or widest < BR else 4
    tile = max(BM * BK + BR * BK, BR * BN)
    blocks = {"BM": BM, "BN": BN, "BK": BK, "BR": BR, "SPLIT": split}
    return LaunchConfig("prefill", blocks, warps, _stages(tile, BM * BR, dtype, chip))


def _stages(tile: int, intermediate: int, dtype: torch.dtype, chip: Chip) -> int:
    """Stages of a pipeline that loads `tile` elements in each, three at most. Beside it room is
    left for the intermediate in float32, which crosses shared memory to change its layout."""
    room = chip.shared_memory - 5 * intermediate
    return max(1, min(3, room // (tile * dtype.itemsize)))


def _prefills(first: LaunchConfig, problem: Problem, chip: Chip) -> Iterator[LaunchConfig]:
    for BM, BN, BK, split in product(
        (32, 64, 128), (32, 64, 128, 256), (32, 64, 128), (1, 2, 4, 8)
    ):
        if split > 1 and -(-problem.rows // BM) * split > 2 * chip.multiprocessors:
            continue
        blocks = {**first.blocks, "BM": BM, "BN": BN, "BK": BK, "SPLIT": split}
        for warps, stages in product((4, 8), (2, 3, 4)):
            yield LaunchConfig("prefill", blocks, warps, stages)


def _decodes(first: LaunchConfig, problem: Problem, chip: Chip) -> Iterator[LaunchConfig]:
    BM, BK = first.blocks["BM"], first.blocks["BK"]
    for each, BR, splits in product((1, 2), (16, 32, 64), (4, 8, 16, 32, 64)):
        programs, rank_blocks = each * chip.multiprocessors, -(-problem.rank // BR)
        CHUNK = -(-problem.inp // (splits * BK)) * BK
        if rank_blocks > MOST_RANK_BLOCKS or rank_blocks * splits > 2 * programs:
            continue
        shrink = {"CHUNK": CHUNK, "BR": BR, "BS": max(1, min(pad(splits), 8192 // (BM * BR)))}
        for BN, warps in product((16, 32, 64), (4, 8)):
            blocks = {**first.blocks, **shrink, "BN": BN}
            yield LaunchConfig("decode", blocks, warps, 3, programs, cooperative=True)


def _backwards(first: LaunchConfig, problem: Problem, chip: Chip) -> Iterator[LaunchConfig]:
    for BM, BN, BC, times in product((32, 64, 128), (32, 64, 128), (32, 64, 128), (0.5, 1, 2, 4)):
        CHUNK = max(BM, int(first.blocks["CHUNK"] * times))
        blocks = {**first.blocks, "BM": BM, "BN": BN, "BC": BC, "CHUNK": CHUNK}
        for warps, stages in product((4, 8), (2, 3)):
            yield LaunchConfig("backward", blocks, warps, stages)
