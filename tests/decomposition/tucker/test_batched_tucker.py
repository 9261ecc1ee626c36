"""The HOSVD of many tensors at once: each as good as alone."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tensorlrf.decomposition._fit import Fit
from tensorlrf.decomposition.linalg._gram import unfold
from tensorlrf.decomposition.tucker._tucker import fit_tucker, tucker
from tensorlrf.errors import RankError, UnsupportedError
from tensorlrf.factors import Batch, TuckerFactors
from tests.decomposition.svd.test_batched import DTYPES, residuals
from tests.draws import seeded, seeded32

SOLVERS = ("hosvd", "st_hosvd")


def batched(tensor: Tensor, rank: Any, batch_dims: int = 1, **options: Any) -> Fit[Batch]:
    options = {"solver": "hosvd", **options}
    fit: Fit[Any] = fit_tucker(tensor, rank, batch_dims=batch_dims, **options)
    assert isinstance(fit.factors, Batch)
    return fit


@settings(derandomize=True, deadline=None, max_examples=30)
@given(
    batch=st.sampled_from([(1,), (3,), (2, 2)]),
    sizes=st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=2, max_size=4),
    dtype=st.sampled_from(DTYPES),
    solver=st.sampled_from(SOLVERS),
)
def test_each_error_is_within_the_energies_left_out(
    batch: tuple[int, ...], sizes: list[tuple[int, int]], dtype: torch.dtype, solver: str
) -> None:
    shape, ranks = tuple(n for n, _ in sizes), tuple(min(n, r) for n, r in sizes)
    stack = seeded(*batch, *shape, dtype=dtype)
    fit = batched(stack, ranks, len(batch), solver=solver)
    factors = fit.factors
    assert factors.shape == (*batch, *shape)
    assert (factors.rank, factors.of, factors.dtype) == (ranks, "tucker", dtype)
    places = math.prod(batch)
    reached = residuals(stack, factors, places)
    # Every factor and the core is rounded; a sum runs over the entries of the core.
    rounding = 8 * torch.finfo(dtype).eps * (len(sizes) + 1) * math.sqrt(math.prod(ranks))
    for k, tensor in enumerate(stack.double().reshape(places, *shape)):
        lost = sum(
            float(torch.linalg.svdvals(unfold(tensor, mode))[r:].square().sum())
            for mode, r in enumerate(ranks)
        )
        assert float(reached[k]) <= math.sqrt(lost) / float(tensor.norm()) + rounding
    whole = float((stack.double() - factors.to(torch.float64).to_dense()).norm())
    floor = 64 * torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    assert fit.error == pytest.approx(whole / float(stack.double().norm()), rel=1e-3, abs=floor)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(("modes", "rank"), [(None, (3, 2, 4)), ((0, 1), (3, 2)), ((2,), (2,))])
def test_each_place_is_what_it_is_alone(
    solver: str, modes: tuple[int, ...] | None, rank: tuple[int, ...]
) -> None:
    stack = seeded32(2, 2, 6, 5, 4)
    fit = batched(stack, rank, 2, solver=solver, modes=modes)
    for i in range(2):
        for j in range(2):
            alone, one = tucker(stack[i, j], rank, solver=solver, modes=modes), fit.factors[i, j]
            assert isinstance(one, TuckerFactors)
            assert one.modes == alone.modes
            assert one.core.shape == alone.core.shape
            torch.testing.assert_close(one.to_dense(), alone.to_dense(), rtol=1e-4, atol=1e-5)
            for k, factor in zip(one.modes, one.factors, strict=True):
                eye = factor.T @ factor
                torch.testing.assert_close(eye, torch.eye(len(eye)), rtol=0, atol=2e-6)
                energies = one.core.movedim(k, 0).flatten(1).square().sum(1)
                assert (energies.diff() <= 1e-5 * energies[0]).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_rank_above_the_other_modes_together_is_completed(dtype: torch.dtype) -> None:
    stack = seeded(3, 7, 2, 2, dtype=dtype)
    fit = batched(stack, (6, 2, 2))
    assert fit.error <= 32 * torch.finfo(dtype).eps
    assert fit.factors.parts["factors.0"].shape == (3, 7, 6)


def test_planted_ranks_are_exact() -> None:
    core = seeded(4, 2, 3, 2, dtype=torch.float64)
    sides = [seeded(4, n, r, seed=n, dtype=torch.float64) for n, r in ((6, 2), (7, 3), (5, 2))]
    stack = torch.einsum("bxyz,bix,bjy,bkz->bijk", core, *sides)
    for solver in SOLVERS:
        assert batched(stack, (2, 3, 2), solver=solver).error <= 1e-13
        assert batched(stack.float(), (2, 3, 2), solver=solver).error <= 1e-6


def test_a_core_beyond_half_precision_is_shared_with_the_factors() -> None:
    stack = torch.stack([torch.full((8, 8, 8), 6e4), torch.ones(8, 8, 8)]).half()
    fit = batched(stack, 1)
    assert torch.isfinite(fit.factors.parts["core"]).all()
    assert fit.error <= 8 * torch.finfo(torch.float16).eps
    torch.testing.assert_close(fit.factors[1].to_dense(),
                               stack[1], rtol=4e-3, atol=0)  # fmt: skip


def test_what_is_refused() -> None:
    stack = seeded32(3, 6, 5, 4)
    for solver in ("hooi", "randomized"):
        with pytest.raises(UnsupportedError, match=f"solver='{solver}' is not.*solver='hosvd'"):
            tucker(stack, 2, solver=solver, batch_dims=1)
    with pytest.raises(UnsupportedError, match="callback= is not served"):
        tucker(stack, 2, solver="hosvd", batch_dims=1, callback=print)
    with pytest.raises(UnsupportedError, match="error= is not served"):
        tucker(stack, error=0.1, solver="hosvd", batch_dims=1)
    with pytest.raises(RankError, match="has 4 entries for 3"):
        tucker(stack, (2, 2, 2, 2), solver="hosvd", batch_dims=1)
