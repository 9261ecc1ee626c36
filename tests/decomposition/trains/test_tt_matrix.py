"""TT-matrices: digits, padding, exact ones, bounds, and outputs in the metric of the inputs."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tensorlrf.decomposition.linalg._solve import proximal_step
from tensorlrf.decomposition.trains._tt import fit_tt
from tensorlrf.decomposition.trains._tt_matrix import fit_tt_matrix, tensorised, tt_matrix
from tensorlrf.decomposition.trains._tt_outputs import als_sweep
from tensorlrf.errors import ArgumentError, RankError, ShapeError
from tensorlrf.factors import TTMatrix
from tests.draws import seeded
from tests.metrics import in_moments, moments_within, output_error


def planted(
    rows: tuple[int, ...], columns: tuple[int, ...], ranks: tuple[int, ...], seed: int = 0
) -> Tensor:
    bonds = (1, *ranks, 1)
    cores = [
        seeded(r, m, n, s, seed=seed + k)
        for k, (m, n, (r, s)) in enumerate(zip(rows, columns, pairwise(bonds), strict=True))
    ]
    dense = TTMatrix(tuple(cores)).to_dense()
    return dense / dense.square().mean().sqrt()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("rows", "columns", "ranks"),
    [((8, 4), (4, 8), (5,)), ((4, 3, 5), (3, 4, 2), (4, 6)), ((2, 9), (12, 2), (3,))],
)
def test_trains_are_found_again(
    rows: tuple[int, ...], columns: tuple[int, ...], ranks: tuple[int, ...], dtype: torch.dtype
) -> None:
    weight = planted(rows, columns, ranks).to(dtype)
    copy = weight.clone()
    fit = fit_tt_matrix(weight, ranks, row_sizes=rows, column_sizes=columns)
    # Three or two rounded cores, and sums of up to 1440 products in the working dtype.
    eps = max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps * (dtype != torch.float64))
    assert fit.error <= 20 * eps
    assert torch.equal(weight, copy)
    assert fit.factors.dtype == dtype
    assert fit.factors.rank == (1, *ranks, 1)
    assert (fit.factors.row_sizes, fit.factors.column_sizes) == (rows, columns)
    if dtype in (torch.float64, torch.float32):
        again = tt_matrix(weight, error=100 * eps, row_sizes=rows, column_sizes=columns)
        assert again.rank == (1, *ranks, 1)


@settings(derandomize=True, deadline=None, max_examples=30)
@given(
    m=st.integers(1, 40),
    n=st.integers(1, 40),
    order=st.integers(2, 3),
    rank=st.integers(1, 12),
    error=st.floats(0.01, 0.9),
)
def test_any_size_is_served(m: int, n: int, order: int, rank: int, error: float) -> None:
    weight = seeded(m, n)
    fit = fit_tt_matrix(weight, rank, order=order)
    factors = fit.factors
    assert factors.shape == (m, n)
    rows, columns = factors.row_sizes, factors.column_sizes
    assert math.prod(rows) >= m
    assert math.prod(columns) >= n
    whole = fit_tt(tensorised(weight, rows, columns), rank)
    # The same train; what it leaves in the padding is no error of the matrix.
    assert fit.error <= whole.error * (1 + 1e-9) + 1e-14
    if (math.prod(rows), math.prod(columns)) == (m, n):
        assert fit.error == pytest.approx(whole.error, abs=1e-13)
    assert fit_tt_matrix(weight, error=error, order=order).error <= error


def test_prime_sides_are_padded_with_zeros() -> None:
    weight = seeded(97, 101)
    factors = tt_matrix(weight, 99)
    assert factors.shape == (97, 101)
    assert (factors.row_sizes, factors.column_sizes) == ((14, 7), (17, 6))
    torch.testing.assert_close(factors.to_dense(), weight, rtol=0, atol=1e-12)
    padded = TTMatrix(factors.cores).to_dense()
    assert padded.shape == (98, 102)
    assert float(padded[97:].abs().max()) <= 1e-12
    assert float(padded[:, 101:].abs().max()) <= 1e-12


def test_digits_are_those_of_the_format() -> None:
    weight = seeded(6, 20)
    tensor = tensorised(weight, (2, 3), (5, 4)).reshape(2, 5, 3, 4)
    for i, j in ((0, 0), (1, 7), (5, 19), (3, 10)):
        assert tensor[i // 3, j // 4, i % 3, j % 4] == weight[i, j]


@pytest.mark.parametrize("share", [0.05, 0.3, 0.8, "same"])
def test_a_share_bounds_the_parameters(share: Any) -> None:
    weight = seeded(60, 72)
    factors = tt_matrix(weight, share, order=3)
    bound = (1.0 if share == "same" else float(share)) * weight.numel()
    assert factors.n_params <= bound
    more = tt_matrix(weight, max(factors.rank) + 1, order=3)
    assert more.n_params > bound or more.rank == factors.rank


def test_a_step_is_the_least_squares_solution() -> None:
    """Of the whole output error, by a step that has no structure to lose."""
    weight, gram = seeded(6, 8), moments_within(8)
    target = in_moments(weight, gram)
    train = tt_matrix(weight, 2, row_sizes=(3, 2), column_sizes=(2, 4))
    swept = als_sweep(target, train)
    # The last core is the least-squares one: no change of it lowers the error.
    base = target.rel_error(weight - swept.to_dense())
    for seed in range(5):
        for step in (1e-3, -1e-3):
            last = swept.cores[-1] + step * seeded(*swept.cores[-1].shape, seed=seed)
            other = TTMatrix((swept.cores[0], last)).to_dense()
            assert target.rel_error(weight - other) >= base


def test_unreached_directions_stay() -> None:
    normal = torch.diag(torch.tensor([2.0, 1.0, 0.0], dtype=torch.float64))
    old = seeded(3, 4)
    right = normal @ seeded(3, 4, seed=1)
    new = proximal_step(normal, right, old)
    assert torch.equal(new[2], old[2])
    torch.testing.assert_close(new[:2], (right / normal.diagonal()[:, None])[:2], rtol=1e-8, atol=0)
    assert torch.equal(proximal_step(normal * 0, right * 0, old), old)


def test_an_exact_train_stays_exact_in_the_metric() -> None:
    weight = planted((4, 5), (6, 3), (3,))
    sizes: dict[str, Any] = {"row_sizes": (4, 5), "column_sizes": (6, 3)}
    gram = moments_within(18, dead=2)
    fit = fit_tt_matrix(weight, 3, gram=gram, **sizes)
    assert fit.error <= 1e-13
    found = fit_tt_matrix(weight, error=1e-10, gram=gram, **sizes)
    assert found.factors.rank == (1, 3, 1)


def test_error_in_the_outputs_is_kept_with_the_smallest_rank() -> None:
    weight, gram = seeded(24, 35), moments_within(35)
    for error in (0.4, 0.1):
        fit = fit_tt_matrix(weight, error=error, gram=gram)
        r = max(fit.factors.rank)
        assert fit.converged
        assert output_error(weight, fit.factors, gram) <= error
        assert fit_tt_matrix(weight, r - 1, gram=gram).error > error
        assert r <= max(tt_matrix(weight, error=error).rank)
    exact = fit_tt_matrix(weight.bfloat16(), error=1e-5, gram=gram, n_iter_max=1)
    assert exact.converged
    assert exact.error == 0.0


def test_refusals() -> None:
    weight = seeded(24, 30)
    with pytest.raises(ShapeError, match=r"matrix \(m, n\)"):
        tt_matrix(seeded(4, 3, 3, 3), 2)
    with pytest.raises(ShapeError, match=r"row_sizes=\(4, 5\) multiply to 20"):
        tt_matrix(weight, 2, row_sizes=(4, 5))
    with pytest.raises(ShapeError, match="differ in length"):
        tt_matrix(weight, 2, row_sizes=(4, 6), column_sizes=(2, 3, 5))
    number: Any = 8
    with pytest.raises(ArgumentError, match="row_sizes=8 must be a sequence, such as"):
        tt_matrix(weight, 2, row_sizes=number)
    with pytest.raises(RankError, match="boundary"):
        tt_matrix(weight, (2, 3, 1))
    with pytest.raises(RankError, match="use at most 24"):
        tt_matrix(weight, (25,), row_sizes=(6, 4), column_sizes=(5, 6))
