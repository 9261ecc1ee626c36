"""Budgets of parameters, bytes, FLOPs and time: upper bounds, by every rule, told as they are."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tensorlrf import Allocation, Plan, apply, compress, compress_, plan
from tensorlrf.compression import Latency, Report
from tensorlrf.compression.plan.times import _seconds
from tensorlrf.compression.plan.times._seconds import CallTimes, LayerTimes
from tensorlrf.compression.plan.times._whole import Whole
from tensorlrf.compression.report._budget import shortfall
from tensorlrf.errors import ArgumentError
from tensorlrf.nn import FactoredLayer
from tensorlrf.ops import Timings
from tests.compression.networks import set_weights
from tests.draws import seeded32

pytestmark = pytest.mark.filterwarnings("ignore:calibration is thin")

RULES = ("uniform", "energy", "fisher", "measured", "auto")


class Net(nn.Module):
    """Convolutions with groups and with a stride, a layer that is called twice, one that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(4, 16, 3, padding=1)
        self.wide = nn.Conv2d(16, 32, 3, stride=2, bias=False)
        self.groups = nn.Conv2d(32, 32, 3, padding=1, groups=2)
        self.twice = nn.Linear(32, 32)
        self.head = nn.Linear(32, 24)
        self.unused = nn.Linear(40, 48)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.wide(torch.relu(self.stem(x))))
        x = torch.relu(self.groups(x)).mean((2, 3))
        y: Tensor = self.head(self.twice(torch.relu(self.twice(x))))
        return y


def net() -> nn.Module:
    return set_weights(Net())


def data(n: int = 3) -> list[Tensor]:
    return [seeded32(6, 4, 9, 9, seed=k) for k in range(n)]


def dense_flops(model: nn.Module, x: Tensor) -> dict[str, int]:
    """2 x multiply-adds of every layer, told by its outputs."""
    found: dict[str, int] = {}
    handles = [
        module.register_forward_hook(
            lambda m, _, y, name=name: found.__setitem__(
                name, found.get(name, 0) + 2 * y.numel() * m.weight[0].numel()
            )
        )
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d))
    ]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("share", [0.35, pytest.param(0.7, marks=pytest.mark.slow)])
def test_flops_are_those_of_the_first_batch(rule: str, share: float) -> None:
    model, batches = net(), data()
    made = plan(model, keep_flops=share, skip=[], calibration=batches, allocation=rule)
    small, report = apply(model, made, calibration=batches)
    whole = dense_flops(model, batches[0])
    after = sum(
        row.flops_after if row.flops_after is not None else whole.get(row.name, 0)
        for row in report.layers
    )
    assert made.allotment.dense_cost == sum(whole.values())
    assert made.allotment.cost == after <= share * sum(whole.values())
    assert after > 0.5 * share * sum(whole.values())  # the budget is used
    assert any(isinstance(m, FactoredLayer) for m in small.modules())
    # What the batch does not reach stays, and says so.
    assert made.layer("unused").reason == "the batch that costs are counted on does not reach it"
    assert "FLOPs as planned" in str(made)
    assert "FLOPs as planned" in str(report)
    assert f"keep_flops {share:g}" in str(made)


def test_an_example_comes_before_the_calibration() -> None:
    model, x = net(), seeded32(2, 4, 13, 13)
    for more in ({}, {"calibration": data()}):
        made = plan(model, keep_flops=0.5, skip=[], example=x, **more)  # type: ignore[arg-type]
        assert made.allotment.dense_cost == sum(dense_flops(model, x).values())


@pytest.mark.parametrize("rule", ["uniform", "energy"])
@pytest.mark.parametrize("method", ["svd", "tucker", "cp", "auto", "tt"])
def test_bytes_are_those_that_are_stored(rule: str, method: str) -> None:
    """Of layers in two dtypes, so that they are no share of the parameters."""
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 96).bfloat16(), nn.Conv2d(16, 16, 3))
    set_weights(model)
    made = plan(model, keep_bytes=0.5, skip=[], method=method, allocation=rule)
    _, report = apply(model, made)
    assert report.eligible.bytes_before == made.allotment.dense_cost
    assert report.eligible.bytes_after <= 0.5 * report.eligible.bytes_before
    assert report.keep_bytes == 0.5
    assert Report.from_json(report.to_json()) == report


