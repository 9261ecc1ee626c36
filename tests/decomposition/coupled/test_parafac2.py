"""PARAFAC2: planted components are found, the cross product is one, the loss never rises."""

from __future__ import annotations

import itertools
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import tensorlrf
from tensorlrf.decomposition import fit_parafac2
from tensorlrf.errors import ArgumentError, RankError, ShapeError
from tensorlrf.factors import Parafac2Factors
from tests.draws import generator, seeded
from tests.laws.refusals import not_dense


def planted(
    rows: tuple[int, ...], columns: int, rank: int, seed: int = 0, noise: float = 0.0
) -> tuple[Parafac2Factors, list[Tensor]]:
    """A model with positive A, and its slices."""
    draws = generator(seed)
    a = 0.2 + torch.rand(len(rows), rank, generator=draws, dtype=torch.float64)
    b = torch.eye(rank, dtype=torch.float64) + 0.5 * seeded(rank, rank, seed=seed + 1)
    c = seeded(columns, rank, seed=seed + 2)
    own = [torch.linalg.qr(seeded(n, rank, seed=seed + 3 + k))[0] for k, n in enumerate(rows)]
    ones = torch.ones(rank, dtype=torch.float64)
    model = Parafac2Factors(ones, (a, b, c), torch.cat(own), rows)
    return model, [x + noise * seeded(*x.shape, seed=9) for x in model.slices()]


def congruence(found: Tensor, true: Tensor) -> tuple[float, tuple[int, ...]]:
    """The least cosine of paired columns up to sign, by the best order, and that order."""
    unit = found / found.norm(dim=0), true / true.norm(dim=0)
    cosines = (unit[0].T @ unit[1]).abs()
    orders = itertools.permutations(range(true.shape[1]))
    score, order = max((min(float(cosines[p, k]) for k, p in enumerate(o)), o) for o in orders)
    return score, order


def is_orthonormal(f: Parafac2Factors, tolerance: float) -> bool:
    eye = torch.eye(f.rank, dtype=f.dtype)
    return all(float((p.T @ p - eye).abs().max()) < tolerance for p in f.projection_list)


def test_planted_components_are_found_up_to_order_and_sign() -> None:
    model, slices = planted((9, 12, 8, 30, 10, 9), 11, 3)
    fit = fit_parafac2(slices, 3, tol=1e-9)
    f = fit.factors
    assert fit.error < 1e-6
    assert fit.error == pytest.approx(f.rel_error(slices), rel=1e-6)
    score, order = congruence(f.factors[2], model.factors[2])
    assert score > 1 - 1e-6
    for k, (found, true) in enumerate(zip(f.evolving(), model.evolving(), strict=True)):
        own = found[:, order] * f.factors[0][k, list(order)]
        whole = true * model.factors[0][k]
        assert congruence(own, whole)[0] > 1 - 1e-5


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    rows=st.lists(st.integers(2, 9), min_size=1, max_size=5),
    columns=st.integers(1, 7),
    seed=st.integers(0, 5),
    kind=st.sampled_from(["noise", "zero", "one zero slice", "rank one"]),
)
def test_the_loss_never_rises_and_projections_are_orthonormal(
    rows: list[int], columns: int, seed: int, kind: str
) -> None:
    slices = [seeded(n, columns, seed=seed + k) for k, n in enumerate(rows)]
    if kind == "zero":
        slices = [0 * x for x in slices]
    elif kind == "one zero slice":
        slices[0] = 0 * slices[0]
    elif kind == "rank one":
        slices = [x[:, :1] @ seeded(1, columns) for x in slices]
    fit = fit_parafac2(slices, 2, n_iter_max=15, random_state=0)
    assert all(later <= before * (1 + 1e-9) for before, later in pairwise(fit.errors[:-1]))
    assert is_orthonormal(fit.factors, 1e-12)
    assert fit.error <= 1 + 1e-12


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_gives_the_dtype_and_tells_the_error_that_is_there(dtype: torch.dtype) -> None:
    _, slices = planted((6, 7), 5, 2, noise=0.1)
    cast = [x.to(dtype) for x in slices]
    fit = fit_parafac2(cast, 2, n_iter_max=20)
    assert fit.factors.dtype == dtype
    assert fit.error == pytest.approx(fit.factors.to(torch.float64).rel_error(cast), rel=1e-6)
    arrays = [x.numpy() for x in slices]
    assert torch.equal(
        tensorlrf.parafac2(arrays, 2).to_dense(), tensorlrf.parafac2(slices, 2).to_dense()
    )


