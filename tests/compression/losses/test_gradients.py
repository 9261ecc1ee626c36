"""Passes back through a model: how many batches they take, and what they leave alone."""

from __future__ import annotations

import torch
from torch import nn

from tensorlrf.compression.calibration._dense_layer import dense_layer_at
from tensorlrf.compression.calibration._layer_moments import Calibration
from tensorlrf.compression.calibration.batches import Batch
from tensorlrf.compression.losses._curvature import GradientMoments, metrics_of
from tensorlrf.compression.losses._enough import scattered
from tensorlrf.compression.losses._gradients import OwnCotangents, Together, differentiate
from tensorlrf.compression.losses._output_loss import OutputLoss
from tensorlrf.compression.losses._probe import Probe
from tests.compression.networks import set_weights
from tests.draws import seeded32


def test_two_watchers_see_one_pass_as_two() -> None:
    model, batch = set_weights(nn.Sequential(nn.Linear(4, 3))), Batch.of(seeded32(5, 4), 0)
    site = dense_layer_at(model, "0")
    one, other, alone = (GradientMoments.of(site) for _ in range(3))
    for watcher in (Together(one, other), alone):
        draws = torch.Generator().manual_seed(0)
        differentiate(model, {"0": watcher}, batch, OutputLoss("relative"), draws)
    assert torch.equal(one.products, alone.products)
    assert torch.equal(other.products, alone.products)
    assert float(alone.products.abs().sum()) > 0


def test_one_set_of_passes_tells_losses_and_metrics() -> None:
    model = set_weights(nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 5)))
    data = Calibration.of([Batch.of(seeded32(40, 8, seed=k), k) for k in range(4)], 0.25)
    probes = [Probe(model, ["0", "2"], data, progress=False, weighs=word) for word in (False, True)]
    losses = [probe.sensitivity("fisher") for probe in probes]
    assert losses[0] == losses[1]
    metrics = probes[1].metrics
    assert metrics.keys() == {"0", "2"}
    assert probes[0].metrics == {}
    probes[1].forget()
    assert probes[1].metrics == {}
    sums = {name: GradientMoments.of(dense_layer_at(model, name)) for name in ("0", "2")}
    draws = OwnCotangents(torch.Generator().manual_seed(0))
    for batch in scattered(data.fitted):
        differentiate(model, sums, batch, probes[0].output_loss, draws.of(batch))
    for name, wanted in metrics_of(sums).items():
        assert torch.equal(metrics[name][0].rows, wanted[0].rows)  # type: ignore[index, union-attr]
