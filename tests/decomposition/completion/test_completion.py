"""Tensors of which some entries are hidden are found again from the others."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import tensorlrf
from tensorlrf.decomposition import fit_cp, fit_svd, fit_tt, fit_tucker
from tensorlrf.decomposition.cp.observed import _completion
from tensorlrf.errors import ArgumentError, TensorlrfWarning, UnsupportedError
from tensorlrf.factors import CPFactors, Factors, LowRank, TTFactors, TuckerFactors
from tests.draws import seeded

F32 = torch.float32


def planted_cp(dtype: torch.dtype = F32) -> Factors:
    parts = tuple(seeded(n, 3, seed=k, dtype=dtype) for k, n in enumerate((14, 12, 10)))
    return CPFactors(torch.ones(3, dtype=dtype, device="cpu"), parts)


def planted_tucker(dtype: torch.dtype = F32) -> Factors:
    core = seeded(3, 2, 4, dtype=dtype)
    sizes = zip((14, 12, 10), core.shape, strict=True)
    factors = tuple(seeded(n, r, seed=1 + k, dtype=dtype) for k, (n, r) in enumerate(sizes))
    return TuckerFactors(core, factors, (0, 1, 2))


def planted_tt(dtype: torch.dtype = F32) -> Factors:
    bonds, sizes = (1, 3, 4, 2, 1), (7, 6, 8, 5)
    cores = tuple(
        seeded(bonds[k], n, bonds[k + 1], seed=k, dtype=dtype) for k, n in enumerate(sizes)
    )
    return TTFactors(cores, (0, 1, 2, 3))


def planted_matrix(dtype: torch.dtype = F32) -> Factors:
    return LowRank(seeded(30, 2, dtype=dtype), seeded(2, 25, seed=1, dtype=dtype), (30, 25))


CASES: dict[str, tuple[Callable[..., Factors], Callable[..., Any], Any]] = {
    "cp": (planted_cp, lambda *a, **k: fit_cp(*a, init="svd", **k), 3),
    "tucker": (planted_tucker, fit_tucker, (3, 2, 4)),
    "tt": (planted_tt, fit_tt, (3, 4, 2)),
    "svd": (planted_matrix, fit_svd, 2),
}


def half(shape: tuple[int, ...], seed: int = 11) -> Tensor:
    """A mask of half of the entries."""
    return seeded(*shape, seed=seed) > 0


@pytest.mark.parametrize("solver", ["", "em"])
@pytest.mark.parametrize("case", CASES)
def test_a_planted_tensor_is_found_from_half_of_its_entries(case: str, solver: str) -> None:
    make, fit, rank = CASES[case]
    if solver and case == "tt":
        return
    whole = make().to_dense()
    mask = half(tuple(whole.shape))
    chosen = {"solver": solver} if solver else {}
    found = fit(whole.masked_fill(~mask, math.nan), rank, mask=mask, **chosen)
    assert found.factors.rel_error(whole) < 1e-4
    assert found.error < 1e-4
    assert found.converged


@pytest.mark.parametrize("case", CASES)
def test_it_ends_where_no_change_of_a_factor_lowers_the_weighted_loss(case: str) -> None:
    """Of a tensor that no factors are equal to, in float64: the gradient in each factor is zero."""
    make, fit, rank = CASES[case]
    like = make(torch.float64)
    whole = like.to_dense()
    whole = whole + 0.3 * whole.std() * seeded(*whole.shape, seed=5)
    weights = seeded(*whole.shape, seed=6).square() * half(tuple(whole.shape))
    found = fit(whole, rank, weights=weights, tol=1e-13, n_iter_max=2000).factors
    moving = found.map(lambda t: t.clone().requires_grad_())
    loss = (weights * (whole - moving.to_dense()).square()).sum()
    loss.backward()
    for t in moving.tensors().values():
        assert float(t.grad.norm() * t.detach().norm()) < 1e-4 * float(loss.detach())


@pytest.mark.parametrize("case", CASES)
def test_less_of_all_entries_still_serves_all(case: str) -> None:
    """Weights that differ a little leave the loss near that of the plain decomposition."""
    make, fit, rank = CASES[case]
    whole = make(torch.float64).to_dense()
    whole = whole + 0.3 * whole.std() * seeded(*whole.shape, seed=5)
    weights = 1 - 1e-4 * torch.rand(whole.shape, generator=torch.Generator().manual_seed(0))
    plain, found = fit(whole, rank), fit(whole, rank, weights=weights.double(), tol=1e-9)
    assert found.factors.rel_error(whole) <= plain.factors.rel_error(whole) * (1 + 1e-4)


def test_weights_of_rows_have_the_closed_form_that_scales_them() -> None:
    """The Fisher-weighted SVD (Hsu et al. 2022) where every row has one weight."""
    weight = seeded(16, 12)
    rows = seeded(16, 1, seed=1).square() + 0.1
    left, values, right = torch.linalg.svd(rows.sqrt() * weight, full_matrices=False)
    closed = (left[:, :3] * values[:3]) @ right[:3] / rows.sqrt()
    found = fit_svd(weight, 3, weights=rows.expand(16, 12), tol=1e-12, n_iter_max=2000).factors
    losses = [float((rows * (weight - a).square()).sum()) for a in (found.to_dense(), closed)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_weights_of_entries_serve_their_own_loss_better_than_sums_over_rows() -> None:
    """Second moments of gradients for each entry against those for each row."""
    weight, fisher = seeded(16, 12), seeded(16, 12, seed=2).square()
    by_entry = fit_svd(weight, 3, weights=fisher).factors.to_dense()
    of_rows = fisher.sum(1, keepdim=True).expand(16, 12)
    by_row = fit_svd(weight, 3, weights=of_rows).factors.to_dense()
    losses = [float((fisher * (weight - a).square()).sum()) for a in (by_entry, by_row)]
    assert losses[0] < 0.9 * losses[1]


@pytest.mark.parametrize("fixed", [(), (1,)])
def test_small_tensors_are_swept_by_numpy_to_the_same_end(
    fixed: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    planted = planted_cp(torch.float64)
    assert isinstance(planted, CPFactors)
    whole = planted.to_dense() + seeded(14, 12, 10, seed=5)
    weights = seeded(14, 12, 10, seed=6).square() * half((14, 12, 10))
    asked = {"init": planted, "fixed_modes": fixed, "weights": weights, "n_iter_max": 6}
    by_numpy = fit_cp(whole, 3, **asked)
    monkeypatch.setattr(_completion, "SMALL", 0)
    by_torch = fit_cp(whole, 3, **asked)
    assert by_numpy.errors == pytest.approx(by_torch.errors, rel=1e-9)


def test_slices_of_different_weights_and_few_entries() -> None:
    """A row that is seen twice only, one that hardly counts, one of another size."""
    whole = planted_matrix(torch.float64).to_dense()
    whole[3] *= 1e4
    mask = half((30, 25))
    mask[0], mask[0, 4], mask[0, 7] = False, True, True
    weights = torch.ones(30, 25, dtype=torch.float64, device="cpu")
    weights[1] = 1e-6
    found = fit_svd(whole, 2, mask=mask, weights=weights, tol=1e-12)
    assert found.factors.rel_error(whole) < 1e-6


def test_fixed_modes_stay_and_starts_of_any_scale_serve() -> None:
    planted = planted_cp(torch.float64)
    assert isinstance(planted, CPFactors)
    whole = planted.to_dense()
    mask = half(tuple(whole.shape))
    given = CPFactors(
        1e6 * planted.weights, (planted.factors[0], *map(torch.ones_like, planted.factors[1:]))
    )
    start = tuple(f + 0.5 * seeded(*f.shape, seed=9) for f in planted.factors[1:])
    start = tuple(f + 0.5 * seeded(*f.shape, seed=9) for f in planted.factors[1:])
    given = CPFactors(1e6 * planted.weights, (planted.factors[0], *start))
    for solver in ("als", "em"):
        fit = fit_cp(whole, 3, mask=mask, init=given, fixed_modes=(0,), solver=solver)
        assert torch.equal(fit.factors.factors[0], planted.factors[0])
        assert fit.factors.rel_error(whole) < 1e-6
    restarts = fit_cp(whole, 3, mask=mask, n_restarts=3, random_state=0)
    assert restarts.error <= fit_cp(whole, 3, mask=mask, random_state=0).error


def test_partial_tucker_and_trains_of_another_order() -> None:
    kernel = planted_tucker().to_dense()
    mask = half(tuple(kernel.shape))
    fit = fit_tucker(kernel.masked_fill(~mask, math.nan), (4, 3), modes=(2, 0), mask=mask)
    assert fit.factors.modes == (0, 2)
    assert fit.factors.rel_error(kernel) < 1e-4
    train = planted_tt().to_dense().permute(2, 0, 3, 1)
    mask = half(tuple(train.shape))
    fit = fit_tt(train.masked_fill(~mask, math.nan), (3, 4, 2), modes=(1, 3, 0, 2), mask=mask)
    assert fit.factors.rel_error(train) < 1e-4


def test_ranks_beyond_the_systems_of_slices_are_imputed() -> None:
    """As the same solver does by name: a core of 3375 entries."""
    whole = seeded(16, 16, 16, dtype=F32)
    mask = seeded(16, 16, 16, seed=4) > -2
    by_name = fit_tucker(whole, 15, mask=mask, solver="em", n_iter_max=3)
    usual = fit_tucker(whole, 15, mask=mask, n_iter_max=3)
    assert usual.errors == by_name.errors
    wide = fit_cp(whole, 70, mask=mask, n_iter_max=3, random_state=0)
    named = fit_cp(whole, 70, mask=mask, n_iter_max=3, random_state=0, solver="em")
    assert wide.errors == named.errors


def test_solvers_that_read_every_entry_are_refused() -> None:
    whole = planted_cp().to_dense()
    mask = half(tuple(whole.shape))
    for fit, solver in ((fit_cp, "leverage"), (fit_tucker, "st_hosvd"), (fit_svd, "krylov")):
        with pytest.raises(ArgumentError, match=f"^solver='{solver}' reads every entry.*em"):
            fit(whole, 2, mask=mask, solver=solver)
    for name, value in (("n_iter_max", 3), ("tol", 0.1), ("callback", print)):
        with pytest.raises(ArgumentError, match=f"^{name}=.* goes with mask= or weights="):
            fit_svd(whole, 2, **{name: value})
    with pytest.raises(UnsupportedError, match=r"^differentiable= does not go with weights="):
        fit_svd(whole, 2, weights=mask.double(), differentiable=True)


def test_errors_out_of_reach_are_told_with_the_numbers() -> None:
    noise = seeded(12, 10, 8)
    mask = half((12, 10, 8))
    with pytest.warns(TensorlrfWarning, match=r"error=0\.01 is out of reach: rank .* the \d+ obs"):
        fit = fit_cp(noise, error=0.01, mask=mask, n_iter_max=5, random_state=0)
    assert not fit.converged


def test_layers_have_no_masks() -> None:
    """Sweeps over what is observed are of a user's own tensor."""
    for config in (tensorlrf.SVD, tensorlrf.CP, tensorlrf.Tucker):
        assert {"mask", "weights"}.isdisjoint(config().to_dict())
    assert "n_iter_max" not in tensorlrf.SVD().to_dict()
