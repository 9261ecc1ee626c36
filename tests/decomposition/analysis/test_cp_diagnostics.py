"""Core consistency, matching of terms, restarts and halves."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tensorlrf
from tensorlrf.decomposition.analysis._matching import assignment
from tensorlrf.errors import ArgumentError, RankError, ShapeError
from tensorlrf.factors import CPFactors


def model(shape: tuple[int, ...], rank: int, seed: int = 0) -> CPFactors:
    rng = torch.Generator("cpu").manual_seed(seed)
    parts = [torch.randn(n, rank, generator=rng, dtype=torch.float64, device="cpu") for n in shape]
    weights = torch.rand(rank, generator=rng, dtype=torch.float64, device="cpu") + 1
    return CPFactors(weights, tuple(parts))


@pytest.mark.parametrize("shape", [(9, 8, 7), (6, 5, 4, 3)])
def test_planted_terms_are_consistent(shape: tuple[int, ...]) -> None:
    planted = model(shape, 3)
    assert tensorlrf.corcondia(planted.to_dense(), planted) == pytest.approx(100)


def test_one_term_too_many_is_inconsistent() -> None:
    rng = torch.Generator("cpu").manual_seed(1)
    tensor = model((9, 8, 7), 2).to_dense()
    tensor += 0.05 * tensor.norm() / 22 * torch.randn(9, 8, 7, generator=rng, dtype=torch.float64)
    right, more = (tensorlrf.cp(tensor, r, random_state=0) for r in (2, 4))
    assert tensorlrf.corcondia(tensor, right) > 95
    assert tensorlrf.corcondia(tensor, more) < 50


def test_it_is_that_of_the_kronecker_product() -> None:
    """Bro & Kiers 2003 as they write it."""
    rng = torch.Generator("cpu").manual_seed(2)
    tensor = torch.randn(5, 4, 3, generator=rng, dtype=torch.float64, device="cpu")
    f = model((5, 4, 3), 2)
    a, b, c = f.factors
    wide = torch.kron(torch.kron((a * f.weights).contiguous(), b), c)
    core = torch.linalg.lstsq(wide, tensor.reshape(-1, 1)).solution.reshape(2, 2, 2)
    core[[0, 1], [0, 1], [0, 1]] -= 1
    expected = 100 * (1 - float(core.square().sum()) / 2)
    assert tensorlrf.corcondia(tensor, f) == pytest.approx(expected)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(rank=st.integers(1, 9), seed=st.integers(0, 100))
def test_order_signs_and_lengths_are_of_no_consequence(rank: int, seed: int) -> None:
    rng = torch.Generator("cpu").manual_seed(seed)
    f = model((7, 6, 5), rank, seed)
    order = torch.randperm(rank, generator=rng, device="cpu")
    signs = torch.randint(2, (2, rank), generator=rng, device="cpu") * 2.0 - 1
    scale = torch.rand(rank, generator=rng, dtype=torch.float64, device="cpu") + 0.5
    a, b, c = f.factors
    other = CPFactors(
        (f.weights / scale)[order],
        ((a * signs[0] * scale)[:, order], (b * signs[1])[:, order], (c * signs.prod(0))[:, order]),
    )
    found = tensorlrf.factor_match_score(f, other)
    assert found.score == pytest.approx(1)
    assert [int(order[j]) for j in found.pairs] == list(range(rank))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(rows=st.integers(1, 5), more=st.integers(0, 2), seed=st.integers(0, 1000))
def test_no_assignment_costs_less(rows: int, more: int, seed: int) -> None:
    costs = np.random.default_rng(seed).integers(-4, 5, (rows, rows + more)).astype(float)
    found = assignment(costs)
    assert len(set(found)) == rows
    least = min(
        sum(costs[i, j] for i, j in enumerate(chosen))
        for chosen in permutations(range(rows + more), rows)
    )
    assert sum(costs[i, j] for i, j in enumerate(found)) == least


def test_unequal_ranks_match_what_both_have() -> None:
    f = model((7, 6, 5), 4)
    part = CPFactors(f.weights[1:3], tuple(u[:, 1:3] for u in f.factors))
    assert tensorlrf.factor_match_score(part, f).pairs == (1, 2)
    found = tensorlrf.factor_match_score(f, part)
    assert found.pairs == (-1, 0, 1, -1)
    assert "term 0 has none" in str(found)


def test_norms_of_terms_count_where_asked() -> None:
    f = model((7, 6, 5), 2)
    double = CPFactors(2 * f.weights, f.factors)
    assert tensorlrf.factor_match_score(f, double).score == pytest.approx(0.5)
    assert tensorlrf.factor_match_score(f, double, weights=False).score == pytest.approx(1)


def test_restarts_of_a_unique_model_agree() -> None:
    tensor = model((9, 8, 7), 3).to_dense()
    fits = [tensorlrf.decomposition.fit_cp(tensor, 3, random_state=seed) for seed in range(3)]
    found = tensorlrf.restart_congruence([f.factors for f in fits], [f.error + 0.1 for f in fits])
    assert found.unique
    assert "one model" in str(found)
    other = tensorlrf.restart_congruence([fits[0].factors, model((9, 8, 7), 3, 5)], [0.1, 0.1])
    assert not other.unique


def test_halves_show_what_is_planted_and_no_more() -> None:
    rng = torch.Generator("cpu").manual_seed(3)
    tensor = model((30, 8, 7), 2).to_dense()
    tensor += 0.3 * torch.randn(30, 8, 7, generator=rng, dtype=torch.float64, device="cpu")
    right = tensorlrf.split_half(tensor, 2, n_splits=2, random_state=0)
    assert right.reliable
    assert "found again" in str(right)
    assert not tensorlrf.split_half(tensor, 4, n_splits=2, random_state=0).reliable


def test_what_cannot_be_told() -> None:
    f = model((6, 5, 4), 2)
    with pytest.raises(RankError, match=r"rank=6 .*halves of shape \(3, 5, 4\).* 14 are needed"):
        tensorlrf.split_half(f.to_dense(), 6)
    with pytest.raises(ArgumentError, match="mode=3"):
        tensorlrf.split_half(f.to_dense(), 2, mode=3)
    with pytest.raises(ShapeError, match="one shape"):
        tensorlrf.factor_match_score(f, model((6, 5, 3), 2))
    with pytest.raises(ShapeError, match="tensor has shape"):
        tensorlrf.corcondia(f.to_dense()[:5], f)
    matrix = model((6, 5), 2)
    with pytest.raises(ArgumentError, match="matrix"):
        tensorlrf.corcondia(matrix.to_dense(), matrix)
    with pytest.raises(ArgumentError, match="two models at least"):
        tensorlrf.restart_congruence([f], [0.1])
    with pytest.raises(ArgumentError, match="pass CPFactors"):
        tensorlrf.factor_match_score(f, f.to_dense())  # type: ignore[arg-type]
