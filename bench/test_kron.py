"""Sums of Kronecker products beside the full SVD of the rearranged matrix by numpy, which is the
optimum (Van Loan & Pitsianis 1993), float32.

The planted sum of three terms shows how exact the result is. The others are four terms and white
noise. The full SVD at 4096 takes minutes and runs once, apart; at 1024 all run in turn. The floor
is the product of the rearrangement with s columns: one look at the matrix.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bench.turns import FLOOR, Turns
from tensorlrf.decomposition import kron
from tensorlrf.factors import KroneckerSum

TERMS = 4
ROUNDS = 5
SIDES = {1024: (32, 32), 4096: (64, 64)}  # of a and b
PEERS = ("ours", "ours randomized", "numpy", FLOOR)


def sum_of(terms: int, n: int, noise: float, seed: int = 0) -> Tensor:
    """(n, n): Gaussian Kronecker products, and white noise of the given relative norm."""
    draws = torch.Generator().manual_seed(seed)
    side, other = SIDES[n]
    whole = torch.zeros(n, n)
    for _ in range(terms):
        a = torch.randn(side, side, generator=draws)
        whole += torch.kron(a, torch.randn(other, other, generator=draws))
    white = torch.randn(n, n, generator=draws)
    return whole.add_(white, alpha=noise * float(whole.norm() / white.norm()))


def rearranged(weight: Tensor) -> Tensor:
    """(m1 n1, m2 n2): a Kronecker product becomes an outer product."""
    side, other = SIDES[len(weight)]
    blocks = weight.reshape(side, other, side, other).transpose(1, 2)
    return blocks.reshape(side * side, other * other)


def full_svd(weight: Tensor) -> KroneckerSum:
    side, other = SIDES[len(weight)]
    u, s, vt = np.linalg.svd(rearranged(weight).numpy(), full_matrices=False)
    roots = np.sqrt(s[:TERMS])
    a = torch.from_numpy(roots[:, None] * u[:, :TERMS].T).reshape(TERMS, side, side)
    b = torch.from_numpy(roots[:, None] * vt[:TERMS]).reshape(TERMS, other, other)
    return KroneckerSum(a, b)


def calls_of(weight: Tensor) -> dict[str, Callable[[], Any]]:
    side, other = SIDES[len(weight)]
    shapes = ((side, side), (other, other))
    columns = torch.randn(other * other, TERMS)
    return {
        "ours": lambda: kron(weight, TERMS, shapes=shapes, random_state=0),
        "ours randomized": lambda: kron(
            weight, TERMS, shapes=shapes, solver="randomized", random_state=0
        ),
        "numpy": partial(full_svd, weight),
        FLOOR: lambda: rearranged(weight) @ columns,
    }


@lru_cache(maxsize=1)
def measured(n: int) -> tuple[Tensor, Turns]:
    weight = sum_of(TERMS, n, noise=0.5)
    return weight, Turns.take(calls_of(weight), ROUNDS)


@pytest.mark.parametrize("peer", PEERS)
def test_kron_in_turn(benchmark: Any, peer: str) -> None:
    weight, turns = measured(1024)
    error = None if peer == FLOOR else turns.results[peer].rel_error(weight)
    turns.row(benchmark, f"1024x1024 s{TERMS}", peer, "numpy", rel_error=error)


@pytest.mark.parametrize("peer", PEERS)
def test_kron_of_a_large_matrix(benchmark: Any, peer: str) -> None:
    """The full SVD runs once."""
    weight = sum_of(TERMS, 4096, noise=0.5)
    case = f"4096x4096 s{TERMS}"
    benchmark.group = case
    once = peer == "numpy"
    found = benchmark.pedantic(
        calls_of(weight)[peer], rounds=1 if once else ROUNDS, warmup_rounds=0 if once else 1
    )
    error = None if peer == FLOOR else found.rel_error(weight)
    benchmark.extra_info.update(case=case, peer=peer, rel_error=error)


@pytest.mark.parametrize("n", SIDES)
def test_a_planted_sum_of_three(benchmark: Any, n: int) -> None:
    weight = sum_of(3, n, noise=0.0)
    side, other = SIDES[n]
    case = f"{n}x{n} s3, exact"
    benchmark.group = case
    found = benchmark.pedantic(
        lambda: kron(weight, 3, shapes=((side, side), (other, other)), random_state=0), rounds=3
    )
    benchmark.extra_info.update(case=case, peer="ours", rel_error=found.rel_error(weight))
