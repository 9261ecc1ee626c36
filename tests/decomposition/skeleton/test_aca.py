"""Crosses find a matrix from a few of its values."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tensorlrf.decomposition import aca, fit_aca
from tensorlrf.errors import ArgumentError, RankError, ShapeError
from tests.draws import seeded


def inverse_distance(i: Tensor) -> Tensor:
    return 1 / (1 + (i[:, 0] + 2 * i[:, 1]).double())


@settings(max_examples=25, deadline=None, derandomize=True)
@given(m=st.integers(1, 12), n=st.integers(1, 12), r=st.integers(0, 6), seed=st.integers(0, 99))
def test_a_matrix_of_its_rank_is_found(m: int, n: int, r: int, seed: int) -> None:
    w = seeded(m, r, seed=seed) @ seeded(r, n, seed=seed + 1)
    fit = fit_aca(lambda i: w[i[:, 0], i[:, 1]], (m, n), error=1e-9, random_state=seed)
    assert fit.converged
    assert fit.factors.rel_error(w) < 1e-8
    assert fit.factors.rank <= max(1, min(m, n, r))
    assert fit.factors.row_indices is not None
    picked = fit.factors.row_indices.long()
    assert torch.equal(fit.factors.to_dense()[picked], w[picked])


def test_few_values_of_a_smooth_kernel_are_taken() -> None:
    m, n = 900, 700
    taken = 0

    def counted(i: Tensor) -> Tensor:
        nonlocal taken
        taken += len(i)
        return inverse_distance(i)

    fit = fit_aca(counted, (m, n), error=1e-6, random_state=0)
    assert fit.converged
    assert taken < 0.1 * m * n
    assert f"{taken:,} values" in fit.reason
    grid = torch.cartesian_prod(torch.arange(m), torch.arange(n))
    assert fit.factors.rel_error(inverse_distance(grid).reshape(m, n)) < 1e-5


def test_a_rank_bounds_the_crosses() -> None:
    f = aca(inverse_distance, (50, 40), 4, random_state=0)
    assert f.rank == 4
    assert f.column_indices is not None
    assert f.row_indices is not None
    assert len(set(f.column_indices.tolist())) == len(set(f.row_indices.tolist())) == 4
    share = aca(inverse_distance, (50, 40), 0.3, random_state=0)
    assert share.n_params <= 0.3 * 50 * 40
    ones = aca(lambda i: torch.ones(len(i)), (5, 4), 3, random_state=0)
    assert (ones.rank, ones.dtype) == (1, torch.float32)


def test_what_crosses_pass_by_is_found_by_samples() -> None:
    """Two blocks without an entry in common: no cross of one leads to the other."""
    w = torch.block_diag(seeded(20, 2) @ seeded(2, 20), seeded(30, 2) @ seeded(2, 30, seed=1))
    fit = fit_aca(lambda i: w[i[:, 0], i[:, 1]], (50, 50), error=1e-8, random_state=0)
    assert fit.factors.rel_error(w) < 1e-7
    assert fit.factors.rank == 4


def test_what_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"pass a callable .* or use cur\(\) for a tensor"):
        aca(seeded(3, 3), (3, 3), 2)  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match=r"two sizes \(m, n\); tt_cross serves more"):
        aca(inverse_distance, (3, 3, 3), 2)
    with pytest.raises(RankError):
        aca(inverse_distance, (5, 4), 5)
    with pytest.raises(ArgumentError, match=r"returned nan at index \(.*must be finite"):
        aca(lambda i: inverse_distance(i) * math.nan, (5, 4), 2)
    with pytest.raises(ShapeError, match=r"returned shape \(4, 1\)"):
        aca(lambda i: inverse_distance(i)[:, None], (5, 4), 2)
