"""Missing entries as tensorly completes them: no worse over what is known, and as near what is
hidden."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from tensorlrf.decomposition import fit_cp, fit_tucker
from tensorlrf.factors import CPFactors
from tests.draws import seeded

pytestmark = pytest.mark.slow


@pytest.fixture
def tensorly() -> Iterator[Any]:
    """On torch while a test runs: other judges give it arrays."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import tensorly
        import tensorly.decomposition

        with tensorly.backend_context("pytorch"):
            yield tensorly


def case(seed: int, noise: float) -> tuple[Tensor, Tensor]:
    """A tensor of rank 3, in float64, and a mask of seven entries in ten."""
    sizes = (12, 10, 8)
    parts = tuple(seeded(n, 3, seed=10 * seed + k) for k, n in enumerate(sizes))
    whole = CPFactors(torch.ones(3, dtype=torch.float64, device="cpu"), parts).to_dense()
    whole = whole + noise * whole.std() * seeded(*sizes, seed=seed + 100)
    return whole, seeded(*sizes, seed=seed + 200) > -0.52


def off(whole: Tensor, dense: Tensor, entries: Tensor) -> float:
    return float(((whole - dense) * entries).norm() / (whole * entries).norm())


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kind", ["cp", "tucker"])
@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_no_worse_than_tensorly(kind: str, seed: int, noise: float, tensorly: Any) -> None:
    whole, mask = case(seed, noise)
    seen = whole * mask
    if kind == "cp":
        found = tensorly.decomposition.parafac(seen.clone(), 3, mask=mask.double(), n_iter_max=500)
        theirs = tensorly.cp_to_tensor(found)
        ours = fit_cp(seen, 3, mask=mask, init="svd", n_restarts=3, random_state=0)
    else:
        found = tensorly.decomposition.tucker(seen.clone(), (3, 3, 3), mask=mask.double(), tol=1e-8)
        theirs = tensorly.tucker_to_tensor(found)
        ours = fit_tucker(seen, 3, mask=mask)
    dense = ours.factors.to_dense()
    assert off(whole, dense, mask) <= off(whole, theirs, mask) * 1.005 + 1e-6
    assert off(whole, dense, ~mask) <= off(whole, theirs, ~mask) * 1.1 + 1e-5
