"""The analytic rank: planted ranks are found, noise has none."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tensorlrf.decomposition._evbmf import (
    _free_energies,
    _noise_variance,
    evbmf,
    evbmf_rank,
    least_signal,
    singular_values,
)
from tensorlrf.decomposition.blocks._blr import blr
from tensorlrf.decomposition.cp._cp import cp
from tensorlrf.decomposition.svd._svd import fit_svd, svd
from tensorlrf.decomposition.tucker._tucker import tucker
from tensorlrf.errors import ArgumentError, RankError, ShapeError, UnsupportedError
from tests.draws import seeded


def planted(m: int, n: int, rank: int, noise: float, seed: int = 0) -> Tensor:
    """Equal singular values sqrt(m n) and noise of that standard deviation a entry."""
    left, right = (torch.linalg.qr(seeded(k, rank, seed=seed + k))[0] for k in (m, n))
    return math.sqrt(m * n) * left @ right.T + noise * seeded(m, n, seed=seed + 1)


@pytest.mark.parametrize("alpha", [1.0, 0.7, 0.25, 0.01])
def test_the_threshold_is_the_zero_of_its_equation(alpha: float) -> None:
    x = least_signal(alpha)
    centre = x - (1 + alpha)
    tau = (centre + math.sqrt(centre**2 - 4 * alpha)) / 2

    def phi(z: float) -> float:
        return math.log(z + 1) / z - 0.5

    assert phi(tau) + phi(tau / alpha) == pytest.approx(0, abs=1e-9)
    assert tau == pytest.approx(2.5129 * math.sqrt(alpha), rel=0.02 if alpha > 0.02 else 0.2)
    # Above the largest singular value of pure noise (Marchenko & Pastur).
    assert x > (1 + math.sqrt(alpha)) ** 2
    if alpha == 1:
        assert tau == pytest.approx(2.5129, abs=1e-4)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    m=st.integers(30, 120),
    n=st.integers(30, 120),
    share=st.floats(0, 0.25),
    seed=st.integers(0, 100),
)
def test_a_planted_rank_far_above_the_noise_is_found(
    m: int, n: int, share: float, seed: int
) -> None:
    """Each signal is sqrt(mn), three times the threshold of .25 sqrt(max x_min) at least."""
    rank = round(share * min(m, n))
    noise = math.sqrt(min(m, n) / least_signal(min(m, n) / max(m, n))) / 3
    matrix = planted(m, n, rank, noise, seed)
    found = evbmf(matrix)
    assert found.rank == rank
    # The estimate from the tail misses the share of the noise that the signals took.
    assert math.sqrt(found.noise_variance) == pytest.approx(noise, rel=0.1)
    assert len(found.values) == rank


@pytest.mark.parametrize("shape", [(50, 50), (40, 400), (200, 100), (300, 300)])
def test_pure_noise_has_rank_zero(shape: tuple[int, int]) -> None:
    for seed in range(5):
        found = evbmf(3 * seeded(*shape, seed=seed))
        assert found.rank == 0
        assert math.sqrt(found.noise_variance) == pytest.approx(3, rel=0.05)


def test_signals_below_the_threshold_are_not_told_from_noise() -> None:
    m = n = 200
    below = planted(m, n, 1, 1.0)
    below = seeded(m, n, seed=1) + (below - seeded(m, n, seed=1)) * (1.5 / math.sqrt(n))
    assert evbmf_rank(below) == 0
    above = planted(m, n, 1, 1.0)
    above = seeded(m, n, seed=1) + (above - seeded(m, n, seed=1)) * (3.5 / math.sqrt(n))
    assert evbmf_rank(above) == 1


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1e30])
def test_scale_and_transposition_make_no_difference(scale: float) -> None:
    matrix = planted(60, 90, 7, 1.0)
    found = evbmf(matrix)
    for other in (matrix.T, matrix * scale, matrix.T * scale, (matrix * scale).float()):
        again = evbmf(other)
        factor = scale if float(other.abs().max()) != float(matrix.abs().max()) else 1.0
        assert again.rank == found.rank == 7
        assert again.threshold == pytest.approx(found.threshold * factor, rel=1e-4)
        assert again.noise_variance == pytest.approx(found.noise_variance * factor**2, rel=1e-4)


def test_the_noise_variance_is_the_minimum_of_the_free_energy() -> None:
    values = torch.linalg.svdvals(planted(40, 70, 5, 2.0))
    values = values / values[0]
    alpha = 40 / 70
    found = _noise_variance(values, 70, alpha, 1e-12)
    upper = float(values.square().sum()) / (40 * 70)
    tried = torch.logspace(-3, 0, 5000, dtype=torch.float64) * upper
    lower = float(values[25:].square().sum()) / (70 * 15)
    energies = _free_energies(tried[tried > lower], values.square(), 70, alpha)
    at = torch.tensor([found], dtype=torch.float64)
    assert float(_free_energies(at, values.square(), 70, alpha)) <= float(energies.min()) + 1e-9


def test_shrunk_values_come_nearer_to_the_matrix_without_noise() -> None:
    clean = planted(80, 100, 4, 0.0)
    left, values, right = torch.linalg.svd(clean + 3.0 * seeded(80, 100, seed=9))
    found = evbmf(values, shape=(80, 100))
    assert found.rank == 4
    shrunk = torch.tensor(found.values, dtype=torch.float64)
    assert bool((shrunk < values[:4]).all())
    off = [(left[:, :4] * s @ right[:4] - clean).norm() for s in (shrunk, values[:4])]
    assert float(off[0]) < 0.95 * float(off[1])


def test_without_noise_the_rank_is_the_numerical_one() -> None:
    exact = seeded(50, 6) @ seeded(6, 40, seed=1)
    assert evbmf_rank(exact) == 6
    assert evbmf_rank(torch.eye(5)[:, :2] @ torch.ones(2, 7)) == 1
    assert evbmf_rank(torch.zeros(4, 5)) == 0
    assert evbmf_rank(torch.ones(1, 1)) in (0, 1)


DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("m", "n", "rank"), [(256, 256, 2), (512, 512, 1), (64, 576, 4), (1000, 40, 3), (3, 200, 1)]
)
def test_rounding_to_a_dtype_adds_no_rank(m: int, n: int, rank: int, dtype: torch.dtype) -> None:
    left, right = seeded(m, rank), seeded(rank, n, seed=1)
    assert evbmf_rank((left @ right).to(dtype)) == rank
    assert evbmf_rank(left.to(dtype) @ right.to(dtype)) == rank  # rounded while it is summed
    # Entries of many sizes: their rounding is no noise of one variance.
    heavy = left.exp() @ right.exp() / 50
    assert evbmf_rank(heavy.to(dtype)) == rank
    assert evbmf_rank(torch.ones(m, n, dtype=dtype)) == 1
    for noise in (1e-4, 1e-3, 1e-2):
        noisy = left @ right + noise * seeded(m, n, seed=2)
        assert evbmf_rank(noisy.to(dtype)) == rank


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    m=st.integers(8, 150),
    n=st.integers(8, 150),
    rank=st.integers(1, 3),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 100),
)
def test_an_exact_low_rank_is_found(
    m: int, n: int, rank: int, dtype: torch.dtype, seed: int
) -> None:
    matrix = planted(m, n, rank, 0.0, seed)
    assert evbmf_rank((matrix / matrix.abs().max()).to(dtype)) == rank


@pytest.mark.parametrize("dtype", DTYPES)
def test_noise_above_the_rounding_is_still_measured(dtype: torch.dtype) -> None:
    # A Gram's eigenvalues tell noise of float32 from their own rounding only further above it.
    noise = (32 if dtype == torch.float32 else 4) * torch.finfo(dtype).eps
    found = evbmf(planted(200, 300, 5, noise).to(dtype))
    assert found.rank == 5
    assert math.sqrt(found.noise_variance) == pytest.approx(noise, rel=0.1)


@pytest.mark.parametrize("dtype", DTYPES)
def test_tucker_and_svd_of_exact_low_rank(dtype: torch.dtype) -> None:
    core = seeded(4, 4, 2, 2)
    sides = [torch.linalg.qr(seeded(n, r, seed=n))[0] for n, r in ((64, 4), (60, 4), (3, 2))]
    kernel = torch.einsum("abcd,oa,ib,kc,ld->oikl", core, *sides, sides[2]).to(dtype)
    assert tucker(kernel, "auto").core.shape == (4, 4, 2, 2)
    assert svd((seeded(256, 2) @ seeded(2, 256, seed=1)).to(dtype), "auto").rank == 2


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_values_are_known_to_their_dtype(dtype: torch.dtype) -> None:
    matrix = (seeded(256, 2) @ seeded(2, 256, seed=1)).to(dtype)
    assert evbmf_rank(torch.linalg.svdvals(matrix), shape=(256, 256)) == 2


@pytest.mark.parametrize("scale", [1e200, 1e-200])
def test_the_range_of_float64(scale: float) -> None:
    matrix = planted(60, 90, 7, 1.0)
    one, other = evbmf(matrix), evbmf(matrix * scale)
    assert one.rank == other.rank == 7
    assert other.threshold == pytest.approx(one.threshold * scale, rel=1e-6)
    assert other.noise_variance == one.noise_variance * scale * scale  # inf, or 0
    assert other.values == pytest.approx([v * scale for v in one.values], rel=1e-6)


def test_singular_values_serve_as_well() -> None:
    matrix = planted(50, 80, 6, 1.0)
    values = torch.linalg.svdvals(matrix)
    assert evbmf_rank(values.flip(0), shape=(50, 80)) == evbmf_rank(matrix) == 6
    assert evbmf_rank(values, shape=(80, 50)) == 6
    assert "rank 6" in str(evbmf(matrix))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(30, 50), (50, 30), (6, 7, 8)])
def test_singular_values_of_unfoldings(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    tensor = seeded(*shape).to(dtype)
    for mode in range(len(shape)):
        expected = torch.linalg.svdvals(tensor.double().movedim(mode, 0).flatten(1))
        torch.testing.assert_close(singular_values(tensor, mode), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_svd_takes_it(dtype: torch.dtype) -> None:
    matrix = planted(60, 90, 7, 1.0).to(dtype)
    before = matrix.clone()
    fit = fit_svd(matrix, "auto")
    assert torch.equal(matrix, before)
    assert fit.factors.rank == 7
    assert "rank 7 as estimated" in fit.reason
    assert fit_svd(matrix, "auto", gram=torch.eye(90)).factors.rank == 7
    assert svd(seeded(30, 40), "auto").rank == 1  # noise, but one at least


def test_tucker_takes_it() -> None:
    core = seeded(5, 4, 3, 3)
    left, right = (torch.linalg.qr(seeded(n, r, seed=n))[0] for n, r in ((60, 5), (50, 4)))
    kernel = torch.einsum("abkl,oa,ib->oikl", core, left, right)
    kernel = kernel / kernel.std() + 0.3 * seeded(60, 50, 3, 3, seed=3)
    assert tucker(kernel, "auto", modes=(0, 1)).core.shape == (5, 4, 3, 3)
    assert tucker(kernel, "auto", modes=(1,), solver="hosvd").core.shape == (60, 4, 3, 3)
    gram = torch.eye(450, dtype=torch.float64)
    assert tucker(kernel, "auto", modes=(0, 1), gram=gram).core.shape == (5, 4, 3, 3)


def test_others_say_who_takes_it() -> None:
    with pytest.raises(RankError, match="svd, tucker, tt, tt_matrix and blr take it"):
        cp(seeded(4, 5, 6), "auto")
    with pytest.raises(UnsupportedError, match="rank='auto' is not served with batch_dims="):
        svd(seeded(2, 5, 6), "auto", batch_dims=1)


@pytest.mark.parametrize(
    ("matrix", "shape", "error", "words"),
    [
        (torch.ones(3), None, ArgumentError, r"shape=\(L, M\)"),
        (torch.ones(3), (4, 5), ShapeError, "3 singular values.*4"),
        (torch.ones(3), (3, -5), ArgumentError, "two positive ints"),
        (torch.ones(3), 3, ArgumentError, "two positive ints"),
        (torch.ones(3, 4), (3, 4), ArgumentError, "goes with singular values"),
        (-torch.ones(3), (3, 4), ArgumentError, "negative"),
        (torch.full((3, 4), float("nan")), None, ArgumentError, "matrix contains NaN"),
        ([[1.0]], None, ArgumentError, "list"),
    ],
)
def test_refusals(matrix: Any, shape: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        evbmf_rank(matrix, shape=shape)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_blocks_of_exact_low_rank_are_seen_as_such(dtype: torch.dtype) -> None:
    draws = torch.Generator().manual_seed(0)

    def block(r: int) -> Tensor:
        left = torch.randn(64, r, generator=draws, dtype=torch.float64)
        return left @ torch.randn(r, 64, generator=draws, dtype=torch.float64)

    blocks = [[block(r) for r in row] for row in ((2, 5), (1, 3))]
    weight = torch.cat([torch.cat(row, dim=1) for row in blocks]).to(dtype)
    factors = blr(weight, "auto", block=64)
    assert [b.rank for b in factors.blocks] == [2, 5, 1, 3]
