"""One right factor for several matrices."""

from __future__ import annotations

import itertools

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

import tensorlrf
from tensorlrf.decomposition import shared_svd
from tensorlrf.errors import ArgumentError, RankError, ShapeError
from tensorlrf.factors import LowRank
from tests.draws import seeded, seeded32


def moments(n: int, seed: int, falling: float = 0.7) -> Tensor:
    """Of inputs whose variances fall."""
    x = seeded(4 * n, n, seed=seed) * falling ** torch.arange(n, dtype=torch.float64)
    return x.T @ x / len(x)


def lost(matrices: list[Tensor], found: list[LowRank], grams: list[Tensor]) -> float:
    """sum_i tr((W_i - A_i) G_i (W_i - A_i)^T)."""
    total = 0.0
    for w, f, g in zip(matrices, found, grams, strict=True):
        rest = w.double() - f.to_dense().double()
        total += float(((rest @ g) * rest).sum())
    return total


def tails(matrix: Tensor, gram: Tensor) -> Tensor:
    """What is left of it, squared, from rank 0 on."""
    values = torch.linalg.svdvals(matrix.double() @ torch.linalg.cholesky(gram))
    energies = torch.cat([values.square(), values.new_zeros(1)])
    return energies.flip(0).cumsum(0).flip(0)


@settings(deadline=None, max_examples=30, derandomize=True)
@given(
    rows=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    n=st.integers(2, 10),
    rank=st.integers(1, 6),
    seed=st.integers(0, 99),
)
def test_in_one_metric_it_is_the_truncated_svd_of_the_stack(
    rows: list[int], n: int, rank: int, seed: int
) -> None:
    rank = min(rank, n, sum(rows))
    matrices = [seeded(m, n, seed=seed + k) for k, m in enumerate(rows)]
    gram = moments(n, seed, falling=0.9)
    found = shared_svd(matrices, rank, grams=gram)
    stack = torch.cat(matrices)
    whole = tensorlrf.svd(stack, rank, gram=gram)
    for f, part in zip(found, torch.split(whole.to_dense(), rows), strict=True):
        torch.testing.assert_close(f.to_dense(), part)
    joint, all_of = tails(stack, gram), lost(matrices, found, [gram] * len(rows))
    assert all_of == pytest.approx(float(joint[rank]), rel=1e-6, abs=1e-9 * float(joint[0]))


@settings(deadline=None, max_examples=30, derandomize=True)
@given(n=st.integers(3, 10), seed=st.integers(0, 99), share=st.floats(0, 1))
def test_its_error_lies_between_those_of_matrices_by_themselves(
    n: int, seed: int, share: float
) -> None:
    """At equal rank they lose less; at as many ranks as they have together they lose more."""
    base = seeded(2, n, seed=seed)
    matrices = [
        share * seeded(7, 2, seed=seed + k) @ base + seeded(7, n, seed=seed + 9 + k)
        for k in range(3)
    ]
    gram = moments(n, seed)
    apart, joint = [tails(w, gram) for w in matrices], tails(torch.cat(matrices), gram)
    slack = 1e-9 * float(joint[0])
    for r in range(1, n + 1):
        left = lost(matrices, shared_svd(matrices, r, grams=gram), [gram] * 3)
        ends = [float(t[min(r, len(t) - 1)]) for t in apart]
        assert left >= sum(ends) - slack
        if 3 * r <= n:
            wide = lost(matrices, shared_svd(matrices, 3 * r, grams=gram), [gram] * 3)
            assert wide <= sum(ends) + slack


