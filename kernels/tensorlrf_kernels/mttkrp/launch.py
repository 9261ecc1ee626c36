"""How the kernel of `mttkrp` is launched, from shapes, dtype and chip alone.

A problem's `rows` are the indices left free, `inp` the ones contracted, `out` those of them that
the K dimension of a product runs over, and `rank` the columns of the factors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import torch

from tensorlrf_kernels.chips import Chip
from tensorlrf_kernels.launches import LaunchConfig, Problem

DTYPES = (torch.float32, torch.float64)
LONGEST_UNIT = 512  # products summed in the tensor cores' accumulator, which rounds towards zero


def forward(problem: Problem, chip: Chip) -> LaunchConfig | None:
    """The launch of the contraction, in SPLITS parts or fewer that are to be added up.

    None where no kernel serves: no size may be zero, and the dtype is one of DTYPES.
    """
    if problem.empty or problem.dtype not in DTYPES:
        return None
    double = problem.dtype is torch.float64
    BR = min(_pad(problem.rank), 64 if double else 128)
    # Before wgmma 128 rows of 128 columns spill.
    BM = min(_pad(problem.rows), 128 if BR == 128 and chip.capability >= (9, 0) else 64)
    warps = 8 if BM * BR * problem.dtype.itemsize >= 2**15 else 4
    blocks = {"BM": BM, "BK": 16 if double else 32, "BR": BR}
    # Parts enough for every place of a program; but all parts hold no more than the tensor.
    splits = min(_places(blocks, chip) // _tiles(problem, blocks), problem.inp // problem.rank)
    blocks["SPLITS"] = max(1, splits)
    # Left to itself the assembler spills for sm_100, whose accumulators lie outside of registers.
    registers = 255 if chip.capability[0] == 10 else 0
    return LaunchConfig("contract", blocks, warps, 3, registers=registers)


def _tiles(problem: Problem, blocks: dict[str, int]) -> int:
    return -(-problem.rows // blocks["BM"]) * -(-problem.rank // blocks["BR"])


def _places(blocks: dict[str, int], chip: Chip) -> int:
    """Programs that run side by side, by the registers that their tiles take."""
    resident = 1 if blocks["BM"] * blocks["BR"] >= 2**14 else 2 if blocks["BR"] == 128 else 3
    return resident * chip.multiprocessors


def neighbours(config: LaunchConfig, problem: Problem, chip: Chip) -> Iterator[LaunchConfig]:
    """Launches of the same kernel that differ from `config` in one size, for tuning to try."""
    steps = {"BM": (16, 256), "BK": (16, 64), "BR": (16, 128), "SPLITS": (1, 1024)}
    for name, (least, most) in steps.items():
        for size in (config.blocks[name] // 2, config.blocks[name] * 2):
            if least <= size <= most:
                yield replace(config, blocks={**config.blocks, name: size})
    yield from config.rescheduled()
    yield replace(config, registers=0 if config.registers else 255)


def unit_of(indices: int, outer: int, config: LaunchConfig) -> tuple[int, int]:
    """(chunks, steps): `indices` of the K dimension in chunks of so many tiles, each a unit, of
    which there are enough for every part where there are `outer` times as many."""
    BK = config.blocks["BK"]
    tiles = -(-indices // BK)
    chunks = max(-(-indices // LONGEST_UNIT), -(-config.blocks["SPLITS"] // outer))
    steps = -(-tiles // min(tiles, chunks))
    return -(-tiles // steps), steps


# ---- which is faster ----------------------------------------------------------------------------

# Where the GPU is done sooner than this, it waits for the host, whom a library call costs less.
LEAST_SECONDS = 25e-6


def kernel_wins(problem: Problem, chip: Chip, khatri_rao_rows: int) -> bool:
    """Whether the kernel should be faster than a library product with a Khatri-Rao matrix of so
    many rows, none where a single factor is contracted, and by enough to matter."""
    library = library_seconds(problem, chip, khatri_rao_rows)
    return library > LEAST_SECONDS and kernel_seconds(problem, chip) < library


def kernel_seconds(problem: Problem, chip: Chip) -> float:
    """The kernel's time by a model; infinite where it does not serve. Its products are those of
    whole tiles, in float32 three in TF32 for each, unless TF32 itself is allowed."""
    config = forward(problem, chip)
    if config is None:
        return math.inf
    rows, inner, inp, rank, dtype, tf32 = problem
    sizes = ((rows, "BM"), (rank, "BR"), (inner, "BK"))
    padded = [-(-size // config.blocks[name]) * config.blocks[name] for size, name in sizes]
    flops = 2.0 * math.prod(padded) * -(-inp // inner)
    if dtype is torch.float32:
        rate = chip.tf32_rate * chip.chained / (1 if tf32 else 3)
    else:
        rate = chip.matmul_rate(dtype) * chip.chained
    splits = config.blocks["SPLITS"]
    blocks = dict(config.blocks)
    rate *= min(1.0, splits * _tiles(problem, blocks) / _places(blocks, chip))
    moved = dtype.itemsize * (rows * inp + 3 * splits * rows * rank)
    launches = 1 if splits == 1 else 2
    return launches * chip.launch + max(flops / rate, moved / chip.bandwidth)


def library_seconds(problem: Problem, chip: Chip, khatri_rao_rows: int) -> float:
    """The time of the library by the same model: the matrix is written and read once."""
    rows, _, inp, rank, dtype, tf32 = problem
    rate = chip.matmul_rate(dtype, tf32=tf32) * chip.library
    matrix = khatri_rao_rows * rank
    moved = dtype.itemsize * (rows * inp + rows * rank + matrix)
    made = chip.launch + dtype.itemsize * matrix / chip.bandwidth if matrix else 0.0
    return chip.launch + made + max(2.0 * rows * inp * rank / rate, moved / chip.bandwidth)


def _pad(size: int) -> int:
    """The tile's width for a size: the next power of two, 16 at least."""
    return max(16, 1 << (size - 1).bit_length())
