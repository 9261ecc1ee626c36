"""Skeletons beside those of scipy and LAPACK, and the matrices that tests of scipy are of."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import hilbert
from scipy.linalg import interpolative as scipys
from scipy.linalg.lapack import dpstrf

import tensorlrf
from tests.draws import seeded

pytestmark = pytest.mark.slow


def of_scipy(a: np.ndarray, rank: int, rand: bool) -> float:
    """The spectral norm of what scipy's leaves."""
    order, rest = scipys.interp_decomp(a, rank, rand=rand)
    columns = scipys.reconstruct_skel_matrix(a, rank, order)
    return float(np.linalg.norm(a - columns @ scipys.reconstruct_interp_matrix(order, rest), 2))


@pytest.mark.parametrize("n", [60, 300])
def test_hilbert_matrices_to_a_given_precision(n: int) -> None:
    """The matrix of scipy's tests: of rank 15 or so to 1e-12."""
    a = hilbert(n)
    f = tensorlrf.interpolative(a, error=1e-12)
    rank, _, _ = scipys.interp_decomp(a, 1e-12, rand=False)
    assert f.rel_error(a) <= 1e-12
    assert abs(f.rank - rank) <= 2


@pytest.mark.parametrize("rank", [4, 12, 30])
@pytest.mark.parametrize("solver", ["exact", "randomized"])
def test_errors_are_those_of_scipy(rank: int, solver: str) -> None:
    left, right = (torch.linalg.qr(seeded(n, 80, seed=n))[0] for n in (200, 120))
    w = left * torch.logspace(0, -5, 80, dtype=torch.float64) @ right.T
    f = tensorlrf.interpolative(w, rank, solver=solver, random_state=0)
    ours = float(torch.linalg.matrix_norm(w - f.to_dense(), 2))
    theirs = of_scipy(w.numpy(), rank, rand=solver == "randomized")
    assert ours <= (1.5 if solver == "randomized" else 1 + 1e-8) * theirs


def test_the_exact_ones_pick_what_scipy_picks() -> None:
    w = seeded(40, 25)
    order, _ = scipys.interp_decomp(w.numpy(), 9, rand=False)
    picked = tensorlrf.interpolative(w, 9, solver="exact").column_indices
    assert picked is not None
    assert picked.tolist() == order[:9].tolist()


def test_greedy_columns_are_the_pivots_of_lapack() -> None:
    """Nystrom by the largest of the diagonal is Cholesky with full pivots."""
    x = seeded(60, 40) * torch.logspace(0, -2, 40, dtype=torch.float64)
    a = x @ x.T
    f = tensorlrf.nystrom(a, 12, sampling="greedy")
    factor, pivots, _, _ = dpstrf(a.numpy().copy(order="F"), lower=1)
    assert f.column_indices is not None
    assert f.column_indices.tolist() == (pivots[:12] - 1).tolist()
    theirs = np.zeros((60, 12))
    theirs[pivots - 1] = np.tril(factor)[:, :12]
    # Entries of up to ten, sums of twelve products in another order: rounding is some 1e-14.
    np.testing.assert_allclose(f.to_dense().numpy(), theirs @ theirs.T, rtol=0, atol=1e-12)


def test_drawn_columns_lose_less_than_those_of_equal_chances() -> None:
    """On a kernel most of whose points are in one place, as `Nystroem` of scikit-learn draws."""
    points = torch.cat([0.05 * seeded(180, 2), 3 * seeded(20, 2, seed=1)])
    a = torch.exp(-torch.cdist(points, points).square())
    ours, equal = (
        [float((a - tensorlrf.nystrom(a, 15, sampling=way, random_state=k).to_dense()).trace())
         for k in range(20)]
        for way in ("rpcholesky", "uniform")
    )  # fmt: skip
    assert sum(ours) < 0.5 * sum(equal)


@pytest.mark.parametrize("rank", [4, 6, 8])
def test_crosses_of_a_function_are_near_what_scipy_finds_of_all_entries(rank: int) -> None:
    """Three more of them, of which most entries are never seen; above 1e-8, the floor of a core."""
    i, j = torch.meshgrid(torch.arange(90), torch.arange(70), indexing="ij")
    whole = 1 / (1.0 + i.double() + 2 * j.double())
    f = tensorlrf.aca(lambda at: 1 / (1.0 + at[:, 0] + 2.0 * at[:, 1]), (90, 70), rank + 3)
    ours = float(torch.linalg.matrix_norm(whole - f.to_dense(), 2))
    assert ours <= of_scipy(whole.numpy(), rank, rand=False)


@pytest.mark.parametrize("rank", [10, 25])
def test_cur_is_near_scipys_and_nearer_with_more_rows(rank: int) -> None:
    """By columns of one side and coefficients of the other scipy's knows more than CUR does."""
    left, right = (torch.linalg.qr(seeded(n, 120, seed=n))[0] for n in (400, 120))
    w = left * torch.logspace(0, -5, 120, dtype=torch.float64) @ right.T
    order, rest = scipys.interp_decomp(w.numpy(), rank, rand=False)
    columns = scipys.reconstruct_skel_matrix(w.numpy(), rank, order)
    theirs = columns @ scipys.reconstruct_interp_matrix(order, rest)
    lost = float((w - torch.from_numpy(theirs)).norm() / w.norm())
    assert tensorlrf.cur(w, rank).rel_error(w) < 1.42 * lost
    assert tensorlrf.cur(w, (rank, rank * 3 // 2)).rel_error(w) < 1.1 * lost
