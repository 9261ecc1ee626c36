"""How the kernels of `sparse_mttkrp` are launched, from shapes, dtype and chip alone.

Of a problem `inp` are the nonzeros, and `rank` the columns.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from tensorlrf_kernels.chips import Chip
from tensorlrf_kernels.launches import LaunchConfig, Problem

DTYPES = (torch.float32, torch.float64)


def forward(problem: Problem, chip: Chip) -> LaunchConfig | None:
    """The launch that adds up nonzeros, at most LONGEST of a row by one program.

    None where no kernel serves: no size may be zero, and the dtype is one of DTYPES.
    """
    if problem.empty or problem.dtype not in DTYPES:
        return None
    BC = min(64, max(8, 1 << (problem.rank - 1).bit_length()))
    BR = max(8, 512 // BC)
    # Rows of about equal length share a program; of a long row no part may keep the others waiting.
    blocks = {"BR": BR, "BC": BC, "LONGEST": 64, "BS": 32}
    return LaunchConfig("accumulate", blocks, 4, 2)


def neighbours(config: LaunchConfig, problem: Problem, chip: Chip) -> Iterator[LaunchConfig]:
    """Launches of the same kernel that differ from `config` in one size, for tuning to try."""
    steps = {"BR": (4, 128), "BC": (8, 128), "LONGEST": (16, 1024), "BS": (16, 64)}
    for name, (least, most) in steps.items():
        for size in (config.blocks[name] // 2, config.blocks[name] * 2):
            if least <= size <= most:
                yield replace(config, blocks={**config.blocks, name: size})
    yield from config.rescheduled()


def pieces_bound(rows: int, nnz: int, longest: int) -> int:
    """Pieces of at most `longest` nonzeros that rows of `nnz` together fall into, at most: known
    without a look at how these are shared out."""
    return rows + nnz // longest
