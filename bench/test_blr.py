"""Blocks of low rank, float32: a grid with its ranks shared out over all blocks, and a tree.

The grid stands beside the same blocks taken apart by `torch.linalg.svd` and cut at one rank for
all, at no fewer parameters. The tree, of a planted matrix of 4096 that is exact at rank 8 off the
diagonal at every level, stands beside a recursion over `torch.linalg.svd` that is told the rank;
ours is told an error of 1e-6 and finds tree and ranks. At a given rank for every block the peer is
the loop of SVDs: blocks of flat and of falling spectra, of low rank with and without noise, and
zero in every other place. The floors are the Gram matrices of the blocks, and a product of the
matrix with 16 columns for each of the six levels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache, partial
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
# Of the kinds that are met in practice, and those that a way of taking blocks apart is bad at.
KINDS = (
    "random",
    "as 1 / sqrt(j)",
    "as .8^j",
    "low rank",
    "low rank and noise",
    "half of the rank and noise",
    "zero every other",
)
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


def blocks_of(weight: Tensor, block: int = BLOCK) -> Tensor:
    """(p, q, block, block)."""
    count = len(weight) // block
    return weight.reshape(count, block, count, block).transpose(1, 2)


def of_kind(kind: str, n: int, block: int, rank: int) -> Tensor:
    """(n, n), every block of the same kind, random vectors apart."""
    draws = torch.Generator().manual_seed(0)

    def white(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draws)

    def of_rank(r: int) -> Tensor:
        return white(block, r) @ white(r, block) / block

    def one(i: int) -> Tensor:
        if kind == "random" or (kind == "zero every other" and i % 2):
            return white(block, block)
        if kind == "zero every other":
            return torch.zeros(block, block)
        if kind == "low rank":
            return of_rank(rank)
        if kind.endswith("and noise"):
            return of_rank(rank if kind[0] == "l" else rank // 2) + 1e-4 * white(block, block)
        left, right = (torch.linalg.qr(white(block, block))[0] for _ in range(2))
        j = torch.arange(1, block + 1)
        return (left * (0.8**j if kind == "as .8^j" else j.rsqrt())) @ right

    count = n // block
    rows = (torch.cat([one(p + q) for q in range(count)], dim=1) for p in range(count))
    return torch.cat(list(rows))


def one_by_one(weight: Tensor, block: int, rank: int) -> list[tuple[Tensor, Tensor]]:
    """left (block, rank) and right (rank, block) of every block, row by row."""
    found = []
    for row in blocks_of(weight, block):
        for each in row:
            u, s, vt = torch.linalg.svd(each, full_matrices=False)
            root = s[:rank].sqrt()
            found.append((u[:, :rank] * root, root[:, None] * vt[:rank]))
    return found


def one_rank(weight: Tensor, rank: int) -> tuple[Tensor, int]:
    """The grid at one rank, dense, and its parameters."""
    return put_together(one_by_one(weight, BLOCK, rank), weight, BLOCK)


def put_together(
    sides: list[tuple[Tensor, Tensor]], weight: Tensor, block: int
) -> tuple[Tensor, int]:
    """The matrix of these blocks, and its parameters."""
    found = torch.zeros_like(weight)
    into = blocks_of(found, block)
    for k, (left, right) in enumerate(sides):
        into[divmod(k, len(into))] = left @ right
    return found, sum(left.numel() + right.numel() for left, right in sides)


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


def given_rank_case(kind: str, n: int, block: int, rank: int) -> tuple[Turns, Measure]:
    weight = of_kind(kind, n, block, rank)
    measure = measure_of(weight)

    def measured(found: Any) -> tuple[float, int]:
        return measure(put_together(found, weight, block) if isinstance(found, list) else found)

    calls = {
        "ours": lambda: blr(weight, rank, block=block),
        "torch": lambda: one_by_one(weight, block, rank),
        FLOOR: lambda: blocks_of(weight, block) @ blocks_of(weight, block).mT,
    }
    return Turns.take(calls, 2 * ROUNDS + 1), measured


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


CASES: dict[str, Callable[[], tuple[Turns, Measure]]] = {
    f"near field {SIZE}, blocks of {BLOCK}, share {SHARE}": grid_case,
    f"planted tree {LARGE}, leaves of {LEAF}, rank {RANK}": tree_case,
} | {
    f"rank {rank} in blocks of {block} of {n}, {kind}": partial(
        given_rank_case, kind, n, block, rank
    )
    for n, block, rank in ((2048, 256, 16), (2048, 256, 64), (1024, 64, 8), (1024, 32, 4))
    for kind in KINDS
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
