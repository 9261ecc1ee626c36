"""Rounding, sums and inner products of trains, against the whole."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tensorlrf.decomposition.trains._tt import fit_tt, tt
from tensorlrf.decomposition.trains._tt_algebra import tt_add, tt_inner
from tensorlrf.decomposition.trains._tt_matrix import tt_matrix
from tensorlrf.decomposition.trains._tt_round import fit_tt_round, tt_round
from tensorlrf.errors import ArgumentError, RankError, ShapeError
from tensorlrf.factors import TTFactors, TTMatrix
from tensorlrf.factors.kinds import below
from tests.draws import seeded

EPS = torch.finfo(torch.float64).eps


def train(
    shape: tuple[int, ...],
    ranks: tuple[int, ...],
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> TTFactors:
    bonds = (1, *ranks, 1)
    sizes = zip(shape, pairwise(bonds), strict=True)
    return TTFactors(
        tuple(seeded(r, n, s, seed=seed + k, dtype=dtype) for k, (n, (r, s)) in enumerate(sizes))
    )


def matrix(seed: int = 0, shape: tuple[int, int] = (22, 29), rank: int = 3) -> TTMatrix:
    """Row digits (4, 3, 2) and column digits (3, 5, 2), with junk in the padding."""
    bonds = (1, rank, rank, 1)
    digits = zip((4, 3, 2), (3, 5, 2), pairwise(bonds), strict=True)
    cores = tuple(seeded(r, m, n, s, seed=seed + k) for k, (m, n, (r, s)) in enumerate(digits))
    return TTMatrix(cores, shape)


@settings(derandomize=True, deadline=None, max_examples=30)
@given(
    shape=st.lists(st.integers(1, 6), min_size=1, max_size=4).map(tuple),
    data=st.data(),
)
def test_sums_and_inner_products_are_those_of_the_wholes(
    shape: tuple[int, ...], data: st.DataObject
) -> None:
    ranks = st.tuples(*[st.integers(1, 4)] * (len(shape) - 1))
    first = train(shape, data.draw(ranks))
    second = train(shape, data.draw(ranks), seed=10)
    a, b = first.to_dense(), second.to_dense()
    whole = tt_add(first, second)
    size = float(a.norm() * b.norm()) * 100 * EPS
    torch.testing.assert_close(whole.to_dense(), a + b, rtol=0, atol=1e-12)
    if len(shape) > 1:
        added = [r + s for r, s in zip(first.rank[1:-1], second.rank[1:-1], strict=True)]
        assert list(whole.rank[1:-1]) == added
    inner = tt_inner(first, second)
    assert inner.shape == ()
    assert float(inner) == pytest.approx(float((a * b).sum()), abs=size)


@pytest.mark.parametrize("shape", [(24, 30), (22, 30), (24, 29), (22, 29), (1, 1), (13, 16)])
def test_padding_does_not_count(shape: tuple[int, int]) -> None:
    first, second = matrix(0, shape), matrix(7, shape)
    a, b = first.to_dense(), second.to_dense()
    torch.testing.assert_close(tt_add(first, second).to_dense(), a + b)
    assert float(tt_inner(first, second)) == pytest.approx(float((a * b).sum()), rel=1e-10)
    rounded = fit_tt_round(tt_add(first, second), 2)
    assert rounded.factors.shape == shape
    assert rounded.error == pytest.approx(rounded.factors.rel_error(a + b), rel=1e-9)
    kept = fit_tt_round(tt_add(first, second), error=0.2)
    assert kept.factors.rel_error(a + b) <= 0.2


@pytest.mark.parametrize("n", range(1, 25))
def test_numbers_below_a_bound_are_a_train_of_rank_two(n: int) -> None:
    cores = below((2, 3, 4), n, torch.zeros(()))
    dense = TTFactors(tuple(cores)).to_dense().flatten()
    assert torch.equal(dense, (torch.arange(24) < n).float())


@settings(derandomize=True, deadline=None, max_examples=30)
@given(
    shape=st.lists(st.integers(1, 6), min_size=2, max_size=4).map(tuple),
    data=st.data(),
    error=st.floats(0.02, 0.8),
)
def test_rounding_keeps_the_error_and_the_bounds_of_tt_svd(
    shape: tuple[int, ...], data: st.DataObject, error: float
) -> None:
    ranks = st.tuples(*[st.integers(1, 5)] * (len(shape) - 1))
    factors = train(shape, data.draw(ranks))
    dense = factors.to_dense()
    fit = fit_tt_round(factors, error=error)
    assert fit.factors.rel_error(dense) <= error
    assert all(a <= b for a, b in zip(fit.factors.rank, factors.rank, strict=True))
    rank = data.draw(st.integers(1, 4))
    cut = fit_tt_round(factors, rank)
    assert cut.error == pytest.approx(cut.factors.rel_error(dense), abs=1e-13)
    tails = []
    for k, r in enumerate(cut.factors.rank[1:-1], start=1):
        values = torch.linalg.svdvals(dense.reshape(math.prod(shape[:k]), -1))
        tails.append(float(values[r:].square().sum() / values.square().sum()))
    assert cut.error <= math.sqrt(sum(tails)) + 1e-13
    assert cut.error >= math.sqrt(max(tails)) - 1e-13


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_exact_at_the_true_ranks(dtype: torch.dtype) -> None:
    small = train((6, 7, 8, 5), (3, 4, 2), dtype=dtype)
    twice = tt_add(small, small)
    assert twice.rank == (1, 6, 8, 4, 1)
    # Four cores rounded to the dtype, and sums of up to 48 products in float64.
    bound = 4 * torch.finfo(dtype).eps + 48 * EPS
    fit = fit_tt_round(twice, (3, 4, 2))
    assert fit.error <= bound
    assert fit.factors.dtype == dtype
    again = fit_tt_round(twice, error=2 * bound)
    assert again.factors.rank == small.rank
    wide = small.to(torch.float64).to_dense()
    assert fit.factors.to(torch.float64).rel_error(2 * wide) <= bound
    assert fit_tt_round(small, 99).error <= bound
    assert tt_round(small, 99).rank == small.rank


def test_rounding_is_tt_svd_without_the_whole() -> None:
    tensor = seeded(9, 8, 7)
    exact = tt(tensor, 99)
    for rank in (2, 5):
        assert fit_tt_round(exact, rank).error == pytest.approx(
            fit_tt(tensor, rank).error, rel=0.02
        )
    weight = seeded(30, 28)
    full = tt_matrix(weight, 99)
    assert fit_tt_round(full, 4).error == pytest.approx(
        tt_matrix(weight, 4).rel_error(weight), rel=1e-9
    )


@pytest.mark.parametrize("factor", [1e-30, 1e30])
def test_scale_does_not_matter(factor: float) -> None:
    factors = train((6, 7, 8), (5, 5))
    far = TTFactors((factors.cores[0] * factor, *factors.cores[1:]))
    one, other = fit_tt_round(factors, 2), fit_tt_round(far, 2)
    assert other.error == pytest.approx(one.error, rel=1e-9)
    assert bool(other.factors.to_dense().isfinite().all())
    many = TTFactors(tuple(1e60 * c for c in train((2,) * 12, (2,) * 11).cores))
    assert fit_tt_round(many, 99).error <= 1e-13


def test_below_the_rounding_of_the_dtype_the_train_stays() -> None:
    factors = train((6, 7, 8), (3, 3), dtype=torch.bfloat16)
    fit = fit_tt_round(factors, error=1e-6)
    assert fit.error == 0.0
    assert all(torch.equal(a, b) for a, b in zip(fit.factors, factors, strict=True))
    zero = TTFactors((torch.zeros(1, 3, 2), torch.zeros(2, 4, 1)))
    assert fit_tt_round(zero, 1).error == 0.0
    assert tt_round(zero, error=0.1).rank == (1, 1, 1)


def test_modes_and_givens_are_kept() -> None:
    factors = TTFactors(train((4, 3, 5), (3, 3)).cores, (2, 0, 1))
    copies = [c.clone() for c in factors]
    rounded = tt_round(factors, 2)
    assert rounded.modes == (2, 0, 1)
    assert tt_add(factors, rounded).modes == (2, 0, 1)
    assert all(torch.equal(a, b) for a, b in zip(factors, copies, strict=True))
    assert tt_round(factors, 0.5).n_params <= 30


def test_gradients_of_an_inner_product() -> None:
    first, second = train((3, 4), (2,)), train((3, 4), (3,), seed=5)

    def inner(*cores: Tensor) -> Tensor:
        return tt_inner(TTFactors(cores[:2]), TTFactors(cores[2:]))

    leaves = [c.clone().requires_grad_() for c in (*first, *second)]
    assert torch.autograd.gradcheck(inner, leaves)
    half = train((3, 4), (2,), dtype=torch.bfloat16)
    assert tt_inner(half, half).dtype == torch.float32


def test_refusals() -> None:
    factors: Any = train((4, 3, 5), (2, 2))
    others: list[tuple[Any, type[Exception], str]] = [
        (train((4, 3, 6), (2, 2)), ShapeError, "alike"),
        (TTFactors(factors.cores, (0, 2, 1)), ShapeError, "modes"),
        (factors.to(torch.float32), ArgumentError, "bring them together"),
        (matrix(), ArgumentError, "one kind"),
        (torch.ones(3), ArgumentError, "second is a Tensor"),
    ]
    for other, error, text in others:
        for operation in (tt_add, tt_inner):
            with pytest.raises(error, match=text):
                operation(factors, other)
    with pytest.raises(ShapeError, match="alike"):
        tt_add(matrix(), matrix(shape=(22, 30)))
    dense: Any = torch.ones(3, 3)
    with pytest.raises(ArgumentError, match="factors is a Tensor"):
        tt_round(dense, 1)
    with pytest.raises(ArgumentError, match="neither"):
        tt_round(factors)
    with pytest.raises(ArgumentError, match="error=1e-08 is below"):
        tt_round(factors.to(torch.float32), error=1e-8)
    with pytest.raises(RankError, match="beyond 2"):
        tt_round(factors, 2**70)
    with pytest.raises(RankError, match="use at most 4"):
        tt_round(factors, (5, 2))
    with pytest.raises(ArgumentError, match=r"cores\.0 contains NaN"):
        tt_round(TTFactors((factors.cores[0] * math.nan, *factors.cores[1:])), 1)
