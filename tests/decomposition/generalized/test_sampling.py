"""Drawn entries: sums over them are unbiased, and epochs on them end where the loss is low."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch

from tensorlrf import SparseTensor
from tensorlrf.decomposition import fit_generalized_cp
from tensorlrf.decomposition.generalized._data import Data, data_of
from tensorlrf.decomposition.generalized._dense import DenseObjective
from tensorlrf.decomposition.generalized._losses import LOSSES
from tensorlrf.decomposition.generalized._samples import Sampler
from tests.decomposition.generalized.planted import RANK, SHAPE, rates
from tests.draws import generator, seeded

X = torch.poisson(0.1 * rates().to_dense(), generator=generator(3))
DRAWS = 200


def data(kind: str) -> Data:
    weights = seeded(*SHAPE, seed=5).abs() if kind == "weighted" else None
    given = X if kind in ("dense", "weighted") else SparseTensor.of(X)
    return data_of(given, None, weights, LOSSES["negative_binomial"])[0]


@pytest.mark.parametrize("kind", ["dense", "weighted", "uniform", "stratified", "semi_stratified"])
def test_gradients_and_losses_of_samples_are_unbiased(kind: str) -> None:
    """Their mean over many draws is the exact one within its standard error."""
    loss, own = LOSSES["negative_binomial"], data(kind)
    stack = seeded(sum(SHAPE), RANK, seed=1).abs()
    exact, gradient = DenseObjective(own.rows(), loss, False)(stack)
    sampling = "uniform" if kind in ("dense", "weighted") else kind
    sampler = Sampler(own, sampling, generator(0))
    samples = [sampler.draw((40, 60)) for _ in range(DRAWS)]
    losses = torch.tensor([s.loss(loss, stack) for s in samples], dtype=torch.float64, device="cpu")
    drawn = torch.stack([s.gradient(loss, stack) for s in samples])
    spread = losses.std() / DRAWS**0.5
    assert abs(float(losses.mean()) - exact) < 4 * spread
    spread = drawn.std(0) / DRAWS**0.5
    off = (drawn.mean(0) - gradient).abs() / spread
    # Of 84 entries none is beyond four standard errors but once in 190 runs of other seeds.
    assert float(off.max()) < 4.5
    assert float(off.square().mean()) < 2


def test_zeros_that_are_drawn_are_none_of_the_nonzeros() -> None:
    own = data("stratified")
    sample = Sampler(own, "stratified", generator(0)).draw((0, 500))
    places = sample.places - torch.tensor([[0], [SHAPE[0]], [SHAPE[0] + SHAPE[1]]])
    assert bool((X[tuple(places)] == 0).all())
    full = data_of(SparseTensor.of(X + 1), None, None, LOSSES["gaussian"])[0]
    assert Sampler(full, "stratified", generator(0)).draw((5, 5)).x.min() >= 1
    empty = data_of(torch.zeros(SHAPE).to_sparse(), None, None, LOSSES["gaussian"])[0]
    for sampling in ("uniform", "stratified", "semi_stratified"):
        assert Sampler(empty, sampling, generator(0)).draw((5, 5)).x.abs().max() == 0


@pytest.mark.parametrize("sampling", ["uniform", "stratified", "semi_stratified"])
def test_epochs_come_near_the_optimum(sampling: str) -> None:
    options: dict[str, Any] = {"n_samples": 400, "epoch": 60, "n_iter_max": 8, "rate": 0.05}
    own = SparseTensor.of(X)
    best = fit_generalized_cp(own, RANK, "poisson", random_state=0)
    found = fit_generalized_cp(
        own, RANK, "poisson", solver="adam", sampling=sampling, random_state=0, **options
    )
    assert all(b <= a for a, b in pairwise(found.losses))
    gained = (best.losses[0] - found.loss) / (best.losses[0] - best.loss)
    assert 0.85 < gained <= 1 + 1e-6
    assert not found.estimated
    # What judges epochs is a sample, from which the loss over all entries is no far cry.
    assert found.loss == pytest.approx(found.losses[-1], rel=0.05)


def test_an_epoch_that_fails_is_undone_and_the_third_is_the_end() -> None:
    wild = fit_generalized_cp(
        X, RANK, "poisson", solver="adam", rate=50.0, epoch=5, n_iter_max=9, random_state=0
    )
    assert all(b <= a for a, b in pairwise(wild.losses))
    assert "raised the loss" in wild.reason or wild.losses[-1] < wild.losses[0]


def test_a_seed_repeats() -> None:
    runs = [
        fit_generalized_cp(X, 2, "poisson", solver="adam", epoch=5, n_iter_max=2, random_state=7)
        for _ in range(2)
    ]
    assert runs[0].losses == runs[1].losses
    assert torch.equal(runs[0].factors.weights, runs[1].factors.weights)


def test_where_all_entries_are_too_many_loss_and_error_are_estimates(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = SparseTensor.of(X)
    exact = fit_generalized_cp(own, RANK, "negative_binomial", random_state=0, n_iter_max=5)
    for module in ("_data", "_report"):
        monkeypatch.setattr(f"tensorlrf.decomposition.generalized.{module}.AFFORDABLE", 10)
    for sampling in ("stratified", "semi_stratified"):
        found = fit_generalized_cp(
            own, RANK, "negative_binomial", init=exact.factors, solver="adam", epoch=1,
            n_iter_max=1, rate=1e-9, sampling=sampling, random_state=0,
        )  # fmt: skip
        assert found.estimated
        assert found.loss == pytest.approx(exact.loss, rel=0.02)
        assert found.error == pytest.approx(exact.error, rel=0.02)
