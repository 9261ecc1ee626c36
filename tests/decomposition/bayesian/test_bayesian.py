"""CP and Tucker by variational Bayes: the bound never falls, ranks and noise are found, and the
truth lies where the posterior says."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tensorlrf.decomposition import Posterior, bayesian_cp, bayesian_tucker
from tensorlrf.errors import ArgumentError, DegenerateWarning, RankError, ShapeError
from tensorlrf.factors import CPFactors, TuckerFactors

METHODS: dict[str, Callable[..., Posterior[Any]]] = {
    "cp": lambda tensor, *most, **more: bayesian_cp(tensor, *most, random_state=0, **more),
    "tucker": bayesian_tucker,
}


def normal(*shape: int, seed: int = 0) -> Tensor:
    draws = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=draws, dtype=torch.float64, device="cpu")


def planted_cp(shape: tuple[int, ...], rank: int, seed: int = 0) -> Tensor:
    factors = tuple(normal(n, rank, seed=10 * seed + k) for k, n in enumerate(shape))
    return CPFactors(normal(rank).new_ones(rank), factors).to_dense()


def planted_tucker(shape: tuple[int, ...], ranks: tuple[int, ...], seed: int = 0) -> Tensor:
    factors = tuple(
        normal(n, r, seed=10 * seed + k) for k, (n, r) in enumerate(zip(shape, ranks, strict=True))
    )
    return TuckerFactors(normal(*ranks, seed=10 * seed + 9), factors).to_dense()


def noisy(tensor: Tensor, decibels: float, seed: int = 77) -> tuple[Tensor, float]:
    """With noise, and its standard deviation."""
    deviation = float(tensor.std()) * 10 ** (-decibels / 20)
    return tensor + deviation * normal(*tensor.shape, seed=seed), deviation


def climbs(found: Posterior[Any]) -> bool:
    # Sums of as many terms as there are entries, in float64.
    return all(b >= a - 1e-10 * abs(a) for a, b in pairwise(found.bounds))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("shape", "rank"), [((20, 15, 10), 3), ((12, 10, 8, 6), 2)])
def test_the_number_of_terms_and_the_noise_are_found(
    shape: tuple[int, ...], rank: int, seed: int
) -> None:
    tensor, deviation = noisy(planted_cp(shape, rank, seed), 10)
    found = bayesian_cp(tensor, 8, random_state=seed)
    assert found.factors.rank == rank
    assert found.noise_variance**0.5 == pytest.approx(deviation, rel=0.06)
    assert climbs(found)


@pytest.mark.parametrize("seed", range(3))
def test_the_ranks_of_modes_and_the_noise_are_found(seed: int) -> None:
    tensor, deviation = noisy(planted_tucker((20, 15, 10), (3, 2, 4), seed), 15)
    found = bayesian_tucker(tensor, 8, n_iter_max=150)
    assert found.factors.rank == (3, 2, 4)
    assert found.noise_variance**0.5 == pytest.approx(deviation, rel=0.06)
    assert climbs(found)
    for u in found.factors.factors:
        assert u is not None
        assert torch.allclose(u.norm(dim=0), u.new_ones(u.shape[1]))


def test_the_truth_lies_within_the_variances() -> None:
    """Of a term alone: standardised by the posterior, the errors of unit columns are of variance
    one. Its direction is known; its length is in the weight."""
    inside = []
    for seed in range(8):
        true = [normal(n, seed=100 * seed + n) for n in (30, 25, 20)]
        dense = true[0][:, None, None] * true[1][:, None] * true[2]
        found = bayesian_cp(noisy(dense, 0, seed)[0], 4, random_state=0)
        assert found.factors.rank == 1
        for u, own, variance in zip(found.factors.factors, true, found.variances, strict=True):
            unit = own / own.norm() * torch.sign(u[:, 0] @ own)
            inside.append((u[:, 0] - unit) / variance.sqrt())
    spread = float(torch.cat(inside).square().mean())
    assert 0.8 < spread < 1.25  # of 600 numbers: four standard errors are .23


@settings(max_examples=12, deadline=None)
@given(
    name=st.sampled_from(sorted(METHODS)),
    shape=st.lists(st.integers(1, 5), min_size=2, max_size=4),
    most=st.integers(1, 6), seed=st.integers(0, 99), kind=st.sampled_from(["noise", "one", "thin"]),
    scale=st.sampled_from([1e-30, 1.0, 1e30]),
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:nothing stands out")
def test_any_tensor(
    name: str, shape: list[int], most: int, seed: int, kind: str, scale: float
) -> None:
    tensor = normal(*shape, seed=seed)
    tensor = {"noise": tensor, "one": tensor * 0 + 1, "thin": tensor[:1].expand(*shape)}[kind]
    found = METHODS[name](scale * tensor, most, n_iter_max=20)
    assert climbs(found)
    assert found.factors.shape == tuple(shape)
    assert all(bool(t.isfinite().all()) for t in found.factors.tensors().values())
    assert found.noise_variance >= 0
    assert all(bool((v >= 0).all()) for v in found.variances)


@pytest.mark.parametrize("name", METHODS)
def test_numpy_dtypes_scales_and_repetition(name: str) -> None:
    tensor = noisy(planted_cp((9, 8, 7), 2), 20)[0]
    kept = tensor.clone()
    few = {"n_iter_max": 80}
    whole = METHODS[name](tensor, 4, **few)
    assert torch.equal(tensor, kept)
    again = METHODS[name](tensor.numpy(), 4, **few)
    assert again.bounds == whole.bounds
    for dtype in (torch.float32, torch.bfloat16):
        found = METHODS[name](tensor.to(dtype), 4, **few)
        assert found.factors.dtype == dtype
        assert found.factors.rank == whole.factors.rank
    larger = METHODS[name](tensor * 2.0**40, 4, **few)
    assert larger.noise_variance == pytest.approx(whole.noise_variance * 2.0**80, rel=1e-6)
    assert "noise of variance" in repr(whole)


@pytest.mark.parametrize("name", METHODS)
def test_a_callback_sees_the_bound_and_ends_it(name: str) -> None:
    seen: list[float] = []

    def look(factors: Any, bound: float) -> bool:
        assert factors.shape == (9, 8, 7)
        seen.append(bound)
        return len(seen) == 3

    found = METHODS[name](noisy(planted_cp((9, 8, 7), 2), 20)[0], 4, callback=look)
    assert list(found.bounds) == seen
    assert found.reason == "stopped by callback after sweep 3"
    assert not found.converged


@pytest.mark.parametrize("name", METHODS)
def test_noise_alone(name: str) -> None:
    with pytest.warns(DegenerateWarning, match="nothing stands out of the noise"):
        found = METHODS[name](normal(12, 11, 10), 3, n_iter_max=300)
    assert found.noise_variance == pytest.approx(1.0, rel=0.1)


def test_bad_input() -> None:
    tensor = normal(4, 3, 2)
    for name, fit in METHODS.items():
        with pytest.raises(ArgumentError, match="contains NaN"):
            fit(tensor.log(), 2)
        with pytest.raises(ArgumentError, match="tensor is zero throughout"):
            fit(0 * tensor, 2)
        with pytest.raises(ShapeError, match="at least 2 modes"):
            fit(tensor[0, 0], 2)
        with pytest.raises(RankError, match="max_rank=0"):
            fit(tensor, 0)
        with pytest.raises(ArgumentError, match="n_iter_max=0"):
            fit(tensor, 2, n_iter_max=0)
        with pytest.raises(ArgumentError, match="callback=3 must be callable"):
            fit(tensor, 2, callback=3)
        with pytest.raises(ArgumentError, match="dtype"):
            fit(np.arange(24).reshape(4, 3, 2), 2)
        assert name in METHODS
    with pytest.raises(RankError, match="or 3 of them, one a mode"):
        bayesian_tucker(tensor, (2, 2))
    with pytest.raises(RankError, match="that of mode 2 must be an int from 1 to 2"):
        bayesian_tucker(tensor, (2, 2, 3))
