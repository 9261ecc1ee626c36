"""Coupled factorisations: shared factors are found, better than from either tensor alone."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import tensorlrf
from tensorlrf.decomposition import fit_coupled_factorization
from tensorlrf.errors import ArgumentError, RankError, ShapeError, TensorlrfWarning
from tensorlrf.factors import CPFactors
from tests.decomposition.coupled.test_parafac2 import congruence
from tests.draws import generator, seeded
from tests.laws.refusals import not_dense


def planted(rank: int = 3, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """A shared factor (10, r), a tensor (10, 7, 6) and a matrix (10, 8) made of it."""
    a, b, c, v = (seeded(n, rank, seed=seed + k) for k, n in enumerate((10, 7, 6, 8)))
    return a, torch.einsum("ir,jr,kr->ijk", a, b, c), a @ v.T


def observed(tensor: Tensor, share: float, seed: int = 0) -> Tensor:
    return torch.rand(tensor.shape, generator=generator(seed), dtype=torch.float64) < share


def test_planted_factors_are_found_and_shared() -> None:
    a, x, y = planted()
    fit = fit_coupled_factorization([x, y], 3, modes=["ijk", "im"], tol=1e-9)
    f, g = fit.factors
    assert f.factors[0] is g.factors[0]
    assert fit.error < 1e-8
    assert congruence(f.factors[0], a)[0] > 1 - 1e-8
    for error, part, tensor in zip(fit.part_errors, (f, g), (x, y), strict=True):
        assert error == pytest.approx(part.rel_error(tensor), abs=1e-12)


def test_both_together_tell_more_than_either_alone() -> None:
    """A tensor of which little is seen, and a matrix, which has no unique factors of its own."""
    a, x, y = planted(seed=4)
    noisy = x + 0.1 * x.std() * seeded(*x.shape, seed=20)
    mask = observed(x, 0.3, 3)
    exact = y + 0.001 * y.std() * seeded(*y.shape, seed=21)
    options: dict[str, Any] = {"tol": 1e-8, "n_restarts": 3, "random_state": 0}

    def score(tensors: list[Tensor], modes: list[str], masks: list[Any]) -> float:
        found = tensorlrf.coupled_factorization(tensors, 3, modes=modes, masks=masks, **options)
        return congruence(found[0].factors[0], a)[0]

    both = score([noisy, exact], ["ijk", "im"], [mask, None])
    assert both > 0.97
    assert both > score([noisy], ["ijk"], [mask]) + 0.01
    assert both > score([exact], ["im"], [None]) + 0.01


def test_half_of_the_entries_are_enough() -> None:
    _, x, y = planted(seed=7)
    mask = observed(x, 0.5)
    holes = torch.where(mask, x, torch.nan)
    fit = fit_coupled_factorization(
        [holes, y], 3, modes=["ijk", "im"], masks=[mask, None], tol=1e-9
    )
    assert fit.factors[0].rel_error(x) < 1e-6  # the entries that nobody has seen among them


@settings(max_examples=8, deadline=None, derandomize=True)
@given(seed=st.integers(0, 9), masked=st.booleans(), kind=st.sampled_from(["noise", "zero", "one"]))
def test_the_loss_never_rises(seed: int, masked: bool, kind: str) -> None:
    tensors = [seeded(4, 3, 5, seed=seed), seeded(5, 6, seed=seed + 1), seeded(6, 4, 2, seed=seed)]
    if kind == "zero":
        tensors = [0 * t for t in tensors]
    elif kind == "one":
        tensors[1] = torch.ones_like(tensors[1])
    masks = [observed(t, 0.8, seed) for t in tensors]
    for t, mask in zip(tensors, masks, strict=True):
        for k in range(t.ndim):  # every slice has an entry
            mask.movedim(k, 0)[:, 0] = True
    options: dict[str, Any] = {"masks": masks} if masked else {"importance": [1, 0.5, 3]}
    fit = fit_coupled_factorization(
        tensors, 2, modes=["abc", "cd", "dae"], n_iter_max=12, random_state=0, **options
    )
    assert all(later <= before * (1 + 1e-9) for before, later in pairwise(fit.errors[:-1]))
    assert fit.error <= 1 + 1e-12
    assert math.isfinite(fit.error)
    assert fit.factors[0].factors[2] is fit.factors[1].factors[0]


def test_of_one_tensor_it_is_a_cp_of_it() -> None:
    x = seeded(6, 5, 4)
    fit = fit_coupled_factorization([x], 2, tol=1e-9, n_iter_max=2000)
    cp = tensorlrf.decomposition.fit_cp(x, 2, init="svd", tol=1e-10, n_iter_max=2000)
    assert fit.error == pytest.approx(cp.error, rel=1e-2)
    norms = fit.factors[0].factors[1].norm(dim=0)
    torch.testing.assert_close(norms, torch.ones(2, dtype=torch.float64))
    assert list(fit.factors[0].weights) == sorted(fit.factors[0].weights, reverse=True)


def test_what_counts_more_is_fitted_better_and_scale_is_of_no_consequence() -> None:
    _, x, y = planted(4)
    even = fit_coupled_factorization([x, y], 2)
    tilted = fit_coupled_factorization([x, y], 2, importance=[1, 1000])
    assert tilted.part_errors[1] < even.part_errors[1]
    small = fit_coupled_factorization([x * 2.0**-60, y * 2.0**-60], 2)
    assert small.error == pytest.approx(even.error, rel=1e-6)
    half = fit_coupled_factorization([x.to(torch.bfloat16), y.to(torch.bfloat16)], 2, n_iter_max=9)
    assert half.factors[0].dtype == torch.bfloat16


def test_a_callback_sees_each_sweep_and_stops() -> None:
    _, x, y = planted(4)
    seen: list[float] = []

    def stop(factors: tuple[CPFactors, ...], error: float) -> bool:
        assert len(factors) == 2
        seen.append(error)
        return len(seen) == 2

    fit = fit_coupled_factorization([x, y], 2, callback=stop, tol=0.0)
    assert len(seen) == 2
    assert "stopped by callback" in fit.reason


def test_too_few_observations_are_told_with_the_numbers() -> None:
    x = seeded(6, 5, 4)
    mask = torch.zeros(6, 5, 4, dtype=torch.bool)
    mask[:, 0, 0] = mask[0, :, 0] = mask[0, 0, :] = True
    with pytest.warns(TensorlrfWarning, match="rank=2 has 30 parameters and 13 entries"):
        tensorlrf.coupled_factorization([x], 2, masks=[mask], n_iter_max=2)


def test_bad_input_is_told_with_its_place() -> None:
    x, y = seeded(5, 4, 3), seeded(5, 6)

    def refused(kind: Any, words: str, tensors: Any = None, rank: Any = 2, **options: Any) -> None:
        with pytest.raises(kind, match=words):
            fit_coupled_factorization([x, y] if tensors is None else tensors, rank, **options)

    words = r"mode 'i' is shared and has size 5 in tensors\[0\] but 6 in tensors\[1\]"
    refused(ShapeError, words, [x, seeded(6, 2)], modes=["ijk", "im"])
    refused(ShapeError, "mode 0 is shared and has size 5 .* but 6", [x, seeded(6, 2)])
    for modes, words in (
        (["ij", "im"], r"modes\[0\]='ij' must name the 3 modes"),
        (["iij", "im"], r"modes\[0\]='iij' must name .* a name of its own"),
        (["ijk"], "names 1 tensors, there are 2"),
        ("ijk", "modes='ijk' must be a sequence"),
        (3, "modes=3 must be a sequence"),
    ):
        refused(ArgumentError, words, modes=modes)
    seen = torch.ones(5, 4, 3, dtype=torch.bool)
    hidden = seen.clone()
    hidden[:, 2] = False
    for masks, words in (
        ([seen], "masks has 1 entries for 2 tensors"),
        ([seen[0], None], r"masks\[0\] has shape \(4, 3\), tensors\[0\] has"),
        ([seen.double(), None], r"masks\[0\] has dtype torch.float64; it is True where"),
        ([hidden, None], r"hide all entries of index 2 along mode 1 of tensors\[0\]"),
        (3, "masks=3 must be a sequence"),
    ):
        refused(ArgumentError, words, masks=masks)
    for value, words in not_dense(y.float()).values():
        words = words.rpartition("sparse_coo; ")[2].rpartition("sparse_csr; ")[2]
        refused(ArgumentError, rf"^tensors\[1\] .*{words}", [x, value])
    refused(ArgumentError, r"tensors\[0\] contains NaN", [x.log(), y], masks=[seen, None])
    refused(ArgumentError, "tensors=.* must be a sequence", x)
    refused(ArgumentError, r"tensors=\[\] is empty", [])
    refused(ArgumentError, r"tensors\[1\] is torch.float32", [x, y.float()])
    for share in ([1], [1, 0], [1, -1], [1, math.nan], [1, "2"], 3):
        refused(ArgumentError, "importance=", importance=share)
    for rank in (0, 1.5, True, "2", (1, 2)):
        refused(RankError, "rank=", rank=rank)
    refused(ArgumentError, "init='odd' is unknown", init="odd")
    refused(ArgumentError, "n_iter_max=0 must", n_iter_max=0)
    refused(ArgumentError, "n_restarts=True must", n_restarts=True)
