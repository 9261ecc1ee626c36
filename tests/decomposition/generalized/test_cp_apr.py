"""CP-APR: the divergence never rises, and the conditions of an optimum come to hold."""

from __future__ import annotations

import functools
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

import tensorlrf
from tensorlrf import CPFactors, SparseTensor
from tensorlrf.decomposition import LossFit, fit_cp_apr, fit_generalized_cp
from tensorlrf.errors import ArgumentError
from tests.decomposition.generalized.planted import RANK, planted, rates
from tests.draws import generator

X = planted("poisson")[0]
FEW = torch.poisson(0.1 * rates(0.0).to_dense(), generator=generator(3))


def divergence(x: Tensor, model: Tensor) -> float:
    return float((model - torch.special.xlogy(x, model.clamp_min(1e-10))).sum())


@pytest.mark.parametrize("sparse", [False, True])
def test_the_loss_never_rises_and_the_conditions_come_to_hold(sparse: bool) -> None:
    x = SparseTensor.of(FEW) if sparse else FEW
    fit = fit_cp_apr(x, RANK, random_state=0, n_iter_max=3000, tol=1e-4)
    assert fit.converged
    assert all(b <= a for a, b in pairwise(fit.losses))
    assert fit.residuals[-1] <= 1e-4 < fit.residuals[0]
    assert fit.loss == pytest.approx(divergence(FEW, fit.factors.to_dense()), rel=1e-9)
    assert all(bool((u >= 0).all()) for u in fit.factors.factors)
    assert float(fit.factors.to_dense().sum()) == pytest.approx(float(FEW.sum()), rel=1e-4)
    other = fit_generalized_cp(FEW, RANK, "poisson", tol=1e-9, random_state=0)
    assert fit.loss == pytest.approx(other.loss, rel=1e-4)


@functools.cache
def best() -> LossFit[CPFactors]:
    return fit_cp_apr(X, RANK, random_state=0, n_iter_max=150)


def test_a_planted_model_comes_back() -> None:
    model = planted("poisson")[1]
    fit = best()
    assert float((fit.factors.to_dense() - model).norm() / model.norm()) < 0.03


def test_sparse_and_dense_make_the_same_steps() -> None:
    dense, sparse = (
        fit_cp_apr(x, RANK, random_state=0, n_iter_max=5) for x in (FEW, SparseTensor.of(FEW))
    )
    assert sparse.losses == pytest.approx(dense.losses, rel=1e-9)
    assert sparse.residuals == pytest.approx(dense.residuals, rel=1e-6)
    assert torch.allclose(sparse.factors.to_dense(), dense.factors.to_dense())


def test_zeros_that_should_be_none_are_left() -> None:
    """No product changes a zero: from this start updates alone would end at another point."""
    factors = [u.clone() for u in rates(seed=4).factors]
    factors[0][3] = 0
    start = CPFactors(torch.ones(RANK, dtype=torch.float64, device="cpu"), tuple(factors))
    fit = fit_cp_apr(X, RANK, init=start, n_iter_max=60)
    assert bool((fit.factors.factors[0][3] > 1e-3).any())
    assert fit.loss == pytest.approx(best().loss, rel=1e-4)
    assert all(b <= a for a, b in pairwise(fit.losses))


def test_single_precision_and_a_scale_of_its_own() -> None:
    usual = fit_cp_apr(X, RANK, random_state=0, n_iter_max=20)
    single = fit_cp_apr(X.float(), RANK, random_state=0, n_iter_max=20)
    assert single.loss == pytest.approx(usual.loss, rel=1e-5)
    large = fit_cp_apr(X * 2.0**60, RANK, random_state=0, n_iter_max=20)
    wanted = divergence(X * 2.0**60, large.factors.to_dense())
    assert large.loss == pytest.approx(wanted, rel=1e-9)


def test_a_callback_that_stops_gets_the_last_factors() -> None:
    seen: list[tuple[CPFactors, float]] = []

    def stop(factors: CPFactors, loss: float) -> bool:
        seen.append((factors, loss))
        return len(seen) == 2

    fit = fit_cp_apr(X, RANK, random_state=0, callback=stop)
    assert fit.reason == "stopped by callback after iteration 2"
    assert torch.equal(fit.factors.weights, seen[-1][0].weights)
    assert fit.losses[-1] == seen[-1][1]
    assert divergence(X, seen[0][0].to_dense()) == pytest.approx(seen[0][1], rel=1e-9)


@pytest.mark.parametrize(
    ("x", "options", "words"),
    [
        (-X, {}, r"^tensor\[0, 0, 0\] is -\d+, but loss='poisson'"),
        (X, {"n_inner": 0}, "^n_inner=0"),
        (X, {"init": (None, [-u for u in rates().factors])}, "^init has entries below 0"),
    ],
)
def test_what_it_refuses(x: Tensor, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        tensorlrf.cp_apr(x, RANK, **options)
