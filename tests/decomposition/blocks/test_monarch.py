"""Monarch approximation: optimality, padding, errors kept, the metric of the inputs, refusals."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tensorlrf.decomposition.blocks._monarch import fit_monarch, monarch, near_root
from tensorlrf.errors import (
    RankError,
    ShapeError,
    UnsupportedError,
)
from tensorlrf.factors import MonarchFactors
from tests.draws import seeded
from tests.metrics import moments, output_error

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def planted(m: int, n: int, Q: int, K: int, r: int) -> Tensor:
    S, P = -(-m // Q), -(-n // K)
    return MonarchFactors(seeded(Q, S, K, r), seeded(K, Q, r, P, seed=1), (m, n)).to_dense()


def discarded(weight: Tensor, Q: int, K: int, r: int) -> float:
    """The least relative error, one block at a time, by slices."""
    n = weight.shape[1]
    P = -(-n // K)
    lost = 0.0
    for q in range(Q):
        for k in range(K):
            block = weight.double()[q::Q, k * P : (k + 1) * P]
            if block.numel():
                lost += float((torch.linalg.svdvals(block)[r:] ** 2).sum())
    return math.sqrt(lost) / float(weight.double().norm())


@settings(derandomize=True, deadline=None, max_examples=30)
@given(
    m=st.integers(1, 17),
    n=st.integers(1, 17),
    Q=st.integers(1, 6),
    K=st.integers(1, 6),
    r=st.integers(1, 6),
    dtype=st.sampled_from(DTYPES),
)
def test_residual_is_the_discarded_energy(
    m: int, n: int, Q: int, K: int, r: int, dtype: torch.dtype
) -> None:
    Q, K = min(Q, m), min(K, n)
    r = min(r, -(-m // Q), -(-n // K))
    weight = seeded(m, n, dtype=dtype)
    fit = fit_monarch(weight, r, blocks=(Q, K))
    assert fit.factors.shape == (m, n)
    assert fit.factors.rank == r
    assert fit.factors.dtype == dtype
    rounding = 4 * torch.finfo(dtype).eps * math.sqrt(r)
    if dtype in (torch.float32, torch.float64):
        rounding *= min(m, n) + 4
    best = discarded(weight, Q, K, r)
    assert best - rounding <= fit.error <= best + rounding + 1e-12
    if dtype == torch.float64:
        assert fit.factors.rel_error(weight) == pytest.approx(fit.error, rel=1e-9, abs=1e-14)


@pytest.mark.parametrize("sides", [(97, 101), (64, 64), (36, 100)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_planted_ones_are_found_exactly(sides: tuple[int, int], dtype: torch.dtype) -> None:
    weight = planted(*sides, 8, 10, 2).to(dtype)
    fit = fit_monarch(weight, 2, blocks=(8, 10))
    eps = torch.finfo(dtype).eps
    assert fit.error <= 16 * eps
    found = fit_monarch(weight, error=64 * eps, blocks=(8, 10))
    assert found.factors.rank == 2
    assert found.error <= 64 * eps


def test_default_blocks_lie_near_the_roots() -> None:
    assert [near_root(n) for n in (1, 64, 576, 768, 1536, 97)] == [1, 8, 24, 24, 32, 10]
    factors = monarch(seeded(97, 101), 1)
    assert factors.blocks == (10, 10)
    assert factors.padded == (100, 110)
    assert monarch(seeded(48, 64), 1, blocks=4).blocks == (4, 4)


@pytest.mark.parametrize("share", [0.3, 0.5, 1.0, "same"])
def test_a_share_is_an_upper_bound(share: float) -> None:
    weight = seeded(48, 60)
    fit = fit_monarch(weight, share)
    allowed = 1.0 if share == "same" else share
    assert fit.factors.n_params <= allowed * weight.numel()
    one_more = fit.factors.n_params * (fit.factors.rank + 1) / fit.factors.rank
    assert monarch(weight, 0.01).rank == 1
    full = fit.factors.rank == min(48 // fit.factors.blocks[0], 60 // fit.factors.blocks[1])
    assert full or one_more > allowed * weight.numel()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("error", [0.05, 0.3, 0.7])
def test_an_error_is_kept_by_the_smallest_rank(error: float, dtype: torch.dtype) -> None:
    weight = seeded(30, 44, dtype=dtype)
    fit = fit_monarch(weight, error=error)
    assert fit.converged
    assert fit.error <= error
    wide = fit.factors.to(torch.float64)
    assert wide.rel_error(weight.double()) <= error * (1 + 1e-5)
    if fit.factors.rank > 1:
        assert fit_monarch(weight, fit.factors.rank - 1).error > error


def test_an_error_of_the_outputs_is_kept() -> None:
    weight, gram = seeded(24, 30), moments(30, "full")
    fit = fit_monarch(weight, error=0.1, gram=gram)
    assert output_error(weight, fit.factors, gram) <= 0.1
    assert fit_monarch(weight, fit.factors.rank - 1, gram=gram).error > 0.1


def test_refusals() -> None:
    weight = seeded(12, 10)
    with pytest.raises(RankError, match="rank=4 is above"):
        monarch(weight, 4, blocks=(4, 3))
    for blocks in (0, 13, (4, 11), (1, 2, 3), "4"):
        with pytest.raises(ShapeError, match="blocks="):
            monarch(weight, 1, blocks=blocks)  # type: ignore[arg-type]
    with pytest.raises(UnsupportedError, match="svd, kron or tucker"):
        monarch(seeded(4, 4, 3, 3), 1)
