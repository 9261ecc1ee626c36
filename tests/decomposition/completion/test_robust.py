"""Entries that are far off do not lead a robust completion astray."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

import tensorlrf
from tensorlrf.decomposition import fit_robust_completion
from tensorlrf.errors import ArgumentError, RankError, UnsupportedError
from tests.decomposition.completion.test_completion import CASES
from tests.draws import seeded


@pytest.mark.parametrize("case", CASES)
def test_a_planted_tensor_is_found_beneath_gross_errors_and_holes(case: str) -> None:
    """One entry in twenty is anything, one in five is hidden; least squares are far off."""
    make, fit, rank = CASES[case]
    whole = make().to_dense()
    mask = seeded(*whole.shape, seed=3) > -0.84
    spoilt = whole + 30 * whole.std() * seeded(*whole.shape, seed=4, dtype=whole.dtype) * (
        seeded(*whole.shape, seed=5) > 1.65
    )
    hidden = spoilt.masked_fill(~mask, math.nan)
    found = fit_robust_completion(hidden, case, rank, mask=mask, random_state=0)
    assert found.factors.rel_error(whole) < 1e-4
    assert fit(hidden, rank, mask=mask).factors.rel_error(whole) > 0.1
    rest = ((hidden - found.factors.to_dense()) * mask)[mask].double().abs().sum()
    assert found.error == pytest.approx(float(rest / spoilt[mask].double().abs().sum()), rel=1e-4)
    assert all(b <= a for a, b in pairwise(found.errors[:-1]))


def test_it_is_best_in_absolute_residuals_as_the_median_is_of_a_row() -> None:
    """Of rank one with a fixed shape of columns it is a weighted median; of noise no worse than
    least squares in its own loss."""
    noise = seeded(12, 9)
    found, plain = tensorlrf.robust_completion(noise, "svd", 2), tensorlrf.svd(noise, 2)
    loss = [float((noise - f.to_dense()).abs().sum()) for f in (found, plain)]
    assert loss[0] < loss[1]


def test_weights_hide_and_callbacks_stop() -> None:
    make, _, rank = CASES["svd"]
    whole = make(torch.float64).to_dense()
    weights = torch.ones_like(whole)
    weights[2, 3:9] = 0
    spoilt = whole.masked_fill(weights == 0, math.nan)
    fit = fit_robust_completion(spoilt.numpy(), "svd", rank, weights=weights)
    assert fit.factors.rel_error(whole) < 1e-6
    fit = fit_robust_completion(
        seeded(9, 8), "svd", 2, callback=lambda factors, error: factors.rank == 2
    )
    assert len(fit.errors) == 3
    assert not fit.converged


def test_what_it_refuses() -> None:
    noise = seeded(9, 8)
    for given, kind, words in (
        ({"method": "monarch"}, UnsupportedError, "^method='monarch' is not posed.*cp"),
        ({"method": "odd"}, ArgumentError, "^method='odd' is unknown"),
        ({"rank": 0}, RankError, "rank"),
        ({"n_iter_max": 0}, ArgumentError, "^n_iter_max=0"),
        ({"callback": 3}, ArgumentError, "^callback=3"),
        ({"mask": noise}, ArgumentError, "^mask has dtype"),
    ):
        with pytest.raises(kind, match=words):
            tensorlrf.robust_completion(noise, **{"method": "svd", "rank": 2, **given})
    with pytest.raises(ArgumentError, match=r"^tensor contains NaN"):
        tensorlrf.robust_completion(noise.log(), "svd", 2)
