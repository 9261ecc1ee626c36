"""Relative errors known from public data sets, met to the last printed digit."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor

from tensorlrf.decomposition.cp._cp import fit_cp


def public(name: str) -> Tensor:
    with warnings.catch_warnings():  # tensorly's own imports warn
        warnings.simplefilter("ignore")
        from tensorly import datasets

        data = {"covid": datasets.load_covid19_serology, "kinetic": datasets.load_kinetic}[name]()
    return torch.as_tensor(data.tensor, dtype=torch.float64)


@pytest.mark.parametrize(
    ("name", "rank", "figure", "sweeps"),
    [("covid", 3, 0.4697, 500), ("covid", 8, 0.3401, 500), ("kinetic", 3, 0.0498, 200)],
)
def test_reference_figures(name: str, rank: int, figure: float, sweeps: int) -> None:
    """Best of ten starts, as the published figures are."""
    tensor = public(name)
    fit = fit_cp(tensor, rank, n_restarts=10, n_iter_max=sweeps, random_state=0)
    assert round(fit.factors.rel_error(tensor), 4) <= figure
