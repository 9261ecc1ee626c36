"""svd and tucker of sparse tensors."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch

import tensorlrf
from tensorlrf import SparseTensor
from tensorlrf.decomposition import fit_svd, fit_tucker
from tensorlrf.decomposition.linalg.sparse import _leading
from tensorlrf.decomposition.tucker import _sparse
from tensorlrf.errors import ArgumentError, RankError, ShapeError, UnsupportedError
from tests.decomposition.sparse.drawn import huge, noisy, planted, thinned
from tests.draws import seeded

FLOOR = 3e-8


@pytest.mark.parametrize("shape", [(70, 40), (40, 90), (12, 6, 7)], ids=str)
@pytest.mark.parametrize("rank", [1, 5])
def test_svd_leaves_the_discarded_energy(shape: tuple[int, ...], rank: int) -> None:
    tensor = noisy(*shape, rank=4)
    fit = fit_svd(SparseTensor.of(tensor), rank)
    matrix = tensor.flatten(1)
    least = float(torch.linalg.svdvals(matrix)[rank:].norm() / matrix.norm())
    assert least * (1 - 1e-9) <= fit.error <= least * (1 + 1e-3)
    assert fit.error == pytest.approx(fit.factors.rel_error(tensor), rel=1e-9)
    assert fit.factors.shape == shape
    norms = [fit.factors.left.norm(dim=0), fit.factors.right.norm(dim=1)]
    torch.testing.assert_close(*norms)


def test_svd_of_a_wide_space_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flat spectrum, of which a few blocks are not enough."""
    monkeypatch.setattr(_leading, "BLOCKS", 2)
    matrix = thinned(seeded(120, 150), 0.2)
    fit = fit_svd(SparseTensor.of(matrix), 4)
    least = float(torch.linalg.svdvals(matrix)[4:].norm() / matrix.norm())
    assert fit.error <= least * (1 + 1e-3)


def test_svd_of_lower_rank_than_asked_and_of_float32() -> None:
    matrix = planted(30, 40, rank=2).float()
    for turned in (matrix, matrix.T):
        fit = fit_svd(SparseTensor.of(turned), 6)
        assert fit.error < 1e-6
        assert fit.factors.dtype == torch.float32
        assert fit.factors.rank == 6
    none = SparseTensor.from_coordinates([[], []], torch.zeros(0), (5, 4))
    assert fit_svd(none, 2).error == 0
    assert not fit_svd(none, 2).factors.to_dense().any()


def test_svd_of_sizes_that_no_memory_holds() -> None:
    f = tensorlrf.svd(huge(order=2), rank=3)
    assert f.shape == (10**6, 10**6)
    with pytest.raises(ShapeError, match="which no memory holds; cp and tucker"):
        tensorlrf.svd(huge(10**9, order=3), rank=3)


def test_one_seed_is_one_svd() -> None:
    s = SparseTensor.of(noisy(70, 60))
    assert torch.equal(tensorlrf.svd(s, 3).left, tensorlrf.svd(s, 3).left)


@pytest.mark.parametrize(
    "option",
    [
        {"solver": "exact"}, {"solver": "randomized"}, {"gram": torch.eye(5)}, {"n_power_iter": 3},
        {"n_oversample": 3}, {"differentiable": True}, {"batch_dims": 1},
        {"rank": None, "error": 0.1},
    ],
    ids=lambda o: list(o)[-1],
)  # fmt: skip
def test_svd_names_what_it_does_not_serve(option: dict[str, Any]) -> None:
    name = list(option)[-1]
    with pytest.raises(UnsupportedError, match=rf"{name}=.*leave"):
        fit_svd(SparseTensor.of(noisy(6, 5)), **{"rank": 2, **option})


# ---- tucker -------------------------------------------------------------------------------------


