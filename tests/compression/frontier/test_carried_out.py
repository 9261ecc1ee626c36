"""Plans of a frontier carried out on what it has seen: no other pass over what is fitted to."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import tensorlrf
from tensorlrf.errors import ArgumentError
from tensorlrf.nn import FactoredLayer
from tests.compression.frontier.test_frontier import SHARES, batches, net
from tests.compression.networks import Snapshot, set_weights
from tests.draws import seeded32

PASSES: list[float] = []
"""The first number of every batch that a model of a test was called with."""


class Counted(nn.Sequential):
    """Whose copies tell as well what they are called with."""

    def forward(self, x: Tensor) -> Tensor:
        PASSES.append(float(x.flatten()[0]))
        y: Tensor = super().forward(x)
        return y


def test_no_pass_over_what_is_fitted_to() -> None:
    model = Counted(*net())
    data = batches(10)
    found = tensorlrf.frontier(model, data, shares=SHARES, skip=[], progress=False)
    assert found.prospect is not None
    held = {float(batch.args[0].flatten()[0]) for batch in found.prospect.data.held_out}
    before = Snapshot(model)
    PASSES.clear()
    small, report = found.apply(0.5)
    assert set(PASSES) <= held
    before.check()
    assert any(isinstance(m, FactoredLayer) for m in small.modules())
    assert report.target == "independent"
    assert report.batches == 9
    assert report.held_out == 1
    assert report.model_error is not None
    assert report.eligible.share <= 0.5
    assert tensorlrf.Report.from_json(report.to_json()) == report


@pytest.mark.parametrize("share", [0.7, 0.3])
def test_it_is_the_fit_of_all_layers_at_once(share: float) -> None:
    """With samples enough; the given outputs are as near as those of `apply`, to the shrinkage."""
    model, data = net(), batches(24)
    found = tensorlrf.frontier(model, data, shares=SHARES, skip=[], progress=False)
    small, report = found.apply(share)
    other, told = tensorlrf.apply(
        model, found.plan(share), calibration=data, target="independent", metric="outputs",
        progress=False,
    )  # fmt: skip
    x = batches(30)[-1]
    wanted = model(x)
    ours, theirs = ((m(x) - wanted).norm() / wanted.norm() for m in (small, other))
    assert ours <= theirs * 1.02 + 1e-6
    for row, beside in zip(report.layers, told.layers, strict=True):
        assert (row.format, row.rank) == (beside.format, beside.rank)
        if row.factored:
            assert row.output_error == pytest.approx(beside.output_error, rel=0.2, abs=1e-4)
            assert row.weight_error is not None
            assert row.data_aware


def test_groups_and_dtypes(tmp_path) -> None:
    model = set_weights(
        nn.Sequential(nn.Conv2d(8, 32, 3, groups=2), nn.ReLU(), nn.Conv2d(32, 32, 3))
    ).double()
    data = [seeded32(4, 8, 9, 9, seed=k).double() for k in range(4)]
    found = tensorlrf.frontier(model, data, shares=(0.5,), skip=[], progress=False)
    small, _ = found.apply(0.5, example=data[0])
    assert all(p.dtype == torch.float64 for p in small.parameters())
    tensorlrf.save(small, tmp_path / "small.safetensors")
    again = tensorlrf.load(tmp_path / "small.safetensors", model)
    assert torch.equal(again(data[0]), small(data[0]))


def test_what_it_does_not_know_is_refused() -> None:
    model = net()
    found = tensorlrf.frontier(
        model, batches(), shares=(0.5,), skip=[], method="tt", progress=False
    )
    with pytest.raises(ArgumentError, match=r"is to become tt.*factors of low rank alone"):
        found.apply(0.5)
    read = tensorlrf.Frontier.from_json(found.to_json())
    with pytest.raises(ArgumentError, match="from JSON knows plans, and no outputs"):
        read.apply(0.5)
    with pytest.raises(ArgumentError, match="there are plans for"):
        found.apply(0.1)
