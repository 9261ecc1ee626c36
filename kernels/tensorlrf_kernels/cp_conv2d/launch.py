"""How the kernels of `cp_conv2d` are launched, from shapes, dtype and chip alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from tensorlrf_kernels.chips import Chip
from tensorlrf_kernels.geometry import Geometry, Pair
from tensorlrf_kernels.launches import LaunchConfig, Problem
from tensorlrf_kernels.lowrank_linear.launch import DTYPES, pad

MOST_RANK = 128  # that is held on chip three times over: a tap's, the rows', and the columns' sum
REGISTERS = 96  # of a thread whose products are unrolled and end with the taps: two programs fit


def forward(problem: Problem, chip: Chip) -> LaunchConfig | None:
    """The launch of the chain from x to y, or with EXPAND = 0 up to the taps; `inp` of the problem
    are the channels of x. BM are places of an output row and of the rows below it, which
    `tile` shares out.

    None where no kernel serves: no size may be zero, and the dtype is one of DTYPES.
    """
    if problem.empty or problem.dtype not in DTYPES:
        return None
    half = problem.dtype is not torch.float32
    # With fewer tiles than multiprocessors the ranks are shared out as well, and the last product
    # is the library's.
    many = problem.rows >= 64 * chip.multiprocessors // 2
    whole = problem.rank <= MOST_RANK and many
    BM = 64 if half else 32
    BR = pad(problem.rank) if whole else min(pad(problem.rank), 64)
    # Products without tensor cores are unrolled, into as many registers as they are given; left to
    # itself the assembler spills a few of those that end with the taps.
    unrolled = not half and not problem.tf32
    BK, BN = (64, 64) if half else (32, 16 if unrolled else 32)
    warps = 4 if half and BR <= 64 else 8
    blocks = {"BM": BM, "BN": BN, "BK": BK, "BR": BR, "EXPAND": int(whole)}
    registers = 255 if not unrolled else 0 if whole else REGISTERS
    return LaunchConfig("forward", blocks, warps, 3, registers=registers)


def backward(problem: Problem, chip: Chip) -> LaunchConfig | None:
    """The launch of the gradients of the taps; `rows` of the problem are places of x."""
    if problem.empty or problem.dtype not in DTYPES:
        return None
    BR = min(pad(problem.rank), 32)
    # Chunks enough for four programs a multiprocessor; each leaves parts to be added up.
    chunks = max(1, 4 * chip.multiprocessors // -(-problem.rank // BR))
    wanted = -(-problem.rows // chunks)
    CHUNK = min(8192, max(64, 1 << (wanted - 1).bit_length()))
    return LaunchConfig("taps_backward", {"BM": 32, "BR": BR, "CHUNK": CHUNK}, 4, 2, registers=255)


def neighbours(config: LaunchConfig, problem: Problem, chip: Chip) -> Iterator[LaunchConfig]:
    """Launches of the same kernel that differ from `config` in one size, for tuning to try."""
    steps = {
        "forward": {"BM": (32, 256), "BN": (16, 256), "BK": (16, 128)},
        "taps_backward": {"BM": (16, 128), "BR": (16, 128), "CHUNK": (64, 2**15)},
    }
    for name, (least, most) in steps[config.kernel].items():
        for size in (config.blocks[name] // 2, config.blocks[name] * 2):
            blocks = {**config.blocks, name: size}
            if least <= size <= most and blocks.get("CHUNK", size) % blocks["BM"] == 0:
                yield replace(config, blocks=blocks)
    yield from config.rescheduled()


def tile(places: int, size: Pair, kernel_width: int, geometry: Geometry) -> tuple[int, int]:
    """(BH, BW) with BH BW = `places`: rows of the output and columns of the input that leave the
    fewest tiles of an output of `size`, the widest of equals."""
    reach, stride = (kernel_width - 1) * geometry.dilation[1], geometry.stride[1]
    best: tuple[int, int] | None = None
    least = 0
    BW = places
    while reach < BW and BW >= 1:
        across = -(-size[1] // columns_of(BW, reach, stride))
        count = across * -(-size[0] // (places // BW))
        if best is None or count < least:
            best, least = (places // BW, BW), count
        BW //= 2
    if best is None:
        raise ValueError(f"{places} places are fewer than the {reach + 1} that the taps reach over")
    return best


def columns_of(width: int, reach: int, stride: int) -> int:
    """Columns of the output whose taps all lie in `width` columns of the input."""
    return (width - 1 - reach) // stride + 1
