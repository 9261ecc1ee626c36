"""Attention heads stacked as a tensor, in Tucker and CP."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tensorlrf.decomposition import cp_of_heads, shared_svd, tucker_of_heads
from tensorlrf.errors import ArgumentError, RankError, ShapeError
from tensorlrf.factors import CPFactors, TuckerFactors
from tests.draws import seeded


def weights_of(heads: Sequence[int], e: int, d: int, seed: int = 0) -> list[Tensor]:
    return [seeded(h * e, d, seed=seed + k) for k, h in enumerate(heads)]


def moments(d: int, seed: int = 0) -> Tensor:
    """Of inputs whose variances fall."""
    x = seeded(4 * d, d, seed=seed) * 0.8 ** torch.arange(d, dtype=torch.float64, device="cpu")
    return x.T @ x / len(x)


def lost(weights: list[Tensor], f: TuckerFactors | CPFactors, grams: list[Tensor]) -> float:
    parts = f.to_dense().flatten(0, 1).split([len(w) for w in weights])
    rest = [(w - part, g) for w, part, g in zip(weights, parts, grams, strict=True)]
    return float(sum(((r @ g) * r).sum() for r, g in rest))


shapes = st.tuples(st.lists(st.integers(1, 3), min_size=1, max_size=3), st.integers(1, 4))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(shapes, st.integers(2, 9), st.integers(0, 2), st.integers(0, 99))
def test_full_ranks_are_all_of_it(
    shape: tuple[list[int], int], d: int, metrics: int, seed: int
) -> None:
    heads, e = shape
    weights = weights_of(heads, e, d, seed)
    grams = [None, moments(d), [moments(d, k) for k in range(len(heads))]][metrics]
    f = tucker_of_heads(weights, (e, d), head_dim=e, grams=grams)
    assert f.shape == (sum(heads), e, d)
    torch.testing.assert_close(f.to_dense().flatten(0, 1), torch.cat(weights), rtol=1e-6, atol=1e-6)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(shapes, st.integers(2, 9), st.booleans(), st.data())
def test_whole_heads_are_a_shared_svd(
    shape: tuple[list[int], int], d: int, metric: bool, data: st.DataObject
) -> None:
    heads, e = shape
    weights = weights_of(heads, e, d)
    r = data.draw(st.integers(1, min(d, sum(heads) * e)))
    gram = moments(d) if metric else None
    f = tucker_of_heads(weights, (e, r), head_dim=e, grams=gram)
    joint = torch.cat([part.to_dense() for part in shared_svd(weights, r, grams=gram)])
    torch.testing.assert_close(f.to_dense().flatten(0, 1), joint, rtol=1e-5, atol=1e-5)


def test_the_metric_serves_the_outputs() -> None:
    weights, gram = weights_of([2, 3], 4, 12), moments(12)
    found: list[Any] = [
        [tucker_of_heads(weights, (3, 5), head_dim=4, grams=g) for g in (gram, None)],
        [cp_of_heads(weights, 9, head_dim=4, grams=g, random_state=0) for g in (gram, None)],
    ]
    for served, plain in found:
        assert lost(weights, served, [gram] * 2) < lost(weights, plain, [gram] * 2)
        assert lost(weights, plain, [torch.eye(12, dtype=torch.float64, device="cpu")] * 2) < lost(
            weights, served, [torch.eye(12, dtype=torch.float64, device="cpu")] * 2
        )


def test_moments_of_each_leave_less_than_their_mean() -> None:
    weights = weights_of([2, 3, 1], 4, 12)
    grams = [moments(12, k)[k:].roll(k, 1).T @ moments(12, k)[k:].roll(k, 1) for k in range(3)]
    mean = torch.stack(grams).mean(0)
    for method, rank in ((tucker_of_heads, (3, 5)), (cp_of_heads, 9)):
        fit: Any = method
        seeds = {} if fit is tucker_of_heads else {"random_state": 0}
        own = fit(weights, rank, head_dim=4, grams=grams, **seeds)
        pooled = fit(weights, rank, head_dim=4, grams=mean, **seeds)
        assert lost(weights, own, grams) < lost(weights, pooled, grams)


def test_what_belongs_to_heads_is_the_best_for_the_rest() -> None:
    """No step from it lowers the error."""
    weights = weights_of([2, 1], 3, 8)
    grams = [moments(8, k) for k in range(2)]
    tucker = tucker_of_heads(weights, (2, 4), head_dim=3, grams=grams)
    core = tucker.core.clone().requires_grad_()
    cp = cp_of_heads(weights, 5, head_dim=3, grams=grams, random_state=0)
    heads = cp.factors[0].clone().requires_grad_()

    def energy(dense: Tensor) -> Tensor:
        parts = dense.flatten(0, 1).split([len(w) for w in weights])
        rest = [(w - part, g) for w, part, g in zip(weights, parts, grams, strict=True)]
        return torch.stack([((r @ g) * r).sum() for r, g in rest]).sum()

    for own, factors in (
        (core, TuckerFactors(core, tucker.factors, tucker.modes)),
        (heads, CPFactors(cp.weights, (heads, *cp.factors[1:]))),
    ):
        left = energy(factors.to_dense())
        (slope,) = torch.autograd.grad(left, own)
        assert float(slope.norm() * own.detach().norm()) < 1e-5 * float(
            energy(torch.zeros(3, 3, 8).double())
        )


@pytest.mark.parametrize("of", ["tucker", "cp"])
def test_more_rank_leaves_less(of: str) -> None:
    weights, gram = weights_of([3, 3], 4, 10), moments(10)
    if of == "tucker":
        found: list[Any] = [
            tucker_of_heads(weights, (s, r), head_dim=4, grams=gram)
            for s, r in ((1, 2), (2, 5), (4, 10))
        ]
    else:
        found = [
            cp_of_heads(weights, r, head_dim=4, grams=gram, random_state=0) for r in (2, 8, 30)
        ]
    errors = [lost(weights, f, [gram] * 2) for f in found]
    assert all(after < before for before, after in pairwise(errors))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_in_the_dtype_of_the_weights(dtype: torch.dtype) -> None:
    weights = [w.to(dtype) for w in weights_of([2, 2], 3, 8)]
    want = torch.cat(weights).float()
    f = tucker_of_heads(weights, (3, 8), head_dim=3, grams=moments(8))
    assert f.dtype == dtype
    rounding = 16 * torch.finfo(dtype).eps  # of three factors and eight terms
    got = f.to(torch.float32).to_dense().flatten(0, 1)
    assert float((got - want).norm() / want.norm()) < rounding
    assert cp_of_heads(weights, 4, head_dim=3, random_state=0).dtype == dtype


@pytest.mark.filterwarnings("ignore::tensorlrf.errors.DegenerateWarning")  # of terms of zeros
def test_degenerate() -> None:
    zero = [torch.zeros(4, 6, dtype=torch.float64, device="cpu")] * 2
    nothing = torch.zeros(6, 6, dtype=torch.float64, device="cpu")
    for grams in (None, moments(6), nothing, [moments(6, 1), nothing]):
        f: Any = tucker_of_heads(zero, (1, 2), head_dim=2, grams=grams)
        assert not f.to_dense().any()
        f = cp_of_heads(zero, 2, head_dim=2, grams=grams, random_state=0)
        assert not f.to_dense().any()


def test_refused() -> None:
    weights = weights_of([2, 1], 4, 6)
    with pytest.raises(ShapeError, match=r"weights\[0\] has shape \(8, 6\).*heads \* 3"):
        tucker_of_heads(weights, (2, 2), head_dim=3)
    with pytest.raises(ShapeError, match=r"weights\[1\] has 7 columns"):
        cp_of_heads([weights[0], seeded(4, 7)], 2, head_dim=4)
    with pytest.raises(ArgumentError, match="weights is empty"):
        cp_of_heads([], 2, head_dim=4)
    with pytest.raises(ArgumentError, match="head_dim=0"):
        cp_of_heads(weights, 2, head_dim=0)
    with pytest.raises(ShapeError, match="grams are 1 for 2"):
        cp_of_heads(weights, 2, head_dim=4, grams=[moments(6)])
    pair: Any = 3
    with pytest.raises(RankError, match="rank=3 must be a pair"):
        tucker_of_heads(weights, pair, head_dim=4)
    with pytest.raises(RankError):
        tucker_of_heads(weights, (5, 2), head_dim=4)
    with pytest.raises(RankError):
        cp_of_heads(weights, 0, head_dim=4)
