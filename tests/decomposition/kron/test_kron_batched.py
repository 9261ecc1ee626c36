"""Sums of Kronecker products of many weights at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tensorlrf.decomposition._fit import Fit
from tensorlrf.decomposition.kron._kron import fit_kron, kron
from tensorlrf.errors import RankError, ShapeError, TensorlrfWarning, UnsupportedError
from tensorlrf.factors import Batch, KroneckerSum
from tests.decomposition.kron.test_kron import DTYPES, planted
from tests.decomposition.svd.test_batched import residuals
from tests.draws import seeded

PAIR = ((3, 4), (5, 2))
"""Of the (15, 8) weights of this file."""


def batched(tensor: Tensor, *args: Any, batch_dims: int = 1, **options: Any) -> Fit[Batch]:
    fit: Fit[Any] = fit_kron(tensor, *args, batch_dims=batch_dims, **options)
    assert isinstance(fit.factors, Batch)
    return fit


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel", [(), (3, 3)])
def test_each_place_is_what_it_is_alone(dtype: torch.dtype, kernel: tuple[int, ...]) -> None:
    stack = seeded(2, 3, 15, 8, *kernel, dtype=dtype)
    fit = batched(stack, 4, batch_dims=2, shapes=PAIR)
    assert fit.factors.shape == tuple(stack.shape)
    assert (fit.factors.rank, fit.factors.of) == (4, "kron")
    errors = residuals(stack, fit.factors, 6)
    for k, weight in enumerate(stack.flatten(0, 1)):
        one = fit.factors[divmod(k, 3)]
        assert isinstance(one, KroneckerSum)
        alone = fit_kron(weight, 4, shapes=PAIR)
        assert (one.a.shape, one.b.shape) == (alone.factors.a.shape, alone.factors.b.shape)
        assert float(errors[k]) == pytest.approx(alone.error, rel=1e-3)
    whole = float(stack.double().norm())
    lost = errors * stack.double().flatten(0, 1).flatten(1).norm(dim=1)
    assert fit.error == pytest.approx(float(lost.norm()) / whole, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_planted_terms_are_found_for_all(dtype: torch.dtype) -> None:
    pair = ((6, 4), (5, 7))
    stack = torch.stack([planted(3, pair, seed=seed) for seed in (0, 5, 9)]).to(dtype)
    for options in ({"rank": 3}, {"error": 1e-3}):
        fit = batched(stack, random_state=0, **options)
        assert fit.factors.parts["a"].shape == (3, 3, 6, 4)
        assert fit.error <= (1e-13 if dtype == torch.float64 else 1e-6)
        assert "best of" in fit.reason


def test_error_holds_at_every_place_with_the_fewest_terms() -> None:
    stack = torch.stack([planted(1, PAIR) + 0.1 * seeded(15, 8), seeded(15, 8, seed=3)])
    fit = batched(stack, error=0.4, shapes=PAIR)
    assert (residuals(stack, fit.factors, 2) <= 0.4).all()
    assert fit.factors.rank == kron(stack[1], error=0.4, shapes=PAIR).rank
    with pytest.warns(TensorlrfWarning, match="out of reach with every pair"):
        assert not batched(stack.bfloat16(), error=1e-4).converged


def test_what_is_refused() -> None:
    stack = seeded(3, 15, 8)
    with pytest.raises(UnsupportedError, match="solver='randomized' is not served"):
        kron(stack, 2, batch_dims=1, solver="randomized")
    with pytest.raises(ShapeError, match="batch_dims=2 leaves 1 of the 3 modes"):
        kron(stack, 2, batch_dims=2)
    with pytest.raises(ShapeError, match="m1 m2 = 15 and n1 n2 = 8"):
        kron(stack, 2, batch_dims=1, shapes=((2, 2), (2, 2)))
    with pytest.raises(RankError, match="rank=11 is above 10"):
        kron(stack, 11, batch_dims=1, shapes=PAIR)
