"""Bounds on a mean difference: they hold as often as they say."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorlrf.compression._paired import (
    clustered_error,
    deviations,
    excess,
    most_events,
    student,
)


@pytest.mark.parametrize(
    ("freedom", "quantile"),
    [
        (1, 6.3138),
        (2, 2.9200),
        (3, 2.3534),
        (5, 2.0150),
        (10, 1.8125),
        (30, 1.6973),
        (10**6, 1.6449),
    ],
)
def test_quantiles_are_those_of_the_tables(freedom: int, quantile: float) -> None:
    assert student(0.95, freedom) == pytest.approx(quantile, abs=2e-3)


@given(st.integers(0, 60), st.integers(1, 60), st.sampled_from([0.9, 0.95, 0.975]))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_the_bound_on_events_is_the_exact_one(k: int, more: int, level: float) -> None:
    """At the bound so few events or fewer have just the probability that is left."""
    n = k + more
    p = most_events(k, n, level)
    below = sum(math.comb(n, j) * p**j * (1 - p) ** (n - j) for j in range(k + 1))
    assert below == pytest.approx(1 - level, rel=1e-6)
    assert most_events(n, n, level) == 1.0


def covered(draw, truth: float, groups: np.ndarray, size: float = 1.0, times: int = 400) -> float:
    """How often the mean and its excess are no less than the truth."""
    draws = np.random.default_rng(0)
    seen = (draw(draws) for _ in range(times))
    return sum(d.mean() + excess(d, groups, 0.95, size) >= truth for d in seen) / times


SLACK = 2.3 * math.sqrt(0.95 * 0.05 / 400)  # of a share of 400, at 1%


@pytest.mark.parametrize("n", [5, 40])
def test_it_holds_for_normal_differences(n: int) -> None:
    assert covered(lambda d: d.normal(0.1, 1, n), 0.1, np.arange(n)) >= 0.95 - SLACK


@pytest.mark.parametrize("p", [0.005, 0.05, 0.3])
def test_it_holds_for_rare_losses(p: float) -> None:
    """Where none is seen the variance is 0, and t alone would say that there are none."""
    n = 60
    held = covered(lambda d: (d.random(n) < p).astype(float), p, np.arange(n))
    assert held >= 0.95 - SLACK


def test_it_holds_for_groups_that_lose_together() -> None:
    groups = np.repeat(np.arange(15), 8)

    def draw(d: np.random.Generator) -> np.ndarray:
        return np.repeat(d.normal(0, 1, 15), 8) + d.normal(0, 0.1, 120)

    assert covered(draw, 0.0, groups) >= 0.95 - SLACK
    assert covered(draw, 0.0, np.arange(120)) < 0.85  # which is what groups are for


def test_a_single_group_tells_nothing() -> None:
    assert excess(np.ones(7), np.zeros(7, np.int64), 0.95, 1.0) == math.inf


@given(
    st.lists(st.tuples(st.floats(-5, 5), st.floats(0.1, 4)), min_size=2, max_size=9),
    st.floats(0.1, 10),
)
def test_the_error_of_a_mean_is_that_of_its_groups(
    drawn: list[tuple[float, float]], scale: float
) -> None:
    sums, counts = (np.array(row) for row in zip(*drawn, strict=True))
    moved = deviations(sums, counts)
    assert abs(moved.sum()) <= 1e-12 * max(1.0, np.abs(sums).sum() / counts.sum())
    error = clustered_error(moved)
    assert clustered_error(deviations(scale * sums, counts)) == pytest.approx(scale * error)
    # Of groups that count alike it is the standard error of a mean.
    alike = clustered_error(deviations(sums, np.ones(len(sums))))
    assert alike == pytest.approx(sums.std(ddof=1) / math.sqrt(len(sums)), abs=1e-9)
    assert not deviations(sums, np.zeros(len(sums))).any()
