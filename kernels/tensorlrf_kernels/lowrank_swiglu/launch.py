"""How the kernels of `lowrank_swiglu` are launched, from shapes, dtype and chip alone.

The rank of a problem is the larger of the two.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from tensorlrf_kernels.chips import Chip
from tensorlrf_kernels.launches import LaunchConfig, Problem
from tensorlrf_kernels.lowrank_linear.launch import (
    DTYPES,
    MOST_DECODE_ROWS,
    MOST_RANK_BLOCKS,
    fill,
    pad,
)
from tensorlrf_kernels.lowrank_linear.launch import neighbours as linear_neighbours

MOST_PREFILL_RANK = 128  # of which both intermediates stay on chip
MOST_BACKWARD_RANK = 64


def forward(problem: Problem, chip: Chip) -> LaunchConfig | None:
    """The launch of y = silu(x gate_right^T gate_left^T) * (x up_right^T up_left^T).

    None where no kernel serves: no size may be zero, the dtype is one of DTYPES, and beyond
    MOST_DECODE_ROWS rows the rank is at most MOST_PREFILL_RANK.
    """
    if problem.empty or problem.dtype not in DTYPES:
        return None
    if problem.rows <= MOST_DECODE_ROWS:
        return _decode(problem, chip)
    return _prefill(problem, chip) if problem.rank <= MOST_PREFILL_RANK else None


def backward(problem: Problem, chip: Chip) -> LaunchConfig | None:
    """The launch of all products of the projections' gradients (rows, out), or None, as for
    `forward`."""
    rows, out, _, rank, dtype, tf32 = problem
    if problem.empty or dtype not in DTYPES or rank > MOST_BACKWARD_RANK:
        return None
    BR, wgmma = pad(rank), chip.capability >= (9, 0)
    # The widest tiles that keep both projections and their gradients in registers.
    if dtype is torch.float32:
        BM = BK = BN = 32
        BC = 64 if tf32 and wgmma else 32
        if not tf32 and BR > 32:
            BN = BC = 16
    else:
        BM = BK = BN = BC = 64
        # Before wgmma both operands are in registers, and float16 is rescaled there.
        rescaled = dtype is torch.float16
        hopper = wgmma and chip.capability < (10, 0)
        if not wgmma or (rescaled and hopper and BR > 32):
            BN = 32
        if not wgmma or rescaled or (hopper and BR > 32):
            BC = 16 if rescaled and chip.capability >= (10, 0) and BR <= 32 else 32
    # dh of a chunk stays in the cache; there are chunks enough for all multiprocessors.
    fits = chip.l2 // 2 // (out * dtype.itemsize)
    wanted = -(-chip.multiprocessors // -(-out // BC))
    chunk = max(BM, min(fits, -(-rows // wanted), 8192))
    CHUNK = 1 << (chunk.bit_length() - 1)
    blocks = {"BM": BM, "BN": BN, "BK": BK, "BR": BR, "BC": BC, "CHUNK": CHUNK}
    stages = _stages(BM * BN + 2 * BN * BR, 2 * BM * BR, dtype, chip)
    return LaunchConfig("backward", blocks, 8, stages, registers=255)


def neighbours(config: LaunchConfig, problem: Problem, chip: Chip) -> Iterator[LaunchConfig]:
    """Launches of the same kernel that differ from `config` in one size, for tuning to try."""
    for other in linear_neighbours(config, problem, chip):
        if (
            other.kernel != "decode"
            or _rank_blocks(problem, other.blocks["BR"]) <= MOST_RANK_BLOCKS
        ):
            yield other


def _rank_blocks(problem: Problem, BR: int) -> int:
    """Blocks of BR ranks in both projections together, at the most."""
    return 2 * -(-problem.rank // BR)


def _decode(problem: Problem, chip: Chip) -> LaunchConfig:
    rows, out, inp, rank, dtype, tf32 = problem
    BM = pad(rows)
    plain = dtype is torch.float32 and not tf32
    BR = 16 if BM < 128 or rank < 512 or plain else 32
    while _rank_blocks(problem, BR) > MOST_RANK_BLOCKS:
        BR *= 2
    BK = 128 if dtype is not torch.float32 else 64 if tf32 else 32
    # A tile for every multiprocessor and no second one, which all would wait for, unless the last
    # to arrive would then add up too many.
    tiles = max(1, chip.multiprocessors // _rank_blocks(problem, BR))
    splits = min(tiles, -(-inp // BK), max(4, 2**16 // (4 * BM * BR)))
    if plain:  # products without tensor cores keep their operands in registers
        BN, BE = 16, 32 if BM < 128 else 16
    else:
        # float16 is rescaled from float32 tiles of t.
        held = 2**13 if dtype is torch.float16 else 2**14
        BN, BE = 32, min(pad(rank), 64 if dtype is torch.float32 else 256, held // BM)
        wide = dtype is not torch.float32 and out >= 64 * chip.multiprocessors
        few = BE <= 128 and BM * BE <= 2**13  # rows and ranks for a wider tile
        if wide and few and (BM < 128 or chip.capability >= (9, 0)):
            BN = 64
    blocks = {
        "BM": BM,
        "BK": BK,
        "CHUNK": -(-inp // (splits * BK)) * BK,
        "BR": BR,
        "BS": max(1, min(pad(splits), 8192 // (BM * BR))),
        "BN": BN,
        "BE": BE,
    }
    warps = 8 if BM >= 64 or BE > 128 or plain else 4
    registers = 0 if plain else 255
    return LaunchConfig("decode", blocks, warps, 3, chip.multiprocessors, True, registers)


def _prefill(problem: Problem, chip: Chip) -> LaunchConfig:
    *_, rank, dtype, tf32 = problem
    BR = pad(rank)
    half = dtype is not torch.float32
    wgmma = chip.capability >= (9, 0)
    # Two products end side by side, so a tile is half as wide as of one.
    BK, BN = (64, 64) if half else (32, 64 if tf32 and (wgmma or BR <= 64) else 32)
    # Before wgmma, whose operands stay in shared memory, 128 rows spill.
    sizes = (64, 128) if half and wgmma else (64,) if half else (32,)
    BM, split = fill(problem, chip, sizes, BN)
    # The widest intermediate of which four warps hold two.
    widest = 64 if not half else 128 if wgmma else 32
    warps = 8 if BM == 128 or widest < BR else 4
    tile = max(BM * BK + 2 * BR * BK, 2 * BR * BN)
    blocks = {"BM": BM, "BN": BN, "BK": BK, "BR": BR, "SPLIT": split}
    stages = _stages(tile, 2 * BM * BR, dtype, chip)
    return LaunchConfig("prefill", blocks, warps, stages, registers=255 if half or tf32 else 0)


def _stages(tile: int, intermediates: int, dtype: torch.dtype, chip: Chip) -> int:
    """Stages of a pipeline that loads `tile` elements in each, three at most. Beside it room is
    left for the intermediates, which may cross shared memory to change their layout."""
    room = chip.shared_memory - 2 * intermediates
    return max(1, min(3, room // (tile * dtype.itemsize)))
