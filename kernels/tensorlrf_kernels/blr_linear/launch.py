"""How the kernels of `blr_linear` are launched, from shapes, dtype and chip alone.

A problem's rank is the mean number of ranks that a row of the weight is made of. The tiles are the
largest ones: a form with smaller blocks cuts them down, `fused.fitted`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from tensorlrf_kernels.chips import Chip
from tensorlrf_kernels.launches import LaunchConfig, Problem
from tensorlrf_kernels.lowrank_linear.launch import DTYPES, MOST_DECODE_ROWS, pad

LEAST_SIDE = 16  # of the matrix; below it tiles are mostly mask
MOST_MASKED = 4  # multiply-adds of whole tiles over those of the blocks
RANGES = {
    "BM": (16, 256),
    "BR": (16, 256),
    "BK": (16, 256),
    "BN": (16, 256),
    "BE": (16, 256),
    "BC": (16, 256),
    "MIB": (1, 2**16),
}


def forward(problem: Problem, chip: Chip) -> LaunchConfig | None:
    """The launch of y = activation(x W^T + bias), and None where no kernel serves: no size may be
    zero, both sides of W are LEAST_SIDE at least, and the dtype is one of DTYPES."""
    if not _serves(problem):
        return None
    return _few_rows(problem, chip) if problem.rows <= MOST_DECODE_ROWS else _rows(problem, chip)


def backward(problem: Problem, chip: Chip) -> LaunchConfig | None:
    """The launch of all gradients, or None, as for `forward`.

    Beside the tiles of both products: BC columns and BR ranks of a panel's gradient are made from
    BP rows at a time.
    """
    if not _serves(problem):
        return None
    config = _rows(problem._replace(rows=max(problem.rows, MOST_DECODE_ROWS + 1)), chip)
    half = problem.dtype is not torch.float32
    blocks = {
        **config.blocks,
        "MIB": 4 * config.blocks["MIB"],
        "BC": 64,
        "BP": 64 if half else 32,
    }
    return replace(config, blocks=blocks)


def neighbours(config: LaunchConfig, problem: Problem, chip: Chip) -> Iterator[LaunchConfig]:
    """Launches that differ from `config` in one size, for tuning to try."""
    # One tile has all rows of `decode`.
    rows = pad(problem.rows) if config.kernel == "decode" else 0
    for name, size in config.blocks.items():
        least, most = RANGES.get(name, (size, size))
        for other in (size // 2, size * 2):
            if least <= other <= most and (name != "BM" or other >= rows):
                yield replace(config, blocks={**config.blocks, name: other})
    yield from config.rescheduled()
    yield from config.regridded(chip, 4)


def _serves(problem: Problem) -> bool:
    large = min(problem.out, problem.inp) >= LEAST_SIDE
    return not problem.empty and large and problem.dtype in DTYPES


def _few_rows(problem: Problem, chip: Chip) -> LaunchConfig:
    """One cooperative launch: small tiles, so that every multiprocessor has its share."""
    BM = pad(problem.rows)
    BR, BK, BN, BE, warps = 16, 128, 32, 128, 4
    if problem.dtype is torch.float32:
        step = 64 if problem.tf32 else 32 if BM < 128 else 16
        BK, BN, BE, warps = step, 16, step, 8
    elif BM >= 64:
        BK, BE, warps = 64, 64, 8 if BM == 128 else 4
    blocks = {"BM": BM, "BR": BR, "BK": BK, "BN": BN, "BE": BE, **_others(problem, chip)}
    # All must fit the chip at once: of four warps two on a multiprocessor do for certain.
    programs = chip.multiprocessors * (2 if warps == 4 else 1)
    # Products without tensor cores are unrolled into as many registers as they are given.
    unrolled = problem.dtype is torch.float32 and not problem.tf32
    registers = 168 if unrolled else 255
    return LaunchConfig("decode", blocks, warps, 3, programs, True, registers)


def _rows(problem: Problem, chip: Chip) -> LaunchConfig:
    """Two launches for every chunk of rows."""
    if problem.dtype is torch.float32:
        BM, BR, BK, BN, BE = (64, 64, 32, 64, 32) if problem.tf32 else (32, 32, 32, 32, 32)
        warps = 8
    else:
        # Rows enough that the taller tiles still give every multiprocessor two programs.
        tall = problem.rows * min(problem.out, problem.inp) >= chip.multiprocessors * 2**15
        BM, BR, BK, BN, BE = 128 if tall else 64, 128, 64, 128, 64
        warps = 8 if tall else 4
        if problem.dtype is torch.float16:
            BE = 32  # t is in float32 until it has been narrowed
            warps = 8
    blocks = {"BM": BM, "BR": BR, "BK": BK, "BN": BN, "BE": BE, **_others(problem, chip)}
    # The others fit two programs a multiprocessor, if the assembler may see to it.
    registers = 255 if problem.dtype is torch.float16 else 0
    return LaunchConfig("grouped", blocks, warps, 3, registers=registers)


def _others(problem: Problem, chip: Chip) -> dict[str, int]:
    """BW ranks of one product where strips are woven, and the MiB that the intermediate of a chunk
    of rows may take, to be read from the L2 cache."""
    half = problem.dtype is not torch.float32
    # Before wgmma the operands of all strips are in registers at once.
    BW = 32 if not half or chip.capability < (9, 0) else 128
    return {"BW": BW, "MIB": max(1, chip.l2 * 4 // 15 // 2**20)}
