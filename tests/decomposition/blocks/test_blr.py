"""Block low-rank approximation: optimality, budgets, errors, dtypes and what is refused."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tensorlrf.decomposition._evbmf import evbmf_rank
from tensorlrf.decomposition.blocks._blr import blr, fit_blr
from tensorlrf.decomposition.blocks._blr_search import candidates
from tensorlrf.decomposition.blocks._blr_spectra import grid
from tensorlrf.decomposition.svd._svd import fit_svd
from tensorlrf.errors import (
    ArgumentError,
    RankError,
    ShapeError,
    TensorlrfWarning,
    UnsupportedError,
)
from tensorlrf.factors import BlockLowRank
from tests.draws import seeded

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def blocky(m: int, n: int, side: int, seed: int = 0) -> Tensor:
    """Blocks of unequal energy and unequal decay, as ranks shared out have something to gain by."""
    draws = torch.Generator().manual_seed(seed)
    whole = torch.zeros(m, n, dtype=torch.float64)
    for row in range(0, m, side):
        for column in range(0, n, side):
            block = whole[row : row + side, column : column + side]
            k = min(block.shape)
            decay = float(torch.rand((), generator=draws)) * 2
            values = torch.arange(1, k + 1, dtype=torch.float64) ** -decay
            left = torch.randn(block.shape[0], k, generator=draws, dtype=torch.float64)
            right = torch.randn(k, block.shape[1], generator=draws, dtype=torch.float64)
            block.copy_((left * values) @ right)
    return whole


def block_energies(matrix: Tensor, mb: int, nb: int) -> list[Tensor]:
    m, n = matrix.shape
    return [
        torch.linalg.svdvals(matrix[i : i + mb, j : j + nb].double()) ** 2
        for i in range(0, m, mb)
        for j in range(0, n, nb)
    ]


def residual(matrix: Tensor, factors: BlockLowRank) -> float:
    wide = matrix.double()
    return float((wide - factors.to(torch.float64).to_dense()).norm() / wide.norm())


@settings(derandomize=True, deadline=None, max_examples=30)
@given(
    m=st.integers(1, 14),
    n=st.integers(1, 14),
    mb=st.integers(1, 14),
    nb=st.integers(1, 14),
    r=st.integers(1, 14),
    dense=st.booleans(),
    dtype=st.sampled_from(DTYPES),
)
def test_residual_is_the_discarded_energy_of_the_blocks(
    m: int, n: int, mb: int, nb: int, r: int, dense: bool, dtype: torch.dtype
) -> None:
    mb, nb = min(mb, m), min(nb, n)
    r = min(r, mb, nb)
    weight = seeded(m, n, dtype=dtype)
    fit = fit_blr(weight, r, block=(mb, nb), dense_blocks=dense)
    assert fit.factors.shape == (m, n)
    assert fit.factors.dtype == dtype
    lost = 0.0
    blocks = fit.factors.blocks
    for block, energies in zip(blocks, block_energies(weight, mb, nb), strict=True):
        clipped = min(r, block.rows, block.columns)
        costly = clipped * (block.rows + block.columns) >= block.rows * block.columns
        assert block.rank == (None if dense and costly else clipped)
        lost += 0.0 if block.rank is None else float(energies[clipped:].sum())
    best = math.sqrt(lost) / float(weight.double().norm())
    rounding = 4 * torch.finfo(dtype).eps * math.sqrt(r)
    if dtype in (torch.float32, torch.float64):
        rounding *= min(mb, nb) + 4
    assert fit.error <= best + rounding + 1e-12
    assert fit.error >= best - rounding
    assert fit.error == pytest.approx(residual(weight, fit.factors), rel=1e-2, abs=rounding)


def exhaustive(energies: list[Tensor], steps: int) -> float:
    """The least energy left with `steps` ranks over all blocks, by dynamic programming."""
    least = [0.0] + [math.inf] * steps
    for of_block in energies:
        tails = [float(of_block[r:].sum()) for r in range(len(of_block) + 1)]
        least = [
            min(least[k - r] + tails[r] for r in range(min(k, len(of_block)) + 1))
            for k in range(steps + 1)
        ]
    return min(least)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("share", [0.2, 0.45, 0.8])
def test_equal_blocks_are_shared_out_as_by_exhaustive_search(seed: int, share: float) -> None:
    weight = blocky(12, 16, 4, seed)
    fit = fit_blr(weight, share, block=4, dense_blocks=False)
    steps = math.floor(share * weight.numel()) // 8
    least = exhaustive(block_energies(weight, 4, 4), steps) if steps else math.inf
    assert fit.factors.n_params <= share * weight.numel()
    assert fit.error == pytest.approx(math.sqrt(least) / float(weight.norm()), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("error", [0.05, 0.2, 0.5])
def test_an_error_is_kept_with_the_fewest_ranks(error: float) -> None:
    weight = blocky(12, 16, 4)
    fit = fit_blr(weight, error=error, block=4, dense_blocks=False)
    assert fit.converged
    assert residual(weight, fit.factors) <= error
    steps = fit.factors.n_params // 8
    energies = block_energies(weight, 4, 4)
    assert math.sqrt(exhaustive(energies, steps - 1)) > error * float(weight.norm())


@settings(derandomize=True, deadline=None, max_examples=30)
@given(
    m=st.integers(2, 20),
    n=st.integers(2, 20),
    mb=st.integers(1, 20),
    nb=st.integers(1, 20),
    share=st.floats(0.01, 1.0),
    dense=st.booleans(),
)
def test_a_share_is_an_upper_bound(
    m: int, n: int, mb: int, nb: int, share: float, dense: bool
) -> None:
    weight = blocky(m, n, 5)
    block = (min(mb, m), min(nb, n))
    factors = blr(weight, share, block=block, dense_blocks=dense)
    least = min(b.rows + b.columns for b in factors.blocks)
    assert factors.n_params <= max(share * m * n, least)
    # What is left does not pay for another rank of any block that could have one.
    room = share * m * n - factors.n_params
    open_blocks = [
        b
        for b in factors.blocks
        if b.rank is not None
        and b.rank < min(b.rows, b.columns)
        and not (dense and (b.rank + 1) * (b.rows + b.columns) >= b.rows * b.columns)
    ]
    assert all(room < b.rows + b.columns for b in open_blocks) or least > share * m * n
    if share == 1.0 and dense:
        assert residual(weight, factors) <= 1e-14


@settings(derandomize=True, deadline=None, max_examples=30)
@given(
    m=st.integers(1, 70),
    n=st.integers(1, 70),
    share=st.floats(0.001, 0.1),
    dense=st.booleans(),
    noise=st.booleans(),
)
@example(m=64, n=64, share=0.0244, dense=True, noise=False)
@example(m=64, n=64, share=0.03, dense=True, noise=False)
@example(m=1, n=64, share=0.01, dense=True, noise=True)
def test_the_search_does_not_pay_for_error_beyond_the_budget(
    m: int, n: int, share: float, dense: bool, noise: bool
) -> None:
    """What exceeds a small share is no more than the cheapest block of any size that is tried."""
    weight = seeded(m, n) if noise else seeded(m, 1) @ seeded(1, n, seed=1)
    least = min(
        min(place.rows + place.columns, place.rows * place.columns if dense else m + n)
        for size in candidates((m, n))
        for place in grid((m, n), size)
    )
    inputs = seeded(n, 2 * n, seed=2)
    params = math.floor(share * m * n)
    for factors in (
        blr(weight, share, dense_blocks=dense),
        blr(weight, share, dense_blocks=dense, gram=inputs @ inputs.T, n_iter_max=2),
    ):
        assert 0 < factors.n_params <= max(params, least)


def test_planted_blocks_are_found_exactly() -> None:
    """Ranks 0 to 3 and one dense block; nothing is spent beyond them."""
    ranks: list[list[int | None]] = [[0, 1, 3], [2, None, 1]]
    weight = torch.zeros(40, 60, dtype=torch.float64)
    for i, row in enumerate(ranks):
        for j, rank in enumerate(row):
            block = weight[20 * i : 20 * i + 20, 20 * j : 20 * j + 20]
            if rank is None:
                block.copy_(seeded(20, 20, seed=9))
            elif rank:
                block.copy_(seeded(20, rank, seed=i) @ seeded(rank, 20, seed=j + 5))
    fit = fit_blr(weight, error=1e-12, block=20)
    assert fit.error <= 1e-13
    assert [b.rank for b in fit.factors.blocks] == [0, 1, 3, 2, None, 1]
    low = fit_blr(weight.float(), error=1e-6, block=20)
    assert low.error <= 1e-6
    assert [b.rank for b in low.factors.blocks] == [0, 1, 3, 2, None, 1]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_auto_is_the_estimate_for_each_block(dtype: torch.dtype) -> None:
    """Ranks 0 to 3 in noise."""
    planted = [[0, 1, 3], [2, 0, 1]]
    weight = 0.1 * seeded(80, 120)
    for i, row in enumerate(planted):
        for j, rank in enumerate(row):
            if rank:
                block = weight[40 * i : 40 * i + 40, 40 * j : 40 * j + 40]
                block += seeded(40, rank, seed=i) @ seeded(rank, 40, seed=j + 5)
    weight = weight.to(dtype)
    for scale in (1.0, 2.0**-100, 2.0**100):
        fit = fit_blr(weight * scale, "auto", block=40)
        assert [b.rank for b in fit.factors.blocks] == [0, 1, 3, 2, 0, 1]
        assert (fit.converged, fit.reason) == (True, "ranks as estimated by evbmf")
    blocks = [weight[i : i + 40, j : j + 40] for i in (0, 40) for j in (0, 40, 80)]
    assert [evbmf_rank(block) for block in blocks] == [0, 1, 3, 2, 0, 1]
    lost = sum(
        float(energies[r:].sum())
        for energies, r in zip(block_energies(weight, 40, 40), [0, 1, 3, 2, 0, 1], strict=True)
    )
    best = math.sqrt(lost) / float(weight.double().norm())
    assert fit_blr(weight, "auto", block=40).error == pytest.approx(best, rel=1e-3)


def test_auto_of_uneven_blocks_of_noise_and_of_exact_ones() -> None:
    noise = blr(seeded(30, 50), "auto", block=(16, 20))
    assert [b.rank for b in noise.blocks] == [0] * 6
    assert noise.n_params == 0
    assert torch.equal(noise.to_dense(), torch.zeros(30, 50, dtype=torch.float64))
    weight = seeded(30, 12) @ seeded(12, 50, seed=1)
    for dense in (True, False):
        found = blr(weight, "auto", block=(30, 25), dense_blocks=dense)
        assert [b.rank for b in found.blocks] == [12, 12]
        assert found.rel_error(weight) <= 1e-13
    assert [b.rank for b in blr(torch.zeros(6, 5), "auto", block=3).blocks] == [0] * 4


@settings(derandomize=True, deadline=None, max_examples=20)
@given(
    rows=st.integers(1, 12),
    columns=st.integers(1, 12),
    rank=st.integers(1, 12),
    seed=st.integers(0, 9),
)
def test_auto_never_costs_as_much_as_the_entries(
    rows: int, columns: int, rank: int, seed: int
) -> None:
    """As few stand out of the noise as L M / (L + M) or less, which is the break-even rank."""
    weight = seeded(rows, rank, seed=seed) @ seeded(rank, columns, seed=seed + 10)
    (block,) = blr(weight, "auto", block=(rows, columns)).blocks
    assert block.rank is not None
    assert block.n_params < rows * columns


def test_the_search_is_never_worse_than_one_svd() -> None:
    for weight in (blocky(64, 96, 16), seeded(64, 96)):
        for share in (0.3, 0.6):
            fit = fit_blr(weight, share)
            assert fit.factors.n_params <= share * weight.numel()
            assert fit.error <= fit_svd(weight, share).error * (1 + 1e-12)
        found = fit_blr(weight, error=0.2)
        assert found.error <= 0.2
        assert found.factors.n_params <= fit_svd(weight, error=0.2).factors.n_params
    assert len(fit_blr(blocky(128, 128, 32, 1), 0.3).factors.blocks) > 1


def test_rounding_out_of_reach_is_told() -> None:
    weight = seeded(12, 12, dtype=torch.bfloat16)
    with pytest.warns(TensorlrfWarning, match=r"error=0\.0001 is out of reach"):
        fit = fit_blr(weight, error=1e-4, block=4, dense_blocks=False)
    assert not fit.converged
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fit_blr(weight, error=1e-4, block=4).error <= 1e-4


def test_refusals() -> None:
    weight = seeded(12, 10)
    with pytest.raises(ArgumentError, match="needs block="):
        blr(weight, 3)
    with pytest.raises(RankError, match="rank=5 is above"):
        blr(weight, 5, block=4)
    with pytest.raises(ArgumentError, match="rank='auto' for every block needs block="):
        blr(weight, "auto")
    blocks: list[Any] = [0, 13, (4, 11), (4, 4, 4), "8", (2.0, 2), True]
    for block in blocks:
        with pytest.raises(ShapeError, match="block="):
            blr(weight, 0.5, block=block)
    with pytest.raises(UnsupportedError, match="svd, kron or tucker"):
        blr(seeded(4, 4, 3, 3), 0.5)
    word: Any = "yes"
    with pytest.raises(ArgumentError, match="dense_blocks="):
        blr(weight, 0.5, dense_blocks=word)
