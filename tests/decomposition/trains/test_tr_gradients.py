"""Rings of wide ranks: by gradients as near as by normal matrices, and nothing large on the way."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from tensorlrf.decomposition.sizes import matrix_sizes
from tensorlrf.decomposition.trains import _tr_gradients
from tensorlrf.decomposition.trains._tr import fit_tr
from tensorlrf.decomposition.trains._tr_als import RingProblem
from tensorlrf.decomposition.trains._tr_gradients import (
    gradient_steps,
    marginals,
    seen_through,
    too_wide,
)
from tensorlrf.decomposition.trains._tr_outputs import OutputRingProblem
from tensorlrf.factors.algebra import chain_product
from tests.draws import seeded
from tests.largest import Largest
from tests.metrics import in_moments, moments_within


def ring(sizes: tuple[int, ...], ranks: tuple[int, ...], seed: int = 0) -> list[Tensor]:
    pairs = zip(sizes, pairwise((*ranks, ranks[0])), strict=True)
    return [seeded(r, n, s, seed=seed + k) for k, (n, (r, s)) in enumerate(pairs)]


@pytest.mark.parametrize("metric", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_gradients_come_as_near_as_normal_matrices(
    metric: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = seeded(256, 256)
    sizes = matrix_sizes(256, 256, None, None, None)
    options: dict[str, Any] = {"sizes": sizes, "n_iter_max": 10, "random_state": 0}
    if metric:
        options["gram"] = moments_within(256)
    errors = []
    for most in (1 << 20, 0):
        monkeypatch.setattr(_tr_gradients, "MOST_UNKNOWNS", most)
        fit = fit_tr(weight, 0.5, **options)
        assert fit.factors.rank[0] ** 2 > 400
        assert all(b <= a * (1 + 1e-12) for a, b in pairwise(fit.errors[:-1]))
        errors.append(fit.error)
    assert errors[1] <= 1.03 * errors[0]


@pytest.mark.parametrize("metric", [False, True])
def test_no_matrix_of_squared_bonds(metric: bool) -> None:
    """r^4 = 5.3 million would be sixteen times the largest thing that there is."""
    sizes, r = (8, 8, 8, 8), 48
    weight = seeded(64, 64)
    cores = ring(sizes, (r,) * 4)
    halves = 64 * r * r
    with Largest() as largest:
        if metric:
            OutputRingProblem(in_moments(weight, moments_within(64)), 2).sweep(cores, 1e-10)
        else:
            RingProblem(weight.reshape(sizes)).sweep(cores, 1e-10)
    assert largest.numbers <= 4 * halves < r**4


def test_the_error_of_a_sweep_is_that_of_its_ring(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = seeded(24, 30)
    problem = RingProblem(weight.reshape(6, 4, 5, 6))
    # The second half alone, the first alone, both, and none are above the limit.
    for ranks, most in (((3, 4, 2, 5), 13), ((2, 5, 3, 4), 13), ((3, 4, 2, 5), 0), ((2,) * 4, 99)):
        monkeypatch.setattr(_tr_gradients, "MOST_UNKNOWNS", most)
        cores = ring((6, 4, 5, 6), ranks)
        swept, error = problem.sweep(cores, 1e-10)
        assert error == pytest.approx(problem.rel_error(swept), rel=1e-8)
        assert error < problem.rel_error(cores)


def test_steps_reach_the_least_squares_of_one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the normal equations, formed in full, where the steps are as many as the unknowns."""
    monkeypatch.setattr(_tr_gradients, "STEPS", 200)
    half = ring((4, 3, 5), (2, 3, 2))[:2]
    other, matrix = seeded(9, 4, seed=7), seeded(12, 9, seed=8)  # S (Q, y z), X (P, Q)
    seen, target = seen_through(other, other), matrix @ other
    for ends in (None, marginals(other, other, 2)):
        core = gradient_steps(half, 1, target, seen, ends)
        columns = []
        for i in range(core.numel()):
            unit = torch.zeros(core.numel(), dtype=torch.float64)
            unit[i] = 1.0
            columns.append((_flat([half[0], unit.reshape(core.shape)]) @ other.T).reshape(-1))
        solution = torch.linalg.lstsq(torch.stack(columns, 1), matrix.reshape(-1, 1)).solution
        best = float((_flat([half[0], solution.reshape(core.shape)]) @ other.T - matrix).norm())
        assert float((_flat([half[0], core]) @ other.T - matrix).norm()) <= best * (1 + 1e-9)


def _flat(cores: list[Tensor]) -> Tensor:
    """(P, y z) of a half (y, P, z)."""
    return chain_product(cores).transpose(0, 1).flatten(1)


@pytest.mark.parametrize("q", [3, 40])
def test_both_orders_are_the_same_product(q: int) -> None:
    one, other, half = seeded(q, 12), seeded(q, 12, seed=1), seeded(7, 12, seed=2)
    torch.testing.assert_close(seen_through(one, other)(half), half @ (one.T @ other))
    first, last = marginals(one, other, 3)
    whole = (one.T @ other).reshape(3, 4, 3, 4)
    torch.testing.assert_close(first, whole.diagonal(dim1=1, dim2=3).sum(2))
    torch.testing.assert_close(last, whole.diagonal(dim1=0, dim2=2).sum(2))


def test_small_rings_keep_their_normal_matrices() -> None:
    assert not too_wide(ring((64, 12, 10, 60), (4, 4, 4, 4))[:2])
    assert not too_wide(ring((8, 8), (45, 45))[:1])
    assert too_wide(ring((8, 8), (46, 46))[:1])
    assert too_wide(ring((2, 2, 2), (46, 1, 46))[:2])


def test_zero_moments_and_zero_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_tr_gradients, "MOST_UNKNOWNS", 0)
    assert fit_tr(torch.zeros(3, 4, 5), 2).error == 0.0
    fit = fit_tr(seeded(12, 20), 2, gram=torch.zeros(20, 20), n_iter_max=3)
    assert fit.error == 0.0
    assert all(math.isfinite(float(c.sum())) for c in fit.factors)
