"""Interpolative decompositions keep columns or rows as they are, within the papers' bounds."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tensorlrf.decomposition import fit_interpolative, fit_svd, interpolative
from tensorlrf.decomposition.linalg.selection.pivots import Pivots
from tensorlrf.errors import ArgumentError, UnsupportedError
from tests.draws import seeded
from tests.metrics import moments, output_error


def decaying(m: int, n: int, last: float = -4, dtype: torch.dtype = torch.float64) -> Tensor:
    """Singular values from 1 down to 10^last."""
    k = min(m, n)
    left, right = (torch.linalg.qr(seeded(size, k, seed=size))[0] for size in (m, n))
    return (left * torch.logspace(0, last, k, dtype=torch.float64) @ right.T).to(dtype)


def spectral(matrix: Tensor) -> float:
    return float(torch.linalg.matrix_norm(matrix.double(), 2))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    m=st.integers(1, 14),
    n=st.integers(1, 14),
    seed=st.integers(0, 99),
    axis=st.sampled_from(["columns", "rows"]),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
)
def test_what_is_kept_is_reproduced_and_the_rest_within_the_bound(
    m: int, n: int, seed: int, axis: str, dtype: torch.dtype
) -> None:
    w = seeded(m, n, seed=seed, dtype=dtype)
    values = torch.linalg.svdvals(w.double())
    for r in {1, (min(m, n) + 1) // 2, min(m, n)}:
        f = interpolative(w, r, axis=axis)
        dense = f.to_dense()
        if axis == "columns":
            assert f.column_indices is not None
            picked, size = f.column_indices.long(), n
            assert torch.equal(dense[:, picked], w[:, picked])
        else:
            assert f.row_indices is not None
            picked, size = f.row_indices.long(), m
            assert torch.equal(dense[picked], w[picked])
        assert len(set(picked.tolist())) == r
        beyond = float(values[r]) if r < len(values) else 0.0
        slack = 8 * size * torch.finfo(dtype).eps * float(values[0])
        bound = math.sqrt(1 + r * (size - r)) * beyond
        assert spectral(w.double() - dense.double()) <= bound + slack


def test_no_coefficients_serve_the_columns_better() -> None:
    w = seeded(12, 9)
    f = interpolative(w, 4)
    assert f.column_indices is not None
    kept = w[:, f.column_indices.long()]
    best = kept @ torch.linalg.lstsq(kept, w).solution
    torch.testing.assert_close(f.to_dense(), best)


@pytest.mark.parametrize("axis", ["columns", "rows"])
def test_a_sketch_is_nearly_as_good(axis: str) -> None:
    w = decaying(90, 70, dtype=torch.float32)
    for r in (5, 20):
        exact = fit_interpolative(w, r, axis=axis, solver="exact").error
        drawn = fit_interpolative(w, r, axis=axis, solver="randomized", random_state=1).error
        assert drawn < 1.3 * exact
        assert exact < 3 * fit_svd(w, r).error


@pytest.mark.parametrize("axis", ["columns", "rows"])
def test_the_rank_of_an_error_is_the_smallest(axis: str) -> None:
    w = decaying(40, 30)
    for error in (0.3, 1e-2, 1e-3):
        fit = fit_interpolative(w, error=error, axis=axis)
        assert fit.error <= error
        assert fit_interpolative(w, fit.factors.rank - 1, axis=axis).error > error


def test_an_exact_rank_is_found_and_beyond_it_nothing_grows() -> None:
    w = seeded(20, 4) @ seeded(4, 15, seed=1)
    assert interpolative(w, error=1e-10).rank == 4
    for solver in ("exact", "randomized"):
        f = interpolative(w, 9, solver=solver, random_state=0)
        assert f.rel_error(w) < 1e-12
        assert f.rows is not None
        assert float(f.rows.abs().max()) < 20
    twice = torch.cat([w[:, :5], w[:, :5]], 1)
    f = interpolative(twice, 4)
    assert f.column_indices is not None
    assert len({j % 5 for j in f.column_indices.tolist()}) == 4


def test_spectra_of_sixteen_digits_are_followed() -> None:
    """Squares that are taken down cancel on the way."""
    w = decaying(60, 50, last=-14)
    errors = [fit_interpolative(w, r).error for r in range(1, 50, 6)]
    ideal = [fit_svd(w, r).error for r in range(1, 50, 6)]
    assert all(e <= 8 * i for e, i in zip(errors, ideal, strict=True))


def test_rows_in_a_metric_are_the_best_estimate_from_those_kept() -> None:
    w, gram = seeded(14, 10), moments(10)
    fit = fit_interpolative(w, 4, axis="rows", gram=gram)
    f = fit.factors
    assert f.row_indices is not None
    picked = f.row_indices.long()
    assert torch.equal(f.to_dense()[picked], w[picked])
    image = w @ torch.linalg.cholesky(gram)
    best = image @ torch.linalg.pinv(image[picked]) @ w[picked]
    assert fit.error == pytest.approx(output_error(w, best, gram), rel=1e-3)


def test_columns_in_a_metric_take_most_away_each_time() -> None:
    """Of all columns, tried out; and what is told of the squares is what they are."""
    w, gram = seeded(9, 12), moments(12)
    root = torch.linalg.cholesky(gram)
    image = w @ root
    pivots = Pivots(w, image)
    chosen: list[int] = []
    for _ in range(6):
        left = [
            output_left(w, image, [*chosen, j]) if j not in chosen else math.inf for j in range(12)
        ]
        pivots.extend(len(chosen) + 1)
        chosen = pivots.chosen
        assert left[chosen[-1]] == pytest.approx(min(left), rel=1e-9)
        assert pivots.rest == pytest.approx(left[chosen[-1]], rel=1e-9)


def output_left(w: Tensor, image: Tensor, columns: list[int]) -> float:
    """What the span of these columns leaves of the image."""
    basis = torch.linalg.qr(w[:, columns])[0]
    return float((image - basis @ (basis.T @ image)).square().sum())


def test_what_is_refused() -> None:
    w = seeded(6, 5)
    with pytest.raises(ArgumentError, match="axis='both' is unknown; choose one of"):
        interpolative(w, 2, axis="both")
    with pytest.raises(ArgumentError, match="solver='randomized' needs rank="):
        interpolative(w, error=0.1, solver="randomized")
    with pytest.raises(UnsupportedError, match="solver='randomized' does not take gram="):
        interpolative(w, 2, solver="randomized", gram=moments(5))
