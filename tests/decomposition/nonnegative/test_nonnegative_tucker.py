"""Non-negative Tucker: signs, a loss that never rises, planted subspaces, the core, refusals."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorlrf.decomposition import fit_nonnegative_tucker, nonnegative_tucker
from tensorlrf.decomposition.nonnegative import _compressed
from tensorlrf.decomposition.nonnegative._data import Data
from tensorlrf.decomposition.nonnegative._tucker_sweep import (
    Model,
    TuckerSweep,
    core_step,
    random_factors,
    start_from,
)
from tensorlrf.errors import ArgumentError, RankError
from tensorlrf.factors import TuckerFactors
from tensorlrf.factors.algebra import mode_product
from tests.decomposition.nonnegative.checks import never_rises, none_negative, stationary, uniform
from tests.draws import generator, seeded


def planted(dtype: torch.dtype = torch.float64) -> TuckerFactors:
    shape, ranks = (9, 8, 7), (2, 3, 2)
    sparse = [
        uniform(n, r, seed=k).where(uniform(n, r, seed=40 + k) > 0.4, 0.0)
        for k, (n, r) in enumerate(zip(shape, ranks, strict=True))
    ]
    return TuckerFactors(uniform(*ranks, seed=9).to(dtype), tuple(u.to(dtype) for u in sparse))


def random_model(data: Data, ranks: tuple[int, ...]) -> Model:
    start = start_from(data, random_factors(data, ranks, range(len(ranks)), generator()))
    assert start is not None
    return start.state


@settings(derandomize=True, deadline=None, max_examples=20)
@given(
    shape=st.lists(st.integers(1, 5), min_size=2, max_size=4).map(tuple),
    r=st.integers(1, 3),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
    shift=st.sampled_from([0.0, 0.5, 0.999, 2.0]),
    init=st.sampled_from(["random", "svd"]),
    leave=st.integers(0, 1),
)
def test_no_entry_is_negative_and_the_loss_never_rises(
    shape: tuple[int, ...], r: int, dtype: torch.dtype, shift: float, init: str, leave: int
) -> None:
    """Of all modes, or of all but the first."""
    x = (uniform(*shape) - shift).to(dtype)
    modes = range(leave, len(shape))
    ranks = tuple(min(r, shape[k]) for k in modes)
    fit = fit_nonnegative_tucker(
        x, ranks, modes=tuple(modes), init=init, n_iter_max=8, random_state=0
    )
    assert fit.factors.modes == tuple(modes)
    assert none_negative(fit)
    assert never_rises(fit.errors)
    assert fit.factors.rank == ranks
    if bool((x > 0).any()):
        assert fit.errors[-2] < 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_planted_tensor_is_met(dtype: torch.dtype) -> None:
    x = planted(dtype).to_dense()
    fit = fit_nonnegative_tucker(x, (2, 3, 2), random_state=0, n_iter_max=600, tol=0)
    assert fit.error < 1e-3
    for u in fit.factors.factors:
        assert torch.allclose(u.norm(dim=0), torch.ones((), dtype=dtype))


def test_it_ends_where_nothing_is_to_be_gained() -> None:
    """The conditions of Karush, Kuhn and Tucker hold in every factor and the core."""
    x = planted().to_dense() + 0.2 * seeded(9, 8, 7)
    fit = fit_nonnegative_tucker(x, (2, 3, 2), random_state=0, n_iter_max=1500, tol=1e-12)
    core, factors = fit.factors
    rest, size = fit.factors.to_dense() - x, float(x.norm())
    slope = rest
    for k, u in enumerate(factors):
        slope = mode_product(slope, u.T, k)
    assert stationary(core, slope) < 1e-3 * size
    for k, u in enumerate(factors):
        others = core
        for j, v in enumerate(factors):
            others = others if j == k else mode_product(others, v, j)
        gradient = rest.movedim(k, 0).flatten(1) @ others.movedim(k, 0).flatten(1).T
        assert stationary(u, gradient / size) < 1e-3


def test_the_core_comes_to_its_least_squares_and_never_away_from_them() -> None:
    grams = [h.T @ h for h in (seeded(6, r, seed=r) for r in (2, 3, 4))]
    rhs = seeded(2, 3, 4, seed=9)
    core, values = torch.ones(2, 3, 4, dtype=torch.float64), []

    def slope(core: torch.Tensor) -> torch.Tensor:
        for k, g in enumerate(grams):
            core = mode_product(core, g, k)
        return core - rhs

    for _ in range(150):
        core = core_step(core, rhs, grams)
        values.append(float((core * (0.5 * slope(core) - 0.5 * rhs)).sum()))
    assert all(b <= a + 1e-13 * abs(a) for a, b in pairwise(values))
    assert stationary(core, slope(core)) < 1e-6


def test_what_a_sweep_says_of_its_error_is_the_residual() -> None:
    x = planted(torch.float32).to_dense() + 0.3 * uniform(9, 8, 7).float()
    data = Data.of(x)
    model = start = random_model(data, (2, 3, 2))
    before = [t.clone() for t in (start.core, *start.factors) if t is not None]
    for _ in range(10):
        model, error = TuckerSweep(data, model).run()
    assert error == pytest.approx(model.factors_of(data).rel_error(x), rel=1e-4)
    assert all(map(torch.equal, before, (start.core, *start.factors)))


def test_at_full_rank_all_that_is_left_are_the_negative_entries() -> None:
    x = seeded(3, 5, 4)
    least = float(x.clamp_max(0).norm() / x.norm())
    assert fit_nonnegative_tucker(x, (3, 5, 4)).error == pytest.approx(least)
    assert fit_nonnegative_tucker(x.abs(), error=1e-9).error < 1e-9
    with pytest.raises(ArgumentError, match=r"error=0.1 is below 0\.\d+, what the negative"):
        nonnegative_tucker(x, error=0.1)


def test_a_callback_stops_and_restarts_are_tried() -> None:
    x = planted().to_dense()
    seen: list[float] = []

    def stop(factors: TuckerFactors, error: float) -> bool:
        seen.append(factors.rel_error(x))
        return len(seen) == 2

    fit = fit_nonnegative_tucker(x, 2, callback=stop, random_state=0)
    assert "stopped by callback after sweep 2" in fit.reason
    assert fit.errors[1:-1] == pytest.approx(seen)
    assert fit_nonnegative_tucker(x, 2, n_restarts=3, random_state=0).error < 0.3


def test_modes_that_are_left_whole_have_their_identity() -> None:
    """A partial model is the full one whose factors there are the identity."""
    x = planted().to_dense() + 0.1 * uniform(9, 8, 7)
    fit = fit_nonnegative_tucker(x, (3, 2), modes=(-1, 0), random_state=0, n_iter_max=400)
    f = fit.factors
    assert (f.modes, f.rank, f.core.shape) == ((0, 2), (2, 3), (2, 8, 3))
    assert fit.error == pytest.approx(f.rel_error(x))
    full = fit_nonnegative_tucker(x, (2, 8, 3), random_state=0, n_iter_max=400)
    assert fit.error <= full.error * 1.02  # the core of a partial one has fewer constraints
    alone = fit_nonnegative_tucker(x, error=0.2, modes=[1], random_state=0)
    assert alone.factors.modes == (1,)
    assert alone.error <= 0.2


def test_it_begins_in_small_bases_of_a_large_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some modes, all modes, both starts: an error no higher than that of sweeps alone."""
    factors = tuple(uniform(n, 3, seed=n).where(uniform(n, 3, seed=60 + n) > 0.4, 0.0)
                    for n in (40, 30, 24))  # fmt: skip
    x = TuckerFactors(uniform(3, 3, 3, seed=9), factors).to_dense()
    x = x + 0.2 * x.norm() / x.numel() ** 0.5 * seeded(40, 30, 24)
    options: list[dict[str, Any]] = [{}, {"init": "svd"}, {"init": "svd", "n_restarts": 2}]
    ends = [fit_nonnegative_tucker(x, 3, random_state=0, **one) for one in options]
    part = fit_nonnegative_tucker(x[:, :, :6], 3, modes=(0, 1), random_state=0)
    monkeypatch.setattr(_compressed, "WORTH", math.inf)
    plain = fit_nonnegative_tucker(x, 3, random_state=0)
    for fit in ends:
        assert never_rises(fit.errors)
        assert none_negative(fit)
        assert fit.error <= plain.error * (1 + 5e-3)
        assert len(fit.errors) < len(plain.errors)
    whole = fit_nonnegative_tucker(x[:, :, :6], 3, modes=(0, 1), random_state=0)
    assert part.error <= whole.error * (1 + 5e-3)


def test_an_unknown_start_is_refused() -> None:
    with pytest.raises(ArgumentError, match="init='hosvd' is unknown; choose one of random, svd"):
        nonnegative_tucker(uniform(6, 5, 6), 2, init="hosvd")
    with pytest.raises(ArgumentError, match=r"modes=\(0, 0\) names a mode twice"):
        nonnegative_tucker(uniform(6, 5, 6), 2, modes=(0, 0))


@pytest.mark.parametrize(
    ("rank", "words"),
    [((2, 2), "has 2 entries for 3 factored modes"), (6, "use at most 5 there"), (0, "at least 1")],
)
def test_refusals(rank: Any, words: str) -> None:
    with pytest.raises(RankError, match=words):
        nonnegative_tucker(uniform(6, 5, 6), rank)
