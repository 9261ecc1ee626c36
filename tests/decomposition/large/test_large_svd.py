"""SVD by slabs: the best approximation by a Gram, nearly that by a sketch, in the passes stated."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tensorlrf
from tensorlrf.decomposition import fit_svd
from tensorlrf.errors import ArgumentError, RankError
from tests.decomposition.large.planted import Sliced, decaying, npy, slice_of
from tests.draws import seeded

LARGE = tensorlrf.large.fit_svd
EXTRA = {"gram": 2, "randomized": 3}
"""Passes beside the look and the error, with two power iterations; float64 has one more."""


@pytest.mark.parametrize("solver", ["gram", "randomized"])
@pytest.mark.parametrize("along", [0, 1, 2])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("rank", [4, 15])
def test_the_best_approximation(
    solver: str, along: int, dtype: torch.dtype, rank: int, tmp_path: Path
) -> None:
    tensor = decaying((30, 8, 6), dtype)
    fit = LARGE(npy(tensor, tmp_path), rank, solver=solver, along=along, random_state=0)
    best = fit_svd(tensor, rank).error
    # Float32 knows singular values to about its rounding times the largest.
    slack = 1e-10 if dtype == torch.float64 else 2e-6 + 1e-7 / best
    assert fit.error == pytest.approx(best, rel=slack)
    assert fit.error == pytest.approx(fit.factors.rel_error(tensor), rel=1e-3)
    sketched = solver == "randomized" and dtype == torch.float64
    assert fit.passes == 1 + EXTRA[solver] + sketched + 1


def test_float64_keeps_what_a_gram_would_lose() -> None:
    tensor = decaying((30, 40), last=-14)
    for solver in ("gram", "randomized"):
        fit = LARGE(tensor, 25, solver=solver, random_state=0)
        assert fit.error == pytest.approx(fit_svd(tensor, 25).error, rel=1e-2)
        assert fit.error < 1e-11


def test_one_read_after_the_look_is_enough_for_a_sketch() -> None:
    tensor = Sliced(decaying((40, 10, 6), torch.float32, last=-3))
    f = tensorlrf.large.svd(tensor, 8, n_power_iter=0, solver="randomized", random_state=0)
    assert tensor.read == 2 * 40 * 10 * 6
    whole = torch.from_numpy(tensor.array)
    # Halko, Martinsson & Tropp 2011, theorem 10.5: on average 1.4 times with ten more directions.
    assert f.rel_error(whole) < 1.5 * fit_svd(whole, 8).error


def test_sides_share_the_singular_values() -> None:
    tensor = decaying((30, 8, 6), torch.float64, last=-2)
    f = tensorlrf.large.svd(tensor, 5, random_state=0)
    known = tensorlrf.svd(tensor, 5)
    lengths = torch.linalg.vector_norm(known.left, dim=0)
    torch.testing.assert_close(torch.linalg.vector_norm(f.left, dim=0), lengths)
    torch.testing.assert_close(torch.linalg.vector_norm(f.right, dim=1), lengths)


@pytest.mark.parametrize("error", [0.3, 1e-2, 1e-5])
@pytest.mark.parametrize("along", [0, 2])
def test_the_smallest_rank_within_an_error(error: float, along: int) -> None:
    tensor = decaying((20, 8, 6))
    fit = LARGE(tensor, error=error, along=along)
    known = fit_svd(tensor, error=error)
    assert fit.factors.rank == known.factors.rank
    assert fit.error <= error


@settings(derandomize=True, deadline=None, max_examples=30)
@given(
    shape=st.lists(st.integers(1, 7), min_size=2, max_size=4).map(tuple),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
    solver=st.sampled_from(["gram", "randomized", "auto"]),
    data=st.data(),
)
def test_full_rank_is_the_whole(
    shape: tuple[int, ...], dtype: torch.dtype, solver: str, data: st.DataObject
) -> None:
    along = data.draw(st.integers(0, len(shape) - 1))
    tensor = seeded(*shape, dtype=dtype)
    full = min(shape[0], tensor.numel() // shape[0])
    fit = LARGE(tensor, full, solver=solver, along=along, random_state=0)
    assert fit.error < 40 * torch.finfo(dtype).eps  # of two sides in that dtype


def test_a_slice_in_bfloat16(tmp_path: Path) -> None:
    tensor = decaying((30, 40), torch.bfloat16, last=-2)
    fit = LARGE(slice_of(tensor, tmp_path), 6, random_state=0)
    assert fit.factors.dtype == torch.bfloat16
    assert fit.error == pytest.approx(fit_svd(tensor, 6).error, rel=1e-3)


@pytest.mark.parametrize("scale", [0.0, 1e-35, 1e35])
@pytest.mark.parametrize("solver", ["gram", "randomized"])
def test_any_scale(scale: float, solver: str) -> None:
    tensor = (decaying((12, 9), last=-2) * scale).float()
    fit = LARGE(tensor, 3, solver=solver, random_state=0)
    assert bool(torch.isfinite(fit.factors.left).all())
    assert fit.error == pytest.approx(fit_svd(tensor, 3).error, rel=1e-4)


def test_auto_takes_the_gram_of_a_short_side() -> None:
    assert "gram" in LARGE(seeded(200, 30), 4, random_state=0).reason
    assert "randomized" in LARGE(seeded(30, 200), 4, random_state=0).reason
    assert "gram" in LARGE(seeded(30, 200), 4, random_state=0, along=1).reason


def test_refusals() -> None:
    tensor = seeded(6, 5)
    with pytest.raises(ArgumentError, match="needs rank="):
        LARGE(tensor, error=0.1, solver="randomized")
    with pytest.raises(ArgumentError, match="krylov"):
        LARGE(tensor, 2, solver="krylov")
    with pytest.raises(RankError):
        LARGE(tensor, 6)
    with pytest.raises(ArgumentError, match="n_power_iter"):
        LARGE(tensor, 2, n_power_iter=-1)
    with pytest.raises(ArgumentError, match="rank or error"):
        LARGE(tensor)
