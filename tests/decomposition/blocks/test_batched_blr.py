"""Block low-rank approximations of many weights at once, with one set of ranks."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tensorlrf.decomposition._fit import Fit
from tensorlrf.decomposition.blocks import _blr_batched as _batched_blr
from tensorlrf.decomposition.blocks._blr import blr, fit_blr
from tensorlrf.decomposition.svd._svd import fit_svd
from tensorlrf.errors import (
    ArgumentError,
    RankError,
    ShapeError,
    TensorlrfWarning,
    UnsupportedError,
)
from tensorlrf.factors import Batch, BlockLowRank
from tests.decomposition.blocks.test_blr import (
    DTYPES,
    block_energies,
    blocky,
    exhaustive,
    seeded,
)
from tests.decomposition.svd.test_batched import residuals


def batched(tensor: Tensor, *args: Any, batch_dims: int = 1, **options: Any) -> Fit[Batch]:
    fit: Fit[Any] = fit_blr(tensor, *args, batch_dims=batch_dims, **options)
    assert isinstance(fit.factors, Batch)
    return fit


def at(factors: Batch, *place: int) -> BlockLowRank:
    one = factors[place]
    assert isinstance(one, BlockLowRank)
    return one


def alike(m: int, n: int, side: int, places: int = 3, noise: float = 0.2) -> Tensor:
    """Weights whose blocks have the same energies but for noise, of unequal size."""
    one = blocky(m, n, side)
    shifts = [noise * float(one.std()) * seeded(m, n, seed=k + 1) for k in range(places)]
    return torch.stack([(one + shift) * 3.0**k for k, shift in enumerate(shifts)])


def left_out(weight: Tensor, factors: BlockLowRank, block: tuple[int, int]) -> float:
    """The relative error of the best blocks of these ranks."""
    energies = block_energies(weight, *block)
    lost = sum(
        0.0 if b.rank is None else float(e[b.rank :].sum())
        for b, e in zip(factors.blocks, energies, strict=True)
    )
    return math.sqrt(lost) / float(weight.double().norm())


@settings(derandomize=True, deadline=None, max_examples=30)
@given(
    batch=st.sampled_from([(1,), (3,), (2, 2)]),
    m=st.integers(1, 14),
    n=st.integers(1, 14),
    mb=st.integers(1, 14),
    nb=st.integers(1, 14),
    rank=st.one_of(st.integers(1, 14), st.floats(0.05, 1.0)),
    dense=st.booleans(),
    dtype=st.sampled_from(DTYPES),
)
def test_each_residual_is_the_discarded_energy(
    batch: tuple[int, ...],
    m: int,
    n: int,
    mb: int,
    nb: int,
    rank: int | float,
    dense: bool,
    dtype: torch.dtype,
) -> None:
    mb, nb = min(mb, m), min(nb, n)
    r = min(rank, mb, nb) if isinstance(rank, int) else rank
    stack = seeded(*batch, m, n, dtype=dtype)
    copy = stack.clone()
    options: dict[str, Any] = {"block": (mb, nb), "dense_blocks": dense}
    fit = batched(stack, r, batch_dims=len(batch), **options)
    factors, places = fit.factors, math.prod(batch)
    assert torch.equal(stack, copy)
    assert (factors.shape, factors.batch_shape) == (tuple(stack.shape), batch)
    assert (factors.of, factors.dtype) == ("blr", dtype)
    reached = residuals(stack, factors, places)
    rounding = 4 * torch.finfo(dtype).eps * math.sqrt(min(mb, nb))
    if dtype in (torch.float32, torch.float64):
        rounding *= min(mb, nb) + 4
    blocks = at(factors, *(0,) * len(batch)).blocks
    for k, weight in enumerate(stack.reshape(places, m, n)):
        one = at(factors, *(divmod(k, 2) if len(batch) == 2 else (k,)))
        assert one.blocks == blocks
        best = left_out(weight, one, (mb, nb))
        assert best - rounding <= float(reached[k]) <= best + rounding + 1e-12
        if isinstance(r, int):
            alone = blr(weight, r, **options)
            assert alone.blocks == blocks
            torch.testing.assert_close(
                one.to(torch.float64).to_dense(),
                alone.to(torch.float64).to_dense(),
                rtol=0,
                atol=2 * rounding * float(weight.double().norm()),
            )
    if not isinstance(r, int):
        largest = max(b.rows + b.columns for b in blocks)
        assert factors.n_params <= places * max(r * m * n, largest)
    whole = float((stack.double() - factors.to(torch.float64).to_dense()).norm())
    assert fit.error == pytest.approx(whole / float(stack.double().norm()), rel=1e-2, abs=rounding)


@pytest.mark.parametrize("share", [0.2, 0.45, 0.8])
def test_ranks_are_the_best_common_ones(share: float) -> None:
    """Of the sum over the places of each block's energies, as by exhaustive search."""
    stack = torch.stack([blocky(12, 16, 4, seed) * 10.0**seed for seed in range(3)])
    fit = batched(stack, share, block=4, dense_blocks=False)
    steps = math.floor(share * 12 * 16) // 8
    shares = [
        [energies / weight.norm() ** 2 for energies in block_energies(weight, 4, 4)]
        for weight in stack
    ]
    summed = [torch.stack(of_block).sum(0) for of_block in zip(*shares, strict=True)]
    errors = residuals(stack, fit.factors, 3)
    assert fit.factors.n_params <= share * stack.numel()
    assert float(errors.square().sum()) == pytest.approx(exhaustive(summed, steps), rel=1e-9)


