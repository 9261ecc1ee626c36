"""Second moments: what is refused, how far they are shrunk, and that no fit explodes in them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tensorlrf.decomposition import (
    fit_blast,
    fit_blr,
    fit_cp,
    fit_hierarchical,
    fit_kron,
    fit_monarch,
    fit_svd,
    fit_tr,
    fit_tt,
    fit_tt_matrix,
    fit_tucker,
)
from tensorlrf.decomposition._fit import Fit
from tensorlrf.decomposition._fit_or_plain import fit_or_plain
from tensorlrf.decomposition._target import Target
from tensorlrf.decomposition.second_moments import SecondMoments, check_gram, second_moments
from tensorlrf.decomposition.shrinkage import LEAST, least_amount, ledoit_wolf, shrunk
from tensorlrf.factors import LowRank
from tests.draws import seeded32

N = 24

FITS: dict[str, Callable[..., Fit[Any]]] = {
    "svd": lambda w, **k: fit_svd(w, 0.5, **k),
    "cp": lambda w, **k: fit_cp(w, 8, random_state=0, **k),
    "cp of a kernel": lambda w, **k: fit_cp(w.reshape(N, 6, 2, 2), 5, random_state=0, **k),
    "tucker": lambda w, **k: fit_tucker(w, 8, modes=(0, 1), **k),
    "tucker of a kernel": lambda w, **k: fit_tucker(w.reshape(N, 6, 4), 4, modes=(0, 1), **k),
    "tt": lambda w, **k: fit_tt(w.reshape(N, 6, 2, 2), 0.5, **k),
    "tt_matrix": lambda w, **k: fit_tt_matrix(w, 0.5, **k),
    "tr": lambda w, **k: fit_tr(w, 0.5, sizes=((4, 6), (6, 4)), random_state=0, **k),
    "kron": lambda w, **k: fit_kron(w, 0.5, random_state=0, **k),
    "blr": lambda w, **k: fit_blr(w, 0.5, **k),
    "hierarchical": lambda w, **k: fit_hierarchical(w, 0.5, leaf=6, admissible="all", **k),
    "hodlr": lambda w, **k: fit_hierarchical(w, 0.6, leaf=6, admissible="weak", **k),
    "monarch": lambda w, **k: fit_monarch(w, 0.5, **k),
    "blast": lambda w, **k: fit_blast(w, 0.5, n_iter_max=20, random_state=0, **k),
}


def live(n: int) -> Tensor:
    return (torch.arange(N) < n).float()


INPUTS: dict[str, Callable[[int], Tensor]] = {
    "constant": lambda seed: torch.relu(seeded32(N, seed=seed)).expand(200, N),
    "six samples": lambda seed: seeded32(6, N, seed=seed),
    "mostly dead": lambda seed: torch.relu(seeded32(200, N, seed=seed) - 2.5) * live(16),
    "few directions": lambda seed: seeded32(200, 5, seed=seed) @ seeded32(5, N, seed=seed + 1),
    "one live column": lambda seed: seeded32(200, N, seed=seed) * live(1),
    "three live columns": lambda seed: seeded32(200, N, seed=seed) * live(3),
    "one loud column": lambda seed: seeded32(200, N, seed=seed) * (1 + 1e4 * live(1)),
    "huge": lambda seed: 1e15 * seeded32(6, N, seed=seed),
    "tiny": lambda seed: 1e-15 * seeded32(6, N, seed=seed),
}


def error(weight: Tensor, dense: Tensor, inputs: Tensor) -> float:
    wide, x = weight.double(), inputs.double().T
    x = x / x.abs().max()
    return float(((wide - dense.double().reshape(N, N)) @ x).norm() / (wide @ x).norm())


OFTEN = ("constant", "mostly dead", "few directions")
LONG = ("blast", "kron", "tr")
"""Formats fitted by sweeps, which meet the other inputs in the slow suite."""

CASES = [
    pytest.param(
        name, inputs, marks=pytest.mark.slow if name in LONG and inputs not in OFTEN else ()
    )
    for name in FITS
    for inputs in INPUTS
]


# A ring has more to gain in few directions than its default sweeps reach, and says so.
@pytest.mark.filterwarnings("ignore::tensorlrf.errors.ConvergenceWarning")
@pytest.mark.parametrize(("name", "inputs"), CASES)
def test_what_inputs_do_not_span_follows_the_plain_fit(name: str, inputs: str) -> None:
    """Moments of float32 products, whose rounding is all that the other directions hold."""
    weight, x = seeded32(N, N, seed=7), INPUTS[inputs](1)
    gram = (x.T @ x / len(x)).double()
    plain, fit = FITS[name](weight), FITS[name](weight, gram=gram)
    dense, usual = (one.factors.to_dense().reshape(N, N) for one in (fit, plain))
    assert torch.isfinite(dense).all()
    assert float(dense.norm()) <= 2.5 * float(weight.norm())
    # What is told is what there is, which such moments know to the root of their rounding.
    assert fit.error == pytest.approx(error(weight, dense, x), rel=1e-3, abs=LEAST)
    assert fit.error <= error(weight, usual, x) + LEAST
    assert fit.shrinkage is not None
    assert 0 <= fit.shrinkage <= 1


def test_a_fit_that_linear_algebra_gives_up_on_is_the_plain_one() -> None:
    weight, x = seeded32(N, N), seeded32(100, N, seed=3)
    target: Target[LowRank] = Target.of(weight, x.T @ x / 100)
    plain = fit_svd(weight, 4).factors

    def fails() -> Fit[LowRank]:
        raise torch.linalg.LinAlgError("did not converge")  # type: ignore[attr-defined]

    fit = fit_or_plain(target, lambda: plain, fails)
    assert fit.factors is plain
    assert not fit.converged
    assert "did not converge" in fit.reason
    assert fit.error == pytest.approx(error(weight, plain.to_dense(), x), rel=1e-5)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    n=st.integers(1, 40),
    samples=st.integers(1, 60),
    spread=st.floats(0, 6),
    loud=st.floats(0, 3),
    seed=st.integers(0, 99),
)
def test_every_direction_counts_and_none_more_than_it_must(
    n: int, samples: int, spread: float, loud: float, seed: int
) -> None:
    x = seeded32(samples, n, seed=seed) * torch.logspace(0, -spread, n)
    x[:, 0] *= 10**loud
    gram = (x.T @ x / samples).double()
    amount = least_amount(gram)
    assert 0 <= amount <= 1
    mean = float(gram.diagonal().mean())
    values = torch.linalg.eigvalsh(gram)
    least = float(torch.linalg.eigvalsh(shrunk(gram, amount))[0])
    if amount == 0:
        assert least > 0
    else:
        # So little was there that it had to be drawn, and it is not drawn further than that.
        assert float(values[0]) < amount * mean * (1 + 1e-9)
        assert least >= amount * mean / 2
        assert amount <= max(LEAST, 4 * n**0.5 * 1.2e-7) * (1 + 1e-9)
    assert torch.equal(shrunk(gram, 0.0), gram)
    torch.testing.assert_close(shrunk(gram, amount).trace(), gram.trace())


def test_moments_that_span_every_direction_are_taken_as_they_are() -> None:
    x = seeded32(500, N)
    metric = second_moments(x.T @ x / 500, None, N, x)
    assert isinstance(metric, SecondMoments)
    assert metric.shrinkage == 0.0
    assert metric.gram is metric.given


def test_gram_is_made_exactly_symmetric() -> None:
    inputs = seeded32(5, 20)
    gram = inputs @ inputs.T / 20
    gram[0, 1] *= 1 + 1e-6
    checked, _ = check_gram(gram, 5, gram)
    assert checked.dtype == torch.float64
    assert torch.equal(checked, checked.T)


@settings(derandomize=True, deadline=None, max_examples=40)
@given(
    n=st.integers(1, 60),
    samples=st.integers(1, 3000),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
    exponent=st.integers(-3, 3),
    seed=st.integers(0, 99),
)
def test_moments_in_any_dtype_are_never_refused(
    n: int, samples: int, dtype: torch.dtype, exponent: int, seed: int
) -> None:
    """However few the samples: what rounding leaves below zero is not taken for indefinite."""
    x = (seeded32(samples, n, seed=seed) * 4.0**exponent).to(dtype)
    gram = (x.float().T @ x.float() / samples).to(dtype)
    if torch.isfinite(gram).all() and bool(gram.any()):
        checked, root = check_gram(gram, n, gram)
        size = float(gram.abs().max())
        torch.testing.assert_close(checked * root * root, gram.double(), rtol=0, atol=1e-6 * size)


@pytest.mark.parametrize("sides", [(64, 1), (128, 3)])
def test_few_live_columns_of_a_larger_weight(sides: tuple[int, int]) -> None:
    n, alive = sides
    weight, x = seeded32(n, n, seed=1) / 8, seeded32(1000, n)
    x[:, alive:] = 0
    fit = fit_kron(weight, 0.5, gram=(x.T @ x / 1000).double(), random_state=0)
    assert float(fit.factors.to_dense().norm()) <= 1.1 * float(weight.norm())
    assert fit.error <= LEAST


@settings(derandomize=True, deadline=None, max_examples=30)
@given(n=st.integers(1, 12), samples=st.integers(2, 40), seed=st.integers(0, 99))
def test_ledoit_wolf_is_the_variance_of_the_moments_over_their_scatter(
    n: int, samples: int, seed: int
) -> None:
    x = seeded32(samples, n, seed=seed).double() * torch.logspace(0, -1, n, dtype=torch.float64)
    gram, fourth = x.T @ x / samples, float(x.square().sum(1).square().mean())
    single = x[:, :, None] * x[:, None, :] - gram  # x x^T - G
    variance = float(single.square().sum()) / samples / (samples - 1)
    scatter = float((gram - gram.trace() / n * torch.eye(n).double()).square().sum())
    expected = min(1.0, variance / scatter) if scatter > 1e-12 else 1.0
    assert ledoit_wolf(gram, fourth, samples) == pytest.approx(expected, rel=1e-6)


def test_ledoit_wolf_at_its_ends() -> None:
    one = seeded32(1, 5).double()
    assert ledoit_wolf(one.T @ one, float(one.square().sum() ** 2), 1) == 1.0
    # A thousand equal inputs leave no doubt about their moments.
    assert ledoit_wolf(one.T @ one, float(one.square().sum() ** 2), 1000) == 0.0
    assert ledoit_wolf(torch.zeros(5, 5).double(), 0.0, 1000) == 0.0


def test_shrunk_moments_are_nearer_to_those_of_more_samples() -> None:
    """Over many draws, at a few samples and at many; the more there are, the less is drawn."""
    roots = torch.linspace(0.2, 2, N, dtype=torch.float64)
    last = 1.0
    for samples in (8, 48, 400):
        raw, drawn, amounts = 0.0, 0.0, []
        for seed in range(30):
            x = seeded32(samples, N, seed=seed).double() * roots
            gram, fourth = x.T @ x / samples, float(x.square().sum(1).square().mean())
            amounts.append(ledoit_wolf(gram, fourth, samples))
            raw += float((gram - torch.diag(roots**2)).square().sum())
            drawn += float((shrunk(gram, amounts[-1]) - torch.diag(roots**2)).square().sum())
        assert drawn < raw
        assert sum(amounts) / 30 < last
        last = sum(amounts) / 30


def test_what_varies_keeps_its_variance() -> None:
    draws = torch.Generator().manual_seed(2)
    x = torch.randn(5, 300, generator=draws, dtype=torch.float64) + 3.0
    x[2] = 7.0
    gram, mean = x @ x.T / 300, x.mean(1)
    metric = second_moments(gram, mean, 5, x)
    scale = float(gram.trace() / check_gram(gram, 5, x)[0].trace())  # a power of four
    centred = metric.given * scale
    expected = torch.cov(x, correction=0)
    torch.testing.assert_close(centred, expected, rtol=1e-9, atol=1e-12)
    assert not centred[2].any()
    assert not centred[:, 2].any()
