"""How long the models of a frontier take, by a clock that says what a test wants."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tensorlrf
from tensorlrf import Frontier
from tensorlrf.compression.calibration._dense_layer import dense_layer_at
from tensorlrf.compression.frontier._quantised import QUANTISERS, Quantiser
from tensorlrf.compression.plan.times import _seconds, _whole
from tensorlrf.errors import ArgumentError
from tensorlrf.nn import FactoredLayer
from tensorlrf.ops import PathTable, Timings
from tests.compression.frontier.test_frontier import ROUNDED, SHARES, Cosine, batches, net
from tests.compression.networks import Snapshot, set_weights
from tests.draws import seeded32

A_WEIGHT = 1e-6
"""Seconds of a call for each number of a weight."""


def layer_clock(
    layer: nn.Module, factored: Sequence[FactoredLayer], *_: Any, seconds: float
) -> Any:
    """Seconds are the parameters, and factors of many more of them are better read one by one."""
    assert seconds > 0
    whole = math.prod(layer.weight.shape)  # type: ignore[union-attr]
    sizes = [one.factors.n_params for one in factored]
    return A_WEIGHT * whole, [(A_WEIGHT * size, "chain") for size in sizes]


class WholeClock:
    """Stands in for `time_calls`: seconds by name, others 1; runs each call and keeps names."""

    def __init__(self, seconds: Mapping[str, float]) -> None:
        self.seconds, self.asked = seconds, list[str]()

    def __call__(self, calls: Mapping[str, Callable[[], object]], **_: Any) -> Timings:
        self.asked = list(calls)
        for call in calls.values():
            call()
        return Timings({name: (self.seconds.get(name, 1.0),) * 3 for name in calls})


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> WholeClock:
    seconds = {"dense": 0.02, "factors 0": 0.019, "factors 4": 0.012, "int8": 2.0, "w8a8": 0.011}
    one = WholeClock(seconds)
    monkeypatch.setattr(_seconds, "times_of", layer_clock)
    monkeypatch.setattr(_whole, "time_calls", one)
    return one


def of(model: nn.Module, **more: Any) -> Frontier:
    given = {"shares": SHARES, "skip": [], "progress": False, "example": batches()[0], **more}
    return tensorlrf.frontier(model, batches(), **given)


def test_a_plan_promises_what_its_layers_save(clock: WholeClock) -> None:
    model = net()
    before = Snapshot(model)
    found = of(model, evaluations=2)
    before.check()
    assert clock.asked == ["dense", "factors 0", "factors 4", "int8", "w8a8"]
    assert found.points[0].latency == 0.02
    for point, plan in zip(found.factored, found.plans, strict=True):
        saved = sum(row.params - row.params_after for row in plan.factored)
        assert point.predicted_latency == pytest.approx(0.02 - A_WEIGHT * saved, rel=1e-6)
    assert [p.latency for p in found.factored] == [0.019, None, None, None, 0.012]
    assert [p.seconds for p in found.factored][0::4] == [0.019, 0.012]
    assert {p.kind: p.latency for p in found.points[6:]} == {
        "int8": 2.0, "int4": None, "w8a8": 0.011
    }  # fmt: skip


def test_the_table_says_where_rounding_is_faster(clock: WholeClock, tmp_path: Path) -> None:
    model = net()
    found = of(model, evaluate=Cosine(model), evaluations=5)
    text = str(found)
    assert "promised latency" in text
    assert "12 ms" in text
    assert "int4: torch does not run on it" in text
    beaten = found.beaten("w8a8", "latency")
    w8a8 = next(p for p in found.points if p.kind == "w8a8")
    assert beaten == tuple(p for p in found.factored if p.quality <= w8a8.quality)
    assert beaten
    assert "w8a8 alone is faster and no worse than the plans of share 0.9" in text
    assert found.beaten("int8", "latency") == ()
    assert "int8 alone is better than no plan as slow or slower" in text
    assert found.beaten("int4", "latency") == ()
    assert Frontier.from_json(found.to_json()) == found
    found.plot(tmp_path / "both.svg")
    one = tmp_path / "one.svg"
    plain = tensorlrf.frontier(model, batches(), shares=SHARES, skip=[], progress=False)
    plain.plot(one)
    assert one.read_text().count('<g id="axes_') == 1
    assert (tmp_path / "both.svg").read_text().count('<g id="axes_') == 2
    assert "latency" not in str(plain)
    with pytest.raises(ArgumentError, match="by='speed'"):
        found.beaten("int8", "speed")


def test_a_frontier_of_before_is_read(clock: WholeClock) -> None:
    values = json.loads(of(net(), shares=(0.5,)).to_json())
    for point in values["points"]:
        del point["predicted_latency"]
    assert all(p.predicted_latency is None for p in Frontier.from_json(json.dumps(values)).points)


class Net(nn.Module):
    """Convolutions, one of them in groups, and a layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(4, 16, 3, padding=1)
        self.groups = nn.Conv2d(16, 32, 3, padding=1, groups=2)
        self.twice = nn.Linear(32, 32)
        self.unused = nn.Linear(40, 48)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.groups(torch.relu(self.stem(x)))).mean((2, 3))
        y: Tensor = self.twice(torch.relu(self.twice(x)))
        return y


