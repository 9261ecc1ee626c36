"""Tucker by slabs: errors that are true and never rise, as good as in memory."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tensorlrf
from tensorlrf.decomposition import fit_tucker
from tensorlrf.errors import ArgumentError, RankError, TensorlrfWarning, UnsupportedError
from tensorlrf.factors import TuckerFactors
from tests.decomposition.large.planted import npy, of_core, slice_of
from tests.draws import seeded

LARGE = tensorlrf.large.fit_tucker
SHAPE, RANKS = (20, 15, 9, 10), (3, 4, 2, 3)


@pytest.fixture(scope="module")
def tensor() -> torch.Tensor:
    return of_core(SHAPE, (4, 5, 3, 4), noise=0.5)


@pytest.mark.parametrize("along", [0, 1, 3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_as_good_as_in_memory(
    tensor: torch.Tensor, along: int, dtype: torch.dtype, tmp_path: Path
) -> None:
    data = tensor.to(dtype)
    fit = LARGE(npy(data, tmp_path), RANKS, along=along, tol=1e-9)
    known = fit_tucker(data, RANKS, tol=1e-9)
    assert fit.error == pytest.approx(known.error, rel=1e-6)  # where sweeps gain nothing more
    assert fit.error == pytest.approx(fit.factors.rel_error(data), rel=1e-6)
    assert all(b <= a * (1 + 1e-7) for a, b in pairwise(fit.errors))
    sweeps = len(fit.errors) - 2
    undone = "met rounding" in fit.reason
    # The look, the Grams, the start, its error, two a sweep, and the error of what is returned.
    assert fit.passes == 4 + 2 * (sweeps + undone) + 1


def test_factors_are_orthonormal_and_slices_ordered(tensor: torch.Tensor) -> None:
    f = tensorlrf.large.tucker(tensor, RANKS)
    for u in f.factors:
        eye = torch.eye(u.shape[1], dtype=u.dtype, device="cpu")
        torch.testing.assert_close(u.T @ u, eye, rtol=0, atol=1e-12)
    for k in range(4):
        energies = f.core.movedim(k, 0).flatten(1).square().sum(1)
        assert torch.equal(energies, energies.sort(descending=True).values)


def test_the_start_alone_is_within_the_bound_of_the_theory(tensor: torch.Tensor) -> None:
    fit = LARGE(tensor, RANKS, solver="hosvd")
    best = fit_tucker(tensor, RANKS, tol=1e-9).error
    assert best <= fit.error <= 2 * best  # the root of N times that of the best
    assert fit.passes == 4


@settings(derandomize=True, deadline=None, max_examples=20)
@given(
    shape=st.lists(st.integers(1, 6), min_size=2, max_size=4).map(tuple),
    data=st.data(),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
)
def test_full_ranks_are_the_whole(
    shape: tuple[int, ...], data: st.DataObject, dtype: torch.dtype
) -> None:
    along = data.draw(st.integers(0, len(shape) - 1))
    tensor = seeded(*shape, dtype=dtype)
    fit = LARGE(tensor, shape, along=along)
    assert fit.error < 100 * torch.finfo(dtype).eps  # a product along each of four modes
    assert fit.factors.rank == shape


@settings(derandomize=True, deadline=None, max_examples=20)
@given(rows=st.integers(1, 20), count=st.integers(1, 3))
def test_neither_slabs_nor_groups_change_the_result(rows: int, count: int) -> None:
    from tensorlrf.decomposition.large import _hooi

    tensor = of_core((12, 8, 7, 6), (3, 3, 3, 3), noise=0.5)
    known = LARGE(tensor, 2, n_iter_max=3, tol=0.0)
    groups = {1: ((1, 2, 3),), 2: ((1,), (2, 3)), 3: ((1,), (2,), (3,))}[count]
    with pytest.MonkeyPatch.context() as patch:
        passes = _hooi.Passes(groups, rows, rows)
        patch.setattr(_hooi.Room, "passes", lambda *_: passes)
        fit = LARGE(tensor, 2, n_iter_max=3, tol=0.0)
    # Modes of another group see newer factors: other iterates on the way to the same place.
    slack = 1e-10 if count == 1 else 1e-4
    assert fit.error == pytest.approx(known.error, rel=slack)


@pytest.mark.parametrize("error", [0.6, 0.3, 0.05])
@pytest.mark.parametrize("solver", ["hooi", "hosvd"])
def test_within_an_error(tensor: torch.Tensor, error: float, solver: str) -> None:
    fit = LARGE(tensor, error=error, solver=solver)
    assert fit.error <= error
    assert fit.converged
    known = fit_tucker(tensor, error=error)
    assert fit.factors.n_params <= 3 * known.factors.n_params  # modes go in another order


def test_an_error_below_rounding_warns(tensor: torch.Tensor) -> None:
    with pytest.warns(TensorlrfWarning, match="out of reach"):
        fit = LARGE(tensor.to(torch.bfloat16), error=1e-5)
    assert not fit.converged


def test_some_modes_stay_whole(tensor: torch.Tensor) -> None:
    fit = LARGE(tensor, (3, 2), modes=(0, -1), tol=1e-9)
    known = fit_tucker(tensor, (3, 2), modes=(0, -1), tol=1e-9)
    assert fit.factors.modes == (0, 3)
    assert fit.factors.core.shape == (3, 15, 9, 2)
    assert fit.error == pytest.approx(known.error, rel=1e-6)
    with pytest.raises(UnsupportedError, match="along="):
        LARGE(tensor, 2, modes=(1, 2))
    assert LARGE(tensor, 2, modes=(1, 2), along=1).factors.modes == (1, 2)


def test_a_rank_above_what_the_others_leave() -> None:
    tensor = seeded(9, 4, 3)
    fit = LARGE(tensor, (8, 2, 1))
    assert fit.factors.rank == (8, 2, 1)
    assert fit.error == pytest.approx(fit_tucker(tensor, (8, 2, 1)).error, rel=1e-4)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_constant_tensors(value: float) -> None:
    tensor = torch.full((6, 5, 4), value, dtype=torch.float32, device="cpu")
    fit = LARGE(tensor, 2)
    assert fit.error < 1e-6
    assert all(bool(torch.isfinite(t).all()) for t in fit.factors.tensors().values())


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_any_scale(tensor: torch.Tensor, scale: float) -> None:
    fit = LARGE((tensor * scale).float(), RANKS)
    assert fit.error == pytest.approx(LARGE(tensor.float(), RANKS).error, rel=1e-4)


def test_a_slice_in_bfloat16(tensor: torch.Tensor, tmp_path: Path) -> None:
    fit = LARGE(slice_of(tensor.to(torch.bfloat16), tmp_path), RANKS)
    assert fit.factors.dtype == torch.bfloat16
    assert fit.error == pytest.approx(LARGE(tensor.float(), RANKS).error, rel=1e-2)


def test_callbacks_see_each_sweep(tensor: torch.Tensor) -> None:
    seen: list[float] = []

    def callback(factors: TuckerFactors, error: float) -> bool:
        seen.append(error)
        assert error == pytest.approx(factors.rel_error(tensor), rel=1e-9)
        return len(seen) == 2

    fit = LARGE(tensor, RANKS, tol=0.0, callback=callback)
    assert list(fit.errors[1:-1]) == seen
    assert len(seen) == 2


def test_refusals(tensor: torch.Tensor) -> None:
    wrong: tuple[tuple[dict[str, Any], type[Exception]], ...] = (
        ({"rank": 21}, RankError),
        ({"rank": (1, 2)}, RankError),
        ({"rank": "auto"}, RankError),
        ({"rank": 2, "solver": "randomized"}, ArgumentError),
        ({"rank": 2, "solver": "hosvd", "tol": 0.1}, ArgumentError),
        ({"rank": 2, "error": 0.1}, ArgumentError),
        ({"rank": 2, "modes": (0, 0)}, ArgumentError),
        ({"rank": 2, "callback": 3}, ArgumentError),
    )
    for given_, error in wrong:
        with pytest.raises(error):
            LARGE(tensor, **given_)