def test_a_tensor_is_its_slices_and_a_start_may_be_given() -> None:
    stack = seeded(4, 6, 5)
    f = tensorlrf.parafac2(stack, 2)
    assert torch.equal(f.to_dense(), tensorlrf.parafac2(list(stack), 2).to_dense())
    on = fit_parafac2(stack, 2, init=f, n_iter_max=5)
    assert on.errors[0] <= f.rel_error(stack) * (1 + 1e-12)  # by the projections that are best
    assert on.errors[0] == pytest.approx(f.rel_error(stack), rel=1e-3)
    scaled = fit_parafac2(stack * 2.0**-90, 2)
    assert scaled.error == pytest.approx(f.rel_error(stack), rel=1e-6)


def test_of_several_starts_the_best_goes_on() -> None:
    _, slices = planted((6, 8, 7), 9, 3, noise=0.2)
    one = fit_parafac2(slices, 3, init="random", random_state=0, n_iter_max=60)
    best = fit_parafac2(slices, 3, init="random", random_state=0, n_restarts=4, n_iter_max=60)
    assert best.error <= one.error * (1 + 1e-9)
    again = fit_parafac2(slices, 3, init="random", random_state=0, n_restarts=4, n_iter_max=60)
    assert torch.equal(again.factors.to_dense(), best.factors.to_dense())


def test_more_components_than_columns() -> None:
    slices = [seeded(n, 2, seed=n) for n in (4, 5, 6)]
    f = tensorlrf.parafac2(slices, 3, random_state=0, n_iter_max=30)
    assert is_orthonormal(f, 1e-12)


def test_a_callback_sees_each_sweep_and_stops() -> None:
    _, slices = planted((6, 8), 5, 2, noise=0.1)
    seen: list[float] = []

    def stop(factors: Parafac2Factors, error: float) -> bool:
        assert factors.rel_error(slices) == pytest.approx(error, rel=1e-6)
        seen.append(error)
        return len(seen) == 3

    fit = fit_parafac2(slices, 2, callback=stop, tol=0.0)
    assert len(seen) == 3
    assert "stopped by callback" in fit.reason
    assert fit.error == pytest.approx(seen[-1], rel=1e-6)


def test_bad_input_is_told_with_its_place() -> None:
    good = [seeded(5, 4), seeded(6, 4)]

    def refused(kind: Any, words: str, slices: Any = good, rank: Any = 2, **options: Any) -> None:
        with pytest.raises(kind, match=words):
            fit_parafac2(slices, rank, **options)

    refused(ShapeError, r"slices\[1\] has 3 columns but slices\[0\] has 4", [good[0], seeded(6, 3)])
    refused(RankError, r"rank=6 is above 5, the rows of slices\[0\]", rank=6)
    refused(ArgumentError, r"slices\[1\] is torch.float32", [good[0], good[1].float()])
    refused(ArgumentError, r"slices=\[\] is empty", [])
    refused(ArgumentError, "slices=.* must be a sequence", good[0])
    refused(ShapeError, r"slices\[0\] has shape \(2, 3, 4\)", [seeded(2, 3, 4)])
    for value, words in not_dense(seeded(5, 4, dtype=torch.float32)).values():
        words = words.rpartition("sparse_coo; ")[2].rpartition("sparse_csr; ")[2]
        refused(ArgumentError, rf"^slices\[1\] .*{words}", [good[0], value])
    for rank in (0, -1, 1.5, True, "2", np.array([1])):
        refused(RankError, "rank=", rank=rank)
    refused(ArgumentError, "init='odd' is unknown; choose one of svd", init="odd")
    refused(ArgumentError, "n_iter_max=0 must", n_iter_max=0)
    refused(ArgumentError, "tol=2 must", tol=2)
    refused(ArgumentError, "n_restarts=0 must", n_restarts=0)
    refused(ArgumentError, "callback=3 must be callable", callback=3)
    refused(ArgumentError, "random_state='7'", random_state="7")
    start = tensorlrf.parafac2([seeded(5, 4), seeded(7, 4)], 2)
    refused(ArgumentError, "init has rank 2, 4 columns and slices of", init=start)
