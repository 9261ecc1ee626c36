"""Constrained CP: columns in their sets, a loss that never rises, planted terms, contradictions."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from tensorlrf.decomposition import constrained_cp, fit_constrained_cp, fit_nonnegative_cp
from tensorlrf.decomposition.nonnegative._admm import procrustes, solve_factor
from tensorlrf.decomposition.nonnegative._constraints import factors_of
from tensorlrf.errors import ArgumentError, RankError
from tensorlrf.factors import CPFactors
from tests.decomposition.nonnegative.checks import congruence, planted, stationary, uniform
from tests.decomposition.nonnegative.test_prox import within
from tests.draws import seeded

SHAPE = (9, 8, 7)
PEAKS = torch.exp(
    -((torch.linspace(0, 1, 9)[:, None] - torch.tensor([0.2, 0.5, 0.7])) ** 2) / 0.02
).double()
SETS: dict[str, Tensor] = {
    "simplex": planted(SHAPE, 3).factors[0],
    "monotone": uniform(9, 3).sort(0).values - 0.4,
    "decreasing": uniform(9, 3).sort(0, descending=True).values ** 4,
    "unimodal": PEAKS,
    "orthogonal": torch.linalg.qr(seeded(9, 3)).Q,
}
"""Words -> a factor of mode 0 that is of that kind."""


def tensor_of(first: Tensor) -> CPFactors:
    return CPFactors(torch.ones(3).double(), (first, *planted(SHAPE, 3).factors[1:]))


@pytest.mark.parametrize("word", SETS)
def test_a_planted_factor_is_found(word: str) -> None:
    truth = tensor_of(SETS[word])
    x = truth.to_dense()
    constraints = [word, "nonnegative", "nonnegative"]
    fit = fit_constrained_cp(x, 3, constraints=constraints, random_state=0, n_iter_max=200)
    assert fit.error < 0.02
    assert congruence(fit.factors, truth) > 0.98
    first = fit.factors.factors[0]
    if word == "orthogonal":
        assert torch.allclose(first.T @ first, torch.eye(3).double(), atol=1e-10)
    else:
        assert within(word, first)


COURSES: dict[str, Any] = {
    "all alike": "nonnegative",
    "weights alone": "simplex",
    "weights of either sign": "orthogonal",
    "free": None,
    "lists": ["simplex", ["nonnegative", "monotone"], ["nonnegative", "unimodal"]],
    "penalties": [("l1", 0.01), "nonnegative", ("smooth", 0.1)],
    "both penalties": {1: [("l1", 0.01), ("smooth", 0.01), "nonnegative"]},
    "smooth shares": {-1: ["simplex", ("smooth", 0.1)]},
    "sparse peaks": {0: ["unimodal", ("l1", 0.02)], 2: "orthogonal"},
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize("name", COURSES)
def test_columns_are_in_their_sets_and_nothing_rises(name: str, dtype: torch.dtype) -> None:
    x = (planted(SHAPE, 3).to_dense() + 0.1 * seeded(*SHAPE)).to(dtype)
    fit = fit_constrained_cp(x, 2, constraints=COURSES[name], n_iter_max=12, random_state=0)
    rounding = 0.0 if dtype == torch.float64 else 1e-6
    assert all(b <= a * (1 + rounding) for a, b in pairwise(fit.errors[:-1]))
    assert fit.error < 1
    for wanted, u in zip(factors_of(COURSES[name], SHAPE, 2), fit.factors.factors, strict=True):
        assert torch.isfinite(u).all()
        wide, eps = u.double(), torch.finfo(dtype).eps
        if wanted.orthogonal:
            assert torch.allclose(wide.T @ wide, torch.eye(2).double(), atol=20 * eps)
            continue
        if "simplex" in wanted.words:
            assert torch.allclose(wide.sum(0), torch.ones(2).double(), atol=10 * eps)
        else:
            length = wide.norm(dim=0)
            assert torch.allclose(length[length > 0], torch.ones(()).double(), atol=10 * eps)
        sets = wanted.words - {"l1", "smooth", "simplex"}
        assert not sets or within(" and ".join(sets), wide)
    assert (fit.factors.weights.diff() <= 0).all()


def test_it_ends_no_higher_than_hals_by_much() -> None:
    x = planted(SHAPE, 3).to_dense() + 0.1 * uniform(*SHAPE, seed=8)
    ours = min(fit_constrained_cp(x, 3, random_state=k).error for k in range(3))
    theirs = min(fit_nonnegative_cp(x, 3, random_state=k).error for k in range(3))
    assert ours < theirs * 1.01


@pytest.mark.parametrize("word", ["nonnegative", "simplex", "monotone"])
def test_rounds_lead_a_factor_to_the_optimum(word: str) -> None:
    """The projection of a step along the gradient is where it is: the problem is convex."""
    half = seeded(12, 4)
    system, rhs = half.T @ half / 12, seeded(6, 4, seed=1)
    factor = factors_of([word, None], (6, 6), 4)[0]
    assert factor.project is not None
    u, values = factor.project(torch.zeros_like(rhs)), []
    duals: tuple[Tensor, ...] = ()
    for _ in range(80):
        u, duals = solve_factor(u, rhs, system, factor, duals)
        values.append(float(0.5 * ((u @ system) * u).sum() - (rhs * u).sum()))
    assert all(b <= a + 1e-14 * abs(a) for a, b in pairwise(values))
    assert float((u - factor.project(u - (u @ system - rhs))).abs().max()) < 1e-3
    if word == "nonnegative":
        assert stationary(u, u @ system - rhs) < 1e-3


def test_a_procrustes_step_is_the_best_rotation() -> None:
    rhs, old = seeded(7, 3), torch.linalg.qr(seeded(7, 3, seed=1)).Q
    best = procrustes(rhs, old)
    assert torch.allclose(best.T @ best, torch.eye(3).double())
    for seed in range(30):
        other = torch.linalg.qr(best + 0.3 * seeded(7, 3, seed=seed)).Q
        other = other * (other * best).sum(0).sign()
        assert (rhs * other).sum() <= (rhs * best).sum()
    assert procrustes(torch.zeros_like(rhs), old) is old


def test_penalties_do_what_they_say_and_are_not_escaped_by_scale() -> None:
    """The stronger the more zeros, and the smoother; however long the other factors might be."""
    x = planted(SHAPE, 3).to_dense() + 0.1 * seeded(*SHAPE)
    zeros, rough = [], []
    for strength in (1e-4, 0.03, 0.1):
        f = constrained_cp(x, 2, constraints={0: ("l1", strength)}, random_state=0)
        zeros.append(int((f.factors[0] == 0).sum()))
        f = constrained_cp(x, 2, constraints={0: ("smooth", 10 * strength)}, random_state=0)
        rough.append(float((f.factors[0].diff(dim=0) ** 2).sum()))
    assert zeros[0] < zeros[1] < zeros[2]
    assert rough[0] > rough[1] > rough[2]


def test_the_size_of_the_tensor_is_of_no_consequence_for_a_strength() -> None:
    x = planted(SHAPE, 3).to_dense()
    for entry in (("l1", 0.02), ("smooth", 0.1)):
        small, large = (
            constrained_cp(x * size, 2, constraints={0: entry}, random_state=0, n_iter_max=20)
            for size in (1.0, 1e9)
        )
        assert torch.allclose(small.factors[0], large.factors[0], atol=1e-6)
        assert torch.allclose(small.weights * 1e9, large.weights, rtol=1e-6)


def test_a_callback_stops_and_restarts_are_tried() -> None:
    x, seen = planted(SHAPE, 3).to_dense(), []
    fit = fit_constrained_cp(
        x, 3, callback=lambda f, e: seen.append(f.rel_error(x)) or len(seen) == 3, random_state=0
    )
    assert "stopped by callback after sweep 3" in fit.reason
    assert fit.errors[1:-1] == pytest.approx(seen)
    one, many = (fit_constrained_cp(x, 3, random_state=0, n_restarts=k).error for k in (1, 3))
    assert many <= one + 0.02


@pytest.mark.parametrize(
    ("constraints", "words"),
    [
        ("positive", r"constraints\[0\]='positive' is unknown; choose one of nonnegative, simplex"),
        ({1: "sparse"}, r"constraints\[1\]='sparse' is unknown"),
        (["nonnegative"], "constraints has 1 entries for 3 modes; give one for each"),
        ([None] * 4, "constraints has 4 entries for 3 modes"),
        ({3: "simplex"}, "names mode 3; the modes of this tensor are 0 to 2"),
        ({0: "simplex", -3: "l1"}, "names a mode twice"),
        (7, "constraints is a int; give a word for all modes"),
        ([7, None, None], r"constraints\[0\]=7 must be a word, \(word, strength\), or a list"),
        ("l1", r"'l1' with strength None; give a number above 0, as in \('l1', 0.1\)"),
        (("l1", -1.0), r"'l1' with strength -1.0"),
        (("smooth", float("nan")), "'smooth' with strength nan"),
        (("simplex", 0.5), "'simplex' has no strength"),
        ([["monotone", "monotone"], None, None], "has 'monotone' twice"),
        ({2: ["simplex", ("l1", 0.1)]}, r"constraints\[2\] has 'simplex' and 'l1': columns on the"),
        ({0: ["decreasing", "monotone"]}, "only columns that are constant rise and fall"),
        ({0: ["unimodal", "monotone"]}, "a monotone column is unimodal; name that one alone"),
        ({0: ["simplex", "unimodal"]}, "the nearest point of both is in no closed form"),
        ({0: ["orthogonal", "nonnegative"]}, "Procrustes step, which leaves nothing to choose"),
    ],
)
def test_contradictions_and_what_is_no_constraint(constraints: Any, words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        constrained_cp(uniform(4, 4, 4), 2, constraints=constraints)


def test_more_orthonormal_columns_than_there_is_room_for() -> None:
    with pytest.raises(RankError, match="rank=4 is above 3, the size of mode 1"):
        constrained_cp(uniform(5, 3, 5), 4, constraints={1: "orthogonal"})
    fit = fit_constrained_cp(uniform(5, 3, 5), error=0.5, constraints={1: "orthogonal"})
    assert fit.factors.rank <= 3


def test_weights_that_a_dtype_does_not_hold_are_refused() -> None:
    x = torch.full((40, 40, 40), 3e4, dtype=torch.float16)
    with pytest.raises(ArgumentError, match=r"does not hold the weight .* pass it in float32"):
        constrained_cp(x, 1, constraints="simplex", random_state=0)
