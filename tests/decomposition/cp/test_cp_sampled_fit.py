"""The fit estimated from a sample, and its interval."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tensorlrf.decomposition.cp._cp import cp
from tensorlrf.decomposition.cp._sampled_fit import SampledFit, sampled_fit
from tensorlrf.errors import ArgumentError, ShapeError
from tensorlrf.factors import CPFactors
from tests.draws import generator


def model(shape: tuple[int, ...], rank: int, *, spiky: bool = False) -> CPFactors:
    parts = []
    for k, n in enumerate(shape):
        u = torch.randn(n, rank, generator=generator(k), dtype=torch.float64)
        parts.append(u**5 if spiky else u)  # fifth powers: a few entries have all the energy
    return CPFactors(torch.ones(rank, dtype=torch.float64), tuple(parts))


def with_noise(factors: CPFactors, noise: float, *, spikes: int = 0) -> Tensor:
    """The model and noise of that share of its norm, all of it in `spikes` entries if any."""
    dense = factors.to_dense()
    white = torch.randn(dense.shape, generator=generator(99), dtype=torch.float64)
    if spikes:
        kept = torch.randperm(dense.numel(), generator=generator(98))[:spikes]
        mask = torch.zeros(dense.numel(), dtype=torch.float64)
        mask[kept] = 1
        white = white * mask.view(dense.shape)
    return dense + noise * white * dense.norm() / white.norm()


@pytest.mark.parametrize(
    ("noise", "spikes", "spiky"),
    [(0.01, 0, False), (0.1, 0, False), (1.0, 0, False), (0.2, 5, False), (0.2, 0, True),
     (0.5, 20, True), (5.0, 1, False)],
)  # fmt: skip
def test_the_interval_holds_in_95_of_100_seeds(noise: float, spikes: int, spiky: bool) -> None:
    factors = model((20, 21, 22), 3, spiky=spiky)
    tensor = with_noise(factors, noise, spikes=spikes)
    true = 1 - float((tensor - factors.to_dense()).norm() / tensor.norm())
    held = 0
    for seed in range(200):
        found = sampled_fit(tensor, factors, n_samples=2000, random_state=seed)
        assert found.low <= found.value <= found.high
        held += found.low <= true <= found.high
    assert held >= 190


def test_the_squared_residual_is_estimated_without_bias() -> None:
    factors = model((20, 21, 22), 3)
    tensor = with_noise(factors, 0.3)
    true = float((tensor - factors.to_dense()).square().sum() / tensor.square().sum())
    fits = [sampled_fit(tensor, factors, n_samples=2000, random_state=s) for s in range(200)]
    found = torch.tensor([(1 - f.value) ** 2 for f in fits])
    assert abs(float(found.mean()) - true) <= 5 * float(found.std()) / 200**0.5


@pytest.mark.parametrize("noise", [0.0, 0.003, 0.02, 0.1, 0.5, 1.0])
def test_the_default_interval_is_no_wider_than_two_hundredths(noise: float) -> None:
    factors = model((110, 120, 100), 3)
    tensor = with_noise(factors, noise)
    found = sampled_fit(tensor, factors, random_state=0)
    assert found.n_samples < 0.6 * tensor.numel()
    assert found.width <= 0.02
    true = 1 - float((tensor - factors.to_dense()).norm() / tensor.norm())
    assert found.low <= true <= found.high + 1e-12  # sums of 10^6 terms in float64


@pytest.mark.parametrize("spikes", [0, 8])
def test_the_default_interval_on_a_fitted_model(spikes: int) -> None:
    tensor = with_noise(model((100, 110, 120), 2), 0.2, spikes=spikes)
    factors = cp(tensor.float(), 2, solver="leverage", random_state=0)
    found = sampled_fit(tensor.float(), factors, random_state=0)
    assert found.n_samples < tensor.numel()
    assert found.width <= 0.02
    assert found.low <= 1 - factors.rel_error(tensor.float()) <= found.high


def test_terms_that_cancel_ask_for_a_larger_sample() -> None:
    u = [torch.randn(n, 1, generator=generator(n), dtype=torch.float64) for n in (130, 140, 150)]
    near = [x + 0.1 * torch.randn(x.shape, generator=generator(7), dtype=torch.float64) for x in u]
    pair = tuple(torch.cat([a, b], dim=1) for a, b in zip(u, near, strict=True))
    apart = CPFactors(torch.tensor([1.0, 1.0]).double(), pair)
    cancel = CPFactors(torch.tensor([1.0, -1.0]).double(), pair)
    counts = [sampled_fit(f.to_dense(), f, random_state=0).n_samples for f in (apart, cancel)]
    assert counts[0] < counts[1] <= 130 * 140 * 150


def test_a_small_tensor_is_taken_whole() -> None:
    factors = model((6, 7, 8), 2)
    tensor = with_noise(factors, 0.3)
    found = sampled_fit(tensor, factors)
    true = 1 - factors.rel_error(tensor)
    assert found.value == pytest.approx(true, rel=1e-12)
    assert found.low == found.value == found.high
    assert found.n_samples == tensor.numel()
    assert found.width == 0


def test_more_confidence_and_fewer_samples_are_wider() -> None:
    factors = model((30, 31, 32), 2)
    tensor = with_noise(factors, 0.3)
    wide = sampled_fit(tensor, factors, n_samples=2000, confidence=0.999, random_state=0)
    usual = sampled_fit(tensor, factors, n_samples=2000, random_state=0)
    narrow = sampled_fit(tensor, factors, n_samples=20000, random_state=0)
    assert wide.width > usual.width > narrow.width
    assert wide.value == usual.value


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_dtypes_and_the_given_tensor(dtype: torch.dtype) -> None:
    factors = model((20, 21, 22), 2)
    tensor = with_noise(factors, 0.3).to(dtype).transpose(0, 1)
    turned = CPFactors(factors.weights, tuple(factors.factors[k] for k in (1, 0, 2))).to(dtype)
    before, state = tensor.clone(), torch.random.get_rng_state()
    found = sampled_fit(tensor, turned, n_samples=4000, random_state=3)
    again = sampled_fit(tensor, turned, n_samples=4000, random_state=3)
    assert found == again
    assert torch.equal(tensor, before)
    assert torch.equal(torch.random.get_rng_state(), state)
    true = 1 - turned.to(torch.float64).rel_error(tensor.double())
    assert found.low <= true <= found.high


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_scale_makes_no_difference(scale: float) -> None:
    factors = model((20, 21, 22), 2)
    tensor = with_noise(factors, 0.3)
    one = sampled_fit(tensor, factors, n_samples=4000, random_state=0)
    scaled = CPFactors(factors.weights * scale, factors.factors)
    other = sampled_fit(tensor * scale, scaled, n_samples=4000, random_state=0)
    assert other.value == pytest.approx(one.value, rel=1e-6)
    assert other.width == pytest.approx(one.width, rel=1e-6)
    in_single = sampled_fit((tensor * scale).float(), scaled.to(torch.float32), n_samples=4000)
    assert in_single.value == pytest.approx(one.value, abs=one.width)


def test_zeros() -> None:
    zero = CPFactors(torch.zeros(2), tuple(torch.zeros(n, 2) for n in (30, 31, 32)))
    assert sampled_fit(torch.zeros(30, 31, 32), zero).value == 1
    other = CPFactors(torch.ones(2), tuple(torch.ones(n, 2) for n in (30, 31, 32)))
    assert sampled_fit(torch.zeros(30, 31, 32), other).value == 0
    tensor = torch.randn(30, 31, 32, generator=generator())
    found = sampled_fit(tensor, zero, n_samples=1000, random_state=0)
    # A model of zeros has the fit 0, and the norms alone say so.
    assert (found.low, found.value, found.high) == (0, 0, 0)


def test_it_prints_itself() -> None:
    text = str(SampledFit(0.91234, 0.9, 0.92, 1000, 0.95))
    assert text == "fit 0.9123 in [0.9000, 0.9200] with confidence 0.95, from 1000 entries"


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"tensor": torch.ones(3, 4)}, ShapeError, r"\(4, 5, 6\).*\(3, 4\)"),
        ({"tensor": torch.full((4, 5, 6), float("nan"))}, ArgumentError, "NaN"),
        ({"factors": torch.ones(3)}, ArgumentError, "factors is a Tensor"),
        ({"n_samples": 1}, ArgumentError, "n_samples=1"),
        ({"n_samples": 2.5}, ArgumentError, r"n_samples=2\.5"),
        ({"confidence": 1.0}, ArgumentError, r"confidence=1\.0"),
        ({"confidence": float("nan")}, ArgumentError, "confidence=nan"),
        ({"random_state": "a"}, ArgumentError, "random_state='a'"),
    ],
)
def test_refusals(change: dict[str, Any], error: type[Exception], words: str) -> None:
    arguments: dict[str, Any] = {"tensor": torch.ones(4, 5, 6), "factors": model((4, 5, 6), 2)}
    with pytest.raises(error, match=words):
        sampled_fit(**(arguments | change))
