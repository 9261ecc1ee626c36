"""Tensor trains of many tensors at once: each as good as alone."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tensorlrf.decomposition._fit import Fit
from tensorlrf.decomposition.trains._tt import fit_tt, tt
from tensorlrf.decomposition.trains._tt_ranks import train_ranks
from tensorlrf.errors import ArgumentError, RankError
from tensorlrf.factors import Batch, TTFactors
from tests.decomposition.svd.test_batched import residuals
from tests.decomposition.trains.test_tt import floats, planted, rounding, shapes, tails
from tests.draws import seeded

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def batched(tensor: Tensor, *args: Any, batch_dims: int = 1, **options: Any) -> Fit[Batch]:
    fit: Fit[Any] = fit_tt(tensor, *args, batch_dims=batch_dims, **options)
    assert isinstance(fit.factors, Batch)
    return fit


@settings(derandomize=True, deadline=None, max_examples=30)
@given(
    batch=st.sampled_from([(1,), (3,), (2, 2)]),
    shape=shapes,
    rank=st.integers(1, 30),
    dtype=floats,
    seed=st.integers(0, 9),
)
def test_each_place_is_as_near_as_alone(
    batch: tuple[int, ...], shape: tuple[int, ...], rank: int, dtype: torch.dtype, seed: int
) -> None:
    stack = seeded(*batch, *shape, dtype=dtype, seed=seed)
    copy = stack.clone()
    fit = batched(stack, rank, batch_dims=len(batch))
    assert torch.equal(stack, copy)
    ranks = train_ranks(rank, shape, math.prod(shape))
    factors, places = fit.factors, math.prod(batch)
    assert (factors.shape, factors.batch_shape) == (tuple(stack.shape), batch)
    assert (factors.of, factors.dtype, factors.rank) == ("tt", dtype, (1, *ranks, 1))
    reached = residuals(stack, factors, places)
    room = rounding(dtype, shape)
    for tensor, error in zip(stack.reshape(places, *shape), reached.tolist(), strict=True):
        assert error <= fit_tt(tensor, rank).error + room
        left_out = tails(tensor, ranks)
        assert math.sqrt(max(left_out)) - room <= error <= math.sqrt(sum(left_out)) + room
    whole = float((stack.double() - factors.to(torch.float64).to_dense()).norm())
    assert fit.error == pytest.approx(whole / float(stack.double().norm()), rel=1e-3, abs=room)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("shape", "ranks"),
    [((9, 8, 7, 6), (4, 5, 3)), ((40, 3, 20), (3, 5)), ((3, 4, 5, 30), (2, 6, 7))],
)
def test_planted_trains_are_found_in_all_places(
    shape: tuple[int, ...], ranks: tuple[int, ...], dtype: torch.dtype
) -> None:
    stack = torch.stack([planted(shape, ranks, seed=seed) for seed in (0, 11, 23)]).to(dtype)
    fit = batched(stack, ranks)
    assert (residuals(stack, fit.factors, 3) <= 2 * rounding(dtype, shape)).all()
    if dtype in (torch.float32, torch.float64):
        found = batched(stack, error=100 * rounding(dtype, shape))
        assert found.factors.rank == (1, *ranks, 1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shape", [(9, 8, 7), (60, 4, 5), (3, 4, 60), (20, 21)])
def test_cores_are_those_of_one_tensor(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """The same sweep: the norm is in the same core, and every core has the same part of it."""
    ranks = (2,) * (len(shape) - 1)
    stack = torch.stack([planted(shape, ranks, 0.3, seed) * 4.0**seed for seed in (0, 5)])
    factors = batched(stack.to(dtype), 2).factors
    for place, tensor in zip(factors, stack.to(dtype), strict=True):
        alone = tt(tensor, 2)
        assert isinstance(place, TTFactors)
        for core, other in zip(place.cores, alone.cores, strict=True):
            assert core.shape == other.shape
            assert float(core.norm()) == pytest.approx(float(other.norm()), rel=1e-5)
        torch.testing.assert_close(place.to_dense(), alone.to_dense(), rtol=1e-4, atol=1e-4)


@settings(derandomize=True, deadline=None, max_examples=30)
@given(
    shape=shapes,
    error=st.floats(0.02, 0.9),
    dtype=floats,
    scales=st.lists(st.integers(-6, 6), min_size=1, max_size=3),
)
def test_error_is_kept_in_every_place(
    shape: tuple[int, ...], error: float, dtype: torch.dtype, scales: list[int]
) -> None:
    stack = torch.stack([seeded(*shape, seed=k) * 2.0**s for k, s in enumerate(scales)]).to(dtype)
    fit = batched(stack, error=error)
    assert fit.converged
    # Another order of the same sums.
    room = 64 * torch.finfo(torch.float32).eps
    assert (residuals(stack, fit.factors, len(scales)) <= error + room).all()
    if len(scales) == 1:
        assert fit.factors.rank == tt(stack[0], error=error).rank


def test_common_ranks_are_the_smallest_that_a_place_needs() -> None:
    """Where nothing is left over for the steps to hand on, every bond has the rank of the place
    that needs the most there."""
    stack = torch.stack([planted((8, 8, 8), ranks) for ranks in ((2, 8), (5, 3), (1, 1))])
    fit = batched(stack, error=1e-6)
    assert fit.factors.rank == (1, 5, 8, 1)
    for k, single in enumerate(((2, 8), (5, 3), (1, 1))):
        assert tt(stack[k], error=1e-6).rank == (1, *single, 1)


def test_below_the_rounding_of_the_dtype_trains_are_of_full_rank() -> None:
    stack = torch.stack([planted((5, 6, 7), (2, 3), 1e-3, seed) for seed in (0, 9)])
    assert batched(stack, error=1e-14).error <= 1e-14
    for dtype, error in ((torch.float64, 0.0), (torch.bfloat16, 1e-4), (torch.float16, 1e-5)):
        fit = batched(stack.to(dtype), error=error)
        assert fit.converged
        assert (fit.error, fit.factors.rank) == (0.0, (1, 5, 7, 1))
    # Room for rounding in both places, and less than the plan would use.
    stack = torch.stack([planted((9, 10, 11), (3, 3), 0.03, seed) for seed in (0, 9)]).bfloat16()
    least = batched(stack, 3)
    asked = float(residuals(stack, least.factors, 2).max()) * 1.02
    assert (residuals(stack, batched(stack, error=asked).factors, 2) <= asked).all()


def test_large_values_fit_in_half_precision() -> None:
    tensor = (planted((64, 32, 64), (3, 3), 0.01) * 8000).clamp(-60000, 60000).half()
    fit = batched(torch.stack([tensor, tensor / 1000]), 3)
    assert all(bool(t.isfinite().all()) for t in fit.factors.tensors().values())
    assert fit.error <= fit_tt(tensor.double(), 3).error + 3 * torch.finfo(torch.float16).eps


def test_modes_are_those_of_one_place() -> None:
    stack = seeded(2, 12, 10, 3, 3)
    factors = batched(stack, (6, 9, 3), modes=(0, 2, -1, 1)).factors
    assert factors.shape == (2, 12, 10, 3, 3)
    for place, kernel in zip(factors, stack, strict=True):
        assert isinstance(place, TTFactors)
        assert place.modes == (0, 2, 3, 1)
        assert [c.shape[1] for c in place.cores] == [12, 3, 3, 10]
        other = tt(kernel, (6, 9, 3), modes=(0, 2, 3, 1))
        torch.testing.assert_close(place.to_dense(), other.to_dense())


def test_what_is_refused() -> None:
    stack = seeded(3, 6, 5, 4)
    with pytest.raises(ArgumentError, match="the modes of this tensor are 0 to 2"):
        tt(stack, 2, batch_dims=1, modes=(0, 1, 2, 3))
    with pytest.raises(RankError, match="use at most 4"):
        tt(stack, (2, 5), batch_dims=1)
