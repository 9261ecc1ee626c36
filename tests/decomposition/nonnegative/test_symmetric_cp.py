"""Symmetric CP: one factor, planted terms, eigenvectors of matrices, derivatives, refusals."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tensorlrf.decomposition import fit_symmetric_cp, symmetric_cp
from tensorlrf.decomposition.nonnegative._data import Data
from tensorlrf.decomposition.nonnegative._symmetric_sweep import Symmetric, Terms
from tensorlrf.errors import ArgumentError, ShapeError
from tensorlrf.factors import CPFactors
from tests.decomposition.nonnegative.checks import congruence, never_rises
from tests.draws import seeded


def planted(n: int, order: int, r: int, dtype: torch.dtype = torch.float64) -> CPFactors:
    u = torch.nn.functional.normalize(seeded(n, r), dim=0).to(dtype)
    signs = torch.tensor([2.0, -1.5, 1.0, -0.7][:r], dtype=dtype)
    return CPFactors(signs, (u,) * order)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("n", "order", "r"), [(6, 3, 4), (5, 4, 3), (4, 5, 2), (7, 2, 4)])
def test_a_planted_tensor_is_met_and_its_terms_found(
    n: int, order: int, r: int, dtype: torch.dtype
) -> None:
    """Of a matrix too, but that its terms are not unique."""
    truth = planted(n, order, r, dtype)
    fit = fit_symmetric_cp(truth.to_dense(), r, random_state=0)
    assert fit.error < 1e3 * torch.finfo(dtype).eps
    assert never_rises(fit.errors)
    first, *others = fit.factors.factors
    assert all(torch.equal(first, other) for other in others)
    if order > 2:
        assert congruence(fit.factors, truth) > 1 - 1e-4
    if order % 2 == 0:  # of an odd order a sign goes either way
        assert (fit.factors.weights < 0).sum() == r // 2
    assert (fit.factors.weights.abs().diff() <= 0).all()


def test_of_a_matrix_it_is_the_eigendecomposition() -> None:
    half = seeded(7, 7)
    matrix = half + half.T
    values = torch.linalg.eigvalsh(matrix).abs().sort(descending=True).values
    for r in (1, 3, 7, 9):
        fit = fit_symmetric_cp(matrix, r)
        least = float(values[r:].norm() / matrix.norm())
        assert fit.error == pytest.approx(least, abs=1e-12)


@settings(derandomize=True, deadline=None, max_examples=10)
@given(n=st.integers(1, 4), order=st.integers(2, 5), r=st.integers(1, 3), seed=st.integers(0, 9))
def test_steps_are_made_of_the_derivatives(n: int, order: int, r: int, seed: int) -> None:
    """The slope is J^T of what is left, and what is solved is J^T J, by differentiation."""
    x = planted(n, order, min(r, n)).to_dense()
    problem = Symmetric(Data.of(x))
    columns = torch.nn.functional.normalize(seeded(n, r, seed=seed), dim=0)
    weights = seeded(r, seed=seed + 1)
    terms = Terms(columns, weights)

    def model(u: Tensor) -> Tensor:
        return CPFactors(weights, (u,) * order).to_dense()

    jacobian = torch.autograd.functional.jacobian(model, columns).reshape(-1, n * r)
    left = (x - model(columns)).reshape(-1)
    slope = problem._slope(terms)
    assert torch.allclose(slope, (left @ jacobian).reshape(n, r), atol=1e-10)
    damping = 0.1
    ridge = damping * order * float(weights.square().max())
    system = jacobian.T @ jacobian + ridge * torch.eye(n * r).double()
    exact = torch.linalg.solve(system, slope.reshape(-1)).reshape(n, r)
    assert torch.allclose(problem._step(terms, slope, damping), exact, atol=1e-6)


def test_noise_is_left_and_no_more() -> None:
    truth = planted(6, 3, 2)
    noise = seeded(6, 6, 6, seed=4)
    noise = sum(noise.permute(p) for p in ((0, 1, 2), (1, 2, 0), (2, 0, 1), (1, 0, 2), (0, 2, 1), (2, 1, 0)))  # type: ignore[assignment]  # of tensors  # fmt: skip  # noqa: E501
    x = truth.to_dense() + 0.01 * noise
    fit = fit_symmetric_cp(x, 2, random_state=0)
    assert fit.error < truth.rel_error(x)
    assert congruence(fit.factors, truth) > 0.95


def test_a_callback_stops() -> None:
    seen: list[float] = []
    fit = fit_symmetric_cp(
        planted(5, 3, 3).to_dense(), 2, callback=lambda f, e: seen.append(e), random_state=0
    )
    assert len(seen) >= len(fit.errors) - 2
    stopped = fit_symmetric_cp(
        planted(5, 3, 3).to_dense(), 2, callback=lambda f, e: True, random_state=0, n_restarts=1
    )
    assert "stopped by callback after sweep 1" in stopped.reason


def test_refusals() -> None:
    x = planted(5, 3, 2).to_dense()
    x[0, 1, 2] += 1.0
    words = r"not symmetric: swapping modes 0 and 1 changes it by 0\.\d+ of its norm; take the mean"
    with pytest.raises(ArgumentError, match=words):
        symmetric_cp(x, 2)
    with pytest.raises(ShapeError, match=r"\(4, 4, 5\); a symmetric one has modes of one size"):
        symmetric_cp(torch.ones(4, 4, 5), 2)
