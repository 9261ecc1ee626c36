"""What CP by alternating least squares must achieve."""

from __future__ import annotations

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tensorlrf.decomposition.cp._cp import cp, fit_cp
from tensorlrf.errors import DegenerateWarning
from tensorlrf.factors import CPFactors
from tests.metrics import moments
from tests.public import public


def planted(
    shape: tuple[int, ...], rank: int, noise: float = 0.0, dtype: torch.dtype = torch.float64
) -> Tensor:
    rng = torch.Generator().manual_seed(7)
    factors = tuple(torch.randn(n, rank, generator=rng, dtype=torch.float64) for n in shape)
    model = CPFactors(torch.ones(rank, dtype=torch.float64), factors).to_dense()
    white = torch.randn(shape, generator=rng, dtype=torch.float64)
    return (model + noise * white * model.norm() / white.norm()).to(dtype)


def gaussian(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def all_finite(factors: CPFactors) -> bool:
    return all(bool(torch.isfinite(t).all()) for t in factors.tensors().values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("init", ["random", "svd"])
@pytest.mark.parametrize(
    ("shape", "rank"), [((12, 13, 14), 4), ((6, 7, 8, 9), 5), ((9, 5, 4), 3), ((3, 4, 3, 4, 3), 3)]
)
def test_an_exact_tensor_is_recovered(
    shape: tuple[int, ...], rank: int, init: str, dtype: torch.dtype
) -> None:
    tensor = planted(shape, rank, dtype=dtype)
    fit = fit_cp(tensor, rank, init=init, n_iter_max=1000, n_restarts=3, random_state=0)
    assert fit.factors.rel_error(tensor) < 1e-6
    assert fit.converged
    assert fit.factors.dtype == dtype


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    shape=st.lists(st.integers(1, 6), min_size=2, max_size=5),
    rank=st.integers(1, 8),
    init=st.sampled_from(["random", "svd"]),
    seed=st.integers(0, 100),
)
def test_the_error_never_rises(shape: list[int], rank: int, init: str, seed: int) -> None:
    tensor = gaussian(*shape, seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DegenerateWarning)
        fit = fit_cp(tensor, rank, init=init, n_iter_max=60, tol=0, random_state=seed)
    assert all_finite(fit.factors)
    assert fit.factors.shape == tuple(shape)
    # Rounding reaches the model as eps / sqrt(ridge floor of 1e-12) in directions left open.
    slack = (
        1e-6 * torch.finfo(torch.float64).eps ** 0.5 + 100 * torch.finfo(torch.float64).eps / 1e-6
    )
    assert all(b <= a + slack for a, b in zip(fit.errors, fit.errors[1:], strict=False))
    assert fit.error == pytest.approx(fit.factors.rel_error(tensor), rel=1e-6, abs=1e-12)


def test_a_matrix_has_the_error_of_its_svd() -> None:
    matrix = gaussian(20, 13)
    values = torch.linalg.svdvals(matrix)
    for rank in (1, 5, 12):
        optimum = float(values[rank:].norm() / values.norm())
        assert cp(matrix, rank).rel_error(matrix) == pytest.approx(optimum, rel=1e-12)


def test_the_optimum_is_stationary() -> None:
    """No small step of the factors lowers the loss."""
    tensor = planted((8, 9, 10), 3, noise=0.3)
    fit = fit_cp(tensor, 3, n_iter_max=2000, tol=1e-14, random_state=0)
    weights = fit.factors.weights
    parts = [f.clone().requires_grad_() for f in fit.factors.factors]
    loss = (tensor - CPFactors(weights, tuple(parts)).to_dense()).square().sum()
    loss.backward()
    scale = float(weights.max()) * float(tensor.norm())
    for part in parts:
        assert part.grad is not None
        assert float(part.grad.norm()) < 1e-6 * scale


def test_components_are_unit_columns_with_falling_weights() -> None:
    for gram in (None, moments(90)):
        factors = cp(planted((8, 9, 10), 4, noise=0.1), 4, gram=gram, random_state=0)
        for f in factors.factors:
            torch.testing.assert_close(f.norm(dim=0), torch.ones(4, dtype=torch.float64))
        assert bool((factors.weights.diff() <= 0).all())
        assert float(factors.weights.min()) >= 0


def test_float16_weights_that_would_overflow_are_spread() -> None:
    tensor = torch.full((20, 20, 20), 1000.0, dtype=torch.float16)  # norm 9e4 > 65504
    factors = cp(tensor, 1, random_state=0)
    assert all_finite(factors)
    assert factors.rel_error(tensor) < 4 * torch.finfo(torch.float16).eps


@pytest.mark.parametrize(
    ("tensor", "rank"),
    [
        (torch.ones(4, 5, 6), 3),
        (torch.zeros(4, 5, 6), 2),
        (torch.zeros(3, 3), 5),
        (gaussian(1, 5, 1), 3),
        (gaussian(1, 1, 1), 2),
        (gaussian(2, 3, 2), 9),
        (gaussian(3, 4), 6),
        (gaussian(4, 1, 3, 1), 3),
    ],
)
@pytest.mark.parametrize("solver", ["als", "cprand"])
@pytest.mark.parametrize("init", ["random", "svd"])
def test_degenerate_tensors_give_finite_factors(
    tensor: Tensor, rank: int, init: str, solver: str
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DegenerateWarning)
        fit = fit_cp(tensor, rank, init=init, solver=solver, random_state=0)
    assert all_finite(fit.factors)
    assert fit.factors.rank == rank
    # Every one of these ranks holds its tensor; a singular system costs sqrt(ridge floor).
    assert fit.error < 1e-4


@pytest.mark.parametrize("tensor", [torch.zeros(4, 5, 6), gaussian(3, 4)])
def test_superfluous_components_are_warned_of(tensor: Tensor) -> None:
    with pytest.warns(DegenerateWarning, match="rank=6 is more than the tensor has use for"):
        cp(tensor, 6, random_state=0)


def test_fixed_modes_stay_bit_for_bit() -> None:
    tensor = planted((6, 7, 8), 3, noise=0.05)
    start = cp(tensor, 3, n_iter_max=2, random_state=0)
    scaled = CPFactors(start.weights, tuple(3 * f for f in start.factors))
    for solver in ("als", "cprand"):
        fit = fit_cp(tensor, 3, init=scaled, fixed_modes=(0, -1), solver=solver, random_state=0)
        assert torch.equal(fit.factors.factors[0], scaled.factors[0])
        assert torch.equal(fit.factors.factors[2], scaled.factors[2])
        assert fit.error <= start.rel_error(tensor) * (1 + 1e-12)
        assert fit.error == pytest.approx(fit.factors.rel_error(tensor), rel=1e-9)


def test_a_given_start_is_where_it_starts() -> None:
    tensor = planted((6, 7, 8), 3, noise=0.2)
    good = fit_cp(tensor, 3, n_iter_max=500, n_restarts=5, random_state=0)
    for start in (good.factors, tuple(good.factors), (None, _absorbed(good.factors))):
        again = fit_cp(tensor, 3, init=start, n_iter_max=1)
        assert again.error == pytest.approx(good.error, rel=1e-6)
    empty = [torch.zeros_like(f) for f in good.factors.factors]
    assert fit_cp(tensor, 3, init=(None, empty), random_state=0).error < 1


def _absorbed(factors: CPFactors) -> list[Tensor]:
    first, *others = factors.factors
    return [first * factors.weights, *others]


def test_restarts_keep_the_best() -> None:
    tensor = gaussian(7, 6, 5)
    rng = torch.Generator().manual_seed(0)
    one = [fit_cp(tensor, 4, random_state=s).error for s in range(3)]
    many = fit_cp(tensor, 4, n_restarts=8, random_state=rng).error
    assert many <= max(one)
    together = fit_cp(tensor, 4, n_restarts=1, random_state=0).error
    assert together == pytest.approx(one[0], rel=1e-12)


def test_callback_sees_checkpoints_and_stops() -> None:
    tensor = gaussian(7, 6, 5)
    seen: list[tuple[CPFactors, float]] = []

    def watch(factors: CPFactors, error: float) -> bool:
        seen.append((factors, error))
        return len(seen) == 2

    for solver in ("als", "cprand"):
        seen.clear()
        fit = fit_cp(tensor, 4, callback=watch, solver=solver, random_state=0)
        assert len(seen) == 2
        assert not fit.converged
        assert "callback" in fit.reason
    fit = fit_cp(tensor, 4, callback=watch, random_state=0)
    assert seen[0][1] == pytest.approx(seen[0][0].rel_error(tensor), rel=1e-9)


def test_rank_from_an_error() -> None:
    tensor = planted((12, 11, 10), 5, noise=0.05)
    fit = fit_cp(tensor, error=0.06, random_state=0)
    assert fit.error <= 0.06
    assert fit.factors.rank == 5
    assert fit.converged
    assert fit_cp(tensor, error=0.99, random_state=0).factors.rank == 1


@pytest.mark.parametrize("order", [3, 4])
def test_gradients_are_those_of_the_optimum(order: int) -> None:
    """Against central differences of the whole, converged decomposition."""
    shape = (5, 4, 6, 3)[:order]
    tensor = planted(shape, 2, noise=0.1)
    target = gaussian(*shape, seed=3)
    start = cp(tensor, 2, n_iter_max=300, tol=0, n_restarts=3, random_state=0)

    def loss(t: Tensor, differentiable: bool) -> Tensor:
        found = cp(t, 2, init=start, n_iter_max=300, tol=0, differentiable=differentiable)
        return (found.to_dense() * target).sum() + found.weights.square().sum().sqrt()

    x = tensor.clone().requires_grad_()
    value = loss(x, True)
    value.backward()
    direction = gaussian(*shape, seed=4)
    step = 1e-4
    ahead, behind = loss(tensor + step * direction, False), loss(tensor - step * direction, False)
    numeric = float(ahead - behind) / (2 * step)
    assert x.grad is not None
    # Central differences: error of order step^2 plus eps / step.
    assert float((x.grad * direction).sum()) == pytest.approx(numeric, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "rank", "figure", "sweeps"),
    [
        ("covid19_serology", 3, 0.4697, 500),
        ("covid19_serology", 8, 0.3401, 500),
        ("kinetic", 3, 0.0498, 200),
    ],
)
def test_reference_figures(name: str, rank: int, figure: float, sweeps: int) -> None:
    """Best of ten starts, as the published figures are."""
    tensor = public(name)
    fit = fit_cp(tensor, rank, n_restarts=10, n_iter_max=sweeps, tol=1e-7, random_state=0)
    assert round(fit.factors.rel_error(tensor), 4) <= figure
