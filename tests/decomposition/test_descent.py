"""When sweeps end, and that the default number of them comes near a long run, or says so."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tensorlrf.decomposition import (
    fit_blast,
    fit_blr,
    fit_cp,
    fit_hierarchical,
    fit_kron,
    fit_monarch,
    fit_tr,
    fit_tt,
    fit_tt_matrix,
    fit_tucker,
    tr,
)
from tensorlrf.decomposition._descent import LITTLE, StepAhead, finished, remaining, settled
from tensorlrf.decomposition._fit import Fit
from tensorlrf.errors import ConvergenceWarning, TensorlrfWarning
from tensorlrf.factors import LowRank
from tests.draws import seeded

N = 24

FITS: dict[str, Callable[..., Fit[Any]]] = {
    "tt_matrix": lambda w, **k: fit_tt_matrix(w, 0.4, order=3, **k),
    "tt": lambda w, **k: fit_tt(w.reshape(N, 6, 2, 2), 0.4, **k),
    "tr": lambda w, **k: fit_tr(w, 0.4, sizes=((4, 6), (6, 4)), random_state=0, **k),
    "kron": lambda w, **k: fit_kron(w, 0.4, shapes=((4, 6), (6, 4)), random_state=0, **k),
    "blr": lambda w, **k: fit_blr(w, 3, block=6, **k),
    "hierarchical": lambda w, **k: fit_hierarchical(w, 3, leaf=6, **k),
    "monarch": lambda w, **k: fit_monarch(w, 2, blocks=(4, 6), **k),
    "tucker": lambda w, **k: fit_tucker(w.reshape(N, 6, 4), (6, 3), modes=(0, 1), **k),
    "blast": lambda w, **k: fit_blast(w, 5, random_state=0, **k),
    "cp": lambda w, **k: fit_cp(w.reshape(N, 6, 4), 6, random_state=0, **k),
}


def steep(power: float) -> Tensor:
    """Moments whose eigenvalues fall with a power of their number."""
    basis = torch.linalg.qr(seeded(N, N, seed=3))[0]
    return (basis * torch.arange(1, N + 1).double() ** -power) @ basis.T


@pytest.mark.parametrize("power", [2.0, pytest.param(1.0, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", FITS)
def test_defaults_end_within_two_percent_of_a_long_run_or_say_so(name: str, power: float) -> None:
    weight, gram = seeded(N, N, seed=1), steep(power)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        fit = FITS[name](weight, gram=gram)
    assert {one.category for one in said} <= {ConvergenceWarning}
    longer = FITS[name](weight, gram=gram, n_iter_max=200, tol=0.0)
    assert said or fit.error <= 1.02 * longer.error
    assert bool(said) <= (not fit.converged)
    # No sweep raises the error, whether it begins ahead or not.
    course = longer.errors[:-1]
    assert all(b <= a * (1 + 1e-9) for a, b in pairwise(course))


@settings(derandomize=True, deadline=None, max_examples=50)
@given(
    error=st.floats(0.01, 1), gain=st.floats(1e-6, 0.5), share=st.floats(0.1, 0.95),
    sweeps=st.integers(9, 60),
)  # fmt: skip
def test_what_remains_of_a_geometric_series(
    error: float, gain: float, share: float, sweeps: int
) -> None:
    errors = [error + gain * share**k for k in range(sweeps)]
    left = errors[-1] - error
    # To the rounding of differences that cancel.
    rounding = 1e-12 * error / max(1e-300, errors[-9] - errors[-5])
    near = pytest.approx(left / errors[-1], rel=1e-6 + rounding, abs=1e-12)
    assert remaining(errors) == near
    if settled(errors, None):
        last = errors[-2] - errors[-1]
        assert left <= max(LITTLE * errors[-1] * 1.01, last * share / (1 - share) * 1.01)


def test_what_remains_where_nothing_can_be_told() -> None:
    assert remaining([0.5]) == 0.0
    assert remaining([0.5, 0.4]) == math.inf
    assert remaining([1 - 0.1 * k for k in range(10)]) == math.inf
    assert remaining([0.5] * 10) == 0.0
    assert settled([0.5, 0.5], None)
    assert not settled([0.5, 0.4], None)
    assert settled([0.5, 0.4], 0.5)


def test_a_step_ahead_grows_and_starts_anew() -> None:
    step = StepAhead()
    for _ in range(2):
        step.kept()
        assert step.reach == 0
    step.kept()
    first = step.reach
    step.kept()
    assert 0 < first < step.reach
    step.dropped()
    assert step.reach == 0
    step.kept()
    assert step.reach == first


def test_a_number_of_sweeps_that_was_asked_for_is_no_surprise() -> None:
    weight = LowRank(torch.ones(2, 1), torch.ones(1, 2), (2, 2))
    course = [1 - 0.05 * k for k in range(12)]
    unfinished = Fit(weight, (*course, course[-1]), False, "sweeps")
    assert finished(unfinished, 11) is unfinished
    with pytest.warns(ConvergenceWarning, match="much still to gain after 11; give more"):
        finished(unfinished, None)
    few = Fit(weight, (1.0, 0.9, 0.9), False, "error= was not reached")
    assert finished(few, None) is few
    settled_fit = Fit(weight, unfinished.errors, True, "settled")
    assert finished(settled_fit, None) is settled_fit


def test_an_error_out_of_reach_is_told() -> None:
    """A ring has at most as many parameters as the tensor; CP stops where rounding does."""
    with pytest.warns(TensorlrfWarning, match="error=0.001 is out of reach: uniform rank"):
        tr(seeded(7, 7, 7), error=0.001, n_iter_max=5, random_state=0)
    with pytest.warns(TensorlrfWarning, match="error=1e-05 is out of reach: rank"):
        fit = fit_cp(seeded(3, 4, 5).half(), error=1e-5, random_state=0)
    assert not fit.converged
