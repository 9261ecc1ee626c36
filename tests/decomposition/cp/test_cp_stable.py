"""Error-preserving correction: terms shrink, the error stays."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import tensorlrf
from tensorlrf.decomposition import fit_stabilize_cp
from tensorlrf.errors import ArgumentError, ShapeError
from tensorlrf.factors import CPFactors


def normal(*shape: int, seed: int = 0) -> Tensor:
    rng = torch.Generator("cpu").manual_seed(seed)
    return torch.randn(*shape, generator=rng, dtype=torch.float64, device="cpu")


def size(f: CPFactors) -> float:
    total = f.weights.double().square()
    for u in f.factors:
        total = total * u.double().square().sum(0)
    return float(total.sum())


@settings(max_examples=6, deadline=None, derandomize=True)
@given(
    shape=st.lists(st.integers(1, 6), min_size=2, max_size=4),
    rank=st.integers(1, 6),
    slack=st.sampled_from([1.0, 1.02, 1.5]),
    seed=st.integers(0, 100),
)
def test_the_norm_never_rises_and_the_error_keeps_the_bound(
    shape: list[int], rank: int, slack: float, seed: int
) -> None:
    tensor = normal(*shape, seed=seed)
    given_factors = CPFactors(
        normal(rank, seed=seed), tuple(normal(n, rank, seed=seed + n) for n in shape)
    )
    bound = slack * float(given_factors.rel_error(tensor))
    sizes, errors = [size(given_factors)], []

    def look(factors: CPFactors, error: float) -> None:
        sizes.append(size(factors))
        errors.append(error)

    fit = fit_stabilize_cp(given_factors, tensor, bound, n_iter_max=4, tol=0, callback=look)
    for before, after in pairwise(sizes):
        assert after <= before * (1 + 1e-9)
    assert max(errors) <= bound * (1 + 1e-7)
    assert fit.error <= bound * (1 + 1e-6)
    assert fit.error == pytest.approx(float(fit.factors.rel_error(tensor)), abs=1e-7)


def test_large_terms_become_small_at_the_same_error() -> None:
    tensor = normal(16, 12, 3, 3).float()
    options = {"solver": "als", "init": "svd", "n_iter_max": 700, "tol": 1e-9}
    large = tensorlrf.cp(tensor, 16, random_state=0, **options)
    small = tensorlrf.stabilize_cp(large, tensor, n_iter_max=100)
    square = float(tensor.square().sum())
    assert size(large) > 5 * square
    assert size(small) < 0.6 * size(large)
    assert small.rel_error(tensor) <= large.rel_error(tensor) * (1 + 1e-5)
    assert small.dtype == torch.float32


def test_a_looser_bound_gives_smaller_terms() -> None:
    tensor = normal(8, 7, 6)
    f = tensorlrf.cp(tensor, 5, random_state=0)
    bounds = [f.rel_error(tensor) * slack for slack in (1.0, 1.05, 1.2)]
    sizes = [size(tensorlrf.stabilize_cp(f, tensor, float(bound))) for bound in bounds]
    assert sizes[0] > sizes[1] > sizes[2]


def test_a_callback_stops_it_with_what_there_is() -> None:
    tensor = normal(8, 7, 6)
    f = tensorlrf.cp(tensor, 5, random_state=0)
    fit = fit_stabilize_cp(f, tensor, 0.9, callback=lambda factors, error: True)
    assert "callback" in fit.reason
    assert not fit.converged
    assert len(fit.errors) == 3


def test_refusals() -> None:
    tensor = normal(6, 5, 4)
    f = tensorlrf.cp(tensor, 2, random_state=0)
    with pytest.raises(ArgumentError, match=r"error=0\.1 is below 0\.\d+, which these factors"):
        tensorlrf.stabilize_cp(f, tensor, 0.1)
    with pytest.raises(ShapeError, match=r"\(6, 5, 4\), but tensor has shape \(5, 5, 4\)"):
        tensorlrf.stabilize_cp(f, tensor[1:])
    with pytest.raises(ArgumentError, match="pass CPFactors"):
        tensorlrf.stabilize_cp(tensor, tensor)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="error=-1"):
        tensorlrf.stabilize_cp(f, tensor, -1)
    with pytest.raises(ArgumentError, match="NaN"):
        tensorlrf.stabilize_cp(f, torch.full_like(tensor, float("nan")))
