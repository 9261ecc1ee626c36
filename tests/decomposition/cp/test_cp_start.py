"""What a given start of CP counts for: its directions and its proportions, never its scale."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tensorlrf.decomposition import fit_cp
from tensorlrf.factors import CPFactors

SHAPE, RANK = (6, 5, 4), 2


def uniform(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=generator, dtype=torch.float64)


def problem(seed: int) -> tuple[Tensor, tuple[Tensor, list[Tensor]]]:
    """A tensor of positive terms, with noise, and a positive start that is none of them."""
    terms = tuple(uniform(n, RANK, seed=100 * seed + k) for k, n in enumerate(SHAPE))
    tensor = CPFactors(torch.ones(RANK, dtype=torch.float64), terms).to_dense()
    tensor = tensor + 0.05 * (uniform(*SHAPE, seed=100 * seed + 7) - 0.5)
    start = [uniform(n, RANK, seed=100 * seed + 10 + k) for k, n in enumerate(SHAPE)]
    return tensor, (uniform(RANK, seed=100 * seed + 20) + 0.1, start)


def scaled(start: tuple[Tensor, list[Tensor]], at: int, by: float) -> tuple[Tensor, list[Tensor]]:
    """The start with its weights (at = 0) or one of its factors multiplied."""
    weights, factors = start
    if at == 0:
        return weights * by, factors
    return weights, [f * by if k == at - 1 else f for k, f in enumerate(factors)]


def best_scaled_error(tensor: Tensor, start: tuple[Tensor, list[Tensor]]) -> float:
    model = CPFactors(start[0], tuple(start[1])).to_dense()
    scale = (tensor * model).sum() / model.square().sum()
    return float((tensor - scale * model).norm() / tensor.norm())


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 20),
    at=st.integers(0, 3),
    power=st.integers(-900, 900),
    solver=st.sampled_from(["als", "cprand", "leverage"]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    sweeps=st.integers(1, 5),
)
def test_its_scale_changes_nothing(
    seed: int, at: int, power: int, solver: str, dtype: torch.dtype, sweeps: int
) -> None:
    """Powers of two, so that not even rounding differs."""
    tensor, start = problem(seed)
    options: dict[str, Any] = {"n_iter_max": sweeps, "tol": 0, "solver": solver, "random_state": 0}
    plain = fit_cp(tensor.to(dtype), RANK, init=start, **options)
    given_other = scaled(start, at, math.ldexp(1.0, power))
    other = fit_cp(tensor.to(dtype), RANK, init=given_other, **options)
    assert plain.errors == other.errors
    for one, two in zip(
        plain.factors.tensors().values(), other.factors.tensors().values(), strict=True
    ):
        assert torch.equal(one, two)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 50), at=st.integers(0, 3), by=st.sampled_from([1e-3, 1.0, -1.0, 1e3]))
def test_the_first_sweep_begins_at_the_best_scale(seed: int, at: int, by: float) -> None:
    tensor, start = problem(seed)
    begun = best_scaled_error(tensor, start)
    fit = fit_cp(tensor, RANK, init=scaled(start, at, by), n_iter_max=1, tol=0)
    assert fit.error <= begun * (1 + 1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_weights_of_one_lead_where_tensorly_gets(seed: int) -> None:
    import tensorly
    from tensorly.decomposition import parafac

    tensor, (_, factors) = problem(seed)
    weights = torch.ones(RANK, dtype=torch.float64)
    with tensorly.backend_context("pytorch"):
        begun = tensorly.cp_tensor.CPTensor((weights, [f.clone() for f in factors]))
        theirs = tensorly.cp_to_tensor(parafac(tensor, RANK, n_iter_max=10, init=begun, tol=0))
    peer = float((theirs - tensor).norm() / tensor.norm())
    ours = fit_cp(tensor, RANK, init=(weights, factors), n_iter_max=10, tol=0).error
    # The way there differs a little by the ridge of the first sweeps.
    assert ours <= 1.05 * peer


def test_a_fixed_factor_of_any_scale() -> None:
    tensor, start = problem(0)
    plain = fit_cp(tensor, RANK, init=start, fixed_modes=[1], n_iter_max=5, tol=0)
    for power in (-900, 900):
        given_other = scaled(start, 2, math.ldexp(1.0, power))
        fit = fit_cp(tensor, RANK, init=given_other, fixed_modes=[1], n_iter_max=5, tol=0)
        assert torch.equal(fit.factors.factors[1], given_other[1][1])
        assert fit.error == pytest.approx(plain.error, rel=1e-12)
        assert math.isfinite(fit.factors.rel_error(tensor))


def test_a_start_of_zero_is_no_scale() -> None:
    tensor, (weights, factors) = problem(0)
    fit = fit_cp(tensor, RANK, init=(0 * weights, factors), n_iter_max=10, tol=0)
    assert fit.error < best_scaled_error(tensor, (weights, factors))
