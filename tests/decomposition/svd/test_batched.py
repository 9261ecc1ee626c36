"""Many matrices at once: each as good as alone."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tensorlrf.decomposition._fit import Fit
from tensorlrf.decomposition.linalg._batched import Matrices, scales_of
from tensorlrf.decomposition.linalg._gram import scale_of
from tensorlrf.decomposition.svd._svd import fit_svd, svd
from tensorlrf.errors import (
    RankError,
    UnsupportedError,
)
from tensorlrf.factors import Batch, LowRank
from tests.draws import seeded, seeded32

SOLVERS = ("auto", "exact", "eigh")
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def batched(tensor: Tensor, *args: Any, batch_dims: int = 1, **options: Any) -> Fit[Batch]:
    fit: Fit[Any] = fit_svd(tensor, *args, batch_dims=batch_dims, **options)
    assert isinstance(fit.factors, Batch)
    return fit


def residuals(tensor: Tensor, factors: Batch, places: int) -> Tensor:
    """Relative errors place by place, in float64."""
    wide = tensor.double().reshape(places, -1)
    off = wide - factors.to(torch.float64).to_dense().reshape(places, -1)
    errors: Tensor = off.norm(dim=1) / wide.norm(dim=1)
    return errors


@settings(derandomize=True, deadline=None, max_examples=30)
@given(
    batch=st.sampled_from([(1,), (3,), (2, 2)]),
    m=st.integers(1, 9),
    n=st.integers(1, 9),
    taps=st.integers(1, 2),
    r=st.integers(1, 9),
    dtype=st.sampled_from(DTYPES),
    solver=st.sampled_from(SOLVERS),
)
def test_each_residual_is_the_discarded_energy(
    batch: tuple[int, ...],
    m: int,
    n: int,
    taps: int,
    r: int,
    dtype: torch.dtype,
    solver: str,
) -> None:
    stack = seeded(*batch, m, n, taps, dtype=dtype)
    r = min(r, m, n * taps)
    fit = batched(stack, r, batch_dims=len(batch), solver=solver)
    factors = fit.factors
    assert factors.shape == tuple(stack.shape)
    assert factors.batch_shape == batch
    assert (factors.rank, factors.dtype, factors.of) == (r, dtype, "lowrank")
    # As for one matrix, see test_svd.
    rounding = 4 * torch.finfo(dtype).eps * math.sqrt(r)
    if dtype in (torch.float32, torch.float64):
        rounding *= min(m, n * taps) + 4
    places = math.prod(batch)
    reached = residuals(stack, factors, places)
    values = torch.linalg.svdvals(stack.double().reshape(places, m, -1))
    best = values[:, r:].norm(dim=1) / values.norm(dim=1)
    assert (reached >= best - 1e-12).all()
    assert (reached <= (best**2 + rounding**2).sqrt() + 1e-12).all()
    whole = float((stack.double() - factors.to(torch.float64).to_dense()).norm())
    floor = 16 * torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    assert fit.error == pytest.approx(whole / float(stack.double().norm()), rel=1e-3, abs=floor)


@pytest.mark.parametrize("solver", SOLVERS)
def test_each_place_is_what_it_is_alone(solver: str) -> None:
    stack = seeded32(2, 3, 10, 6, 2)
    factors = batched(stack, 4, batch_dims=2, solver=solver).factors
    for i in range(2):
        for j in range(3):
            alone, one = svd(stack[i, j], 4, solver=solver), factors[i, j]
            assert isinstance(one, LowRank)
            torch.testing.assert_close(one.to_dense(), alone.to_dense(), rtol=1e-5, atol=1e-5)
            lengths = one.left.norm(dim=0)
            torch.testing.assert_close(lengths, one.right.norm(dim=1), rtol=1e-5, atol=0)
            torch.testing.assert_close(lengths, alone.left.norm(dim=0), rtol=1e-5, atol=0)


@settings(derandomize=True, deadline=None, max_examples=20)
@given(
    error=st.floats(0.02, 0.9),
    seed=st.integers(0, 5),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.float16]),
)
def test_error_holds_at_every_place_with_the_smallest_rank(
    error: float, seed: int, dtype: torch.dtype
) -> None:
    decays = torch.tensor([0.5, 0.7, 0.9], dtype=torch.float64)[:, None]
    stack = seeded(3, 14, 12, seed=seed, dtype=torch.float64)
    stack = (
        stack * (decays ** torch.arange(12))[:, None] * torch.tensor([1e3, 1, 1e-3])[:, None, None]
    )
    stack = stack.to(dtype)
    fit = batched(stack, error=error)
    assert fit.converged
    assert (residuals(stack, fit.factors, 3) <= error * (1 + 1e-3)).all()
    ranks = [svd(matrix, error=error).rank for matrix in stack]
    assert fit.factors.rank == max(ranks)


def test_scales_are_those_of_one_tensor() -> None:
    for dtype in (torch.float32, torch.float64):
        stack = torch.tensor([0.0, 1e-42, 1e-30, 3e-8, 0.7, 5.0, 2e7, 1e30, 3e38]).to(dtype)
        got = scales_of(stack[:, None])
        assert got.tolist() == [scale_of(x) for x in stack]


def test_lapack_giving_up_on_one_place_is_met(monkeypatch: pytest.MonkeyPatch) -> None:
    stack = seeded32(3, 6, 8)
    expected = [batched(stack, 3, solver=solver).error for solver in ("exact", "eigh")]
    eigh, full = torch.linalg.eigh, torch.linalg.svd

    def fails_on_batches(function: Any) -> Any:
        def call(matrix: Tensor, **options: Any) -> Any:
            if matrix.ndim == 3:
                raise torch.linalg.LinAlgError("failed")  # type: ignore[attr-defined]
            return function(matrix, **options)

        return call

    monkeypatch.setattr(torch.linalg, "eigh", fails_on_batches(eigh))
    monkeypatch.setattr(torch.linalg, "svd", fails_on_batches(full))
    got = [batched(stack, 3, solver=solver).error for solver in ("exact", "eigh")]
    assert got == pytest.approx(expected, rel=1e-6)


def test_energies_are_those_of_each() -> None:
    stack = seeded32(3, 6, 8)
    for solver in ("exact", "eigh"):
        values = torch.linalg.svdvals(stack.double())
        energies = Matrices(stack, solver).energies
        torch.testing.assert_close(energies, values**2, rtol=1e-5, atol=1e-10)


def test_what_is_refused() -> None:
    stack = seeded32(3, 6, 8)
    with pytest.raises(
        UnsupportedError, match=r"solver='randomized' is not served.*auto, exact, eigh"
    ):
        svd(stack, 2, solver="randomized", batch_dims=1)
    with pytest.raises(RankError, match="rank=7 is above"):
        svd(stack, 7, batch_dims=1)
