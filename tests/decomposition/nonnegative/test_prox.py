"""Proximal operators and projections: each is what it is defined as."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tensorlrf.decomposition.nonnegative import _prox
from tensorlrf.decomposition.nonnegative._constraints import PENALTIES, SHAPES, factors_of
from tensorlrf.decomposition.nonnegative._prox import Project
from tests.draws import seeded

ENTRIES = {
    "nonnegative": "nonnegative",
    "simplex": "simplex",
    "monotone": "monotone",
    "decreasing": "decreasing",
    "monotone and nonnegative": ["monotone", "nonnegative"],
    "decreasing and nonnegative": ["nonnegative", "decreasing"],
    "unimodal": "unimodal",
    "unimodal and nonnegative": ["unimodal", "nonnegative"],
}
CONVEX = [name for name in ENTRIES if "unimodal" not in name]
SIZES = st.integers(1, 9)


def projection(name: str) -> Project:
    (factor, _) = factors_of([ENTRIES[name], None], (5, 5), 2)
    assert factor.project is not None
    return factor.project


def within(name: str, u: Tensor) -> bool:
    """By the definition of the set."""
    rises = u.diff(dim=0)
    tests = {
        "nonnegative": bool((u >= 0).all()),
        "simplex": bool((u >= 0).all()) and torch.allclose(u.sum(0), u.new_ones(())),
        "monotone": bool((rises >= 0).all()),
        "decreasing": bool((rises <= 0).all()),
        "unimodal": all(_one_peak(column) for column in rises.T.tolist()),
    }
    return all(tests[word] for word in name.split(" and "))


def _one_peak(rises: list[float]) -> bool:
    falls = [k for k, rise in enumerate(rises) if rise < 0]
    return not falls or all(rise <= 0 for rise in rises[falls[0] :])


@pytest.mark.parametrize("name", ENTRIES)
@settings(derandomize=True, deadline=None, max_examples=15)
@given(
    n=SIZES, r=st.integers(1, 3), seed=st.integers(0, 99), size=st.sampled_from([0, 1, 1e-6, 1e4])
)
def test_a_projection_is_the_nearest_point_of_its_set(
    name: str, n: int, r: int, seed: int, size: float
) -> None:
    project, v = projection(name), seeded(n, r, seed=seed) * size
    nearest = project(v)
    assert within(name, nearest)
    assert torch.allclose(project(nearest), nearest, atol=1e-12 * (1 + size))
    for k in range(6):
        other = project(nearest + seeded(n, r, seed=1000 + k) * (size or 1.0))
        rounding = 1e-9 * (1 + size) ** 2
        assert (v - nearest).square().sum() <= (v - other).square().sum() + rounding
        if name in CONVEX:  # an obtuse angle with every other point
            angle = ((v - nearest) * (other - nearest)).sum(0)
            assert (angle <= rounding).all()


@pytest.mark.parametrize("name", CONVEX)
def test_convex_projections_bring_no_two_points_apart(name: str) -> None:
    project = projection(name)
    for seed in range(20):
        a, b = seeded(8, 4, seed=seed), seeded(8, 4, seed=100 + seed)
        assert ((project(a) - project(b)).norm(dim=0) <= (a - b).norm(dim=0) + 1e-12).all()


def minimax(column: Tensor) -> Tensor:
    """Isotonic regression by its formula: max over starts of min over ends of means."""
    n = len(column)
    return torch.stack([
        max((min((column[j : k + 1].mean() for k in range(i, n)), key=float) for j in range(i + 1)),
            key=float)
        for i in range(n)
    ])  # fmt: skip


@settings(derandomize=True, deadline=None, max_examples=12)
@given(n=st.integers(1, 7), seed=st.integers(0, 99), least=st.sampled_from([-math.inf, 0.0]))
def test_pooling_is_isotonic_regression_of_every_beginning(n: int, seed: int, least: float) -> None:
    v = seeded(n, seed=seed)
    fitted, losses = _prox.pooled(v.tolist(), least)
    for count in range(n + 1):
        head = v[:count]
        nearest = minimax(head).clamp_min(least) if count else head
        assert losses[count] == pytest.approx(float((head - nearest).square().sum()), abs=1e-12)
    assert fitted == pytest.approx(nearest.tolist())


@settings(derandomize=True, deadline=None, max_examples=12)
@given(n=st.integers(1, 7), seed=st.integers(0, 99), positive=st.booleans())
def test_the_nearest_unimodal_column_is_the_best_of_all_peaks(
    n: int, seed: int, positive: bool
) -> None:
    v, least = seeded(n, 1, seed=seed), 0.0 if positive else -math.inf
    found = _prox.unimodal(v, least)
    best = math.inf
    for peak in range(n + 1):
        up = _prox.rising(v[:peak]) if peak else v[:0]
        down = _prox.falling(v[peak:]) if peak < n else v[:0]
        best = min(best, float((torch.cat([up, down]).clamp_min(least) - v).square().sum()))
    assert float((found - v).square().sum()) == pytest.approx(best, abs=1e-12)


@pytest.mark.parametrize("word", PENALTIES)
@settings(derandomize=True, deadline=None, max_examples=15)
@given(n=SIZES, r=st.integers(1, 3), seed=st.integers(0, 99), step=st.floats(1e-3, 10))
def test_a_proximal_operator_is_the_minimum_that_it_is_defined_as(
    word: str, n: int, r: int, seed: int, step: float
) -> None:
    prox, penalty = PENALTIES[word]
    v = seeded(n, r, seed=seed)

    def value(u: Tensor) -> float:
        return step * penalty(u) + 0.5 * float((u - v).square().sum())

    found = prox(v, step)
    for k in range(8):
        for size in (1e-3, 0.1, 1.0):
            assert value(found) <= value(found + size * seeded(n, r, seed=1000 + k)) + 1e-12
    assert value(found) <= min(value(v), value(torch.zeros_like(v))) + 1e-12


def test_smoothing_is_the_solution_of_its_system() -> None:
    for n in (1, 2, 7, 20):
        v, d = seeded(n, 3), torch.eye(n, dtype=torch.float64).diff(dim=0)
        system = torch.eye(n, dtype=torch.float64) + 2 * 0.7 * d.T @ d
        assert torch.allclose(_prox.smooth(v, 0.7), torch.linalg.solve(system, v))


def test_the_ball_shortens_columns_and_no_other() -> None:
    v = torch.tensor([[3.0, 0.3], [4.0, 0.4]])
    assert torch.allclose(_prox.unit_ball(v), torch.tensor([[0.6, 0.3], [0.8, 0.4]]))


def test_every_word_has_been_tried() -> None:
    tried = {word for name in ENTRIES for word in name.split(" and ")}
    assert tried == {"nonnegative", "simplex", *SHAPES}