def clock(layer: nn.Module, factored: Sequence[FactoredLayer], x: Tensor, *, seconds: float) -> Any:
    """Seconds that follow from the sizes, with a call of its own and noise that does not rise."""
    assert seconds > 0
    params = [one.factors.n_params for one in factored]
    assert params == sorted(params)
    dense = math.prod(layer.weight.shape)  # type: ignore[union-attr]
    rows = x.shape[0]
    noise = [0.97 if k % 2 else 1.03 for k in range(len(params))]
    with torch.no_grad():
        for one in factored:
            one(x)
    times = [rows * 1e-9 * (p + 40) * e for p, e in zip(params, noise, strict=True)]
    return rows * 1e-9 * dense, [(seconds, "chain") for seconds in times]


def pass_of(
    model: nn.Module, *, rest: float = 0.0, heat: float = 1.0
) -> Callable[[Whole, Mapping[str, nn.Module]], Timings]:
    """Stands in for `Whole.in_turn`: a pass takes what layers do by `clock`, factors `heat` times
    that, and `rest`."""

    def seconds_of(layer: nn.Module) -> float:
        if isinstance(layer, FactoredLayer):
            return heat * 6e-9 * (layer.factors.n_params + 40)
        weight = getattr(layer, "weight", None)
        return 0.0 if weight is None else 6e-9 * weight.numel()

    def in_turn(whole: Whole, models: Mapping[str, nn.Module]) -> Timings:
        found = {}
        for name, one in {"dense": model, **models}.items():
            layers = dict(one.named_modules())
            calls = {name: sum(n for _, n in times.calls) for name, times in whole.times.items()}
            found[name] = (rest + sum(n * seconds_of(layers[k]) for k, n in calls.items()),) * 3
        return Timings(found)

    return in_turn