@pytest.mark.parametrize("entries", [1 << 22, 30])
def test_hooi_ends_where_the_dense_one_does(entries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where there is room for a few rows, and for few nonzeros, at a time."""
    monkeypatch.setattr(_sparse, "MOST_ENTRIES", entries)
    monkeypatch.setattr(_sparse, "GATHERED", entries)
    tensor = noisy(12, 9, 8, rank=4)
    ranks = (2, 3, 2)
    options: dict[str, Any] = {"tol": 1e-9, "n_iter_max": 200}
    sparse, dense = (
        fit_tucker(SparseTensor.of(tensor), ranks, **options),
        fit_tucker(tensor, ranks, **options),
    )
    assert sparse.error == pytest.approx(dense.error, rel=1e-5)
    assert sparse.error == pytest.approx(sparse.factors.rel_error(tensor), rel=1e-9)
    course = sparse.errors[:-1]
    assert all(b <= a * (1 + 1e-12) for a, b in pairwise(course))
    for u in sparse.factors.factors:
        eye = torch.eye(u.shape[1], dtype=u.dtype)
        torch.testing.assert_close(u.T @ u, eye, rtol=1e-9, atol=1e-9)
    assert sparse.error <= fit_tucker(SparseTensor.of(tensor), ranks, solver="hosvd").error


def test_hosvd_is_the_dense_one_and_slices_fall_by_energy() -> None:
    tensor = noisy(10, 9, 8, rank=3)
    sparse = fit_tucker(SparseTensor.of(tensor), 3, solver="hosvd")
    assert sparse.error == pytest.approx(fit_tucker(tensor, 3, solver="hosvd").error, rel=1e-3)
    for k in range(3):
        energies = sparse.factors.core.movedim(k, 0).flatten(1).norm(dim=1)
        assert bool((energies[1:] <= energies[:-1]).all())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_planted_core_is_found(dtype: torch.dtype) -> None:
    tensor = planted(12, 10, 9, rank=2).to(dtype)
    fit = fit_tucker(SparseTensor.of(tensor), 2, random_state=0)
    assert fit.error <= 8 * torch.finfo(dtype).eps + FLOOR
    assert fit.factors.dtype == dtype


def test_fewer_rows_than_ranks_and_nothing_at_all() -> None:
    one = SparseTensor.from_coordinates([[3], [1], [2]], torch.ones(1).double(), (9, 9, 9))
    none = SparseTensor.from_coordinates([[], [], []], torch.ones(0).double(), (9, 9, 9))
    for s in (one, none):
        fit = fit_tucker(s, (3, 2, 4))
        assert fit.error <= FLOOR
        for u in fit.factors.factors:
            eye = torch.eye(u.shape[1], dtype=u.dtype)
            torch.testing.assert_close(u.T @ u, eye)
    f = tensorlrf.tucker(huge(), rank=2, n_iter_max=2)
    assert f.shape == (10**6,) * 3


def test_tucker_stops_by_callback_and_names_what_it_does_not_serve() -> None:
    s = SparseTensor.of(noisy(6, 5, 4))
    seen: list[float] = []
    fit = fit_tucker(s, 2, callback=lambda f, error: seen.append(error) or f.shape == s.shape)
    assert len(seen) == 1
    assert fit.reason == "stopped by callback after sweep 1"
    refused: list[dict[str, Any]] = [
        {"solver": "st_hosvd"}, {"modes": (0, 1)}, {"gram": torch.eye(20)}, {"batch_dims": 1},
        {"differentiable": True}, {"rank": None, "error": 0.1}, {"rank": "same"},
    ]  # fmt: skip
    for option in refused:
        name = list(option)[-1]
        with pytest.raises(UnsupportedError, match=rf"{name}="):
            fit_tucker(s, **{"rank": 2, **option})
    with pytest.raises(ArgumentError, match="goes with solver='hooi'"):
        fit_tucker(s, 2, solver="hosvd", tol=0.1)
    with pytest.raises(RankError, match="along mode 2, which has size 4"):
        fit_tucker(s, 5)
    with pytest.raises(ArgumentError, match=r"10000 entries to a slice of mode 0"):
        fit_tucker(huge(), (1, 100, 100))
