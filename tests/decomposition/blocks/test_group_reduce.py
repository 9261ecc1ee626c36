"""Bands of rows by how often they are looked up: the best of their class, and never behind one low
rank."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tensorlrf.decomposition import fit_group_reduce, group_reduce, svd
from tensorlrf.decomposition.rank import whole
from tensorlrf.errors import ArgumentError, ShapeError
from tensorlrf.factors import BandedLowRank, Factors, LowRank
from tests.draws import seeded
from tests.laws.checks import quiet


def table(rows: int, columns: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """With singular values that fall."""
    left, right = seeded(rows, columns, seed=seed), seeded(columns, columns, seed=seed + 1)
    return (left @ (right * 0.9 ** torch.arange(columns))).to(dtype)


def zipf(rows: int) -> Tensor:
    return (1000 / torch.arange(1.0, rows + 1, dtype=torch.float64)).round()


def left_of(factors: Factors, weight: Tensor, counts: Tensor | None) -> float:
    """The weighted sum of squares of what factors leave."""
    lost = (weight.double() - factors.to(torch.float64).to_dense()).square().sum(1)
    weights = torch.ones_like(lost) if counts is None else counts.double() + 1
    return float((weights * lost).sum())


def one_low_rank(weight: Tensor, counts: Tensor | None, rank: int) -> float:
    """The least that a single one leaves."""
    weights = torch.ones(len(weight), dtype=torch.float64)
    weights = weights if counts is None else counts.double() + 1
    values = torch.linalg.svdvals(weights.sqrt()[:, None] * weight.double())
    return float(values[rank:].square().sum())


@given(
    rows=st.integers(1, 90),
    columns=st.integers(1, 12),
    bands=st.integers(1, 7),
    share=st.floats(0.05, 1.0),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
    kind=st.sampled_from(["none", "zipf", "equal", "never", "turned"]),
)
@settings(max_examples=60, deadline=None)
def test_never_behind_one_low_rank_of_as_many_parameters(
    rows: int, columns: int, bands: int, share: float, dtype: torch.dtype, kind: str
) -> None:
    weight = table(rows, columns, dtype=dtype)
    counts = {
        "none": None, "zipf": zipf(rows), "equal": torch.full((rows,), 3),
        "never": torch.zeros(rows, dtype=torch.int64), "turned": zipf(rows).flip(0),
    }[kind]  # fmt: skip
    factors = group_reduce(weight, share, counts=counts, bands=bands)
    least = rows + columns
    assert factors.shape == (rows, columns)
    assert factors.dtype == dtype
    assert factors.n_params <= max(whole(share * rows * columns), least)
    rank = max(1, min(rows, columns, math.floor(share * rows * columns * (1 + 1e-12) / least)))
    energy = one_low_rank(weight, counts, 0)
    rounding = (16 * float(torch.finfo(dtype).eps)) ** 2 * energy
    bound = one_low_rank(weight, counts, rank)
    cross = 2 * math.sqrt(bound * rounding)
    assert left_of(factors, weight, counts) <= bound * (1 + 1e-9) + cross + rounding


@given(rank=st.integers(1, 6), seed=st.integers(0, 9))
@settings(max_examples=15, deadline=None)
def test_one_band_is_the_weighted_low_rank(rank: int, seed: int) -> None:
    weight, counts = table(30, 6, seed), zipf(30)
    factors = group_reduce(weight, rank, counts=counts, bands=1)
    assert isinstance(factors, LowRank)
    assert factors.rank == rank
    got, best = left_of(factors, weight, counts), one_low_rank(weight, counts, rank)
    assert got == pytest.approx(best, rel=1e-9, abs=1e-9)
    plain = group_reduce(weight, rank, bands=1)
    torch.testing.assert_close(plain.to_dense(), svd(weight, rank).to_dense())


@pytest.mark.parametrize("share", [0.5, 0.6, 0.7])
def test_ranks_leave_about_the_least_that_any_ranks_do(share: float) -> None:
    """Against all ranks of two bands: less is left than by the best of one rank of the costliest
    band fewer parameters."""
    weight, counts = seeded(40, 8), zipf(40).square()
    found = group_reduce(weight, share, counts=counts, bands=2)
    assert isinstance(found, BandedLowRank)
    order = counts.argsort(descending=True, stable=True)
    parts = [order[:10], order[10:]]
    tails = [[one_low_rank(weight[rows], counts[rows], r) for r in range(9)] for rows in parts]
    budget = int(share * 320) - 40

    def cost(ranks: tuple[int, ...]) -> int:
        each = (r * (len(p) + 8) for r, p in zip(ranks, parts, strict=True))
        return sum(min(c, 8 * len(p)) for c, p in zip(each, parts, strict=True))

    def best(params: int) -> float:
        every = itertools.product(range(1, 9), repeat=2)
        return min(
            sum(t[r] if r * (len(p) + 8) < 8 * len(p) else 0.0
                for t, r, p in zip(tails, ranks, parts, strict=True))
            for ranks in every if cost(ranks) <= params
        )  # fmt: skip

    got = left_of(found, weight, counts)
    assert best(budget) <= got * (1 + 1e-9)
    assert got <= best(max(cost((1, 1)), budget - 48)) * (1 + 1e-9)


def test_frequent_rows_are_nearer_and_rare_ones_go_with_them() -> None:
    weight, counts = seeded(400, 24), zipf(400).square()
    found = group_reduce(weight, 0.4, counts=counts)
    one = group_reduce(weight, 0.4, counts=counts, bands=1)
    assert isinstance(found, BandedLowRank)
    assert left_of(found, weight, counts) < 0.5 * left_of(one, weight, counts)
    sizes = [left.shape[1] for left in found.lefts]
    assert sizes == sorted(sizes, reverse=True)
    assert [len(left) for left in found.lefts][-1] == 300
    assert found.place[0] == 0  # the most frequent


def test_rows_in_any_order_are_the_same_rows() -> None:
    weight, counts = table(60, 8), zipf(60)
    counts = counts + torch.arange(60).flip(0) / 100  # no two alike
    turn = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    usual = group_reduce(weight, 0.5, counts=counts)
    other = group_reduce(weight[turn], 0.5, counts=counts[turn])
    torch.testing.assert_close(other.to_dense(), usual.to_dense()[turn])


def test_full_rank_is_the_table() -> None:
    for dtype in (torch.float64, torch.float32):
        weight = table(300, 6, dtype=dtype)
        for factors in (
            group_reduce(weight, 6, counts=zipf(300)),
            group_reduce(weight, error=0.0, counts=zipf(300)),
        ):
            assert factors.rel_error(weight) < 64 * torch.finfo(dtype).eps


@pytest.mark.parametrize("error", [0.6, 0.3, 0.05])
def test_an_error_is_kept_with_no_more_parameters_than_one_low_rank(error: float) -> None:
    weight, counts = table(200, 16), zipf(200)
    fit = fit_group_reduce(weight, error=error, counts=counts)
    one = fit_group_reduce(weight, error=error, counts=counts, bands=1)
    for found in (fit, one):
        whole = one_low_rank(weight, counts, 0)
        told = math.sqrt(left_of(found.factors, weight, counts) / whole)
        assert found.error == pytest.approx(told, rel=1e-6)
        assert told <= error
    assert fit.factors.n_params <= one.factors.n_params


def test_fewer_rows_than_bands() -> None:
    for rows in (1, 2, 3, 5):
        weight = table(rows, 4)
        factors = group_reduce(weight, 1, counts=torch.arange(rows), bands=9)
        assert factors.shape == (rows, 4)
        assert torch.isfinite(factors.to_dense()).all()


@pytest.mark.parametrize(
    ("counts", "kind", "words"),
    [
        (torch.ones(7), ShapeError, r"counts has shape \(7,\); the table has 8 rows"),
        (-torch.ones(8), ArgumentError, "counts has entries that are negative"),
        (torch.full((8,), math.nan), ArgumentError, "counts has entries .* torch.bincount"),
        ([1] * 8, ArgumentError, "counts is a list"),
    ],
)
def test_counts_that_are_none(counts: Any, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words), quiet():
        group_reduce(torch.ones(8, 3), 1, counts=counts)


@pytest.mark.parametrize("bands", [0, -1, 1.5, True, "many"])
def test_bands_that_are_none(bands: Any) -> None:
    with pytest.raises(ArgumentError, match=f"bands={bands!r} must be an int of at least 1"):
        group_reduce(torch.ones(8, 3), 1, bands=bands)