@pytest.mark.parametrize("rule", RULES)
def test_times_are_those_of_a_clock(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batches = net(), data()
    monkeypatch.setattr(_seconds, "times_of", clock)
    monkeypatch.setattr(Whole, "in_turn", pass_of(model, rest=1e-5))
    made = plan(model, keep_latency=0.75, skip=[], calibration=batches, allocation=rule)
    allotment = made.allotment
    assert allotment.dense_cost is not None
    assert allotment.cost is not None
    # Six rows a call, and the layer that is called twice counts twice.
    weights = {name: m.weight.numel() for name, m in model.named_modules() if hasattr(m, "weight")}
    reached = sum(n for name, n in weights.items() if name != "unused") + weights["twice"]
    assert allotment.dense_cost == pytest.approx(6e-9 * reached + 1e-5)
    assert 0.5 * allotment.dense_cost < allotment.cost <= 0.75 * allotment.dense_cost
    # The clock of layers is off by 3%.
    assert allotment.promised_cost == pytest.approx(allotment.cost, rel=0.05)
    assert "time of the whole model" in str(made)
    assert Plan.from_json(made.to_json()) == made


@given(st.floats(0, 3), st.floats(0.5, 2.5), st.floats(0.4, 1))
@settings(
    max_examples=12, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
def test_the_whole_model_keeps_the_budget(
    monkeypatch: pytest.MonkeyPatch, rest: float, heat: float, keep: float
) -> None:
    """Whatever lies beside the layers, and however much hotter they were timed alone: what is told
    is what the whole model takes, within the budget where any ranks are."""
    model = set_weights(nn.Sequential(*(nn.Linear(64, 64) for _ in range(2)), nn.Linear(64, 48)))
    layers = 6e-9 * sum(p.numel() for p in model.parameters() if p.ndim > 1)
    in_turn = pass_of(model, rest=rest * layers, heat=heat)
    monkeypatch.setattr(_seconds, "times_of", clock)
    monkeypatch.setattr(Whole, "in_turn", in_turn)
    x = torch.zeros(6, 64)
    promised, least = (
        (rest * layers + h * 6e-9 * 3 * (64 * 2 + 40)) / ((1 + rest) * layers) for h in (1, heat)
    )
    assume(keep > 1.1 * promised)  # else layers promise no way, which is an error
    made = plan(model, keep_latency=keep, skip=[], example=x)
    allotment = made.allotment
    whole = Whole(model, _seconds.Sample(_seconds.Batch.of(x), "example"), _times(model))
    ratio, dense = whole.ratio(made.factored)
    assert allotment.dense_cost == pytest.approx(dense) == pytest.approx((1 + rest) * layers)
    assert allotment.cost == pytest.approx(ratio * dense)
    assert 0 <= allotment.corrections <= 3
    if keep > 1.2 * least:
        assert ratio <= keep
        assert ratio >= min(keep, 0.8) - 0.2 or heat < 1


def _times(model: nn.Module) -> dict[str, LayerTimes]:
    one = CallTimes(8, 0.0, (1.0,), (0.0,), ("chain",))
    return {name: LayerTimes(((one, 1),)) for name, _ in model.named_children()}


def test_what_no_ranks_keep_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers that promise half, in a model where factors take twice as long."""
    model = set_weights(nn.Sequential(*(nn.Linear(64, 64) for _ in range(4))))
    monkeypatch.setattr(_seconds, "times_of", clock)
    monkeypatch.setattr(Whole, "in_turn", pass_of(model, heat=12.0))
    made = plan(model, keep_latency=0.4, skip=[], example=torch.zeros(6, 64))
    allotment = made.allotment
    assert allotment.cost > 0.4 * allotment.dense_cost
    assert allotment.promised_cost <= 0.41 * allotment.dense_cost
    late = Latency(1.0, 0.8)
    _, report = apply(model, made)
    told = replace(report, latency=late)
    assert "80.0% of at most 40.0% asked for" in str(told)
    assert "keep_latency=0.4 was asked for, but the model takes 80.0%" in shortfall(told)
    assert not shortfall(replace(report, latency=Latency(1.0, 0.41)))


def test_what_is_alike_is_timed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def counted(layer: nn.Module, factored: Any, x: Tensor, *, seconds: float) -> Any:
        asked.append(len(factored))
        return clock(layer, factored, x, seconds=seconds)

    monkeypatch.setattr(_seconds, "times_of", counted)
    model = set_weights(nn.Sequential(*(nn.Linear(64, 64) for _ in range(5)), nn.Linear(64, 48)))
    monkeypatch.setattr(Whole, "in_turn", pass_of(model))
    plan(model, keep_latency=0.6, skip=[], example=torch.zeros(4, 64))
    assert len(asked) == 2
    assert max(asked) <= _seconds.TIMED


def test_monotone_is_the_nearest_that_does_not_fall() -> None:
    assert _seconds.monotone([1.0, 3.0, 2.0, 2.5, 4.0]) == [1.0, 2.5, 2.5, 2.5, 4.0]
    assert _seconds.monotone([3.0, 2.0, 1.0]) == [2.0, 2.0, 2.0]
    assert _seconds.monotone([1.0, 2.0]) == [1.0, 2.0]
    assert _seconds.spread(3, 5) == [0, 1, 2]
    assert _seconds.spread(100, 5)[0::4] == [0, 99]
    assert [_seconds.between([1, 3], [10, 20], at) for at in (0, 1, 2, 3, 9)] == [
        10,
        10,
        15,
        20,
        20,
    ]


@pytest.mark.parametrize("word", ["keep_params", "keep_bytes", "keep_flops"])
@pytest.mark.parametrize("rule", RULES)
def test_plans_and_reports_tell_how_ranks_came_about(word: str, rule: str) -> None:
    model, batches = net(), data()
    budget: dict[str, Any] = {word: 0.6}
    made = plan(model, calibration=batches, skip=["unused"], allocation=rule, **budget)
    small, report = compress(
        model, calibration=batches, skip=["unused"], allocation=rule, progress=False, **budget
    )
    assert report.allotment == made.allotment
    assert report.budgets == made.budgets
    assert made.budgets[word] == 0.6
    assert [b for b in made.budgets.values() if b is not None] == [0.6]
    assert Plan.from_json(made.to_json()) == made
    assert Report.from_json(report.to_json()) == report
    allotment = made.allotment
    assert allotment.rule == rule or rule == "auto"
    if rule == "uniform":
        assert (allotment.unit, allotment.predicted_loss) == ("", None)
        assert not allotment.words
    else:
        assert allotment.predicted_loss is not None
        assert allotment.predicted_loss >= 0
        assert allotment.unit
        assert f"ranks by {allotment.rule}" in str(made)
        assert f"ranks by {allotment.rule}" in str(report)
    if rule == "auto":
        assert {c.rule for c in allotment.candidates} == {"measured", "uniform"}
        held = {c.rule: c.loss for c in allotment.candidates}
        assert held[allotment.rule] == min(loss for loss in held.values() if loss is not None)
        assert "on inputs held out" in str(report)
    other = net()
    again = compress_(
        other, calibration=batches, skip=["unused"], allocation=rule, progress=False, **budget
    )
    assert again == report
    for a, b in zip(small.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_report_of_before_is_read_as_uniform() -> None:
    _, report = compress(net(), keep_params=0.5, progress=False)
    values = json.loads(report.to_json())
    for later in ("keep_bytes", "keep_flops", "keep_latency", "allotment"):
        del values[later]
    assert Report.from_json(json.dumps(values)) == report


def test_conditions_on_ranks_hold_for_uniform_ones_too() -> None:
    model = set_weights(nn.Sequential(nn.Linear(96, 96), nn.Linear(96, 64), nn.Linear(64, 96)))
    conditions = Allocation(rule="uniform", multiple=16, together=("[12]",))
    for share in (0.45, 0.6, 0.75):
        made = plan(model, keep_params=share, skip=[], allocation=conditions)
        ranks = [layer.rank for layer in made.layers]
        assert ranks[1] == ranks[2]
        assert all(isinstance(rank, int) and rank % 16 == 0 for rank in ranks)
    least = Allocation(rule="uniform", least_share=0.5)
    made = plan(model, keep_params=0.6, skip=[], allocation=least)
    assert all(
        layer.params_after is not None and layer.params_after >= 0.5 * layer.params
        for layer in made.layers
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"keep_bytes": 0}, r"keep_bytes=0 must be a share in \(0, 1\].* layers' bytes"),
        ({"keep_flops": "half"}, "keep_flops='half' must be a share"),
        ({"keep_latency": 2}, "keep_latency=2 must be a share .* model's time"),
        ({"keep_bytes": True}, "keep_bytes=True must be a share"),
        ({"keep_flops": math.nan}, "keep_flops=nan must be a share"),
        ({"keep_bytes": 0.5, "keep_params": 0.5}, "keep_params=0.5 and keep_bytes=0.5 are two"),
        ({"keep_flops": 0.5, "error": 0.5}, "keep_flops=0.5 and error=0.5 are two budgets"),
        ({"keep_flops": 0.5}, "keep_flops= depends on what the layers are called with; give"),
        ({"keep_latency": 0.5}, "keep_latency= depends on what the layers are called with"),
        ({"keep_bytes": 0.001}, "keep_bytes=0.001 leaves .* bytes, .* is the least they can do"),
        (
            {"keep_flops": 0.5, "example": torch.zeros(2, 4, 9, 9), "method": "auto"},
            "the sizes of stem as auto are decided by the fit",
        ),
        (
            {"keep_latency": 0.5, "example": torch.zeros(2, 4, 9, 9), "method": "auto"},
            "the sizes of stem as auto are decided by the fit",
        ),
        (
            {"keep_flops": 0.5, "example": torch.zeros(2, 3, 9, 9)},
            "example: the model cannot take batch 0",
        ),
        (
            {"keep_flops": 0.5, "calibration": [torch.zeros(2, 3, 9, 9)]},
            "calibration: the model cannot take batch 0",
        ),
        (
            {"keep_flops": 0.5, "example": torch.zeros(2, 4, 9, 9), "method": {"unused": "svd"}},
            "example: the batch takes the model through none of the layers",
        ),
        ({"keep_params": 0.5, "allocation": "fisher"}, "the rule 'fisher' looks at inputs; give"),
        ({"keep_params": 0.5, "allocation": "greed"}, "allocation='greed' is unknown"),
        ({"keep_params": 0.5, "allocation": 3}, "allocation is a int; pass one of auto"),
        ({"keep_params": 0.5, "holdout": 2, "calibration": data()}, "holdout=2 must be a share"),
    ],
)
def test_what_cannot_be(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        plan(net(), **options)
