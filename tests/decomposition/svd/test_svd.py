"""Truncated SVD: optimality, bounds, the metric of the inputs, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tensorlrf.decomposition.svd._svd import fit_svd, svd
from tensorlrf.errors import (
    ArgumentError,
    RankError,
    UnsupportedError,
)
from tests.draws import seeded, seeded32

SOLVERS = ("auto", "exact", "eigh")
EPS32 = torch.finfo(torch.float32).eps


def decaying(m: int, n: int, decay: Callable[[Tensor], Tensor], seed: int = 0) -> Tensor:
    """A float64 matrix with singular values decay(1), decay(2), ..."""
    k = min(m, n)
    left: Tensor = torch.linalg.qr(seeded(m, k, seed=seed, dtype=torch.float64))[0]
    right: Tensor = torch.linalg.qr(seeded(n, k, seed=seed + 1, dtype=torch.float64))[0]
    return (left * decay(torch.arange(1, k + 1, dtype=torch.float64))) @ right.T


def discarded(matrix: Tensor, r: int) -> float:
    """Relative error of the best rank-r matrix (Eckart & Young 1936)."""
    values = torch.linalg.svdvals(matrix.double().reshape(matrix.shape[0], -1))
    return float(values[r:].norm() / values.norm())


def residual(matrix: Tensor, approximation: Tensor) -> float:
    wide = matrix.double()
    return float((wide - approximation.double()).norm() / wide.norm())


@settings(derandomize=True, deadline=None, max_examples=25)
@given(
    m=st.integers(1, 12),
    n=st.integers(1, 12),
    taps=st.integers(1, 3),
    r=st.integers(1, 12),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
    solver=st.sampled_from(SOLVERS),
    turned=st.booleans(),
)
def test_residual_is_the_discarded_energy(
    m: int, n: int, taps: int, r: int, dtype: torch.dtype, solver: str, turned: bool
) -> None:
    weight = seeded(n, m, taps, dtype=dtype).transpose(0, 1) if turned else seeded32(m, n, taps)
    weight = weight.to(dtype)
    r = min(r, m, n * taps)
    factors = svd(weight, r, solver=solver)
    assert factors.shape == tuple(weight.shape)
    assert factors.rank == r
    assert factors.dtype == dtype
    # Both factors are rounded: an entry of the product errs by at most 2 eps times |left||right|,
    # whose norm is at most the sum of the kept singular values, below sqrt(r) times ||W||.
    rounding = 4 * torch.finfo(dtype).eps * math.sqrt(r)
    if dtype in (torch.float32, torch.float64):
        rounding *= min(m, n * taps) + 4
    dense = (factors.left.double() @ factors.right.double()).reshape(weight.shape)
    best = discarded(weight, r)
    reached = residual(weight, dense)
    assert best - 1e-12 <= reached <= math.hypot(best, rounding) + 1e-12


@pytest.mark.parametrize("solver", SOLVERS)
def test_sides_share_each_singular_value(solver: str) -> None:
    factors = svd(seeded32(30, 20), 7, solver=solver)
    values = torch.linalg.svdvals(seeded32(30, 20))[:7]
    torch.testing.assert_close(factors.left.norm(dim=0), values.sqrt(), rtol=1e-5, atol=0)
    torch.testing.assert_close(factors.right.norm(dim=1), values.sqrt(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("shape", [(60, 300), (300, 60), (80, 80)])
def test_float32_takes_small_singular_values_from_the_gram(shape: tuple[int, int]) -> None:
    """A Gram in float32 would lose everything below 3e-4; summed in float64 it does not."""
    exact = decaying(*shape, lambda j: 10 ** (-j / 4) * (j <= 20))
    error = fit_svd(exact.float(), 20, solver="eigh").error
    # Rounding of two factors, and of a sum of 20 products.
    assert error <= 8 * EPS32
    assert fit_svd(exact.float(), 16, solver="eigh").error == pytest.approx(
        discarded(exact, 16), rel=1e-2
    )


@pytest.mark.parametrize("decay", [lambda j: j**-1.0, lambda j: 0.8**j, lambda j: j**-0.5])
@pytest.mark.parametrize("shape", [(60, 45), (40, 90)])
def test_randomized_is_within_a_thousandth(
    decay: Callable[[Tensor], Tensor], shape: tuple[int, int]
) -> None:
    matrix = decaying(*shape, decay)
    for seed in range(3):
        error = fit_svd(matrix, 8, solver="randomized", random_state=seed).error
        assert error <= 1.001 * discarded(matrix, 8)


# ---- error= -----------------------------------------------------------------------------------


@settings(derandomize=True, deadline=None, max_examples=25)
@given(
    error=st.floats(0.01, 0.9),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.float16]),
    seed=st.integers(0, 5),
)
def test_error_gives_the_smallest_rank(error: float, dtype: torch.dtype, seed: int) -> None:
    weight = decaying(18, 25, lambda j: 0.7**j, seed).to(dtype)
    fit = fit_svd(weight, error=error)
    assert fit.error <= error
    assert fit.converged
    dense = fit.factors.left.double() @ fit.factors.right.double()
    assert residual(weight, dense) == pytest.approx(fit.error, rel=1e-3, abs=4 * EPS32)
    if fit.factors.rank > 1 and dtype != torch.float16:
        assert discarded(weight, fit.factors.rank - 1) > error


def test_error_below_rounding_finds_the_true_rank() -> None:
    exact = seeded32(40, 5) @ seeded32(5, 30, seed=1)
    fit = fit_svd(exact, error=0.0)
    assert fit.factors.rank == 5
    assert not fit.converged


# ---- gram= ------------------------------------------------------------------------------------


def correlated(n: int, samples: int, seed: int = 0) -> Tensor:
    """Inputs (n, samples) with a decaying spectrum, float64."""
    mixing = decaying(n, n, lambda j: j**-1.0, seed)
    return mixing @ seeded(n, samples, seed=seed + 7, dtype=torch.float64)


@pytest.mark.parametrize("shape", [(24, 40), (40, 40), (60, 40), (12, 10, 2, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gram_equals_the_whitened_closed_form(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Wang et al. 2024: the truncated SVD of W S, S = chol(G), times S^-1."""
    weight = seeded32(*shape).to(dtype)
    wide = weight.double().reshape(shape[0], -1)
    inputs = correlated(40, 400)
    gram = inputs @ inputs.T / 400
    fit = fit_svd(weight, 6, gram=gram)
    root = torch.linalg.cholesky(gram)
    u, s, vt = torch.linalg.svd(wide @ root, full_matrices=False)
    closed = (u[:, :6] * s[:6]) @ torch.linalg.solve_triangular(
        root, vt[:6], upper=False, left=False
    )
    dense = (fit.factors.left @ fit.factors.right).double()
    assert float((dense - closed).norm() / closed.norm()) <= 1e-5
    assert fit.error == pytest.approx(float(s[6:].norm() / s.norm()), rel=1e-5)


