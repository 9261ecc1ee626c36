"""Tensor trains: exact ones, the energies left out, bounds, published figures, and refusals."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tensorlrf.decomposition.trains._tt import fit_tt, tt
from tensorlrf.decomposition.trains._tt_ranks import rank_limits, train_params, train_ranks
from tensorlrf.decomposition.trains._tt_sweep import train_svd
from tensorlrf.errors import ArgumentError, RankError
from tensorlrf.factors import TTFactors
from tests.draws import seeded
from tests.public import public

shapes = st.lists(st.integers(1, 7), min_size=2, max_size=4).map(tuple)
floats = st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16])


def planted(
    shape: tuple[int, ...], ranks: tuple[int, ...], noise: float = 0.0, seed: int = 0
) -> Tensor:
    """A train of the given inner ranks, entries of unit size, plus noise; float64."""
    bonds = (1, *ranks, 1)
    cores = [
        seeded(r, n, s, seed=seed + k)
        for k, (n, (r, s)) in enumerate(zip(shape, pairwise(bonds), strict=True))
    ]
    tensor = TTFactors(tuple(cores)).to_dense()
    return tensor / tensor.square().mean().sqrt() + noise * seeded(*shape, seed=seed + 99)


def tails(tensor: Tensor, ranks: tuple[int, ...]) -> list[float]:
    """Squared energy beyond the rank in every unfolding, relative: each a lower bound."""
    wide = tensor.double()
    found = []
    for k, r in enumerate(ranks, start=1):
        energies = torch.linalg.svdvals(wide.reshape(math.prod(tensor.shape[:k]), -1)).square()
        found.append(float(energies[r:].sum() / energies.sum()))
    return found


def rounding(dtype: torch.dtype, shape: tuple[int, ...]) -> float:
    """Each core rounded to its dtype, and sums of up to r <= prod n terms in the working one."""
    working = torch.float64 if dtype == torch.float64 else torch.float32
    sums = 4 * math.sqrt(math.prod(shape)) * torch.finfo(working).eps
    return len(shape) * torch.finfo(dtype).eps + sums


@settings(derandomize=True, deadline=None, max_examples=30)
@given(shape=shapes, data=st.data(), dtype=floats, turned=st.booleans())
def test_between_the_bounds_of_the_theory(
    shape: tuple[int, ...], data: st.DataObject, dtype: torch.dtype, turned: bool
) -> None:
    tensor = seeded(*shape, dtype=dtype)
    if turned:
        tensor = seeded(*reversed(shape), dtype=dtype).permute(*reversed(range(len(shape))))
    rank = data.draw(st.integers(1, 60))
    ranks = train_ranks(rank, shape, tensor.numel())
    copy = tensor.clone()
    fit = fit_tt(tensor, rank)
    assert torch.equal(tensor, copy)
    assert fit.factors.shape == shape
    assert fit.factors.rank == (1, *ranks, 1)
    assert fit.factors.dtype == dtype
    assert fit.factors.to(torch.float64).rel_error(tensor) == pytest.approx(
        fit.error, rel=1e-3, abs=rounding(dtype, shape)
    )
    left_out = tails(tensor, ranks)
    assert fit.error <= math.sqrt(sum(left_out)) + rounding(dtype, shape)
    assert fit.error >= math.sqrt(max(left_out)) - rounding(dtype, shape)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("shape", "ranks"),
    [((9, 8, 7, 6), (4, 5, 3)), ((40, 3, 50), (3, 5)), ((3, 4, 5, 30), (2, 6, 7))],
)
def test_trains_are_found_again(
    shape: tuple[int, ...], ranks: tuple[int, ...], dtype: torch.dtype
) -> None:
    tensor = planted(shape, ranks).to(dtype)
    assert fit_tt(tensor, ranks).error <= 2 * rounding(dtype, shape)
    if dtype in (torch.float32, torch.float64):
        by_error = fit_tt(tensor, error=100 * rounding(dtype, shape))
        assert by_error.factors.rank == (1, *ranks, 1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shape", [(9, 8, 7, 6), (60, 4, 5), (3, 4, 60), (20, 21)])
def test_cores_are_orthonormal_about_the_one_with_the_norm(
    shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    tensor = planted(shape, (2,) * (len(shape) - 1), 0.3).to(dtype)
    cores = tt(tensor, 3).cores

    def unit(matrix: Tensor) -> bool:
        gram = matrix.double().T @ matrix.double()
        identity = gram[0, 0] * torch.eye(len(gram), dtype=torch.float64)
        # Sums of up to 60 products, and one more rounding where float64 vectors become float32.
        return float((gram - identity).norm() / gram[0, 0]) <= 60 * torch.finfo(dtype).eps

    left = [unit(c.reshape(-1, c.shape[2])) for c in cores]
    right = [unit(c.reshape(c.shape[0], -1).T) for c in cores]
    # One core at most is neither; what is left of it is orthonormal, and what is right of it.
    assert any(all(left[:k]) and all(right[k + 1 :]) for k in range(len(cores)))
    norms = [float(c.norm()) for c in cores]
    assert max(norms) <= 8 * min(norms)


@pytest.mark.parametrize(
    ("name", "rank", "figure"),
    [("covid19_serology", (8, 4), 0.36551), ("kinetic", 4, 0.03857), ("indian_pines", 20, 0.05147)],
)
def test_reference_figures(name: str, rank: Any, figure: float) -> None:
    tensor = public(name)
    fit = fit_tt(tensor, rank)
    assert round(fit.factors.rel_error(tensor), 5) <= figure
    small = fit_tt(tensor.float(), rank)
    assert abs(small.error - fit.error) <= 1e-6


def test_the_sweep_from_the_left_is_the_published_one() -> None:
    """The figure is that of the sweep as published; ours begins with the cheaper end, and is no
    worse for it here."""
    tensor = public("covid19_serology")
    cores, carrier = train_svd(tensor, (8, 4), None, from_the_left=True)
    assert carrier == 2
    for core in cores[:2]:
        matrix = core.reshape(-1, core.shape[2])
        identity = torch.eye(matrix.shape[1], dtype=torch.float64)
        torch.testing.assert_close(matrix.T @ matrix, identity, rtol=0, atol=1e-12)
    published = TTFactors(tuple(cores)).rel_error(tensor)
    assert round(published, 5) == 0.36551
    ours = fit_tt(tensor, (8, 4)).error
    assert round(ours, 5) == 0.36097
    assert ours <= published


@settings(derandomize=True, deadline=None, max_examples=30)
@given(shape=shapes, error=st.floats(0.02, 0.9), dtype=floats, seed=st.integers(0, 9))
def test_error_is_kept(shape: tuple[int, ...], error: float, dtype: torch.dtype, seed: int) -> None:
    tensor = seeded(*shape, seed=seed, dtype=dtype)
    fit = fit_tt(tensor, error=error)
    assert fit.converged
    assert fit.error <= error
    # The squared budget is shared equally: a rank is no larger than its unfolding needs alone.
    if dtype in (torch.float32, torch.float64):
        needed = [
            next(
                r
                for r in range(1, limit + 1)
                if tails(tensor, (0,) * k + (r,) + (0,) * (len(shape) - 2 - k))[k]
                <= (error * (1 - 1e-4)) ** 2 / (len(shape) - 1)
                or r == limit
            )
            for k, limit in enumerate(rank_limits(shape))
        ]
        assert all(r <= n for r, n in zip(fit.factors.rank[1:-1], needed, strict=True))


def test_what_a_step_does_not_use_is_handed_on() -> None:
    # The first bond has rank two exactly, so the whole budget is left for the second.
    tensor = planted((8, 8, 8), (2, 8))
    fit = fit_tt(tensor, error=0.3)
    assert fit.error <= 0.3
    assert fit.factors.rank[1] == 2
    beyond = [tails(tensor, (2, r))[1] for r in range(1, 9)]
    assert fit.factors.rank[2] == 1 + next(k for k, t in enumerate(beyond) if t <= 0.3**2)
    assert beyond[fit.factors.rank[2] - 1] > 0.3**2 / 2


def test_below_the_rounding_of_the_dtype_the_train_is_of_full_rank() -> None:
    tensor = planted((5, 6, 7), (2, 3), 1e-3)
    assert fit_tt(tensor, error=1e-14).error <= 1e-14
    for dtype, error in ((torch.float64, 0.0), (torch.bfloat16, 1e-4), (torch.float16, 1e-5)):
        fit = fit_tt(tensor.to(dtype), error=error)
        assert fit.converged
        assert fit.error == 0.0
        assert fit.factors.rank == (1, 5, 7, 1)
    # Room for rounding, and less than the plan would use.
    fit = fit_tt(planted((9, 10, 11), (3, 3), 0.03).bfloat16(), error=0.0285)
    assert fit.error <= 0.0285


def test_large_values_fit_in_half_precision() -> None:
    tensor = (planted((64, 32, 64), (3, 3), 0.01) * 8000).clamp(-60000, 60000).half()
    fit = fit_tt(tensor, 3)
    assert all(bool(c.isfinite().all()) for c in fit.factors)
    assert float(tensor.double().norm()) > 65504
    rest = tensor.double()
    assert fit.error <= fit_tt(rest, 3).error + 3 * torch.finfo(torch.float16).eps


def test_modes_give_the_order_in_the_train() -> None:
    kernel = seeded(12, 10, 3, 3)
    factors = tt(kernel, (6, 9, 3), modes=(0, 2, 3, 1))
    assert factors.modes == (0, 2, 3, 1)
    assert [c.shape[1] for c in factors] == [12, 3, 3, 10]
    assert factors.shape == (12, 10, 3, 3)
    other = tt(kernel.permute(0, 2, 3, 1), (6, 9, 3))
    torch.testing.assert_close(factors.to_dense(), other.to_dense().permute(0, 3, 1, 2))
    assert tt(kernel, 2, modes=(0, -2, -1, 1)).modes == (0, 2, 3, 1)


def test_two_modes_are_the_truncated_svd() -> None:
    matrix = seeded(30, 20)
    values = torch.linalg.svdvals(matrix)
    best = float(values[7:].norm() / values.norm())
    assert fit_tt(matrix, 7).error == pytest.approx(best, rel=1e-12)
    assert fit_tt(matrix, error=best * (1 + 1e-9)).factors.rank == (1, 7, 1)
    assert fit_tt(matrix, error=best * (1 - 1e-9)).factors.rank == (1, 8, 1)


@settings(derandomize=True, deadline=None, max_examples=30)
@given(shape=shapes, share=st.floats(0.01, 1.0))
def test_a_share_is_the_largest_uniform_rank_within(shape: tuple[int, ...], share: float) -> None:
    dense = math.prod(shape)
    ranks = train_ranks(share, shape, dense)
    limits = rank_limits(shape)
    if max(ranks) > 1:
        assert train_params(shape, ranks) <= share * dense
    wider = train_ranks(max(ranks) + 1, shape, dense)
    assert wider == ranks == limits or train_params(shape, wider) > share * dense
    assert tt(seeded(*shape), share).n_params == train_params(shape, ranks)


def test_ranks_as_given() -> None:
    tensor = seeded(6, 5, 4)
    assert tt(tensor, 99).rank == (1, 6, 4, 1)
    assert tt(tensor, (3, 2)).rank == tt(tensor, (1, 3, 2, 1)).rank == (1, 3, 2, 1)
    assert tt(tensor, "same").n_params <= tensor.numel()
    assert fit_tt(torch.zeros(3, 4, 5), 2).error == 0.0
    assert fit_tt(torch.zeros(3, 4, 5), error=0.1).factors.rank == (1, 1, 1, 1)


@pytest.mark.parametrize(
    ("rank", "text"),
    [
        ((2, 3, 2, 1), "boundary"),
        ((1, 2, 2, 2), "boundary"),
        ((2,), "2 inner ranks"),
        ((7, 2), "use at most 6"),
        ((2, 5), "use at most 4"),
        ((1, 6), "use at most 4"),
        ((6, 1), "use at most 5, by its neighbours"),
        ((0, 2), "at least 1"),
        (0, "at least 1"),
        (True, "one int"),
        (1.5, "share"),
        ("half", "unknown"),
    ],
)
def test_ranks_that_are_refused(rank: Any, text: str) -> None:
    with pytest.raises(RankError, match=text):
        tt(seeded(6, 5, 4), rank)


def test_an_order_that_leaves_modes_out_is_refused() -> None:
    for modes in ((0, 1), (0, 1, 1)):
        with pytest.raises(ArgumentError, match="modes="):
            tt(seeded(6, 5, 4), 2, modes=modes)
