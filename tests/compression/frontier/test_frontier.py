"""The frontier as a value: what it says of each size, and how it is kept."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tensorlrf
from tensorlrf import Frontier
from tensorlrf.compression.frontier._quantised import QUANTISERS, Quantiser
from tensorlrf.errors import ArgumentError, FileFormatError
from tests.compression.networks import Snapshot, set_weights
from tests.draws import seeded32

SHARES = (0.9, 0.7, 0.5, 0.3, 0.15)
ROUNDED = ("int8", "int4", "w8a8")


def net() -> nn.Module:
    return set_weights(
        nn.Sequential(nn.Linear(24, 48), nn.GELU(), nn.Linear(48, 48), nn.GELU(), nn.Linear(48, 24))
    )


def batches(n: int = 5) -> list[Tensor]:
    mixing = seeded32(24, 24, seed=99) * torch.linspace(0.1, 1, 24)
    return [seeded32(32, 24, seed=k) @ mixing for k in range(n)]


class Cosine:
    """Of each input the cosine to the outputs of the given model; counts calls."""

    def __init__(self, model: nn.Module) -> None:
        self.x = batches(6)[-1]
        self.wanted = model(self.x).detach()
        self.calls = 0

    def __call__(self, model: nn.Module) -> Tensor:
        self.calls += 1
        return nn.functional.cosine_similarity(model(self.x), self.wanted)


def of(model: nn.Module, **more: Any) -> Frontier:
    given = {"shares": SHARES, "skip": [], "progress": False, **more}
    return tensorlrf.frontier(model, batches(), **given)


@pytest.mark.parametrize("allocation", ["fisher", "measured", "energy", "uniform", "auto"])
def test_less_is_worth_no_more(allocation: str) -> None:
    model = net()
    before = Snapshot(model)
    found = of(model, allocation=allocation)
    before.check()
    points = found.factored
    assert [point.share for point in points] == list(SHARES)
    for one, other in pairwise(points):
        assert other.params <= one.params < found.points[0].params
        assert other.bytes == 4 * other.params
    # Predictions rise; those of a knapsack to its tolerance, those that "auto" takes from two rules
    # each by its own.
    if allocation != "auto":
        for one, other in pairwise(points):
            assert one.predicted is not None
            assert other.predicted is not None
            assert other.predicted >= one.predicted * (1 - 1e-3)
    losses = [point.loss for point in points]
    assert all(loss is not None and loss >= 0 for loss in losses)
    assert losses[-1] > losses[0]


def test_sizes_are_those_of_the_models_that_plans_make() -> None:
    model = net()
    found = of(model)
    for point, plan in zip(found.factored, found.plans, strict=True):
        _, report = tensorlrf.apply(model, plan)
        assert report.model.params_after == point.params
        assert report.model.bytes_after == point.bytes
        assert report.eligible.share <= point.share


def test_auto_is_the_better_of_two() -> None:
    model = net()
    both = [of(model, allocation=rule).factored for rule in ("fisher", "uniform")]
    for auto, fisher, uniform in zip(of(model).factored, *both, strict=True):
        assert auto.loss == pytest.approx(min(fisher.loss, uniform.loss))


def test_the_metric_judges_so_many_plans_and_the_rounded_models() -> None:
    model = net()
    metric = Cosine(model)
    found = of(model, evaluate=metric, evaluations=3)
    judged = [point.share for point in found.factored if point.quality is not None]
    assert judged == [0.9, 0.5, 0.15]
    assert metric.calls == 2 + 3 + 3
    assert found.noise == 0.0
    for point in found.points[1:]:
        if point.quality is not None:
            assert point.drop == pytest.approx(found.points[0].quality - point.quality)
            assert point.bound >= point.drop
    assert [p.kind for p in found.points] == ["dense", *["factors"] * 5, *ROUNDED]


def test_rounding_is_told_where_it_is_better() -> None:
    model = net()
    found = of(model, evaluate=Cosine(model), evaluations=5)
    whole, int8 = found.points[0], found.points[-len(ROUNDED)]
    assert int8.bytes < 0.4 * whole.bytes
    assert int8.quality > 0.99
    beaten = found.beaten("int8")
    assert beaten
    for point in found.factored:
        better = point.bytes >= int8.bytes and point.quality <= int8.quality
        assert (point in beaten) == better
    assert "int8 alone is smaller and no worse than the plans of share 0.9" in str(found)
    with pytest.raises(ArgumentError, match="int3"):
        found.beaten("int3")


@pytest.mark.parametrize("quantiser", QUANTISERS, ids=lambda q: q.word)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounded_weights_are_those_of_integers_and_scales(
    quantiser: Quantiser, dtype: torch.dtype
) -> None:
    weight = seeded32(6, 300).to(dtype)
    rounded = quantiser.rounded(weight)
    assert rounded.dtype == dtype
    most = 2 ** (quantiser.bits - 1)
    size = quantiser.group or 300
    for part, own in zip(
        weight.float().split(size, 1), rounded.float().split(size, 1), strict=True
    ):
        largest = part.abs().amax(1)
        step = largest / (most - 1) * (1 + 2**-7)
        slack = largest * torch.finfo(dtype).eps
        assert ((part - own).abs().amax(1) <= 0.5 * step + slack).all()
        assert all(len(row.unique()) <= 2 * most for row in own)
    groups = 1 if quantiser.group is None else 3
    assert quantiser.n_bytes(weight) == 6 * 300 * quantiser.bits // 8 + 6 * groups * 2
    zero = torch.zeros(3, 5)
    assert torch.equal(quantiser.rounded(zero), zero)


def test_the_plan_of_a_share_is_the_largest_within_it() -> None:
    found = of(net())
    assert found.plan(0.7) == found.plans[1]
    assert found.plan(0.69) == found.plans[2]
    assert found.plan(1.0) == found.plans[0]
    with pytest.raises(ArgumentError, match=r"share=0.1: there are plans for 0.9, 0.7"):
        found.plan(0.1)


def test_it_is_json_and_a_table_and_a_picture(tmp_path: Path) -> None:
    model = net()
    found = of(model, evaluate=Cosine(model))
    assert Frontier.from_json(found.to_json()) == found
    assert json.loads(found.to_json())["version"] == 1
    assert found.to_markdown().count("\n| factors") == 5
    found.plot(tmp_path / "frontier.png")
    assert (tmp_path / "frontier.png").stat().st_size > 10_000
    of(model).plot(tmp_path / "losses.svg")


@pytest.mark.parametrize(
    "change",
    [
        {"version": 9},
        {"unit": 3},
        {"noise": "none"},
        {"plans": []},
        {"points": [{"kind": "factors"}]},
        {"more": 1},
        {"sensitivity": {}},
    ],
)
def test_what_is_no_frontier_is_refused(change: dict[str, Any]) -> None:
    values = json.loads(of(net(), shares=(0.5,)).to_json()) | change
    with pytest.raises(FileFormatError):
        Frontier.from_json(json.dumps(values))
    with pytest.raises(FileFormatError):
        Frontier.from_json("[" * 10**5)


def test_a_sensitivity_that_is_there_is_taken() -> None:
    model = net()
    known = tensorlrf.sensitivity(model, batches(), rule="fisher", skip=[], progress=False)
    found = of(model, sensitivity=known)
    assert found.sensitivity is known
    assert found.plans == of(model, allocation="fisher").plans
    with pytest.raises(ArgumentError, match="architecture"):
        tensorlrf.frontier(nn.Linear(40, 40), [seeded32(9, 40)], sensitivity=known, skip=[])


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"shares": ()}, "shares"),
        ({"shares": (0.5, 1.5)}, "shares"),
        ({"shares": "all"}, "shares"),
        ({"evaluations": 0}, "evaluations=0"),
        ({"evaluate": "f1"}, "evaluate is a str"),
        ({"evaluate": lambda model: None}, "evaluate returns a NoneType"),
        ({"allocation": "best"}, "allocation"),
        ({"shares": (0.5, 0.0001)}, "keep_params=0.0001|share of 0.0001"),
        ({"skip": ["*"]}, "no eligible layer"),
    ],
)
def test_what_cannot_be_is_refused(more: dict[str, Any], says: str) -> None:
    with pytest.raises(ArgumentError, match=says):
        of(net(), **more)


def test_it_needs_inputs() -> None:
    with pytest.raises(ArgumentError, match="calibration=None"):
        tensorlrf.frontier(net(), None)
