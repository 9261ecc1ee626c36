"""Cross approximation: functions of known rank from few values, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tensorlrf.decomposition.linalg.selection.maxvol import BOUND, maxvol
from tensorlrf.decomposition.trains._tt_cross import entries, fit_tt_cross, tt_cross
from tensorlrf.errors import ArgumentError, RankError, ShapeError
from tensorlrf.factors import TTFactors

EPS = torch.finfo(torch.float64).eps


def counted(function: Callable[[Tensor], Tensor]) -> tuple[Callable[[Tensor], Tensor], list[int]]:
    counts: list[int] = []

    def counting(indices: Tensor) -> Tensor:
        counts.append(len(indices))
        return function(indices)

    return counting, counts


def total(indices: Tensor) -> Tensor:
    return indices.sum(1).double()


def hilbert(indices: Tensor) -> Tensor:
    return 1 / (1 + total(indices))


def whole(function: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> Tensor:
    grid = torch.cartesian_prod(*[torch.arange(n) for n in shape])
    return function(grid).reshape(shape)


@settings(derandomize=True, deadline=None, max_examples=30)
@given(n=st.integers(1, 30), r=st.integers(1, 8), seed=st.integers(0, 99))
def test_no_exchange_raises_the_volume(n: int, r: int, seed: int) -> None:
    r = min(n, r)
    draws = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(n, r, generator=draws, dtype=torch.float64))[0]
    rows, weights = maxvol(basis)
    assert len(set(rows.tolist())) == r
    assert float(weights.abs().max()) <= BOUND + 1e-10
    torch.testing.assert_close(weights[rows], torch.eye(r, dtype=torch.float64))
    torch.testing.assert_close(weights @ basis[rows], basis)
    # The volume of the best rows is at most (r^(1/2) BOUND)^r times theirs (Hadamard).
    assert float(weights.norm(dim=1).max()) <= math.sqrt(r) * (BOUND + 1e-10)


@pytest.mark.parametrize("options", [{"rank": 2}, {"rank": 7}, {"error": 1e-10}])
def test_the_sum_of_indices_has_rank_two(options: dict[str, Any]) -> None:
    shape = (9, 8, 10, 7, 9)
    function, counts = counted(total)
    fit = fit_tt_cross(function, shape, random_state=0, **options)
    assert fit.converged
    assert fit.factors.rank == (1, 2, 2, 2, 2, 1)
    # Sums of 2 products a bond, with weights near one.
    assert fit.factors.rel_error(whole(total, shape)) <= 100 * EPS
    assert sum(counts) <= 0.15 * math.prod(shape)
    assert f"{sum(counts):,} values" in fit.reason


@pytest.mark.parametrize("error", [1e-4, 1e-8])
def test_a_function_of_low_numerical_rank(error: float) -> None:
    shape = (12,) * 5
    function, counts = counted(hilbert)
    fit = fit_tt_cross(function, shape, error=error, random_state=1)
    assert fit.converged
    assert fit.error <= error
    # The estimate is one of the root mean square; a thousand entries tell it to a factor.
    assert fit.factors.rel_error(whole(hilbert, shape)) <= 3 * error
    assert sum(counts) <= 0.25 * math.prod(shape)


def test_far_fewer_values_than_entries() -> None:
    def wave(indices: Tensor) -> Tensor:
        return 1 + torch.cos(0.1 * total(indices))

    function, counts = counted(wave)
    fit = fit_tt_cross(function, (8,) * 20, error=1e-9, random_state=0)
    assert set(fit.factors.rank[1:-1]) == {3}
    assert sum(counts) < 50_000
    draws = torch.Generator().manual_seed(5)
    fresh = torch.randint(8, (500, 20), generator=draws)
    torch.testing.assert_close(entries(fit.factors, fresh), wave(fresh), rtol=0, atol=1e-8)


def test_any_tensor_is_found_at_full_rank() -> None:
    draws = torch.Generator().manual_seed(3)
    tensor = torch.randn(5, 6, 7, generator=draws, dtype=torch.float64)
    fit = fit_tt_cross(lambda i: tensor[tuple(i.T)], tensor.shape, error=1e-10, random_state=0)
    assert fit.factors.rank == (1, 5, 7, 1)
    assert fit.factors.rel_error(tensor) <= 1e-10
    cut = fit_tt_cross(lambda i: tensor[tuple(i.T)], tensor.shape, (3, 4), random_state=0)
    assert cut.factors.rank == (1, 3, 4, 1)


def test_entries_that_were_missed_join_the_crosses() -> None:
    """One large slice, away from where the first rows and columns are likely to be drawn."""

    def ridge(indices: Tensor) -> Tensor:
        return 1.0 + 50.0 * (indices[:, 0] == 17) * (indices[:, 3] == 3) * (indices[:, 1] < 9)

    fit = fit_tt_cross(lambda i: ridge(i).double(), (20, 18, 16, 12), error=1e-8, random_state=0)
    assert fit.factors.rel_error(whole(ridge, (20, 18, 16, 12))) <= 1e-8


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_dtype_is_that_of_the_values(dtype: torch.dtype) -> None:
    factors = tt_cross(lambda i: total(i).to(dtype), (6, 7, 8), 2, random_state=0)
    assert factors.dtype == dtype
    assert (
        factors.to(torch.float64).rel_error(whole(total, (6, 7, 8))) <= 8 * torch.finfo(dtype).eps
    )


@pytest.mark.parametrize("factor", [1e-30, 1e30])
def test_scale_does_not_matter(factor: float) -> None:
    one = fit_tt_cross(hilbert, (8, 8, 8), error=1e-6, random_state=2)
    other = fit_tt_cross(lambda i: factor * hilbert(i), (8, 8, 8), error=1e-6, random_state=2)
    assert one.factors.rank == other.factors.rank
    assert other.error == pytest.approx(one.error, rel=1e-3)


def test_zero_and_two_modes() -> None:
    assert fit_tt_cross(lambda i: torch.zeros(len(i)), (4, 5, 6), error=0.1).error == 0.0
    matrix = tt_cross(total, (9, 11), 3, random_state=0)
    assert matrix.rank == (1, 2, 1)


def test_seeds_repeat_and_the_global_generator_stays() -> None:
    state = torch.get_rng_state()
    one = tt_cross(hilbert, (9, 9, 9), 3, random_state=4)
    other = tt_cross(hilbert, (9, 9, 9), 3, random_state=4)
    tt_cross(hilbert, (9, 9, 9), 3)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_the_last_estimate_is_of_what_is_returned() -> None:
    fit = fit_tt_cross(hilbert, (12,) * 4, 3, random_state=0, n_samples=5000)
    truth = fit.factors.rel_error(whole(hilbert, (12,) * 4))
    assert fit.error == pytest.approx(truth, rel=0.5)
    few = fit_tt_cross(hilbert, (12,) * 4, error=1e-9, n_iter_max=1, random_state=0)
    assert not few.converged
    assert isinstance(few.factors, TTFactors)


def test_values_that_are_refused() -> None:
    def holed(indices: Tensor) -> Tensor:
        values = total(indices)
        values[(indices[:, 1] == 2) & (indices[:, 0] == 3)] = math.nan
        return values

    with pytest.raises(ArgumentError, match=r"returned nan at index \(3, 2\)"):
        tt_cross(holed, (5, 5), 2, random_state=0)
    with pytest.raises(ArgumentError, match=r"returned inf at index \("):
        tt_cross(lambda i: total(i) + math.inf, (5, 5), 2, random_state=0)
    with pytest.raises(ArgumentError, match=r"returned torch.int64 at \d+ indices, the first \("):
        tt_cross(lambda i: i.sum(1), (5, 5), 2)
    with pytest.raises(ShapeError, match=r"returned shape \(\d+, 1\) .*first \("):
        tt_cross(lambda i: total(i)[:, None], (5, 5), 2)
    wrong: Any = [(lambda i: 1.0, "returned float"), (torch.zeros(5, 5), "function is a Tensor")]
    for function, text in wrong:
        with pytest.raises(ArgumentError, match=text):
            tt_cross(function, (5, 5), 2)


def test_arguments_that_are_refused() -> None:
    for shape in ((5,), (5, 0), (5, 2.0), (5, True)):
        bad: Any = shape
        with pytest.raises(ShapeError, match="shape="):
            tt_cross(total, bad, 2)
    size: Any = 5
    with pytest.raises(ArgumentError, match="shape=5 must be a sequence, such as"):
        tt_cross(total, size, 2)
    with pytest.raises(ArgumentError, match="neither"):
        tt_cross(total, (5, 5))
    with pytest.raises(ArgumentError, match="error=1e-17 is below"):
        tt_cross(total, (5, 5), error=1e-17)
    with pytest.raises(RankError, match="beyond 2"):
        tt_cross(total, (5, 5), 2**70)
    with pytest.raises(RankError, match="use at most 5"):
        tt_cross(total, (5, 6), (6,))
    options: list[dict[str, Any]] = [{"n_iter_max": 0}, {"n_samples": 0}, {"n_samples": 2.0}]
    for option in options:
        with pytest.raises(ArgumentError, match="at least 1"):
            tt_cross(total, (5, 5), 2, **option)
    seed: Any = "x"
    with pytest.raises(ArgumentError, match="random_state"):
        tt_cross(total, (5, 5), 2, random_state=seed)
