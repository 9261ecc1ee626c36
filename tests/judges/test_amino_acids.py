"""Fluorescence of amino acids (Bro 1997): published errors of CP, and three pure samples found."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bench.field.nonnegative import REACHED, one_hot
from bench.field_data import amino_acids
from tensorlrf import decomposition as d
from tests.decomposition.nonnegative.checks import none_negative

pytestmark = pytest.mark.slow  # reads the data of `make .venv/peers`


@pytest.mark.parametrize("rank", sorted(REACHED))
def test_cp_meets_the_published_errors(rank: int) -> None:
    x = amino_acids()
    best = min(
        (d.fit_cp(x, rank, random_state=k, tol=1e-9, n_iter_max=2000) for k in range(5)),
        key=lambda fit: fit.error,
    )
    assert round(best.error, 5) == REACHED[rank]
    if rank == 3:
        assert one_hot(best.factors.factors[0] * best.factors.weights) > 0.999


@pytest.mark.parametrize("init", ["random", "svd"])
def test_non_negative_cp_finds_the_pure_samples(init: str) -> None:
    """Its error is a little above that of CP, which meets noise with negative entries."""
    options: dict[str, Any] = {"tol": 1e-9, "n_iter_max": 2000, "random_state": 0}
    fit = d.fit_nonnegative_cp(amino_acids(), 3, init=init, **options)
    assert none_negative(fit)
    assert REACHED[3] <= fit.error < 1.005 * REACHED[3]
    assert one_hot(fit.factors.factors[0] * fit.factors.weights) > 0.999
    assert torch.isfinite(fit.factors.weights).all()