@settings(deadline=None, max_examples=30, derandomize=True)
@given(
    rows=st.lists(st.integers(2, 8), min_size=2, max_size=3),
    n=st.integers(3, 9),
    rank=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_sweeps_in_metrics_of_their_own_descend(
    rows: list[int], n: int, rank: int, seed: int
) -> None:
    rank = min(rank, n, sum(rows))
    matrices = [seeded(m, n, seed=seed + k) for k, m in enumerate(rows)]
    grams = [moments(n, seed + k).roll((k, k), (0, 1)) for k in range(len(rows))]
    errors = [
        lost(matrices, shared_svd(matrices, rank, grams=grams, n_iter_max=sweeps), grams)
        for sweeps in (1, 2, 4, 8, 30)
    ]
    whole = sum(float(tails(w, g)[0]) for w, g in zip(matrices, grams, strict=True))
    for before, after in itertools.pairwise(errors):
        assert after <= before + 1e-9 * whole
    pooled = shared_svd(matrices, rank, grams=torch.stack(grams).mean(0))
    assert errors[0] <= lost(matrices, pooled, grams) + 1e-6 * whole


def test_no_left_factor_and_no_right_factor_is_better_where_the_sweeps_end() -> None:
    matrices = [seeded(8, 10, seed=k) for k in range(3)]
    grams = [moments(10, k).roll((2 * k, 2 * k), (0, 1)) for k in range(3)]
    found = shared_svd(matrices, 4, grams=grams, n_iter_max=2000, tol=0.0)
    sides = [f.left.requires_grad_() for f in found]
    right = found[0].right.requires_grad_()
    terms = []
    for w, left, g in zip(matrices, sides, grams, strict=True):
        rest = w - left @ right
        terms.append(((rest @ g) * rest).sum())
    loss = torch.stack(terms).sum()
    for slope in torch.autograd.grad(loss, [*sides, right]):
        assert float(slope.norm()) <= 1e-3 * float(loss.detach())


def test_one_tensor_is_the_right_factor_of_all_and_shapes_are_kept() -> None:
    kernels = [seeded32(6, 2, 3, 3), seeded32(5, 18, seed=1)]
    found = shared_svd(kernels, 7)
    assert found[0].right is found[1].right
    assert [f.shape for f in found] == [(6, 2, 3, 3), (5, 18)]
    assert {f.dtype for f in found} == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_what_shares_a_row_space_is_met_at_its_rank(dtype: torch.dtype, scale: float) -> None:
    base = seeded(3, 12)
    matrices = [(scale * seeded(9, 3, seed=k) @ base).to(dtype) for k in range(2)]
    eps = torch.finfo(dtype).eps
    for grams in (None, [moments(12, 1), 100 * moments(12, 2)]):
        for f, w in zip(shared_svd(matrices, 3, grams=grams), matrices, strict=True):
            assert f.dtype == dtype
            assert f.rel_error(w) <= 12 * eps + 1e-5


def test_moments_of_nothing_are_the_plain_norm() -> None:
    matrices = [seeded(5, 6, seed=k) for k in range(2)]
    plain = shared_svd(matrices, 2)
    for grams in (torch.zeros(6, 6), [torch.zeros(6, 6), torch.zeros(6, 6)]):
        found = shared_svd(matrices, 2, grams=grams)
        for f, p in zip(found, plain, strict=True):
            torch.testing.assert_close(f.to_dense(), p.to_dense())


def test_bad_input_is_named() -> None:
    one, other = seeded32(4, 6), seeded32(4, 5)
    with pytest.raises(ArgumentError, match="matrices is empty"):
        shared_svd([], 2)
    with pytest.raises(ArgumentError, match="must be a sequence"):
        shared_svd(one, 2)  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match=r"matrices\[1\] has 5 columns and matrices\[0\] 6"):
        shared_svd([one, other], 2)
    with pytest.raises(ArgumentError, match=r"matrices\[1\] is torch\.float64"):
        shared_svd([one, one.double()], 2)
    with pytest.raises(ArgumentError, match=r"matrices\[1\] contains NaN"):
        shared_svd([one, one * torch.nan], 2)
    for rank in (0, 7, 2.0, True):
        with pytest.raises(RankError, match="from 1 to 6"):
            shared_svd([one, one], rank)  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match="grams are 3 for 2 matrices"):
        shared_svd([one, one], 2, grams=[torch.eye(6)] * 3)
    with pytest.raises(ShapeError, match=r"gram has shape \(5, 5\)"):
        shared_svd([one, one], 2, grams=torch.eye(5))
    for options in ({"n_iter_max": 5}, {"tol": 0.1}):
        with pytest.raises(ArgumentError, match="in one metric there is nothing to iterate"):
            shared_svd([one, one], 2, grams=torch.eye(6), **options)  # type: ignore[arg-type]