@pytest.mark.parametrize("method", ["svd", "tucker", "cp", "tt"])
def test_a_stand_in_has_the_sizes_and_paths_of_the_plan(clock: WholeClock, method: str) -> None:
    model = set_weights(Net())
    x = seeded32(6, 4, 9, 9)
    found = tensorlrf.frontier(
        model, [x, x + 1], shares=(0.5,), skip=[], method=method, example=x, progress=False
    )
    point = found.factored[0]
    assert point.latency == 0.019
    assert point.predicted_latency is not None
    assert found.prospect is not None
    whole = found.prospect.whole(_seconds.Sample(_batch(x), "example"))
    assert whole.times["unused"].dense == 0
    assert sum(count for _, count in whole.times["twice"].calls) == 2
    stand_in = whole.stand_in(found.plans[0].factored)
    small, _ = tensorlrf.apply(model, found.plans[0])
    for row in found.plans[0].factored:
        own, other = stand_in.get_submodule(row.name), small.get_submodule(row.name)
        assert isinstance(own, FactoredLayer)
        assert own.factors.rank == other.factors.rank  # type: ignore[union-attr]
        assert own.factors.n_params == other.factors.n_params <= row.params_after
    y = stand_in(x)
    assert y.shape == model(x).shape
    assert torch.isfinite(y).all()


def _batch(x: Tensor) -> Any:
    from tensorlrf.compression.calibration.batches import Batch

    return Batch.of(x)


def test_the_paths_are_those_that_were_the_fastest_alone(
    clock: WholeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(layer: nn.Module, factored: Sequence[FactoredLayer], x: Tensor, *, seconds: float):
        dense, times = layer_clock(layer, factored, x, seconds=seconds)
        return dense, [(t, "dense" if k == 0 else "chain") for k, (t, _) in enumerate(times)]

    monkeypatch.setattr(_seconds, "times_of", slow)
    model, x = net(), batches()[0]
    found = of(model, shares=(0.9, 0.1))
    assert found.prospect is not None
    whole = found.prospect.whole(_seconds.Sample(_batch(x), "example"))
    for plan in found.plans:
        stand_in = whole.stand_in(plan.factored)
        for row in plan.factored:
            layer = stand_in.get_submodule(row.name)
            assert isinstance(layer, FactoredLayer)
            times = whole.times[row.name].calls[0][0]
            assert isinstance(layer.path_table, PathTable)
            assert layer.path_table.lookup(len(x)) == times.path_at(row.params_after or 0)


# ---- rounded models that run -------------------------------------------------------------------


@pytest.mark.parametrize("quantiser", QUANTISERS, ids=lambda q: q.word)
def test_what_runs_on_integers_is_what_is_judged(quantiser: Quantiser) -> None:
    model = set_weights(Net())
    found = tensorlrf.frontier(
        model, [seeded32(6, 4, 9, 9)], shares=(0.5,), skip=[], progress=False
    )
    assert [p.kind for p in found.points[2:]] == list(ROUNDED)
    if not quantiser.runs:
        return
    assert found.prospect is not None
    judged = found.prospect.quantised(quantiser)
    size = found.prospect.quantised_size(quantiser)
    running = found.prospect.running(quantiser)
    x = seeded32(20, 4, 9, 9, seed=3)
    torch.testing.assert_close(running(x), judged(x), rtol=1e-5, atol=1e-6)
    wanted = model(x)
    assert (running(x) - wanted).norm() < 0.03 * wanted.norm()
    assert size.bytes < 0.4 * found.points[0].bytes
    # Few rows, which no product of integers takes, and rows of zeros.
    few = running(torch.cat([torch.zeros(1, 4, 9, 9), x[:2]]))
    torch.testing.assert_close(few[1:], running(x)[:2], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_products_of_integers_hold_in_every_dtype(dtype: torch.dtype) -> None:
    layer = nn.Linear(512, 24).to(dtype)
    with torch.no_grad():
        layer.weight.fill_(0.5)
    quantiser = next(q for q in QUANTISERS if q.activations)
    made = quantiser.layer(dense_layer_at(layer, "(model)"))
    x = seeded32(32, 512).abs().to(dtype)
    wanted = layer(x).float()
    assert ((made(x).float() - wanted).norm() < 0.02 * wanted.norm()).item()
    assert made.weight.dtype == dtype  # type: ignore[union-attr]


def test_convolutions_alone_have_no_products_of_integers() -> None:
    model = set_weights(nn.Sequential(nn.Conv2d(8, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3)))
    found = tensorlrf.frontier(
        model, [seeded32(2, 8, 9, 9)], shares=(0.5,), skip=[], progress=False
    )
    assert [p.kind for p in found.points] == ["dense", "factors", "int8", "int4"]


# ---- what cannot be ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"example": seeded32(3, 5)}, "example: the model cannot take batch 0"),
        ({"method": "auto"}, "example= looks at layers at their rank"),
    ],
)
def test_what_cannot_be_timed_is_refused(more: dict[str, Any], says: str) -> None:
    with pytest.raises(ArgumentError, match=says):
        of(net(), **more)
