"""72 matrices 384 x 1536 at rank 96, as the feed-forward weights of a small encoder are: one call
of `svd(batch_dims=1)` beside a loop over `torch.linalg.svd` and beside its batched form, float32.

The error is that of the whole batch. The floor is what also the shortest way needs: the Gram
matrices of the short sides, and the products that give the second factors, in float32.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.test_svd import decaying
from bench.turns import FLOOR, Turns
from tensorlrf.decomposition import svd

COUNT, M, N, RANK = 72, 384, 1536, 96
ROUNDS = 3
PEERS = ("ours", "ours, one by one", "torch, in a loop", "torch, batched", FLOOR)
Pair = tuple[Tensor, Tensor]


def matrices() -> Tensor:
    """(72, 384, 1536), singular values falling as 1 / sqrt(j)."""
    return torch.stack([decaying(M, N, seed=k) for k in range(COUNT)])


def split(u: Tensor, s: Tensor, vt: Tensor) -> Pair:
    return u[..., :RANK] * s[..., None, :RANK], vt[..., :RANK, :]


@lru_cache(maxsize=1)
def measured() -> tuple[Tensor, Turns]:
    stack = matrices()

    def ours() -> Pair:
        parts = svd(stack, RANK, batch_dims=1).tensors()
        return parts["left"], parts["right"]

    def one_by_one() -> Pair:
        found = [svd(matrix, RANK) for matrix in stack]
        return torch.stack([f.left for f in found]), torch.stack([f.right for f in found])

    def loop() -> Pair:
        found = [split(*torch.linalg.svd(matrix, full_matrices=False)) for matrix in stack]
        return torch.stack([f[0] for f in found]), torch.stack([f[1] for f in found])

    def batched() -> Pair:
        return split(*torch.linalg.svd(stack, full_matrices=False))

    def floor() -> Pair:
        return stack @ stack.mT, stack[:, :RANK, :M] @ stack

    calls = dict(zip(PEERS, (ours, one_by_one, loop, batched, floor), strict=True))
    return stack, Turns.take(calls, ROUNDS)


@pytest.mark.parametrize("peer", PEERS)
def test_batched_svd(benchmark: Any, peer: str) -> None:
    stack, turns = measured()
    error = None
    if peer != FLOOR:
        left, right = turns.results[peer]
        lost = sum(
            float((w - u @ v).double().square().sum())
            for w, u, v in zip(stack, left, right, strict=True)
        )
        error = math.sqrt(lost / float(stack.double().square().sum()))
    case = f"{COUNT} x {M}x{N} r{RANK}"
    turns.row(benchmark, case, peer, "torch, in a loop", rel_error=error)
