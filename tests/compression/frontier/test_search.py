"""The search for the smallest model: near the best with few evaluations, and what it refuses."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import tensorlrf
from tensorlrf.compression.frontier._judge import Drop
from tensorlrf.compression.frontier._search import Bracket, ladder
from tensorlrf.errors import ArgumentError
from tests.compression.frontier.test_frontier import batches, net
from tests.draws import seeded32


def test_the_ladder_falls_by_even_parts() -> None:
    shares = ladder()
    assert shares[0] < 1
    assert 0.025 < shares[-1] < 0.04
    assert np.allclose(np.array(shares[1:]) / np.array(shares[:-1]), shares[1] / shares[0])


@given(
    st.floats(0.3, 3), st.floats(0.2, 3), st.floats(-6, 1), st.floats(0.03, 0.95),
    st.floats(0, 0.2), st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=150, deadline=None, derandomize=True)
def test_planted_curves_are_found_in_five_evaluations(
    power: float, fall: float, height: float, place: float, wobble: float, seed: int
) -> None:
    """Of drops that are a power of the predicted loss, each a little off: what is found passes, and
    with drops that rise it is within 5% of the smallest share that does."""
    shares = np.array(ladder())
    predicted = (1 / shares - 1) ** fall
    off = np.exp(wobble * np.random.default_rng(seed).uniform(-1, 1, len(shares)))
    drops = np.maximum.accumulate(10**height * predicted**power * off)
    limit = float(drops[int(place * len(shares))]) * 1.000001
    bracket = Bracket(limit, lambda rung: float(predicted[rung]), len(shares))
    bracket.note(0, Drop(0, drops[0], drops[0]))
    count = 0
    while not bracket.done and count < 5:
        rung = bracket.next()
        assert bracket.passes < rung < bracket.fails
        bracket.note(rung, Drop(0, drops[rung], drops[rung]))
        count += 1
    best = int((drops <= limit).sum()) - 1
    assert drops[bracket.passes] <= limit
    assert shares[bracket.passes] <= shares[best] * (1.05 + 2 * wobble)


@given(st.lists(st.floats(0, 1), min_size=40, max_size=40), st.floats(0.05, 1))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_any_rising_curve_is_bracketed(steps: list[float], part: float) -> None:
    """Flat, steep or in jumps, the bracket never loses the place where the limit is."""
    drops = np.cumsum(steps)
    limit = part * float(drops[-1])
    bracket = Bracket(limit, lambda rung: float(drops[rung] ** 2), 40)
    for _ in range(40):
        if bracket.done:
            break
        rung = bracket.next()
        assert bracket.passes < rung < bracket.fails
        bracket.note(rung, Drop(0, drops[rung], drops[rung]))
    assert bracket.done
    assert bracket.passes == int((drops <= limit).sum()) - 1


# ---- on a model ----------------------------------------------------------------------------------


class Metric:
    """Of n inputs the cosine to the outputs of the given model, with noise; counts calls."""

    def __init__(
        self, model: nn.Module, *, seed: int = 7, n: int = 60, noise: float = 0.0, groups: int = 0
    ) -> None:
        self.x = seeded32(n, 24, seed=seed) @ (
            seeded32(24, 24, seed=99) * torch.linspace(0.1, 1, 24)
        )
        self.wanted = model(self.x).detach()
        self.draws = np.random.default_rng(seed)
        self.noise, self.groups, self.calls = noise, groups, 0

    @torch.no_grad()
    def __call__(self, model: nn.Module) -> Any:
        self.calls += 1
        scores = nn.functional.cosine_similarity(model(self.x), self.wanted)
        if self.noise:
            return float(scores.mean()) + self.noise * self.draws.standard_normal()
        if self.groups:
            return scores, [k % self.groups for k in range(len(scores))]
        return scores


def compressed(model: nn.Module, **more: Any) -> tuple[nn.Module, tensorlrf.Report]:
    given = {"calibration": batches(8), "skip": [], "progress": False, "allocation": "fisher"}
    return tensorlrf.compress(model, **{**given, **more})


@pytest.mark.parametrize("max_drop", [0.01, 0.05, 0.3])
def test_the_drop_holds_with_few_evaluations(max_drop: float) -> None:
    model = net()
    search, confirm = Metric(model), Metric(model, seed=8)
    small, report = compressed(model, max_drop=max_drop, evaluate=(search, confirm))
    quality = report.quality
    assert quality is not None
    assert search.calls == quality.evaluations <= 8
    assert quality.drop <= quality.bound <= max_drop
    assert quality.confirmed_drop is not None
    assert quality.confirmed_drop <= quality.confirmed_bound <= max_drop
    unseen = Metric(model, seed=9, n=400)
    assert float(1 - unseen(small).mean()) <= max_drop
    assert report.keep_params is not None
    assert report.eligible.share <= report.keep_params < 1


def test_it_is_nearly_the_smallest_of_a_grid() -> None:
    model = net()
    metric = Metric(model)
    _, report = compressed(model, max_drop=0.05, evaluate=metric)
    passing = []
    for share in np.arange(0.2, 0.45, 0.05):
        _, other = compressed(model, keep_params=float(share), evaluate=Metric(model))
        assert other.quality is not None
        if other.quality.bound <= 0.05:
            passing.append(other.eligible.share)
    # Ranks of small layers are coarse: a step of the grid beside the goal.
    assert report.eligible.share <= min(passing) * 1.05 + 0.05


def test_what_is_repeated_tells_no_more() -> None:
    """Ten copies of an input with the same label are one."""
    model = net()
    bounds = []
    for groups in (0, 12):
        metric = Metric(model, n=12, groups=groups)
        metric.x, metric.wanted = metric.x.repeat(10, 1), metric.wanted.repeat(10, 1)
        report = compressed(model, keep_params=0.4, evaluate=metric)[1]
        bounds.append(report.quality.bound - report.quality.drop)
    assert report.quality.groups == 12
    assert bounds[1] > 2 * bounds[0]


def test_noise_is_reported_and_what_is_below_it_is_refused() -> None:
    model = net()
    _, report = compressed(model, max_drop=0.5, evaluate=Metric(model, noise=0.01))
    assert report.quality.noise > 0
    assert report.quality.resolution >= report.quality.noise
    assert "not deterministic" in str(report)
    with pytest.raises(ArgumentError, match=r"max_drop=1e-05 is below \d.*two calls of evaluate"):
        compressed(model, max_drop=1e-5, evaluate=Metric(model, noise=0.01))


def test_a_drop_that_examples_cannot_tell_is_refused() -> None:
    model = net()
    x = batches(2)[-1]
    wanted = model(x).argmax(1)

    def same(small: nn.Module) -> torch.Tensor:
        return (small(x).argmax(1) == wanted).double()

    with pytest.raises(ArgumentError, match=r"max_drop=0.01 is below 0.1\d+.*32 examples in 32"):
        compressed(model, max_drop=0.01, evaluate=same)


def test_the_closest_is_named_where_none_will_do() -> None:
    model = net()
    metric = Metric(model)

    def strict(small: nn.Module) -> float:
        return 1.0 if float((small(metric.x) - metric.wanted).abs().max()) < 1e-6 else 0.0

    says = r"max_drop=0.5: no plan falls by no more than that; the closest, keep_params=0.975, .* 1"
    with pytest.raises(ArgumentError, match=says):
        compressed(model, max_drop=0.5, evaluate=strict)


def test_data_that_do_not_confirm_step_back_or_refuse() -> None:
    model = net()
    metric, harder = Metric(model), Metric(model, seed=8)

    def twice(small: nn.Module) -> torch.Tensor:
        return 1 - 3 * (1 - harder(small))

    alone = compressed(model, max_drop=0.05, evaluate=metric)[1]
    small, report = compressed(model, max_drop=0.05, evaluate=(Metric(model), twice))
    assert report.quality.confirmed_bound <= 0.05
    assert report.eligible.share >= alone.eligible.share
    assert float(1 - twice(small).mean()) <= 0.05

    calls = []

    def never(small: nn.Module) -> torch.Tensor:
        calls.append(small)
        return torch.full((60,), 1.0 if len(calls) <= 3 else 0.0) - 1e-4 * harder(small)

    with pytest.raises(ArgumentError, match="no confirmed plan falls by no more"):
        compressed(model, max_drop=0.05, evaluate=(Metric(model), never))


def test_a_plan_alone_is_found_by_cheap_models() -> None:
    model = net()
    metric = Metric(model)
    made = tensorlrf.plan(
        model, max_drop=0.05, evaluate=metric, calibration=batches(8), skip=[], progress=False
    )
    assert metric.calls <= 8
    small, _ = tensorlrf.apply(model, made, calibration=batches(8), progress=False)
    assert float(1 - metric(small)[0:60].mean()) <= 0.1
    assert made.keep_params is not None


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"max_drop": 0.1}, "max_drop=0.1 needs evaluate="),
        ({"max_drop": 0.0, "evaluate": len}, "max_drop=0.0 must be above 0"),
        ({"max_drop": math.nan, "evaluate": len}, "max_drop=nan must be above 0"),
        ({"max_drop": "5%", "evaluate": len}, "max_drop='5%'"),
        ({"max_drop": 0.1, "evaluate": len, "keep_params": 0.5}, "two budgets"),
        ({"max_drop": 0.1, "evaluate": len, "calibration": None}, "needs calibration="),
        ({"max_drop": 0.1, "evaluate": "f1"}, "evaluate is a str"),
        ({"max_drop": 0.1, "evaluate": lambda model: 1 / 0}, "ZeroDivisionError"),
        ({"max_drop": 0.1, "evaluate": lambda model: math.nan}, "returns NaN"),
        ({"keep_params": 0.5, "evaluate": lambda model: "good"}, "returns a str"),
    ],
)
def test_what_cannot_be_is_refused(more: dict[str, Any], says: str) -> None:
    with pytest.raises(ArgumentError, match=says):
        compressed(net(), **more)