def test_one_place_is_what_it_is_alone() -> None:
    weight = blocky(24, 32, 8)
    cases: list[dict[str, Any]] = [
        {"rank": 0.4},
        {"rank": 0.4, "block": 8},
        {"rank": "same", "block": (5, 7)},
        {"error": 0.2, "block": 8},
        {"error": 0.2, "block": 8, "dense_blocks": False},
        {"error": 0.2},
    ]
    for options in cases:
        alone = fit_blr(weight, **options)
        fit = batched(weight[None], **options)
        assert at(fit.factors, 0).blocks == alone.factors.blocks
        assert fit.error == pytest.approx(alone.error, rel=1e-9, abs=1e-14)


@settings(derandomize=True, deadline=None, max_examples=30)
@given(
    m=st.integers(2, 20),
    n=st.integers(2, 20),
    side=st.integers(1, 9),
    error=st.just(0.0) | st.floats(1e-6, 0.99),
    dense=st.booleans(),
    dtype=st.sampled_from(DTYPES),
)
def test_an_error_is_kept_in_every_place(
    m: int, n: int, side: int, error: float, dense: bool, dtype: torch.dtype
) -> None:
    stack = torch.stack([blocky(m, n, 5, seed) * 2.0**seed for seed in range(3)]).to(dtype)
    with warnings.catch_warnings():
        # Blocks that may not be dense leave the rounding of their factors.
        warnings.simplefilter("error" if dense else "ignore", TensorlrfWarning)
        fit = batched(stack, error=error, block=min(side, m, n), dense_blocks=dense)
    assert fit.converged or not dense
    if fit.converged:
        # A change of the order of sums between our residual and this one.
        room = 64 * torch.finfo(torch.float32).eps
        assert (residuals(stack, fit.factors, 3) <= error + room).all()
    if dense:
        assert fit.factors.n_params <= stack.numel()


@pytest.mark.parametrize("error", [0.05, 0.2, 0.5])
def test_an_error_leaves_no_rank_that_no_place_needs(error: float) -> None:
    stack = alike(12, 16, 4)
    fit = batched(stack, error=error, block=4, dense_blocks=False)
    assert (residuals(stack, fit.factors, 3) <= error).all()
    blocks = at(fit.factors, 0).blocks
    energies = [block_energies(weight, 4, 4) for weight in stack]
    for i, block in enumerate(blocks):
        assert block.rank is not None
        if block.rank == 0:
            continue
        short = [
            left_out(weight, at(fit.factors, k), (4, 4)) ** 2
            + float(energies[k][i][block.rank - 1]) / float(weight.norm()) ** 2
            for k, weight in enumerate(stack)
        ]
        assert max(short) > error**2
    # The hardest place alone needs no more.
    alone = [fit_blr(w, error=error, block=4, dense_blocks=False).factors.n_params for w in stack]
    assert fit.factors.n_params >= 3 * max(alone)


