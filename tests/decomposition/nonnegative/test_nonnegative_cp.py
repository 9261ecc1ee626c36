"""Non-negative CP: signs, a loss that never rises, planted terms, mixtures as of spectroscopy."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorlrf.decomposition import fit_nonnegative_cp, nonnegative_cp
from tensorlrf.decomposition.nonnegative._data import Columns, Data
from tensorlrf.decomposition.nonnegative._sweep import Sweep, ahead, exact_columns, peaks
from tensorlrf.errors import ArgumentError, RankError
from tensorlrf.factors import CPFactors
from tests.decomposition.nonnegative.checks import (
    congruence,
    never_rises,
    none_negative,
    planted,
    stationary,
    uniform,
)
from tests.draws import seeded

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@settings(derandomize=True, deadline=None, max_examples=25)
@given(
    shape=st.lists(st.integers(1, 6), min_size=2, max_size=4).map(tuple),
    r=st.integers(1, 5),
    dtype=st.sampled_from(DTYPES),
    shift=st.sampled_from([0.0, 0.5, 0.999, 2.0]),
)
def test_no_entry_is_negative_and_the_loss_never_rises(
    shape: tuple[int, ...], r: int, dtype: torch.dtype, shift: float
) -> None:
    """Whatever the signs of the tensor are: where all are negative the model is zero."""
    x = (uniform(*shape) - shift).to(dtype)
    fit = fit_nonnegative_cp(x, r, n_iter_max=10, random_state=0)
    assert none_negative(fit)
    assert never_rises(fit.errors)
    if bool((x > 0).any()):
        assert fit.errors[-2] < 1
    elif bool(x.any()):
        assert fit.error == pytest.approx(1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shape", [(9, 8, 7), (4, 5, 6, 5)])
def test_a_planted_tensor_is_met_and_its_terms_found(
    shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    truth = planted(shape, 3, dtype)
    fit = fit_nonnegative_cp(truth.to_dense(), 3, random_state=0, n_iter_max=1000, tol=0)
    assert fit.error < 1e-5
    assert congruence(fit.factors, truth) > 0.9999
    assert torch.allclose(
        torch.stack([u.norm(dim=0) for u in fit.factors.factors]), torch.ones(1, dtype=dtype)
    )
    assert (fit.factors.weights.diff() <= 0).all()


def test_it_ends_where_nothing_is_to_be_gained() -> None:
    """The conditions of Karush, Kuhn and Tucker hold in every mode, for data of either sign."""
    x = planted((7, 6, 5), 2).to_dense() + 0.3 * seeded(7, 6, 5)
    fit = fit_nonnegative_cp(x, 3, random_state=0, n_iter_max=3000, tol=1e-12)
    weights, factors = fit.factors
    left = fit.factors.to_dense() - x
    for mode in range(3):
        a, b = (k for k in range(3) if k != mode)
        rest = left.permute(mode, a, b)
        gradient = torch.einsum("iab,ar,br->ir", rest, factors[a], factors[b])
        assert stationary(factors[mode] * weights, gradient) < 1e-4 * float(x.norm())


def test_what_a_sweep_says_of_its_error_is_the_residual() -> None:
    """With and without what cancels; and the model that it began with is as it was."""
    for noise in (0.5, 1e-3):
        x = planted((9, 8, 7), 2, torch.float32).to_dense() + noise * uniform(9, 8, 7).float()
        data = Data.of(x)
        columns = Columns(
            tuple(uniform(n, 2, seed=n).float() for n in x.shape), torch.ones(2).double()
        )
        before = [u.clone() for u in columns.factors]
        new = columns
        for _ in range(30):
            new, error = Sweep(data, new).run()
        assert all(map(torch.equal, before, columns.factors))
        assert error == pytest.approx(data.factors(new).rel_error(x), rel=1e-4)


def test_a_step_ahead_stays_non_negative_and_loses_no_column() -> None:
    here, last = (
        Columns(tuple(uniform(n, 3, seed=n + s) for n in (4, 5)), uniform(3, seed=s))
        for s in (0, 50)
    )
    for reach in (0.5, 8.0, 1e6):
        beyond = ahead(here, last, reach)
        for u in beyond.factors:
            assert (u >= 0).all()
            assert torch.allclose(u.norm(dim=0)[beyond.weights > 0], torch.ones(()).double())


def test_at_full_rank_all_that_is_left_are_the_negative_entries() -> None:
    x = seeded(3, 5, 4)
    least = float(x.clamp_max(0).norm() / x.norm())
    for rank in (12, 15):
        found = exact_columns(Data.of(x), rank)
        assert found.error == pytest.approx(least)
        assert fit_nonnegative_cp(x, rank).error == pytest.approx(least)
    with pytest.raises(
        ArgumentError, match=r"error=0.1 is below 0\.\d+, what the negative entries"
    ):
        nonnegative_cp(x, error=0.1)


def test_terms_of_single_entries_are_nearer_than_zero() -> None:
    x = torch.full((3, 4, 5), -1.0)
    x[1, 2, 3], x[0, 0, 1] = 2.0, 1.0
    start = peaks(Data.of(x), 2)
    assert torch.allclose(start.state.weights, torch.tensor([2.0, 1.0], dtype=torch.float64))
    assert fit_nonnegative_cp(x, 2, random_state=0).error < start.error + 1e-6 < 1
    assert peaks(Data.of(x), 99).error <= start.error


def test_mixtures_of_three_in_five_samples_are_taken_apart() -> None:
    """As of fluorescence: three samples of one substance each, two of all of them, noise about
    zero. Loadings of the first three are one-hot, and without the constraint some are negative."""
    axis = torch.linspace(0, 1, 31, dtype=torch.float64)[:, None]
    emission = torch.exp(-(((axis - torch.tensor([[0.3, 0.45, 0.6]])) / 0.1) ** 2))
    excitation = torch.exp(-(((axis[:21] - torch.tensor([[0.2, 0.35, 0.5]])) / 0.12) ** 2))
    mixed = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [0.4, 0.5, 0.6], [0.3, 0.7, 0.2]])
    truth = CPFactors(torch.ones(3).double(), (mixed.double(), emission, excitation))
    x = truth.to_dense() + 0.01 * seeded(5, 31, 21)
    assert (x < 0).any()
    fit = fit_nonnegative_cp(x, 3, random_state=0)
    assert congruence(fit.factors, truth) > 0.995
    pure = fit.factors.factors[0][:3]
    assert (pure.amax(0) / pure.norm(dim=0) > 0.999).all()


def test_begins_where_it_is_told_and_is_stopped_by_a_callback() -> None:
    truth = planted((6, 5, 4), 2)
    x = truth.to_dense()
    assert fit_nonnegative_cp(x, 2, init=truth, n_iter_max=1).errors[0] < 1e-9
    seen: list[float] = []

    def stop(factors: CPFactors, error: float) -> bool:
        assert factors.rel_error(x) == pytest.approx(error, rel=1e-6)
        seen.append(error)
        return len(seen) == 2

    fit = fit_nonnegative_cp(x, 2, callback=stop, random_state=0)
    assert "stopped by callback after sweep 2" in fit.reason
    assert list(fit.errors[1:-1]) == seen


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"init": "hosvd"}, "init='hosvd' is unknown; choose one of random, svd"),
        ({"init": planted((3, 3, 3), 2)}, r"factors\[2\] has shape \(3, 2\)"),
        ({"init": planted((3, 3, 2), 2).map(torch.neg)}, "init: weights is negative at"),
        ({"rank": 0}, "rank=0 must be at least 1"),
        ({"rank": (2, 2)}, "rank"),
        ({"n_iter_max": 0}, "n_iter_max=0 must be"),
    ],
)
def test_refusals(options: dict[str, Any], words: str) -> None:
    with pytest.raises((ArgumentError, RankError), match=words):
        nonnegative_cp(uniform(3, 3, 2), **{"rank": 2, **options})
