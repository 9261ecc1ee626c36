"""Generalised CP: planted models come back by every loss, and no step raises it."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import tensorlrf
from tensorlrf import CPFactors, SparseTensor
from tensorlrf.decomposition import Loss, LossFit, fit_cp, fit_generalized_cp, huber_loss
from tensorlrf.decomposition.generalized import _squares
from tensorlrf.decomposition.generalized._losses import LOSSES
from tensorlrf.errors import (
    ArgumentError,
    RankError,
    ShapeError,
    TensorlrfWarning,
    UnsupportedError,
)
from tests.decomposition.generalized.planted import RANK, SHAPE, planted, rates
from tests.draws import generator, seeded

NEGATIVE = ("gaussian", "huber", "poisson_log", "bernoulli_logit")


def fit(x: Any, rank: int, loss: Any = "gaussian", **options: Any) -> LossFit[CPFactors]:
    return fit_generalized_cp(x, rank, loss, **{"random_state": 0, **options})


# ---- what it finds ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOSSES)
def test_a_planted_model_comes_back_and_no_step_raises_the_loss(name: str) -> None:
    x, model = planted(name)
    loss = LOSSES[name]
    rank = RANK + 1 if name == "bernoulli_logit" else RANK  # a constant is a term of that model
    found = fit(x, rank, name, tol=1e-8 if name == "gaussian" else 1e-6)
    assert all(b <= a for a, b in pairwise(found.losses))
    dense = found.factors.to_dense()
    assert found.loss == pytest.approx(float(loss.value(x, dense).sum()))
    assert found.loss == pytest.approx(found.losses[-1], rel=1e-9)
    assert found.converged
    # Nearer to the data than the model is that they were drawn from, and near to that one too.
    assert found.loss <= float(loss.value(x, model).sum())
    expected = loss.expected(model)
    off = float((loss.expected(dense) - expected).norm() / expected.norm())
    # Of the noise a model takes up the share of its parameters in the entries, as squares.
    noise = float((x - expected).norm() / expected.norm()) if name != "huber" else 0.02
    assert off < 2 * noise * math.sqrt(rank * sum(SHAPE) / x.numel())
    assert found.error == pytest.approx(float((loss.expected(dense) - x).norm() / x.norm()))
    if name not in NEGATIVE:
        assert all(bool((u >= 0).all()) for u in found.factors.factors)
    lengths = torch.stack([u.norm(dim=0) for u in found.factors.factors])
    assert torch.allclose(lengths, torch.ones_like(lengths))
    assert found.factors.weights.tolist() == sorted(found.factors.weights.tolist(), reverse=True)


def test_the_gaussian_loss_has_the_optimum_of_cp() -> None:
    x = seeded(8, 7, 6, seed=2) + 3 * rates().to_dense()[:8, :7, :6]
    best = min(fit_cp(x, 2, random_state=k, n_iter_max=300).error for k in range(2))
    found = fit(x, 2, tol=1e-10, n_restarts=2)
    assert found.error == pytest.approx(best, rel=1e-6)
    assert found.loss == pytest.approx((best * float(x.norm())) ** 2, rel=1e-6)
    assert found.factors.rel_error(x) == pytest.approx(found.error, rel=1e-9)


def test_at_the_end_the_conditions_of_an_optimum_hold() -> None:
    x, _ = planted("poisson")
    found = fit(x, RANK, "poisson", tol=1e-13)
    assert found.residuals[0] == 1
    assert found.residuals[-1] < 1e-5
    # The sums of the model along a mode are those of the data there (Chi & Kolda 2012).
    assert torch.allclose(found.factors.to_dense().sum((1, 2)), x.sum((1, 2)), rtol=1e-5)


def test_outliers_have_little_say_with_huber() -> None:
    x, model = planted("huber")
    off = [(fit(x, RANK, loss).factors.to_dense() - model).norm() for loss in ("huber", "gaussian")]
    assert off[0] < off[1] / 10


def test_a_loss_of_ones_own_with_and_without_its_derivative() -> None:
    x, _ = planted("gaussian")
    value: Callable[[Tensor, Tensor], Tensor] = lambda x, m: (m - x).cosh().log()  # noqa: E731
    given = fit(x, RANK, Loss(value, lambda x, m: (m - x).tanh()), tol=1e-9)
    by_autograd = fit(x, RANK, Loss(value), tol=1e-9)
    assert given.loss == pytest.approx(by_autograd.loss, rel=1e-3)
    bounded = fit(-x, RANK, Loss(value, lower=0.0), n_iter_max=20)
    assert all(bool((u >= 0).all()) for u in bounded.factors.factors)


@settings(max_examples=8, deadline=None)
@given(
    st.lists(st.integers(1, 5), min_size=2, max_size=4),
    st.integers(1, 4),
    st.sampled_from(sorted(LOSSES)),
    st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
)
def test_any_shape_and_dtype(shape: list[int], rank: int, name: str, dtype: torch.dtype) -> None:
    x = seeded(*shape, seed=4).abs().round() if name != "gamma" else seeded(*shape).abs() + 1
    x = x.clamp_max(1).to(dtype)
    found = fit(x, rank, name, n_iter_max=5)
    assert found.factors.shape == tuple(shape)
    assert found.factors.dtype == dtype
    assert math.isfinite(found.loss)
    assert all(b <= a for a, b in pairwise(found.losses))


def test_counts_of_zero_ask_for_nothing() -> None:
    for name in ("poisson", "gaussian", "negative_binomial", "bernoulli_odds"):
        found = fit(torch.zeros(4, 5, 6), 2, name)
        assert found.factors.to_dense().abs().max() < 1e-3
        assert math.isfinite(found.loss)


# ---- entries that are not known -----------------------------------------------------------------


def test_more_unknowns_than_entries_are_told() -> None:
    x, _ = planted("gaussian")
    few = torch.rand(SHAPE, generator=generator(2)) < 0.9
    unknowns = 64 * (sum(SHAPE) - 2)
    with pytest.warns(TensorlrfWarning, match=f"{unknowns} free parameters for {int(few.sum())}"):
        fit(x, 64, mask=few, n_iter_max=1)


def test_masked_entries_have_no_say() -> None:
    x, model = planted("poisson")
    seen = torch.rand(SHAPE, generator=generator(6)) < 0.5
    hidden = x.masked_fill(~seen, math.nan)
    found = fit(hidden, RANK, "poisson", mask=seen)
    other = fit(x.masked_fill(~seen, 9e9), RANK, "poisson", mask=seen.numpy())
    assert found.loss == pytest.approx(other.loss, rel=1e-9)
    own = LOSSES["poisson"].value(x, found.factors.to_dense())[seen].sum()
    assert found.loss == pytest.approx(float(own), rel=1e-9)
    off = float((found.factors.to_dense() - model).norm() / model.norm())
    assert off < 0.05
    residual = (found.factors.to_dense() - x)[seen].norm() / x[seen].norm()
    assert found.error == pytest.approx(float(residual), rel=1e-9)


def test_weights_count_as_that_many_entries() -> None:
    x, _ = planted("gamma")
    twice = torch.cat([x, x[:3]])
    weights = torch.ones_like(x)
    weights[:3] = 2
    start = rates(seed=9)
    first, *rest = start.factors
    longer = CPFactors(start.weights, (torch.cat([first, first[:3]]), *rest))
    own, other = (
        fit(x, RANK, "gamma", weights=weights, init=start, n_iter_max=1),
        fit(twice, RANK, "gamma", init=longer, n_iter_max=1),
    )
    assert own.losses[0] == pytest.approx(other.losses[0], rel=1e-12)


# ---- sparse tensors -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["poisson", "gaussian", "negative_binomial", "huber"])
def test_a_sparse_tensor_gives_what_the_dense_one_does(name: str) -> None:
    x = torch.poisson(0.1 * rates().to_dense(), generator=generator(3))
    dense = fit(x, RANK, name, n_iter_max=6)
    for sparse in (SparseTensor.of(x), x.to_sparse()):
        found = fit(sparse, RANK, name, n_iter_max=6)
        assert found.losses == pytest.approx(dense.losses, rel=1e-6)
        assert found.error == pytest.approx(dense.error, rel=1e-6)
        assert found.loss == pytest.approx(dense.loss, rel=1e-6)


# ---- squares ------------------------------------------------------------------------------------


@pytest.mark.parametrize("unknowns", [0, 512])
def test_squares_end_at_what_alternating_least_squares_finds(
    unknowns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_squares, "UNKNOWNS", unknowns)  # 0: by sweeps, and quasi-Newton steps
    x, _ = planted("gaussian")
    start = rates(seed=5)
    found = fit(x, RANK, "gaussian", init=start, tol=1e-10, n_iter_max=500)
    other = fit_cp(x, RANK, init=start, solver="als", n_iter_max=500, tol=1e-10)
    assert found.error <= other.error * (1 + 1e-6) + 1e-9
    assert all(b <= a for a, b in pairwise(found.losses))


@pytest.mark.parametrize("unknowns", [0, 512])
def test_squares_of_collinear_and_dead_data(unknowns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_squares, "UNKNOWNS", unknowns)
    flat = torch.full((4, 5, 6), 2.0, dtype=torch.float32, device="cpu")
    assert fit(flat, 2, random_state=0).error < 1e-4
    flat[1] = 0
    assert fit(flat, 3, random_state=0).error < 1e-3
    nothing = fit(torch.zeros_like(flat), 2, random_state=0)
    assert nothing.loss == pytest.approx(0.0, abs=1e-12)


def test_a_matrix_of_scipy_is_taken() -> None:
    x = torch.poisson(0.2 * rates().to_dense()[0], generator=generator(3))
    found = fit(scipy.sparse.csr_matrix(x.numpy()), 1, "poisson")
    assert found.loss == pytest.approx(fit(x, 1, "poisson").loss, rel=1e-9)


# ---- how it ends --------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["lbfgs", "adam"])
def test_a_callback_that_stops_gets_the_best_so_far(solver: str) -> None:
    x, _ = planted("poisson")
    options: dict[str, Any] = {"solver": solver, "tol": 0}
    options |= {"epoch": 20} if solver == "adam" else {}
    seen: list[tuple[CPFactors, float]] = []

    def stop(factors: CPFactors, loss: float) -> bool:
        seen.append((factors, loss))
        return len(seen) == 3

    found = fit(x, RANK, "poisson", callback=stop, **options)
    assert len(seen) == 3
    assert not found.converged
    assert found.reason.startswith("stopped by callback after")
    last, loss = seen[-1]
    assert all(map(torch.equal, found.factors.factors, last.factors))
    assert found.losses[-1] == pytest.approx(loss)
    assert [loss for _, loss in seen] == sorted((loss for _, loss in seen), reverse=True)


def test_of_an_interrupted_run_nothing_is_lost_that_the_callback_has_seen() -> None:
    x, _ = planted("poisson")
    before, seen = x.clone(), []

    def interrupt(factors: CPFactors, loss: float) -> None:
        seen.append((factors, loss))
        if len(seen) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(x, RANK, "poisson", callback=interrupt)
    assert torch.equal(x, before)
    for factors, loss in seen:
        own = float(LOSSES["poisson"].value(x, factors.to_dense()).sum())
        assert own == pytest.approx(loss, rel=1e-9)
    # And a run goes on from there.
    again = fit(x, RANK, "poisson", init=seen[-1][0])
    assert again.losses[0] == pytest.approx(seen[-1][1], rel=1e-9)


def test_of_several_starts_the_best_is_kept_and_told() -> None:
    x, _ = planted("poisson")
    seen: list[float] = []
    options: dict[str, Any] = {"n_iter_max": 8, "callback": lambda _, loss: seen.append(loss)}
    several = fit(x, 3, "poisson", n_restarts=3, **options)
    assert several.loss <= fit(x, 3, "poisson", n_iter_max=8).loss
    assert seen == sorted(seen, reverse=True)


def test_steps_that_ran_out_and_a_start_that_is_an_end() -> None:
    x, _ = planted("poisson")
    short = fit(x, RANK, "poisson", n_iter_max=3)
    assert (short.converged, short.reason, len(short.losses)) == (False, "n_iter_max=3 steps", 4)
    exact = rates()
    found = fit(exact.to_dense(), RANK, init=exact)
    assert found.converged
    assert found.error < 1e-12


# ---- what it refuses ----------------------------------------------------------------------------

X = planted("poisson")[0]
SQUARE = Loss(lambda x, m: (x - m) ** 2)


def with_entry(value: float) -> Tensor:
    x = torch.ones(4, 5, 6)
    x[2, 3, 1] = value
    x[3, 0, 0] = value
    return x


@pytest.mark.parametrize(
    ("x", "loss", "words"),
    [
        (with_entry(-3), "poisson", r"^tensor\[2, 3, 1\] is -3, but loss='poisson' .*not negative"),
        (with_entry(-3), "poisson_log", r"^tensor\[2, 3, 1\] is -3"),
        (with_entry(-1), "negative_binomial", r"^tensor\[2, 3, 1\] is -1"),
        (with_entry(-1), "rayleigh", r"^tensor\[2, 3, 1\] is -1"),
        (with_entry(0.5), "bernoulli_odds", r"^tensor\[2, 3, 1\] is 0.5.* zeros and ones"),
        (with_entry(2), "bernoulli_logit", r"^tensor\[2, 3, 1\] is 2"),
        (
            with_entry(0),
            "gamma",
            r"^tensor\[2, 3, 1\] is 0, but loss='gamma' needs data above zero",
        ),
        (SparseTensor.of(with_entry(-3)), "poisson", r"^tensor\[2, 3, 1\] is -3"),
        (SparseTensor.of(with_entry(0)), "gamma", r"^tensor\[2, 3, 1\] is 0"),
        (
            with_entry(-3),
            Loss(lambda x, m: x * m, support="non-negative", name="mine"),
            r"loss='mine'",
        ),
    ],
)
def test_a_loss_that_does_not_fit_the_data(x: Any, loss: Any, words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        fit(x, 2, loss)


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (
            Loss(lambda x, m: (m - 1e6).log()),
            "^value of your loss is nan for the entry .*another init",
        ),
        (Loss(lambda x, m: m / 0), "^value of your loss is inf for the entry"),
        (Loss(lambda x, m: m.sum()), r"^value of your loss gives the shape \(\) for entries of"),
        (Loss(lambda x, m: 1.0, name="one"), "^value of one gives a float; it must give a tensor"),
        (
            Loss(lambda x, m: m, lambda x, m: m[:1]),
            r"^derivative of your loss gives the shape \(1,\)",
        ),
        (Loss(lambda x, m: m, lambda x, m: m * math.nan), "^derivative of your loss is nan"),
    ],
)
def test_functions_of_the_user_that_give_no_numbers(loss: Loss, words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        fit(X, 2, loss)


def test_a_derivative_that_is_another_functions_is_told() -> None:
    found = fit(X, 2, Loss(SQUARE.value, lambda x, m: 2 * (x - m)))
    assert not found.converged
    assert "derivative" in found.reason


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mask": torch.ones(SHAPE)}, "^mask has dtype torch.float32; it must be bool"),
        ({"mask": torch.ones(3, 4, dtype=torch.bool)}, r"^mask has shape \(3, 4\), the tensor"),
        ({"mask": torch.zeros(SHAPE, dtype=torch.bool)}, "^mask hides every entry"),
        ({"mask": torch.arange(14).ne(3)[:, None].expand(SHAPE)}, "^mask leaves .* 3 of mode 1"),
        ({"weights": -torch.ones(SHAPE)}, r"^weights\[0, 0, 0\] is -1; .*not be negative"),
        ({"weights": torch.ones(3, 4)}, r"^weights have shape \(3, 4\)"),
        ({"init": "svd"}, "^init='svd' is unknown; choose one of random, CPFactors"),
        ({"init": 3}, "^init is a int"),
        ({"init": (None, [torch.ones(12, 2)])}, "^init has 1 factors for a tensor of 3 modes"),
        ({"init": (None, [torch.ones(n, 3) for n in SHAPE])}, r"^init: factors\[0\] has shape"),
        ({"init": (torch.ones(1), [torch.ones(n, 2) for n in SHAPE])}, "^init: weights have shape"),
        ({"init": (None, [-torch.ones(n, 2) for n in SHAPE])}, "^init has entries below 0"),
        ({"init": rates(), "n_restarts": 2}, "^n_restarts=2 with given factors"),
        ({"n_restarts": 0}, "^n_restarts=0"),
        ({"sampling": "uniform"}, "^sampling='uniform' belongs to solver='adam'"),
        ({"epoch": 5}, "^epoch=5 belongs to solver='adam'"),
        ({"solver": "adam", "sampling": "stratified"}, "^sampling='stratified' .* sparse tensors"),
        ({"solver": "adam", "sampling": "odd"}, "^sampling='odd' is unknown"),
        ({"solver": "adam", "n_samples": 1}, "^n_samples=1 must be an int of at least 2"),
        ({"solver": "adam", "n_samples": (1, 0)}, r"^n_samples=\(1, 0\)"),
        ({"solver": "adam", "epoch": 0}, "^epoch=0"),
        ({"solver": "adam", "rate": 0.0}, "^rate=0.0 must be a finite number above zero"),
    ],
)  # fmt: skip
def test_options_that_do_not_fit(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        fit(X, 2, "poisson", **options)


def test_a_mask_goes_with_dense_tensors_and_large_sparse_ones_with_samples(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sparse = SparseTensor.of(X)
    for name in ("mask", "weights"):
        with pytest.raises(UnsupportedError, match=rf"^{name}= is not served for sparse"):
            fit(sparse, 2, "poisson", **{name: torch.ones(SHAPE, dtype=torch.bool)})
    monkeypatch.setattr("tensorlrf.decomposition.generalized._data.AFFORDABLE", 10)
    with pytest.raises(ArgumentError, match=r"^solver='lbfgs' with loss='huber' .*solver='adam'"):
        fit(sparse, 2, "huber", solver="lbfgs")
    assert fit(sparse, 2, huber_loss(1.0), n_iter_max=1).estimated
    with pytest.raises(RankError):
        fit(X, 0)
    with pytest.raises(ShapeError, match=r"of more than 2\^63 entries"):
        fit(SparseTensor.from_coordinates([[0], [0]], [1.0], (1 << 40, 1 << 40)), 1)


def test_numpy_is_taken_and_integers_are_not() -> None:
    found = tensorlrf.generalized_cp(np.asarray(X), 2, "poisson", random_state=0)
    assert torch.equal(found.weights, fit(X, 2, "poisson").factors.weights)
    with pytest.raises(ArgumentError, match=r"int64.*cast it first"):
        fit(X.long(), 2, "poisson")