def test_harder_places_get_more_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    """Places of more noise decide; what serves the others is not paid for."""
    stack = torch.stack([blocky(64, 64, 16, s) + s * seeded(64, 64, seed=s) for s in range(4)])
    several = batched(stack, error=0.5, block=16)
    monkeypatch.setattr(_batched_blr, "ROUNDS", 1)
    once = batched(stack, error=0.5, block=16)
    assert several.factors.n_params < 0.95 * once.factors.n_params
    for fit in (several, once):
        assert (residuals(stack, fit.factors, 4) <= 0.5).all()


def test_planted_blocks_are_found_exactly() -> None:
    """Ranks 0 to 3 and one dense block, one place of lower ranks."""
    ranks: list[list[int | None]] = [[0, 1, 3], [2, None, 1]]
    stack = torch.zeros(2, 40, 60, dtype=torch.float64)
    for i, row in enumerate(ranks):
        for j, rank in enumerate(row):
            for k in range(2):
                block = stack[k, 20 * i : 20 * i + 20, 20 * j : 20 * j + 20]
                if rank is None:
                    block.copy_(seeded(20, 20, seed=9 + k))
                elif rank:
                    lower = max(1, rank - k)
                    block.copy_(seeded(20, lower, seed=i + k) @ seeded(lower, 20, seed=j + 5))
    for dtype, error in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
        fit = batched(stack.to(dtype), error=error, block=20)
        assert (residuals(stack.to(dtype), fit.factors, 2) <= error).all()
        assert [b.rank for b in at(fit.factors, 1).blocks] == [0, 1, 3, 2, None, 1]


def test_blocks_are_searched_for_on_all_places() -> None:
    stack = alike(64, 96, 16)
    fit = batched(stack, 0.3)
    assert fit.factors.n_params <= 0.3 * stack.numel()
    errors = residuals(stack, fit.factors, 3)
    plain = torch.tensor([fit_svd(weight, 0.3).error for weight in stack])
    assert float(errors.norm()) <= float(plain.norm())
    for block in ((64, 96), (32, 48), (16, 24), (8, 12), (32, 32)):
        other = residuals(stack, batched(stack, 0.3, block=block).factors, 3)
        assert float(errors.norm()) <= float(other.norm()) * (1 + 1e-12)
    found = batched(stack, error=0.2)
    assert (residuals(stack, found.factors, 3) <= 0.2).all()
    assert found.factors.n_params <= batched(stack, error=0.2, block=(64, 96)).factors.n_params


@pytest.mark.parametrize("share", [0.001, 0.0244, 0.03])
def test_the_search_does_not_pay_for_error_beyond_the_budget(share: float) -> None:
    one = seeded(64, 1) @ seeded(1, 64, seed=1)
    for stack in (torch.stack([one, 2 * one]), seeded(2, 64, 64)):
        factors = batched(stack, share).factors
        # One rank of a block of 8 x 8, the smallest size that is tried.
        assert 0 < factors.n_params <= 2 * max(math.floor(share * 64 * 64), 16)
    assert batched(seeded(2, 1, 64), 0.01).factors.n_params == 2 * 64


def test_what_is_refused() -> None:
    stack = seeded(3, 12, 10)
    with pytest.raises(UnsupportedError, match=r"batch_dims=1 leaves tensors of shape \(4, 3, 3\)"):
        blr(seeded(2, 4, 3, 3), 2, block=2, batch_dims=1)
    with pytest.raises(ArgumentError, match="needs block="):
        blr(stack, 2, batch_dims=1)
    with pytest.raises(RankError, match="rank=5 is above"):
        blr(stack, 5, block=4, batch_dims=1)
    with pytest.raises(ShapeError, match="block="):
        blr(stack, 0.5, block=13, batch_dims=1)
