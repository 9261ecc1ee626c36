"""Truncated SVD beside torch and tensorly, float32, and the data-aware one.

Matrices have singular values that fall as 1 / sqrt(j), flat as those of trained weights are.
`extra_info` holds the true relative error; the optimum is that of the full SVD.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tensorlrf.decomposition.svd._svd import svd
from tensorlrf.factors import LowRank

CASES = {
    "768x768 r192": (768, 768, 192),
    "3072x768 r128": (3072, 768, 128),
    "512x4608 r128": (512, 4608, 128),
    "2048x2048 r32": (2048, 2048, 32),
}


def decaying(m: int, n: int, seed: int = 0) -> Tensor:
    draws = torch.Generator().manual_seed(seed)
    k = min(m, n)
    left = torch.linalg.qr(torch.randn(m, k, generator=draws))[0]
    right = torch.linalg.qr(torch.randn(n, k, generator=draws))[0]
    return (left * torch.arange(1, k + 1).rsqrt()) @ right.T


def split(u: Tensor, s: Tensor, vt: Tensor) -> LowRank:
    return LowRank(u * s.sqrt(), s.sqrt()[:, None] * vt)


def torch_svd(matrix: Tensor, r: int) -> LowRank:
    u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    return split(u[:, :r], s[:r], vt[:r])


def torch_svd_lowrank(matrix: Tensor, r: int) -> LowRank:
    u, s, v = torch.svd_lowrank(matrix, q=r + 10, niter=2)
    return split(u[:, :r], s[:r], v[:, :r].T)


def tensorly_svd(matrix: Tensor, r: int) -> LowRank:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import tensorly
        from tensorly.tenalg import svd_interface

        tensorly.set_backend("pytorch")
    return split(*svd_interface(matrix, n_eigenvecs=r, solver="truncated_svd"))


PEERS: dict[str, Callable[[Tensor, int], LowRank]] = {
    "ours": lambda w, r: svd(w, r),
    "ours randomized": lambda w, r: svd(w, r, solver="randomized", random_state=0),
    "torch": torch_svd,
    "torch svd_lowrank": torch_svd_lowrank,
    "tensorly": tensorly_svd,
}


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("case", CASES)
def test_svd(benchmark: Any, case: str, peer: str) -> None:
    m, n, r = CASES[case]
    matrix = decaying(m, n)
    benchmark.group = f"svd, {case}"
    factors = benchmark.pedantic(PEERS[peer], args=(matrix, r), rounds=3, warmup_rounds=1)
    benchmark.extra_info.update(case=case, peer=peer, rel_error=factors.rel_error(matrix))


@pytest.mark.parametrize("peer", ["ours", "torch"])
@pytest.mark.parametrize("case", ["768x768 r192", "3072x768 r128", "512x4608 r128"])
def test_svd_in_the_metric_of_the_inputs(benchmark: Any, case: str, peer: str) -> None:
    """Beside the closed form by Cholesky whitening, written with torch in float64."""
    m, n, r = CASES[case]
    matrix = decaying(m, n)
    inputs = decaying(n, n, seed=1) @ torch.randn(n, 2 * n, generator=torch.Generator())
    gram = inputs @ inputs.T / (2 * n)

    def ours() -> LowRank:
        return svd(matrix, r, gram=gram)

    def whitened() -> LowRank:
        wide = gram.double()
        wide.diagonal().add_(1e-8 * wide.diagonal().mean())
        root = torch.linalg.cholesky(wide)
        u, s, vt = torch.linalg.svd(matrix.double() @ root, full_matrices=False)
        right = torch.linalg.solve_triangular(root, vt[:r], upper=False, left=False)
        return split(u[:, :r].float(), s[:r].float(), right.float())

    benchmark.group = f"svd with gram, {case}"
    run = ours if peer == "ours" else whitened
    factors = benchmark.pedantic(run, rounds=3, warmup_rounds=1)
    off = (matrix - factors.to_dense()) @ inputs
    error = float(off.norm() / (matrix @ inputs).norm())
    benchmark.extra_info.update(case=f"gram, {case}", peer=peer, rel_error=error)
