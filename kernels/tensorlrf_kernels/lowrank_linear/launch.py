"""How the kernels of `lowrank_linear` are launched, from shapes, dtype and chip alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import torch

from tensorlrf_kernels._counters import SLOT
from tensorlrf_kernels.chips import Chip
from tensorlrf_kernels.launches import LaunchConfig, Problem

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
    return prefill(problem, chip) if problem.rank <= MOST_PREFILL_RANK else None


def backward(problem: Problem, chip: Chip) -> LaunchConfig | None:
    """The launch of both products of dy (rows, out), or None, as for `forward`."""
    rows, out, _, rank, dtype, tf32 = problem
    if problem.empty or dtype not in DTYPES or rank > MOST_BACKWARD_RANK:
        return None
    # The widest tiles, and the fewest warps, that keep everything in registers.
    BR = pad(rank)
    if dtype is torch.float32:
        BM, BN, BK, BC, warps = 32, 32, 32, 64, 8
        widest = 64 if tf32 else 32
        if widest < BR:
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
    spills = dtype is torch.float32 or chip.capability[0] != 9
    return LaunchConfig("backward", blocks, warps, stages, registers=255 if spills else 0)


def neighbours(config: LaunchConfig, problem: Problem, chip: Chip) -> Iterator[LaunchConfig]:
    """Launches of the same kernel that differ from `config` in one size, for tuning to try."""
    steps = {
        "prefill": {"BM": (16, 256), "BN": (16, 256), "BK": (16, 256), "SPLIT": (1, 32)},
        "decode": {"BK": (16, 256), "CHUNK": (16, 2**16), "BR": (16, 128), "BN": (16, 128)},
        "backward": {"BM": (16, 128), "BN": (16, 128), "BC": (16, 128), "CHUNK": (16, 2**15)},
    }
    for name, (least, most) in steps[config.kernel].items():
        for size in (config.blocks[name] // 2, config.blocks[name] * 2):
            blocks = {**config.blocks, name: size}
            if least <= size <= most and _consistent(config.kernel, blocks, problem):
                if config.kernel == "decode":
                    splits = -(-problem.inp // blocks["CHUNK"])
                    blocks["BS"] = max(1, min(pad(splits), 8192 // (blocks["BM"] * blocks["BR"])))
                yield replace(config, blocks=blocks)
    yield from config.rescheduled()
    yield replace(config, registers=0 if config.registers else 255)
    yield from config.regridded(chip, 4)


def _consistent(kernel: str, blocks: dict[str, int], problem: Problem) -> bool:
    """Whether tiles fit together: no empty range of columns, no chunk that cuts a tile."""
    if kernel == "prefill":
        return blocks["SPLIT"] <= -(-problem.out // blocks["BN"])
    if kernel == "decode":
        rank_blocks = -(-problem.rank // blocks["BR"])
        return blocks["CHUNK"] % blocks["BK"] == 0 and rank_blocks <= MOST_RANK_BLOCKS
    return blocks["CHUNK"] % blocks["BM"] == 0


def pad(rank: int) -> int:
    """The tile's width for a rank: the next power of two, 16 at least."""
    return max(16, 1 << (rank - 1).bit_length())


def _decode(problem: Problem, chip: Chip) -> LaunchConfig:
    rows, out, inp, rank, dtype, tf32 = problem
    BM = pad(rows)
    BR = 16 if BM < 128 or rank < 512 else 32
    while -(-rank // BR) > MOST_RANK_BLOCKS:
        BR *= 2
    BK, BN, BE = 128, 32 if out < 64 * chip.multiprocessors else 64, min(256, 2**14 // BM)
    warps, registers = 8 if BM >= 64 else 4, 255
    if dtype is torch.float16:
        BE = min(BE, 2**13 // BM)  # t is in float32 until it has been narrowed
    elif dtype is torch.float32 and tf32:
        BK, BE, warps = 64, min(BE, 64), 8
    elif dtype is torch.float32:
        # Products without tensor cores are unrolled into as many registers as they are given.
        BK, BN, warps = 16, 16, 8
        BE, registers = 16 if BM > 32 else 32, 168 if BM < 128 else 0
    # A tile for every multiprocessor and no second one, which all would wait for, unless the last
    # to arrive would then add up too many.
    tiles = max(1, chip.multiprocessors // -(-rank // BR))
    splits = min(tiles, -(-inp // BK), max(4, 2**16 // (4 * BM * BR)))
    blocks = {
        "BM": BM,
        "BK": BK,
        "CHUNK": -(-inp // (splits * BK)) * BK,
        "BR": BR,
        "BS": max(1, min(pad(splits), 8192 // (BM * BR))),
        "BN": BN,
        "BE": min(pad(rank), BE),
    }
    programs = chip.multiprocessors
    return LaunchConfig("decode", blocks, warps, 3, programs, cooperative=True, registers=registers)


def prefill(problem: Problem, chip: Chip, most: int = 5) -> LaunchConfig:
    """The launch for many rows, with `most` stages where a program has a multiprocessor to itself
    and must keep the memory busy alone."""
    *_, rank, dtype, tf32 = problem
    BR = pad(rank)
    half = dtype is not torch.float32
    BK, BN = (64, 128 if BR <= 128 else 64) if half else (32, 64 if tf32 else 32)
    # Before wgmma, whose accumulators are spread over more warps, 128 rows spill.
    tall = half and BR <= 128 and chip.capability >= (9, 0)
    sizes = (64, 128) if tall else (64,) if half else (32,)
    BM, split = fill(problem, chip, sizes, BN)
    widest = 64 if chip.capability >= (10, 0) else 128
    warps = 8 if BM * max(BR, BN) >= 128 * 128 or widest < BR else 4
    tile = max(BM * BK + BR * BK, BR * BN)
    blocks = {"BM": BM, "BN": BN, "BK": BK, "BR": BR, "SPLIT": split}
    alone = half and -(-problem.rows // BM) * split <= chip.multiprocessors
    stages = _stages(tile, BM * BR, dtype, chip, most if alone else 3)
    # Products without tensor cores are unrolled into as many registers as they are given.
    unrolled = dtype is torch.float32 and not tf32
    if unrolled:
        warps = 8
    return LaunchConfig("prefill", blocks, warps, stages, registers=0 if unrolled else 255)


def fill(problem: Problem, chip: Chip, sizes: tuple[int, ...], BN: int) -> tuple[int, int]:
    """Rows of a program, one of `sizes`, and ranges of columns, that should be done first.

    Every range shrinks anew: that takes time, which is won back where it fills the chip.
    """
    best, least = (sizes[0], 1), math.inf
    for BM in sizes:
        for split in (1, 2, 4, 8, 16):
            if split > -(-problem.out // BN):
                break
            waves = -(-(-(-problem.rows // BM) * split) // chip.multiprocessors)
            seconds = waves * BM * (problem.inp + problem.out / split)
            seconds *= 1.0 if BM == 128 else 1.05  # a taller tile reads the factors less often
            if seconds < least:
                best, least = (BM, split), seconds
    return best


def _stages(tile: int, intermediate: int, dtype: torch.dtype, chip: Chip, most: int = 3) -> int:
    """Stages of a pipeline that loads `tile` elements in each. Beside it room is left for the
    intermediate in float32, which crosses shared memory to change its layout."""
    room = chip.shared_memory - 5 * intermediate
    return max(1, min(most, room // (tile * dtype.itemsize)))
