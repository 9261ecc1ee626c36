"""Trains by slabs: exact ones, the bounds of the theory, and the passes stated."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tensorlrf
from tensorlrf.decomposition import fit_tt
from tensorlrf.decomposition.trains._tt_ranks import rank_limits
from tensorlrf.decomposition.trains._tt_sweep import train_svd
from tensorlrf.errors import ArgumentError, RankError
from tensorlrf.factors import TTFactors
from tests.decomposition.large.planted import npy, of_core, slice_of
from tests.draws import seeded

LARGE = tensorlrf.large.fit_tt


def tails(tensor: torch.Tensor, ranks: tuple[int, ...]) -> list[float]:
    """Squared relative energy beyond the rank in each unfolding: each a lower bound."""
    found = []
    for k, r in enumerate(ranks, start=1):
        matrix = tensor.double().reshape(math.prod(tensor.shape[:k]), -1)
        energies = torch.linalg.svdvals(matrix).square()
        found.append(float(energies[r:].sum() / energies.sum()))
    return found


@settings(derandomize=True, deadline=None, max_examples=30)
@given(
    shape=st.lists(st.integers(1, 7), min_size=2, max_size=4).map(tuple),
    data=st.data(),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
)
def test_between_the_bounds_of_the_theory(
    shape: tuple[int, ...], data: st.DataObject, dtype: torch.dtype
) -> None:
    along = data.draw(st.integers(0, len(shape) - 1))
    rank = data.draw(st.integers(1, 5))
    tensor = seeded(*shape, dtype=dtype)
    fit = LARGE(tensor, rank, along=along)
    inner = fit.factors.rank[1:-1]
    assert inner == tuple(min(rank, limit) for limit in rank_limits(shape))
    lost = tails(tensor, inner)
    # A core of each mode rounded to the dtype, and sums of at most 7^4 terms.
    rounding = 4 * len(shape) * torch.finfo(dtype).eps + 50 * torch.finfo(torch.float32).eps
    assert fit.error >= math.sqrt(max(lost)) - rounding
    assert fit.error <= math.sqrt(sum(lost)) + rounding


@pytest.mark.parametrize("along", [0, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_as_good_as_in_memory(along: int, dtype: torch.dtype, tmp_path: Path) -> None:
    tensor = of_core((12, 9, 8, 7), (4, 4, 3, 3), noise=0.1, dtype=dtype)
    path = npy(tensor, tmp_path)
    fit = LARGE(path, (4, 9, 3), along=along)
    known = fit_tt(tensor, (4, 9, 3))
    assert fit.error == pytest.approx(known.error, rel=0.02)  # from another end
    assert fit.error == pytest.approx(fit.factors.rel_error(tensor), rel=1e-5)
    assert fit.passes == 4
    factors = tensorlrf.large.tt(path, (4, 9, 3), along=along)
    assert factors.rel_error(tensor) == pytest.approx(fit.error, rel=1e-5)


def test_from_the_front_it_is_tt_svd() -> None:
    """As published: along the last mode all others are peeled off the beginning."""
    tensor = of_core((6, 7, 8, 12), (3, 4, 3, 4), noise=0.1)
    ours = tensorlrf.large.tt(tensor, (3, 8, 4), along=3)
    cores, _ = train_svd(tensor, (3, 8, 4), None, from_the_left=True)
    known = TTFactors(tuple(cores)).to_dense()
    torch.testing.assert_close(ours.to_dense(), known, rtol=0, atol=1e-10)
    for core in ours.cores[:-1]:
        matrix = core.flatten(0, 1)
        gram = matrix.T @ matrix
        eye = torch.eye(len(gram), dtype=gram.dtype, device="cpu")
        torch.testing.assert_close(gram / gram[0, 0], eye, rtol=0, atol=1e-12)


def test_an_exact_train_in_little_memory_takes_a_pass_for_each_mode() -> None:
    tensor = of_core((40, 30, 20, 30), (2, 2, 2, 2), noise=0.0, dtype=torch.float32)
    wide = LARGE(tensor, 30)
    with pytest.raises(ArgumentError, match="give memory_limit=") as refused:
        LARGE(tensor, 30, memory_limit="32MiB")
    least = int(str(refused.value).split("give memory_limit=")[1].split()[0])
    narrow = LARGE(tensor, 30, memory_limit=least)
    assert wide.error < 1e-5
    assert narrow.error < 1e-5
    assert wide.passes <= narrow.passes <= 6


@pytest.mark.parametrize("error", [0.5, 0.1, 1e-3, 1e-10])
@pytest.mark.parametrize("along", [0, 1, 3])
def test_within_an_error(error: float, along: int) -> None:
    tensor = of_core((12, 9, 8, 7), (4, 4, 3, 3), noise=0.1)
    fit = LARGE(tensor, error=error, along=along)
    assert fit.error <= error
    assert fit.converged


def test_an_error_that_rounding_leaves_no_room_for() -> None:
    tensor = seeded(6, 5, 4, dtype=torch.bfloat16)
    fit = LARGE(tensor, error=1e-4)
    assert fit.factors.rank == (1, 6, 4, 1)
    assert fit.converged == (fit.error <= 1e-4)


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e30])
def test_any_scale(scale: float, tmp_path: Path) -> None:
    tensor = (of_core((9, 8, 7), (2, 2, 2)) * scale).float()
    fit = LARGE(tensor, 2)
    assert all(bool(torch.isfinite(core).all()) for core in fit.factors.cores)
    assert fit.error == pytest.approx(fit_tt(tensor, 2).error, rel=1e-2)


def test_a_slice_in_bfloat16(tmp_path: Path) -> None:
    tensor = of_core((9, 8, 7), (2, 2, 2), dtype=torch.bfloat16)
    fit = LARGE(slice_of(tensor, tmp_path), 2)
    assert fit.factors.dtype == torch.bfloat16
    assert fit.error == pytest.approx(fit_tt(tensor, 2).error, rel=2e-2)


def test_refusals() -> None:
    tensor = seeded(6, 5, 4)
    for rank in (0, (1, 2, 3, 4, 5), (7, 4), "auto"):
        with pytest.raises(RankError):
            LARGE(tensor, rank)
    with pytest.raises(ArgumentError):
        LARGE(tensor, 2, error=0.1)
