"""Second moments of the gradients at the outputs of layers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tensorlrf.compression import compress
from tensorlrf.compression.calibration._dense_layer import DenseLayer
from tensorlrf.compression.calibration._layer_moments import Calibration
from tensorlrf.compression.calibration.batches import Batch
from tensorlrf.compression.losses._curvature import (
    CLIP,
    SHRINKAGE,
    GradientMoments,
    clipped,
    output_metrics,
)
from tensorlrf.compression.losses._output_loss import OutputLoss
from tensorlrf.decomposition.shrinkage import shrunk
from tests.compression.networks import set_weights
from tests.draws import seeded32


def metrics_of(
    model: nn.Module, names: list[str], batches: list[Tensor], held: int = 0, room: int = 1 << 29
) -> dict:
    data = Calibration(
        [Batch.of(x, k) for k, x in enumerate(batches)],
        frozenset(range(len(batches) - held, len(batches))),
        room=room,
    )
    draws = torch.Generator().manual_seed(0)
    return output_metrics(model, names, data, OutputLoss("relative"), draws, lambda: None)


def mlp() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(12, 10), nn.Tanh(), nn.Linear(10, 6))
    return set_weights(model)  # type: ignore[return-value]


@settings(derandomize=True, deadline=None, max_examples=20)
@given(
    m=st.integers(1, 7), n=st.integers(1, 40), power=st.integers(-12, 12), seed=st.integers(0, 9)
)
def test_a_metric_does_not_know_the_unit_of_the_loss(m: int, n: int, power: int, seed: int) -> None:
    site = DenseLayer.of(nn.Linear(3, m))
    g = seeded32(n, m, seed=seed)
    one, other = GradientMoments.of(site), GradientMoments.of(site)
    one.add(site, g)
    other.add(site, g * 2.0**power)
    (a,), (b,) = one.metrics(), other.metrics()
    assert a is not None
    assert b is not None
    torch.testing.assert_close(a.rows, b.rows)
    # Sums of squares in float32.
    assert float(a.rows.diagonal().mean()) == pytest.approx(1.0, rel=1e-5)
    # No direction counts for less than its share of the mean eigenvalue.
    assert float(torch.linalg.eigvalsh(a.rows.double())[0]) >= SHRINKAGE * (1 - 1e-4)


def test_sums_are_those_of_the_gradients_position_by_position() -> None:
    site = DenseLayer.of(nn.Conv2d(4, 6, 3, groups=2))
    g = seeded32(2, 6, 3, 3)
    moments = GradientMoments.of(site)
    moments.add(site, g)
    rows = g.permute(0, 2, 3, 1).reshape(-1, 2, 3)
    for k, metric in enumerate(moments.metrics()):
        assert metric is not None
        part = rows[:, k].double()
        whole = part.T @ part
        wanted = shrunk(whole / whole.diagonal().mean(), SHRINKAGE)
        # Of float32 products.
        torch.testing.assert_close(metric.rows.double(), wanted, rtol=1e-5, atol=1e-6)


@settings(derandomize=True, deadline=None, max_examples=20)
@given(n=st.integers(1, 30), zeros=st.integers(0, 30), peak=st.floats(1.0, 1e6))
def test_no_gradient_is_longer_than_a_multiple_of_the_usual(
    n: int, zeros: int, peak: float
) -> None:
    rows = torch.cat([seeded32(n, 3) + 0.1, torch.zeros(zeros, 3)])
    rows[0] *= peak
    lengths, cut = rows.norm(dim=1), clipped(rows).norm(dim=1)
    most = CLIP * lengths[:n].median()
    torch.testing.assert_close(cut, lengths.clamp(max=float(most)))
    assert torch.equal(cut[n:], torch.zeros(zeros))


def test_groups_and_layers_without_gradient_have_no_metric() -> None:
    class Deaf(nn.Module):
        """Half of the groups of a convolution are heard, a second layer is not, a third not even
        called."""

        def __init__(self) -> None:
            super().__init__()
            self.heard, self.deaf, self.idle = nn.Conv1d(4, 8, 1, groups=2), nn.Linear(5, 5), None
            self.idle = nn.Linear(5, 5)

        def forward(self, x: Tensor) -> Tensor:
            self.deaf(x)
            out: Tensor = self.heard(x)[:, :4]
            return out

    found = metrics_of(Deaf().eval(), ["heard", "deaf", "idle"], [seeded32(3, 4, 5)] * 3, held=1)
    assert list(found) == ["heard"]
    assert [one is None for one in found["heard"]] == [False, True]


def test_gradients_that_are_not_finite_make_no_metric() -> None:
    site = DenseLayer.of(nn.Linear(3, 2))
    moments = GradientMoments.of(site)
    moments.add(site, torch.tensor([[1.0, torch.inf], [1.0, 0.0]]))
    assert moments.metrics() == [None]


def test_layers_whose_metrics_have_no_room_have_none() -> None:
    """As a head with a vocabulary, whose metric would take 3.6 GB."""
    model = nn.Sequential(nn.Linear(12, 10), nn.Tanh(), nn.Linear(10, 30_000))
    set_weights(model)
    batches = [seeded32(60, 12, seed=k) for k in range(2)]
    assert list(metrics_of(model, ["0", "2"], batches)) == ["0"]
    assert list(metrics_of(model, ["0", "2"], batches, room=699)) == []
    small, report = compress(
        model, keep_params=0.9, calibration=batches, skip=[], metric="loss",
        allocation="uniform", progress=False,
    )  # fmt: skip
    assert report.layer("2").metric in (None, "outputs")
    assert torch.isfinite(small(batches[0])).all()


def test_the_model_stays_as_it_was() -> None:
    model = mlp()
    metrics_of(model, ["0"], [seeded32(4, 12)])
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert all(not m._forward_hooks for m in model.modules())
