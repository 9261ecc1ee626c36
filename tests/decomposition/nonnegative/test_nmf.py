"""NMF: factors without a negative entry, a loss that never rises, planted factors, refusals."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorlrf.decomposition import fit_nmf, nmf
from tensorlrf.decomposition.nonnegative._hals import non_negative
from tensorlrf.errors import ArgumentError, RankError, UnsupportedError
from tensorlrf.factors import CPFactors, LowRank
from tests.decomposition.nonnegative.checks import (
    congruence,
    never_rises,
    none_negative,
    planted,
    stationary,
    uniform,
)
from tests.draws import seeded

COUNTS = torch.poisson(
    planted((30, 20), 3).to_dense() * 9, generator=torch.Generator().manual_seed(0)
)


@settings(derandomize=True, deadline=None, max_examples=25)
@given(
    m=st.integers(1, 9),
    n=st.integers(1, 9),
    r=st.integers(1, 5),
    loss=st.sampled_from(["frobenius", "kl"]),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
    zeros=st.floats(0, 1),
)
def test_no_entry_is_negative_and_the_loss_never_rises(
    m: int, n: int, r: int, loss: str, dtype: torch.dtype, zeros: float
) -> None:
    x = uniform(m, n, dtype=dtype).where(uniform(m, n, seed=1) >= zeros, 0.0)
    fit = fit_nmf(x, min(r, m, n), loss=loss, n_iter_max=12, random_state=0)
    assert none_negative(fit)
    assert never_rises(fit.errors)
    assert all(bool(torch.isfinite(t).all()) for t in fit.factors.tensors().values())


@settings(derandomize=True, deadline=None, max_examples=12)
@given(n=st.integers(1, 7), r=st.integers(1, 40), seed=st.integers(0, 99))
def test_rounds_over_the_columns_lead_to_the_least_squares(n: int, r: int, seed: int) -> None:
    """Their stationary point is the only one: the problem is convex. Any number of blocks."""
    half = seeded(3 * r, r, seed=seed)
    system, rhs = half.T @ half / r, seeded(n, r, seed=seed + 1)
    u = torch.zeros_like(rhs)
    values = []
    for _ in range(60):
        u = non_negative(u, rhs, system)
        values.append(float(((u @ system) * u).sum() - 2 * (rhs * u).sum()))
    assert (u >= 0).all()
    assert all(b <= a + 1e-12 * abs(a) for a, b in pairwise(values))
    assert stationary(u, u @ system - rhs) < 1e-5 * float(rhs.abs().max())


def test_columns_that_nothing_sees_stay_as_they_are() -> None:
    system = torch.diag(torch.tensor([1.0, 0.0, 2.0], dtype=torch.float64))
    old, rhs = uniform(4, 3), torch.ones(4, 3, dtype=torch.float64)
    new = non_negative(old, rhs, system)
    assert torch.equal(new[:, 1], old[:, 1])
    assert torch.allclose(new[:, [0, 2]], torch.tensor([[1.0, 0.5]], dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_planted_matrix_is_met_and_its_factors_found(dtype: torch.dtype) -> None:
    """A third of the entries are zero, and each factor has rows of one term alone: then there is
    one factorisation (Donoho & Stodden 2004)."""
    truth = planted((40, 30), 3, dtype)
    for u in truth.factors:
        u[:3] = torch.eye(3, dtype=dtype)
    x = truth.to_dense()
    fit = fit_nmf(x, 3, random_state=0, n_iter_max=2000, tol=0)
    assert fit.error < 1e-5
    found = fit.factors
    model = CPFactors(truth.weights, (found.left, found.right.T))
    assert congruence(model, truth) > 0.9999


@pytest.mark.parametrize("loss", ["frobenius", "kl"])
def test_it_ends_where_nothing_is_to_be_gained(loss: str) -> None:
    """The conditions of Karush, Kuhn and Tucker hold in both factors."""
    fit = fit_nmf(COUNTS, 3, loss=loss, random_state=0, n_iter_max=3000, tol=1e-10)
    w, h = fit.factors.left, fit.factors.right
    model = (w @ h).clamp_min(1e-300)
    slope = 1 - COUNTS / model if loss == "kl" else model - COUNTS
    size = float((COUNTS @ h.T).abs().max())
    assert stationary(w, slope @ h.T / size) < 1e-4
    assert stationary(h, w.T @ slope / size) < 1e-4


def test_the_divergence_is_that_of_its_definition_and_falls_below_that_of_least_squares() -> None:
    def divergence(f: LowRank) -> float:
        model = f.to_dense()
        logs = torch.where(COUNTS > 0, COUNTS * (COUNTS / model).log(), 0.0)
        return float((logs - COUNTS + model).sum() / COUNTS.sum())

    fit = fit_nmf(COUNTS, 3, loss="kl", random_state=0)
    assert fit.error == pytest.approx(divergence(fit.factors), rel=1e-9)
    squares = nmf(COUNTS, 3, random_state=0)
    assert fit.error < divergence(LowRank(squares.left + 1e-9, squares.right + 1e-9))
    assert squares.rel_error(COUNTS) < fit.factors.rel_error(COUNTS)
    # Each row and each column sum is met, as it is at every minimum of this divergence.
    assert torch.allclose(fit.factors.to_dense().sum(), COUNTS.sum())


def test_at_full_rank_the_matrix_is_its_own_factor() -> None:
    for x in (uniform(5, 8), uniform(8, 5), uniform(6, 6, dtype=torch.float32)):
        assert fit_nmf(x, min(x.shape), random_state=0).error < 1e-6
    fit = fit_nmf(uniform(5, 8), error=1e-9, random_state=0)
    assert (fit.factors.rank, fit.error < 1e-9) == (5, True)


def test_begins_where_it_is_told_and_is_stopped_by_a_callback() -> None:
    truth = planted((12, 9), 2)
    x = truth.to_dense() + 0.1 * uniform(12, 9, seed=5)
    left, right = truth.factors[0], truth.factors[1].T
    near = fit_nmf(x, 2, init=(7 * left.numpy(), right), n_iter_max=1)
    assert near.errors[0] < fit_nmf(x, 2, n_iter_max=1, random_state=0).errors[0]
    seen: list[tuple[Any, float]] = []

    def stop(factors: LowRank, error: float) -> bool:
        seen.append((factors, error))
        return len(seen) == 3

    for loss in ("frobenius", "kl"):
        seen.clear()
        fit = fit_nmf(x, 2, loss=loss, callback=stop, random_state=0)
        assert "stopped by callback" in fit.reason
        assert not fit.converged
        assert torch.equal(fit.factors.to_dense(), seen[-1][0].to_dense())
        assert fit.errors[-2] == seen[-1][1]


def test_the_best_of_several_starts_goes_on() -> None:
    x = planted((20, 15), 4).to_dense() + 0.3 * uniform(20, 15, seed=7)
    one, four = (fit_nmf(x, 4, random_state=0, n_restarts=k) for k in (1, 4))
    assert four.errors[0] != one.errors[0] or four.error <= one.error * (1 + 1e-3)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"loss": "l1"}, "loss='l1' is unknown; choose one of frobenius, kl"),
        ({"init": "nndsvd"}, "init='nndsvd' is unknown; choose one of random, svd, factors"),
        ({"init": 3}, "init is a int; give 'random' or a pair"),
        (
            {"init": (-uniform(4, 2), uniform(2, 3))},
            r"init: factors.0 is negative at \(0, 0\): -0\.",
        ),
        ({"init": (uniform(4, 2), uniform(3, 2))}, r"factors\[1\] has shape \(2, 3\)"),
        ({"init": (uniform(4, 2), uniform(2, 3)), "n_restarts": 2}, "would repeat one run"),
        ({"n_restarts": 0}, "n_restarts=0 must be an int of at least 1"),
        ({"rank": None, "error": 0.1, "loss": "kl"}, "error=0.1 is of loss='frobenius'"),
        ({"rank": None, "error": 0.1, "init": (1, 2)}, "with error= use a word"),
        ({"rank": 4}, r"rank=4 is above min\(m, n\) = 3"),
    ],
)
def test_refusals(options: dict[str, Any], words: str) -> None:
    with pytest.raises((ArgumentError, RankError), match=words):
        nmf(uniform(4, 3), **{"rank": 2, **options})


@pytest.mark.parametrize("loss", ["frobenius", "kl"])
def test_the_first_negative_entry_is_named(loss: str) -> None:
    x: Any = uniform(4, 3)
    x[2, 1], x[3, 0] = -0.25, -7.0
    words = r"^tensor is negative at \(2, 1\): -0\.25; .* use svd or nonnegative_cp"
    for given_ in (x, x.numpy().astype(np.float32)):
        with pytest.raises(ArgumentError, match=words):
            nmf(given_, 2, loss=loss)
    with pytest.raises(UnsupportedError, match=r"nmf takes a matrix .*\(2, 2, 2\).*nonnegative_cp"):
        nmf(torch.ones(2, 2, 2), 1)


def test_minus_zero_is_not_negative() -> None:
    x = uniform(4, 3)
    x[0] = -0.0
    assert none_negative(fit_nmf(x, 2, random_state=0))
