"""Sweeps over a tensor in small bases: what they see, where they lead, and when they are made."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tensorlrf.decomposition import fit_nmf, fit_nonnegative_cp
from tensorlrf.decomposition.nonnegative import _compressed, _fit
from tensorlrf.decomposition.nonnegative._compressed import Compressed, compressed
from tensorlrf.decomposition.nonnegative._data import Data
from tensorlrf.decomposition.nonnegative._sweep import Sweep, random_start
from tensorlrf.factors.algebra import mode_product
from tests.decomposition.nonnegative.checks import never_rises, none_negative, planted
from tests.draws import generator, seeded

SHAPES = [(240, 180), (40, 30, 24), (5, 80, 60)]


def noisy(shape: tuple[int, ...], share: float = 0.2, rank: int = 3) -> Tensor:
    x = planted(shape, rank).to_dense()
    noise = seeded(*shape)
    return x + share * x.norm() / noise.norm() * noise


def small_of(x: Tensor, rank: int = 3) -> Compressed:
    found = compressed(Data.of(x), [rank] * x.ndim, generator())
    assert found is not None
    return found


def expanded(small: Compressed) -> Tensor:
    tensor = small.tensor
    for mode, basis in enumerate(small.bases):
        tensor = tensor if basis is None else mode_product(tensor, basis, mode)
    return tensor


@pytest.mark.parametrize("shape", SHAPES)
def test_the_bases_are_orthonormal_and_hold_what_is_planted(shape: tuple[int, ...]) -> None:
    exact = planted(shape, 3).to_dense()
    for x, close in ((exact, 1e-10), (noisy(shape), 0.12)):
        data, small = Data.of(x), small_of(x)
        for basis in small.bases:
            if basis is not None:
                assert torch.allclose(basis.T @ basis, torch.eye(basis.shape[1]).double())
        kept = expanded(small) * data.scale
        assert float((kept - exact).norm() / exact.norm()) < close
    assert small.shape == shape


@pytest.mark.parametrize("shape", SHAPES)
def test_a_sweep_is_that_over_the_tensor_which_the_bases_hold(shape: tuple[int, ...]) -> None:
    """The same model after it, and the error over the norm of the tensor itself."""
    x = noisy(shape)
    small = small_of(x)
    start = random_start(small, 3, generator(1)).state
    found, error = Sweep(small, start).run()
    dense = Data.scaled(expanded(small).contiguous(), small.scale, small.dtype)
    rounds = type("Twice", (Data,), {"rounds": lambda self, n, r: _compressed.ROUNDS})
    wanted, _ = Sweep(rounds(dense.cut, dense.scale, dense.dtype), start).run()
    for a, b in zip(found.factors, wanted.factors, strict=True):
        # float64 sums in another order, divided by the diagonals of Grams: some digits of sixteen.
        assert torch.allclose(a, b, atol=1e-9)
    assert torch.allclose(found.weights, wanted.weights)
    assert found.weights.dtype == torch.float64
    left = float(x.norm() / small.scale) ** 2 - float(dense.square)
    model = Data.scaled(expanded(small), 1.0, x.dtype).true_error(found.factors, found.weights)
    squared = left + model**2 * float(dense.square)
    assert error == pytest.approx(math.sqrt(squared) / float(x.norm() / small.scale), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shape", SHAPES)
def test_what_begins_there_ends_no_higher_in_fewer_sweeps(
    shape: tuple[int, ...], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = noisy(shape).clamp_min(0.0).to(dtype)
    fit: Any = fit_nmf if len(shape) == 2 else fit_nonnegative_cp
    found = fit(x, 3, random_state=0)
    monkeypatch.setattr(_compressed, "WORTH", math.inf)
    plain = fit(x, 3, random_state=0)
    assert none_negative(found)
    assert never_rises(found.errors)
    assert found.error <= plain.error * (1 + 2e-3)
    assert len(found.errors) < len(plain.errors)
    assert found.errors[0] < plain.errors[0]


def test_a_planted_tensor_is_met_by_the_sweeps_over_itself() -> None:
    """Below what sums of squares tell within the bases."""
    x = planted((40, 30, 24), 3, torch.float32).to_dense()
    assert fit_nonnegative_cp(x, 3, random_state=0, n_iter_max=1000, tol=0).error < 1e-5


def test_it_is_left_out_where_it_saves_little_or_sees_nothing() -> None:
    assert compressed(Data.of(noisy((20, 20))), [3, 3], generator()) is None
    assert compressed(Data.of(noisy((240, 180))), [60, 60], generator()) is None
    below = -torch.ones(240, 180, dtype=torch.float64)
    assert _fit.begun_small(Data.of(below), 3, generator(), 1) is None
    assert fit_nonnegative_cp(below, 3, random_state=0).error == pytest.approx(1)


def test_the_best_of_several_starts_in_it_goes_on() -> None:
    x = noisy((40, 30, 24), rank=5)
    one, four = (fit_nonnegative_cp(x, 5, random_state=0, n_restarts=k) for k in (1, 4))
    assert four.error <= one.error * (1 + 1e-3)
