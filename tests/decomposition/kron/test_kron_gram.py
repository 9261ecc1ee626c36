"""Sums of Kronecker products that serve the outputs of a layer."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tensorlrf.decomposition._target import Target
from tensorlrf.decomposition.kron import _als as _kron_als
from tensorlrf.decomposition.kron._als import KroneckerALS, balanced_terms
from tensorlrf.decomposition.kron._kron import fit_kron, kron
from tensorlrf.factors import KroneckerSum
from tests.decomposition.kron.test_kron import planted
from tests.draws import seeded
from tests.metrics import error_on_inputs, in_moments, second_moments

PAIR = ((3, 4), (5, 2))
"""Of the (15, 8) weights of this file."""


@pytest.fixture(scope="module", params=["normal matrix", "gradients"], autouse=True)
def solver(request: pytest.FixtureRequest) -> Iterator[str]:
    """Either way for every number of terms."""
    with pytest.MonkeyPatch.context() as patch:
        many = request.param == "gradients"
        patch.setattr(KroneckerALS, "many_terms", lambda *_: many)
        yield request.param


def inputs_of(n: int, samples: int, seed: int = 0) -> Tensor:
    """Correlated inputs (n, samples) of unequal size, one of them dead, in float64."""
    mixing = seeded(n, n, seed=seed) * torch.linspace(0.05, 1, n, dtype=torch.float64)[:, None]
    inputs = mixing @ seeded(n, samples, seed=seed + 7)
    inputs[n // 2] = 0
    return inputs


@settings(derandomize=True, deadline=None, max_examples=30)
@given(
    kernel=st.sampled_from([(), (2,), (3, 2)]),
    s=st.integers(1, 10),
    samples=st.sampled_from([3, 10, 200]),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
    seed=st.integers(0, 9),
)
def test_outputs_are_nearer_than_those_of_the_plain_solution(
    kernel: tuple[int, ...], s: int, samples: int, dtype: torch.dtype, seed: int
) -> None:
    weight = seeded(15, 8, *kernel, seed=seed, dtype=dtype)
    inputs = inputs_of(8 * math.prod(kernel), samples, seed)
    fit = fit_kron(weight, s, shapes=PAIR, gram=second_moments(inputs))
    usual = kron(weight, s, shapes=PAIR)
    plain = error_on_inputs(weight, usual, inputs)
    reached = error_on_inputs(weight, fit.factors, inputs)
    assert fit.factors.dtype == dtype
    # A square multiplied out in float64 leaves 1e-8 in what is all but exact.
    assert reached <= plain * (1 + 1e-9) + 1e-8
    assert fit.error == pytest.approx(reached, rel=1e-6, abs=2e-8)
    # On the way errors are those of the shrunk moments, in which the sweeps go.
    seen = Target.of(weight, second_moments(inputs)).moments
    at_first = error_on_inputs(weight, usual, torch.linalg.cholesky(seen))
    assert fit.errors[0] == pytest.approx(at_first, rel=1e-6, abs=2e-8)
    assert all(b <= a for a, b in zip(fit.errors[:-1], fit.errors[1:-1], strict=False))


@pytest.mark.parametrize("unknowns", [2048, 4])
@pytest.mark.parametrize("samples", [5, 100])
def test_no_sweep_raises_the_error(
    unknowns: int, samples: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the terms of one side are taken one after the other."""
    monkeypatch.setattr(_kron_als, "UNKNOWNS", unknowns)
    weight, inputs = seeded(15, 8, 3), inputs_of(24, samples)
    metric = KroneckerALS(in_moments(weight, second_moments(inputs)), PAIR)
    a, b = seeded(3, 3, 4, seed=1), seeded(3, 5, 6, seed=2)

    def direct() -> float:
        return float(((metric.target.matrix - metric.dense(a, b)) @ inputs).norm())

    errors = [direct()]
    for _ in range(15):
        a, b = metric.sweep(a, b)
        errors.append(direct())
        assert errors[-1] <= errors[-2] + 1e-12 * errors[0]
    assert errors[-1] < 0.95 * errors[1]


def test_a_sweep_solves_least_squares(solver: str) -> None:
    """One side by a dense least-squares problem over all of its entries; six steps come near."""
    near = 1e-8 if solver == "normal matrix" else 1e-3
    weight, inputs = seeded(15, 8, 3), inputs_of(24, 60)
    metric = KroneckerALS(in_moments(weight, second_moments(inputs)), PAIR)
    b = seeded(2, 5, 6, seed=2)
    a, better_b = metric.sweep(torch.zeros(2, 3, 4, dtype=torch.float64), b)
    outputs = (metric.target.matrix @ inputs).flatten()

    def least(basis: list[tuple[Tensor, Tensor]]) -> float:
        """What no combination of these explains of the outputs."""
        columns = torch.stack([(metric.dense(*pair) @ inputs).flatten() for pair in basis])
        solution = torch.linalg.lstsq(columns.T, outputs[:, None], driver="gelsd").solution
        return float((outputs - columns.T @ solution[:, 0]).norm())

    units = torch.eye(24, dtype=torch.float64).reshape(24, 2, 3, 4)
    for_a = float((outputs - (metric.dense(a, b) @ inputs).flatten()).norm())
    assert for_a == pytest.approx(least([(unit, b) for unit in units]), rel=near)
    units = torch.eye(60, dtype=torch.float64).reshape(60, 2, 5, 6)
    for_b = float((outputs - (metric.dense(a, better_b) @ inputs).flatten()).norm())
    assert for_b == pytest.approx(least([(a, unit) for unit in units]), rel=near)


