"""Gauss-Newton steps for CP: what they find, what they keep, and where they end."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tensorlrf.decomposition import fit_cp
from tensorlrf.decomposition.cp._problem import pose
from tensorlrf.decomposition.cp.joint import _core
from tensorlrf.decomposition.cp.joint._core import compressed, wide_gram, widths
from tensorlrf.decomposition.linalg.multilinear._projected import Projected
from tensorlrf.errors import ArgumentError
from tensorlrf.factors import CPFactors


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator("cpu").manual_seed(seed)


def planted(shape: tuple[int, ...], rank: int, alike: float = 0.0, seed: int = 0) -> Tensor:
    """A tensor of this rank whose columns have a part in common in each mode: a swamp for ALS."""
    rng = draws(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=rng, dtype=torch.float64, device="cpu")

    factors = [alike**0.5 * normal(n, 1) + (1 - alike) ** 0.5 * normal(n, rank) for n in shape]
    weights = torch.ones(rank, dtype=torch.float64, device="cpu")
    return CPFactors(weights, tuple(factors)).to_dense()


def test_it_passes_a_swamp() -> None:
    tensor = planted((15, 14, 13), 4, alike=0.9)
    slow = fit_cp(tensor, 4, solver="als", random_state=0)
    fast = fit_cp(tensor, 4, random_state=0)
    assert fast.converged
    assert fast.error < 1e-6
    assert slow.error > 1e3 * fast.error


def test_float32_goes_as_far_as_float32_goes() -> None:
    tensor = planted((15, 14, 13), 4, alike=0.9).float()
    fit = fit_cp(tensor, 4, random_state=0)
    assert fit.converged
    assert fit.error < 100 * torch.finfo(torch.float32).eps


@settings(max_examples=10, deadline=None, derandomize=True)
@given(
    shape=st.lists(st.integers(1, 7), min_size=3, max_size=4),
    rank=st.integers(1, 4),
    seed=st.integers(0, 20),
)
def test_errors_fall_and_the_last_is_true(shape: list[int], rank: int, seed: int) -> None:
    tensor = torch.randn(*shape, generator=draws(seed), dtype=torch.float64, device="cpu")
    seen: list[float] = []
    fit = fit_cp(
        tensor,
        rank,
        solver="gauss-newton",
        random_state=seed,
        callback=lambda factors, error: seen.append(error),
    )
    assert fit.error == pytest.approx(fit.factors.rel_error(tensor), abs=1e-7)
    for before, after in zip(fit.errors, fit.errors[1:], strict=False):
        assert after <= before + 1e-7
    assert fit.error <= min(seen) + 1e-7


def test_terms_do_not_grow_and_cancel() -> None:
    """Of rank three and border rank two, under noise: models of rank two grow without bound."""
    a, b = torch.eye(2, dtype=torch.float64, device="cpu")
    parts = [(a, a, b), (a, b, a), (b, a, a)]
    tensor = sum(torch.einsum("i,j,k->ijk", *part) for part in parts)
    tensor = tensor + 0.1 * torch.randn(2, 2, 2, generator=draws(), dtype=a.dtype, device="cpu")
    fit = fit_cp(tensor, 2, random_state=0)
    assert fit.error < 0.1
    assert float(fit.factors.weights.square().sum()) < 100 * float(tensor.square().sum())


def test_the_step_is_that_of_the_dense_normal_equations() -> None:
    """The Schur complement and the gradient against those of the Jacobian written out."""
    rng = np.random.default_rng(0)
    tensor = rng.standard_normal((6, 4, 3, 2))
    start = Projected(tensor, [rng.standard_normal((n, 2)) for n in (4, 3, 2)])
    first, *others = (torch.from_numpy(u) for u in start.point.factors)

    def model(*factors: Tensor) -> Tensor:
        return torch.einsum("ar,br,cr,dr->abcd", *factors).flatten()

    jacobians = torch.autograd.functional.jacobian(model, (first, *others))
    j_first, j_others = jacobians[0].flatten(1), torch.cat([j.flatten(1) for j in jacobians[1:]], 1)
    ridged = torch.linalg.inv(torch.from_numpy(start.point.inverse)).contiguous()
    own = torch.kron(torch.eye(6, dtype=torch.float64, device="cpu"), ridged)
    torch.testing.assert_close(own, j_first.T @ j_first)
    cross = j_others.T @ j_first
    schur = j_others.T @ j_others - cross @ torch.linalg.solve(own, cross.T)
    rest = torch.from_numpy(tensor).flatten() - model(first, *others)
    pull = j_others.T @ rest
    hessian, gradient, _ = start._linearised()
    torch.testing.assert_close(torch.from_numpy(np.tril(hessian)), schur.tril())
    along = torch.cat(
        [(u * (u * g).sum(0)).flatten() for u, g in zip(others, _split(pull, others), strict=True)]
    )
    torch.testing.assert_close(torch.from_numpy(gradient), pull - along)


def _split(flat: Tensor, like: list[Tensor]) -> list[Tensor]:
    parts = torch.split(flat, [u.numel() for u in like])
    return [part.view_as(u) for part, u in zip(parts, like, strict=True)]


@pytest.mark.parametrize("shape", [(90, 20, 30), (400, 5, 6), (30, 12, 70)])
def test_compression_keeps_lengths(shape: tuple[int, ...]) -> None:
    tensor = planted(shape, 3).float() + 0.01 * torch.randn(*shape, generator=draws(), device="cpu")
    problem = pose(tensor)
    core = compressed(problem, widths(shape, 3))
    assert math.prod(core.entries.shape) < tensor.numel()
    kept = float(core.entries.norm()) ** 2 / problem.norm**2
    assert kept + core.lost == pytest.approx(1, abs=1e-6)
    for basis in core.bases:
        if basis is not None:
            eye = torch.eye(basis.shape[1], dtype=torch.float64, device="cpu")
            torch.testing.assert_close(basis.T @ basis, eye, atol=1e-9, rtol=0)


@pytest.mark.parametrize("mode", [0, 1, 2])
def test_gram_by_slabs(mode: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_core, "SLAB", 50)
    tensor = torch.randn(7, 6, 9, generator=draws(), device="cpu", dtype=torch.float32)
    unfolded = tensor.double().movedim(mode, 0).flatten(1)
    torch.testing.assert_close(wide_gram(tensor, mode), unfolded @ unfolded.T)


def test_a_callback_stops_it() -> None:
    tensor = planted((9, 8, 7), 3)
    fit = fit_cp(tensor + 0.1, 3, random_state=0, callback=lambda factors, error: True)
    assert not fit.converged
    assert "callback" in fit.reason
    assert fit.error == pytest.approx(fit.factors.rel_error(tensor + 0.1), rel=1e-6)


@pytest.mark.parametrize(
    "options", [{"fixed_modes": (0,)}, {"init": [None, [torch.zeros(4, 1, device="cpu")] * 3]}]
)
def test_what_it_cannot_do(options: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match=r"gauss-newton.*solver='als'"):
        fit_cp(torch.ones(4, 4, 4, device="cpu"), 1, solver="gauss-newton", **options)


def test_more_restarts_are_no_worse() -> None:
    tensor = torch.randn(8, 7, 6, generator=draws(3), dtype=torch.float64, device="cpu")
    one = fit_cp(tensor, 4, random_state=0)
    many = fit_cp(tensor, 4, random_state=0, n_restarts=6)
    assert many.error <= one.error * (1 + 1e-3)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_any_scale(scale: float) -> None:
    tensor = scale * planted((6, 5, 4), 2).float()
    fit = fit_cp(tensor, 2, random_state=0)
    assert fit.error < 1e-5
