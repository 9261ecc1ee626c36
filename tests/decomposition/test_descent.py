"""When sweeps end and what of them is kept, and that the default number of them comes near a long
run, or says so."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
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
from tensorlrf.decomposition._descent import (
    LITTLE,
    Descent,
    StepAhead,
    beyond,
    descend,
    finished,
    remaining,
    settled,
)
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


def test_a_small_gain_from_ahead_may_have_to_be_confirmed() -> None:
    step = StepAhead(plain=2, confirmed=True)
    assert not step.kept(little=True)
    assert not step.kept()
    assert step.reach > 0
    assert not step.kept(little=True)
    assert step.reach == 0
    assert step.kept(little=True)


# ---- the loop ----------------------------------------------------------------------------------


def scripted(script: list[float]) -> Callable[[int], tuple[int, float]]:
    """Sweeps that lead from state k to k + 1, whose error is script[k + 1]."""
    return lambda k: (k + 1, script[k + 1])


some_errors = st.lists(
    st.one_of(st.floats(1e-9, 1), st.sampled_from([0.0, math.nan, math.inf])), min_size=2
)


@settings(derandomize=True, deadline=None, max_examples=200)
@given(script=some_errors, tol=st.sampled_from([0.0, 1e-3, 0.3, None]), sweeps=st.integers(0, 9))
def test_the_best_state_is_kept_with_its_error(
    script: list[float], tol: float | None, sweeps: int
) -> None:
    most = min(sweeps, len(script) - 1)
    run = descend([Descent.at(0, script[0])], scripted(script), tol, most)
    first = math.inf if math.isnan(script[0]) else script[0]
    assert run.errors == (first, *script[1 : run.state + 1])
    assert run.sweeps == run.state <= most
    assert run.error == min(run.errors)
    assert not any(b > a for a, b in pairwise(run.errors))
    ends = [k for k in range(1, len(run.errors)) if settled(run.errors[: k + 1], tol)]
    assert ends in ([], [run.sweeps])
    if run.sweeps < most and not ends:
        after = script[run.state + 1]
        assert not after <= run.error
        assert run.converged == math.isfinite(after)
    else:
        assert run.converged == bool(ends)
    assert run.reason


@pytest.mark.parametrize("tol", [1e-1, 1e-3, 0.0])
def test_it_stops_where_a_sweep_gains_less_than_tol(tol: float) -> None:
    script = [1 + 0.5**k for k in range(80)]
    run = descend([Descent.at(0, script[0])], scripted(script), tol, 79)
    gains = [(a - b) / b for a, b in pairwise(script)]
    assert run.sweeps == 1 + next(k for k, gain in enumerate(gains) if gain <= tol)
    assert (run.converged, run.reason) == (
        True, f"sweep {run.sweeps} lowered the error by less than tol"
    )  # fmt: skip


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_no_number_is_undone_and_no_convergence(bad: float) -> None:
    run = descend([Descent.at(0, 1.0)], scripted([1.0, 0.5, bad, 0.1]), 0.0, 3)
    assert run == Descent(1, (1.0, 0.5), False, f"sweep 2 led to an error of {bad}")
    # A start of which that cannot be told is behind every other, and any sweep is better.
    told = descend([Descent.at(0, bad), Descent.at(2, 1.0)], scripted([bad, 0.3, 1.0]), 0.0, 0)
    assert told.state == 2
    assert descend([Descent.at(0, bad)], scripted([bad, 0.3]), 0.0, 1).errors == (math.inf, 0.3)


def test_a_rise_that_is_rounding_is_kept_and_not_told() -> None:
    script = [1.0, 0.5, 0.5 * (1 + 1e-13), 0.6]
    run = descend([Descent.at(0, 1.0)], scripted(script), 0.0, 3, rise=1e-12)
    assert (run.state, run.errors) == (2, (1.0, 0.5, 0.5))
    assert descend([Descent.at(0, 1.0)], scripted(script), 0.0, 3).state == 1
    falls = descend([Descent.at(0, 0.5)], scripted([0.5, 0.5]), 0.0, 1, rise=-1e-16)
    assert (falls.sweeps, falls.converged, falls.reason) == (0, True, "sweep 1 met rounding")


def test_a_callback_sees_what_is_kept_and_ends_it() -> None:
    seen: list[tuple[int, float]] = []

    def watch(state: int, error: float) -> bool:
        seen.append((state, error))
        return len(seen) == 2

    script = [1.0, 0.5, 0.25, 0.125]
    run = descend([Descent.at(0, 1.0)], scripted(script), 0.0, 3, watch=watch)
    assert seen == [(1, 0.5), (2, 0.25)]
    assert run == Descent(2, (1.0, 0.5, 0.25), False, "stopped by callback after sweep 2")
    seen.clear()
    rises = descend([Descent.at(0, 1.0)], scripted([1.0, 0.5, 0.7]), 0.0, 3, watch=watch)
    assert (rises.state, seen) == (1, [(1, 0.5)])
    # In a trial, too.
    once = descend([Descent.at(0, 1.0)], scripted(script), 0.0, 3, trial=1, watch=lambda *_: True)
    assert once == Descent(1, (1.0, 0.5), False, "stopped by callback after sweep 1")


def test_no_sweeps_give_the_best_start() -> None:
    starts = [Descent.at("a", 0.7), Descent.at("b", 0.2), Descent.at("c", 0.5)]

    def never(state: str) -> tuple[str, float]:
        raise AssertionError(state)

    run = descend(starts, never, None, 0, trial=0)
    assert run == Descent("b", (0.2,), False, "n_iter_max=0 sweeps")
    enough = descend(starts, never, None, 5, enough=0.2)
    assert enough == Descent("b", (0.2,), True, "the error is at most 0.2")


def test_several_starts_are_tried_and_the_best_goes_on() -> None:
    """A start (rate, k) has the error rate^k: the one that falls faster wins."""
    made: list[float] = []

    def sweep(at: tuple[float, int]) -> tuple[tuple[float, int], float]:
        made.append(at[0])
        return (at[0], at[1] + 1), at[0] ** (at[1] + 1)

    starts = [Descent.at((rate, 0), 1.0) for rate in (0.9, 0.5, 0.7)]
    run = descend(starts, sweep, 0.0, 6, trial=2)
    assert run.state == (0.5, 6)
    assert run.errors == tuple(0.5**k for k in range(7))
    assert run.reason == "n_iter_max=6 sweeps"
    assert made == [0.9] * 2 + [0.5] * 2 + [0.7] * 2 + [0.5] * 4
    made.clear()
    # One that is exact makes the others needless; they are not even asked for.
    asked = iter(starts)
    assert descend(asked, sweep, 0.0, 2, trial=2, exact=0.3).state == (0.5, 2)
    assert (next(asked).state[0], made) == (0.7, [0.9] * 2 + [0.5] * 2)


def test_a_descent_goes_on_from_where_it_was() -> None:
    script = [0.5**k for k in range(9)]
    first = descend([Descent.at(0, 1.0)], scripted(script), 0.0, 3)
    again = descend([first], scripted(script), 0.0, 4)
    assert (again.state, again.errors) == (7, tuple(script[:8]))
    done = descend([Descent.at(0, 0.5)], scripted([0.5, 0.5]), 0.0, 4)
    assert done.converged
    assert descend([done], scripted([]), 0.0, 4) == done


def test_gains_before_a_new_beginning_do_not_tell_of_those_after_it() -> None:
    """To all of them together more sweeps would seem to gain little."""
    gains = [1e-2] * 4 + [1.1e-4] * 6
    script = [1 - sum(gains[:k]) for k in range(len(gains) + 1)]
    assert settled(script[:10], None)
    again = descend([Descent(8, tuple(script[:9]))], scripted(script), None, 2)
    assert (again.state, again.converged) == (10, False)


def test_sweeps_begin_further_and_further_ahead_until_one_is_undone() -> None:
    """Sweeps add 1 to a number that is wanted to be 10."""
    asked: list[tuple[float, float, float]] = []

    def ahead(here: float, last: float, reach: float) -> float:
        asked.append((here, last, reach))
        return here + reach * (here - last)

    run = descend([Descent.at(0.0, 1.0)], lambda x: (x + 1, abs(x - 9) / 10), 0.0, 20, ahead=ahead)
    states = [3.0, 4.5, 6.625, 10.015625]
    assert asked == [
        (3.0, 2.0, 0.5), *zip(states[1:], states, [0.75, 1.125, 1.6875], strict=False)
    ]  # fmt: skip
    assert (run.state, run.sweeps) == (states[-1], 6)
    assert run.reason == "sweep 7 met rounding"


LONG_VALLEY = 8, 3.0, 40


@settings(derandomize=True, deadline=None, max_examples=30)
@example(*LONG_VALLEY, 0)
@given(
    n=st.integers(1, 9), power=st.floats(0, 6), sweeps=st.integers(0, 60), seed=st.integers(0, 9)
)  # fmt: skip
def test_sweeps_from_ahead_lower_a_quadratic(n: int, power: float, sweeps: int, seed: int) -> None:
    """Gauss-Seidel on (x, A x) - 2 (b, x), which sweeps alone never raise."""
    basis = torch.linalg.qr(seeded(n, n, seed=seed))[0]
    matrix = (basis * torch.arange(1, n + 1).double() ** -power) @ basis.T
    wanted, lower = seeded(n, seed=seed + 1), torch.tril(matrix)
    made = 0

    def error(x: Tensor) -> float:
        off = x - wanted
        return math.sqrt(max(0.0, float(off @ matrix @ off / (wanted @ matrix @ wanted))))

    def sweep(state: list[Tensor]) -> tuple[list[Tensor], float]:
        nonlocal made
        made += 1
        rest = (matrix @ (wanted - state[0]))[:, None]
        x = state[0] + torch.linalg.solve_triangular(lower, rest, upper=False)[:, 0]
        return [x], error(x)

    runs = []
    for ahead in (None, beyond):
        made = 0
        begun = Descent.at([torch.zeros_like(wanted)], 1.0)
        run = descend([begun], sweep, 0.0, sweeps, ahead=ahead, rise=1e-12)
        assert made <= sweeps
        assert all(b <= a for a, b in pairwise(run.errors))
        assert error(run.state[0]) == pytest.approx(run.error, rel=1e-9)
        assert float(begun.state[0].abs().max()) == 0.0
        runs.append(run)
    if (n, power, sweeps) == LONG_VALLEY:
        assert runs[1].error < 0.5 * runs[0].error


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
