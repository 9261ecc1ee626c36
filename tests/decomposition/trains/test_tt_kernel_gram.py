"""Trains of conv kernels in the metric of the inputs, and analytic ranks of trains."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorlrf.decomposition.linalg._solve import conjugate_gradients
from tensorlrf.decomposition.trains import _tt_outputs
from tensorlrf.decomposition.trains._tt import fit_tt, tt
from tensorlrf.decomposition.trains._tt_matrix import tt_matrix
from tests.draws import seeded
from tests.metrics import moments_within, output_error

ORDER = (0, 3, 2, 1)


@pytest.mark.filterwarnings("ignore::tensorlrf.errors.ConvergenceWarning")  # a few sweeps will do
@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    shape=st.tuples(st.integers(2, 7), st.integers(2, 5), st.integers(1, 3), st.integers(1, 3)),
    rank=st.integers(1, 4),
    singular=st.booleans(),
    seed=st.integers(0, 5),
)
def test_outputs_are_never_worse_than_of_the_plain_train(
    shape: tuple[int, ...], rank: int, singular: bool, seed: int
) -> None:
    kernel = seeded(*shape, seed=seed)
    n = math.prod(shape[1:])
    k = max(1, n // 2) if singular else n
    gram = moments_within(n, k, samples=4 * n, seed=seed + 7)
    plain = tt(kernel, rank, modes=ORDER)
    fit = fit_tt(kernel, rank, modes=ORDER, gram=gram)
    assert fit.factors.rank == plain.rank
    assert list(fit.errors) == sorted(fit.errors, reverse=True)
    found = output_error(kernel, fit.factors.to_dense(), gram)
    before = output_error(kernel, plain.to_dense(), gram)
    assert found <= before * (1 + 1e-9) + 1e-12
    assert math.isclose(fit.error, found, rel_tol=1e-6, abs_tol=1e-7)


def test_an_error_of_the_outputs_is_kept() -> None:
    kernel, gram = seeded(8, 6, 3, 3), moments_within(54, 54)
    for error in (0.5, 0.1):
        fit = fit_tt(kernel, error=error, modes=ORDER, gram=gram)
        assert fit.converged
        assert output_error(kernel, fit.factors.to_dense(), gram) <= error
        plain = tt(kernel, error=error, modes=ORDER)
        assert fit.factors.n_params <= plain.n_params


def test_conjugate_gradients_solve_a_singular_system_they_can_solve() -> None:
    a = seeded(6, 4)
    matrix = a @ a.T
    wanted = matrix @ seeded(6, seed=3)
    x = conjugate_gradients(lambda v: matrix @ v, wanted, torch.zeros_like(wanted), steps=12)
    torch.testing.assert_close(matrix @ x, matrix @ seeded(6, seed=3))


def test_analytic_ranks_find_a_planted_train() -> None:
    ranks = (3, 4, 2)
    sizes = [(1, 20, 3), (3, 12, 4), (4, 15, 2), (2, 18, 1)]
    cores = [seeded(*size, seed=k) for k, size in enumerate(sizes)]
    clean = torch.einsum("xap,pbq,qcr,rdy->abcd", *cores)
    noisy = clean + 0.1 * clean.std() * seeded(*clean.shape, seed=9)
    assert tt(noisy, "auto").rank == (1, *ranks, 1)


def test_analytic_ranks_of_a_tt_matrix() -> None:
    a, b = seeded(2, 12, 10), seeded(2, 15, 16, seed=1)
    clean = torch.kron(a[0], b[0]) + torch.kron(a[1], b[1])
    noisy = clean + 0.05 * clean.std() * seeded(*clean.shape, seed=9)
    found = tt_matrix(noisy, "auto", row_sizes=(12, 15), column_sizes=(10, 16))
    assert found.rank == (1, 2, 1)


@pytest.mark.filterwarnings("ignore::tensorlrf.errors.ConvergenceWarning")  # a few sweeps will do
@pytest.mark.parametrize("singular", [False, True])
def test_a_tt_matrix_by_gradients_comes_near_the_one_by_solves(
    singular: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    matrix, gram = seeded(24, 30), moments_within(30, 12 if singular else 30)
    sizes = {"row_sizes": (4, 3, 2), "column_sizes": (5, 3, 2)}
    plain = output_error(matrix, tt_matrix(matrix, 4, **sizes).to_dense(), gram)
    solved = output_error(matrix, tt_matrix(matrix, 4, gram=gram, **sizes).to_dense(), gram)
    monkeypatch.setattr(_tt_outputs, "MOST_UNKNOWNS", 0)
    descended = output_error(matrix, tt_matrix(matrix, 4, gram=gram, **sizes).to_dense(), gram)
    assert descended < plain
    # Both end in local minima; neither is far from the other.
    assert descended < solved + 0.1 * plain
