"""Interpolative decompositions beside scipy's, and the matrices that its own tests are of."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import hilbert
from scipy.linalg import interpolative as scipys

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
