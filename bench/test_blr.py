"""Blocks of low rank, float32: a grid with its ranks shared out over all blocks, and a tree.

The grid stands beside the same blocks taken apart by `torch.linalg.svd` and cut at one rank for
all, at no fewer parameters. The tree, of a planted matrix of 4096 that is exact at rank 8 off the
diagonal at every level, stands beside a recursion over `torch.linalg.svd` that is told the rank;
ours is told an error of 1e-6 and finds tree and ranks. The floors are the Gram matrices of the
blocks, and a product of the matrix with 16 columns for each of the six levels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.turns import FLOOR, Turns
from tensorlrf.decomposition import blr, hodlr

PEERS = ("ours", "torch", FLOOR)
SIZE, BLOCK, SHARE = 2048, 256, 0.1
LARGE, LEAF, RANK = 4096, 64, 8
ROUNDS = 3
# What a case has to say of a result: its relative error and its number of parameters.
Measure = Callable[[Any], tuple[float, int]]


def near_field(noise: float = 1e-3, seed: int = 0) -> Tensor:
    """1 / (distance + a little) between points on a line, and white noise: blocks on the diagonal
    need high ranks, those away from it low ones."""
    draws = torch.Generator().manual_seed(seed)
    x = torch.rand(SIZE, generator=draws, dtype=torch.float64).sort().values
    y = torch.rand(SIZE, generator=draws, dtype=torch.float64).sort().values
    smooth = 1 / ((x[:, None] - y).abs() + 1e-3)
    white = torch.randn(SIZE, SIZE, generator=draws, dtype=torch.float64)
    return (smooth + noise * smooth.norm() / white.norm() * white).float()


def planted(n: int, draws: torch.Generator) -> Tensor:
    """(n, n): rank 8 off the diagonal at every level, dense leaves of 64."""
    if n <= LEAF:
        return torch.randn(n, n, generator=draws)
    half = n // 2

    def low_rank() -> Tensor:
        left = torch.randn(half, RANK, generator=draws)
        return left @ torch.randn(RANK, half, generator=draws)

    top = torch.cat([planted(half, draws), low_rank()], dim=1)
    return torch.cat([top, torch.cat([low_rank(), planted(half, draws)], dim=1)])


def blocks_of(weight: Tensor) -> Tensor:
    """(p, q, 256, 256)."""
    count = len(weight) // BLOCK
    return weight.reshape(count, BLOCK, count, BLOCK).transpose(1, 2)


def one_rank(weight: Tensor, rank: int) -> tuple[Tensor, int]:
    """The grid at one rank, dense, and its parameters."""
    found = torch.zeros_like(weight)
    into = blocks_of(found)
    for i, row in enumerate(blocks_of(weight)):
        for j, block in enumerate(row):
            u, s, vt = torch.linalg.svd(block, full_matrices=False)
            into[i, j] = (u[:, :rank] * s[:rank]) @ vt[:rank]
    return found, 2 * rank * BLOCK * (len(weight) // BLOCK) ** 2


def told_the_rank(weight: Tensor, found: Tensor) -> int:
    """Write the tree of `weight` into `found`; its parameters."""
    n = len(weight)
    if n <= LEAF:
        found.copy_(weight)
        return n * n
    half, params = n // 2, 0
    for rows, columns in ((slice(half), slice(half, n)), (slice(half, n), slice(half))):
        u, s, vt = torch.linalg.svd(weight[rows, columns], full_matrices=False)
        found[rows, columns] = (u[:, :RANK] * s[:RANK]) @ vt[:RANK]
        params += n * RANK
    for part in (slice(half), slice(half, n)):
        params += told_the_rank(weight[part, part], found[part, part])
    return params


def measure_of(weight: Tensor) -> Measure:
    def measure(found: Any) -> tuple[float, int]:
        if isinstance(found, tuple):
            dense, params = found
            return float((weight.double() - dense.double()).norm() / weight.double().norm()), params
        return found.rel_error(weight), found.n_params

    return measure


def grid_case() -> tuple[Turns, Measure]:
    weight = near_field()
    # Rounded up, so that the peer has no fewer parameters.
    rank = math.ceil(SHARE * BLOCK / 2)
    calls = {
        "ours": lambda: blr(weight, SHARE, block=BLOCK),
        "torch": lambda: one_rank(weight, rank),
        FLOOR: lambda: blocks_of(weight) @ blocks_of(weight).mT,
    }
    return Turns.take(calls, ROUNDS), measure_of(weight)


def tree_case() -> tuple[Turns, Measure]:
    weight = planted(LARGE, torch.Generator().manual_seed(0))
    columns = torch.randn(LARGE, 16)

    def theirs() -> tuple[Tensor, int]:
        found = torch.empty_like(weight)
        return found, told_the_rank(weight, found)

    calls = {
        "ours": lambda: hodlr(weight, error=1e-6, leaf=LEAF, random_state=0),
        "torch": theirs,
        FLOOR: lambda: [weight @ columns for _ in range(int(math.log2(LARGE // LEAF)))],
    }
    return Turns.take(calls, 1, warmup=0), measure_of(weight)


CASES = {
    f"near field {SIZE}, blocks of {BLOCK}, share {SHARE}": grid_case,
    f"planted tree {LARGE}, leaves of {LEAF}, rank {RANK}": tree_case,
}
measured = lru_cache(maxsize=1)(lambda case: CASES[case]())


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("case", CASES)
def test_blr(benchmark: Any, case: str, peer: str) -> None:
    turns, measure = measured(case)
    info: dict[str, Any] = {}
    if peer != FLOOR:
        info["rel_error"], info["parameters"] = measure(turns.results[peer])
    turns.row(benchmark, case, peer, "torch", **info)
