"""Nystrom approximations lie between zero and the matrix."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tensorlrf.decomposition import fit_nystrom, nystrom
from tensorlrf.decomposition.skeleton._nystrom import SAMPLINGS
from tensorlrf.errors import ArgumentError, ShapeError
from tests.draws import seeded


def semidefinite(n: int, rank: int, seed: int = 0) -> Tensor:
    x = seeded(n, rank, seed=seed) * torch.logspace(0, -2, rank, dtype=torch.float64)
    return x @ x.T


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    n=st.integers(1, 12),
    rank=st.integers(1, 12),
    seed=st.integers(0, 99),
    sampling=st.sampled_from(SAMPLINGS),
)
def test_between_zero_and_the_matrix_and_exact_in_its_columns(
    n: int, rank: int, seed: int, sampling: str
) -> None:
    a = semidefinite(n, rank, seed)
    size = float(torch.linalg.matrix_norm(a, 2))
    # Of columns in any order, a small pivot divides the rounding of its column by its root.
    slack = (1e-13 if sampling == "greedy" else 1e-8) * size
    for r in sorted({1, (n + 1) // 2, n}):
        f = nystrom(a, r, sampling=sampling, random_state=seed)
        assert f.column_indices is not None
        picked = f.column_indices.long()
        assert len(set(picked.tolist())) == r
        dense = f.to_dense()
        torch.testing.assert_close(dense, dense.T, rtol=1e-12, atol=1e-12 * size)
        left = torch.linalg.eigvalsh(a - dense)
        assert float(left[0]) >= -slack
        assert float((a - dense)[picked].abs().max()) <= 10 * slack
    assert f.rel_error(a) < 1e-8


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_it_is_the_formula(sampling: str) -> None:
    a = semidefinite(12, 12)
    f = nystrom(a, 5, sampling=sampling, random_state=1)
    assert f.column_indices is not None
    s = f.column_indices.long()
    expected = a[:, s] @ torch.linalg.inv(a[s][:, s]) @ a[s]
    torch.testing.assert_close(f.to_dense(), expected, rtol=1e-9, atol=1e-11)
    assert f.n_params == 5 * 13


def test_the_trace_keeps_the_bound_of_the_paper() -> None:
    """On average over draws, with eps = 1 (theorem 3.1)."""
    x = torch.linspace(0, 6, 60, dtype=torch.float64)
    a = torch.exp(-((x[:, None] - x) ** 2))
    values = torch.linalg.eigvalsh(a).flip(0)
    k = 3
    tail = float(values[k:].sum())
    columns = k + k * torch.log(values.sum() / tail).ceil().int().item()
    left = [
        float((a - nystrom(a, int(columns), random_state=seed).to_dense()).trace())
        for seed in range(20)
    ]
    assert sum(left) / len(left) <= 2 * tail


@pytest.mark.parametrize("sampling", ["rpcholesky", "greedy"])
def test_an_error_is_kept_by_nested_columns(sampling: str) -> None:
    a = semidefinite(40, 30)
    fit = fit_nystrom(a, error=1e-2, sampling=sampling, random_state=0)
    assert fit.error <= 1e-2
    fewer = fit_nystrom(a, fit.factors.rank - 1, sampling=sampling, random_state=0)
    assert fewer.error > 1e-2


def test_what_is_not_symmetric_or_not_semidefinite_is_told_with_the_number() -> None:
    a = semidefinite(6, 6)
    skew = a.clone()
    skew[4, 1] += 0.5
    with pytest.raises(ArgumentError, match=r"\[1, 4\] and \[4, 1\] differ by 0.5; pass \(A"):
        nystrom(skew, 2)
    indefinite = a - 2 * torch.eye(6, dtype=a.dtype)
    with pytest.raises(ArgumentError, match="most negative eigenvalue is -2"):
        nystrom(indefinite, 2)
    with pytest.raises(ShapeError, match=r"shape \(6, 5\); nystrom takes a square matrix"):
        nystrom(a[:, :5], 2)
    with pytest.raises(ArgumentError, match="sampling='best' is unknown"):
        nystrom(a, 2, sampling="best")


def test_beyond_the_sides_that_are_checked_the_diagonal_tells(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tensorlrf.decomposition.skeleton._nystrom.CHECKED", 1)
    a = torch.tensor([[1.0, 3.0], [3.0, 1.0]])
    with pytest.raises(ArgumentError, match="without 1 columns its diagonal has -8 at"):
        nystrom(a, 2, sampling="greedy")