def test_the_error_multiplied_out_is_the_error() -> None:
    weight, inputs = seeded(15, 8, 3), inputs_of(24, 60)
    metric = KroneckerALS(in_moments(weight, second_moments(inputs)), PAIR)
    for s in (1, 3, 4, 9):  # up to three terms by products of pairs of terms
        a, b = seeded(s, 3, 4, seed=1), seeded(s, 5, 6, seed=2)
        off = (metric.target.matrix - metric.dense(a, b)) @ inputs
        expected = float(off.norm() / (metric.target.matrix @ inputs).norm())
        assert metric.rel_error(a, b) == pytest.approx(expected, rel=1e-10)


def test_balanced_terms_are_the_same_sum() -> None:
    a, b = seeded(3, 3, 4), seeded(3, 5, 6, seed=1)
    a[2] = a[0]
    new_a, new_b = balanced_terms(a, b)
    torch.testing.assert_close(
        KroneckerSum(new_a, new_b).to_dense(), KroneckerSum(a, b).to_dense(), rtol=0, atol=1e-13
    )
    gram = new_a.flatten(1) @ new_a.flatten(1).T
    torch.testing.assert_close(gram, gram.diagonal().diag(), rtol=0, atol=1e-13)
    assert (gram.diagonal().diff() <= 0).all()
    torch.testing.assert_close(gram, new_b.flatten(1) @ new_b.flatten(1).T, rtol=0, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_planted_terms_are_found(dtype: torch.dtype) -> None:
    weight, inputs = planted(3, PAIR, 3).to(dtype), inputs_of(24, 40)
    fit = fit_kron(weight, 3, shapes=PAIR, gram=second_moments(inputs))
    assert error_on_inputs(weight, fit.factors, inputs) <= 64 * torch.finfo(dtype).eps
    assert fit_kron(weight, error=1e-3, shapes=PAIR, gram=second_moments(inputs)).factors.rank == 3


@settings(derandomize=True, deadline=None, max_examples=12)
@given(error=st.floats(0.02, 0.8), seed=st.integers(0, 5), low=st.booleans())
def test_error_is_that_of_the_outputs(error: float, seed: int, low: bool) -> None:
    weight = seeded(15, 8, seed=seed, dtype=torch.float16 if low else torch.float32)
    inputs = inputs_of(8, 30, seed)
    gram = second_moments(inputs)
    fit = fit_kron(weight, error=error, shapes=PAIR, gram=gram)
    assert fit.converged
    assert error_on_inputs(weight, fit.factors, inputs) <= error * (1 + 1e-9)
    if fit.factors.rank > 1:
        assert fit_kron(weight, fit.factors.rank - 1, shapes=PAIR, gram=gram).error > error


def test_no_error_is_that_of_the_planted_terms() -> None:
    gram = second_moments(inputs_of(8, 30))
    exact = fit_kron(planted(2, PAIR), error=0.0, shapes=PAIR, gram=gram)
    assert exact.factors.rank == 2


@pytest.mark.parametrize("error", [None, 0.4])
def test_a_pair_is_looked_for_in_the_metric(error: float | None) -> None:
    weight, inputs = seeded(24, 12, 3, dtype=torch.float32), inputs_of(36, 80)
    gram = second_moments(inputs)
    rank = 0.2 if error is None else None
    fit = fit_kron(weight, rank, error=error, gram=gram, random_state=0)
    assert "the best of 4 tried" in fit.reason
    assert fit.error == pytest.approx(error_on_inputs(weight, fit.factors, inputs), rel=1e-6)
    (_, *one), (_, *other) = fit.factors.a.shape, fit.factors.b.shape
    named = fit_kron(weight, rank, error=error, gram=gram, shapes=(one, other[:2]), random_state=0)
    assert named.factors.n_params == fit.factors.n_params
    if error is None:
        assert fit.factors.n_params <= 0.2 * weight.numel()


def test_tol_stops_the_sweeps() -> None:
    weight, gram = seeded(15, 8, 3), second_moments(inputs_of(24, 60))
    one = fit_kron(weight, 3, shapes=PAIR, gram=gram, n_iter_max=1)
    assert len(one.errors) == 3
    assert not one.converged
    few = fit_kron(weight, 3, shapes=PAIR, gram=gram, tol=0.05)
    many = fit_kron(weight, 3, shapes=PAIR, gram=gram, tol=1e-4, n_iter_max=500)
    assert few.converged
    assert many.converged
    assert len(few.errors) < len(many.errors)
    assert many.error < few.error