def test_gram_of_few_samples_has_low_rank() -> None:
    weight, inputs = seeded32(16, 12), seeded(12, 3, dtype=torch.float64)
    for r in (3, 8, 12):
        fit = fit_svd(weight, r, gram=inputs @ inputs.T / 3)
        assert torch.isfinite(fit.factors.to_dense()).all()
        # What the samples do not span has a small say in where U lies.
        assert fit.shrinkage is not None
        assert fit.error <= fit.shrinkage + 8 * EPS32 * math.sqrt(12)


def test_gram_beats_plain_svd_on_held_out_inputs() -> None:
    weight = seeded32(32, 40)
    known, held_out = correlated(40, 600), correlated(40, 600)[:, 300:]
    known = known[:, :300]
    gram = known @ known.T / 300
    for r in (4, 8, 16):
        served = svd(weight, r, gram=gram).to_dense().double()
        plain = svd(weight, r).to_dense().double()
        outputs = weight.double() @ held_out
        assert (served @ held_out - outputs).norm() < 0.8 * (plain @ held_out - outputs).norm()


@pytest.mark.parametrize("loud", [1.0, 1e3])
def test_inner_values_are_no_larger_than_outputs(loud: float) -> None:
    """One direction of the outputs holds nearly everything; float16 must hold its inner value."""
    weight = seeded32(400, 64) + 5 * torch.ones(400, 64)
    inputs = loud * (correlated(64, 500) + 1)
    factors = svd(weight.half(), 8, gram=inputs @ inputs.T / 500)
    inner = (factors.right.double() @ inputs).square().mean(1).sqrt()
    outputs = (weight.double() @ inputs).square().mean().sqrt()
    # Rounding of the factors to float16 moves the root mean square by at most its eps.
    assert float(inner.max()) <= float(outputs) * (1 + 2e-3)
    assert torch.isfinite(factors.left).all()


# ---- refusals ---------------------------------------------------------------------------------


def test_refusals_name_argument_value_and_remedy() -> None:
    weight = seeded32(6, 5)
    with pytest.raises(RankError, match=r"rank=6 is above min\(m, n\) = 5"):
        svd(weight, 6)
    for solver in ("krylov", "randomized"):
        with pytest.raises(ArgumentError, match=f"solver='{solver}' needs rank="):
            svd(weight, error=0.1, solver=solver)
    with pytest.raises(ArgumentError, match="n_power_iter=-1"):
        svd(weight, 2, n_power_iter=-1)
    with pytest.raises(ArgumentError, match=r"n_oversample=2\.5"):
        svd(weight, 2, n_oversample=2.5)  # type: ignore[arg-type]
    with pytest.raises(UnsupportedError, match="solver='exact' does not take gram="):
        svd(weight, 2, solver="exact", gram=torch.eye(5))
