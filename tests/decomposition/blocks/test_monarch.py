"""Monarch approximation: optimality, padding, errors kept, the metric of the inputs, refusals."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tensorlrf.decomposition.blocks._monarch import fit_monarch, monarch, near_root
from tensorlrf.errors import (
    ArgumentError,
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


@pytest.mark.parametrize("kind", ["full", "few", "dead"])
@pytest.mark.parametrize("sides", [(24, 30), (23, 29)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_serves_the_outputs_better_than_the_plain_one(
    kind: str, sides: tuple[int, int], dtype: torch.dtype
) -> None:
    weight, gram = seeded(*sides).to(dtype), moments(sides[1], kind)
    copies = weight.clone(), gram.clone()
    for rank in (1, 3):
        usual = output_error(weight, monarch(weight, rank, blocks=(4, 5)), gram)
        fit = fit_monarch(weight, rank, blocks=(4, 5), gram=gram)
        assert fit.factors.dtype == dtype
        assert fit.error <= usual * (1 + 1e-9)
        assert fit.error == pytest.approx(output_error(weight, fit.factors, gram), rel=1e-3)
        assert all(b <= a * (1 + 1e-12) for a, b in pairwise(fit.errors[:-1]))
        assert fit.errors[-2] < 0.95 * fit.errors[0]
    assert torch.equal(weight, copies[0])
    assert torch.equal(gram, copies[1])


def test_with_white_inputs_it_is_the_plain_one() -> None:
    weight = seeded(23, 29)
    usual = fit_monarch(weight, 2)
    fit = fit_monarch(weight, 2, gram=torch.eye(29))
    assert fit.error == pytest.approx(usual.error, rel=1e-9)
    torch.testing.assert_close(fit.factors.to_dense(), usual.factors.to_dense())


def test_an_error_of_the_outputs_is_kept() -> None:
    weight, gram = seeded(24, 30), moments(30, "full")
    fit = fit_monarch(weight, error=0.1, gram=gram)
    assert output_error(weight, fit.factors, gram) <= 0.1
    assert fit_monarch(weight, fit.factors.rank - 1, gram=gram).error > 0.1


def test_no_size_of_the_weight_is_too_small_or_large() -> None:
    weight = seeded(30, 40)
    for gram in (None, moments(40, "full")):
        usual = fit_monarch(weight.float(), 2, gram=gram).error
        for scale in (1e-30, 1e30):
            scaled = fit_monarch((weight * scale).float(), 2, gram=gram).error
            assert scaled == pytest.approx(usual, rel=1e-4)


def test_degenerate_weights_give_finite_factors() -> None:
    for weight in (torch.zeros(6, 5), torch.ones(6, 5), torch.ones(1, 5), torch.ones(1, 1)):
        for gram in (None, torch.zeros(weight.shape[1], weight.shape[1])):
            fit = fit_monarch(weight, 1, gram=gram)
            assert all(torch.isfinite(t).all() for t in fit.factors.tensors().values())
            assert math.isfinite(fit.error)


def test_refusals() -> None:
    weight = seeded(12, 10)
    with pytest.raises(ArgumentError, match="give rank or error"):
        monarch(weight)
    with pytest.raises(RankError, match="rank=4 is above"):
        monarch(weight, 4, blocks=(4, 3))
    for rank in (0, 1.5, "auto", True, (1, 2)):
        with pytest.raises(RankError, match="rank="):
            monarch(weight, rank)
    for blocks in (0, 13, (4, 11), (1, 2, 3), "4"):
        with pytest.raises(ShapeError, match="blocks="):
            monarch(weight, 1, blocks=blocks)  # type: ignore[arg-type]
    with pytest.raises(UnsupportedError, match="svd, kron or tucker"):
        monarch(seeded(4, 4, 3, 3), 1)
    with pytest.raises(ArgumentError, match="Inf"):
        monarch(weight * math.inf, 1)
    with pytest.raises(ShapeError, match="gram"):
        monarch(weight, 1, gram=torch.eye(12))
    with pytest.raises(ArgumentError, match="n_iter_max"):
        monarch(weight, 1, n_iter_max=1.5)  # type: ignore[arg-type]
