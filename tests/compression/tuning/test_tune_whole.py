"""What the layers chose alone is tried in the whole model, and holds only where it wins there."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tensorlrf.compression import BucketTiming
from tensorlrf.compression.tuning._tune import tune
from tensorlrf.compression.tuning._whole import MARGINS, choices_of
from tensorlrf.nn import FactoredLinear
from tests.compression.tuning.tuned import (
    CHAIN,
    DENSE,
    WHOLE,
    State,
    factored,
    linear,
    set_clock,
    set_whole_clock,
)
from tests.draws import seeded32

SLIGHT = {"torch": 1.2, "dense": 1.3, "chain": 1.0}
"""A layer that gains a fifth, by torch's own layer, which is the faster dense one."""


def three() -> nn.Sequential:
    return nn.Sequential(linear(), linear(), linear())


def paths(model: nn.Module, rows: int = 4) -> list[str]:
    return [layer.path_table.lookup(rows) for layer in factored(model)]


@pytest.mark.parametrize(
    ("fastest", "expected"),
    [
        ("fastest alone", ["chain", "chain", "dense"]),
        ("gain > 30%", ["chain", "dense", "dense"]),
        ("all dense", ["dense", "dense", "dense"]),
    ],
)
def test_the_fastest_choice_in_the_whole_model_is_kept(
    fastest: str, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = three()
    set_clock(monkeypatch, CHAIN, SLIGHT, DENSE)
    clock = set_whole_clock(monkeypatch, {**WHOLE, fastest: 0.5})
    tuning = tune(model, seeded32(4, 16), seconds=0.25)
    assert paths(model) == expected
    assert [layer.timings[0].chosen for layer in tuning.layers] == expected
    assert all(layer.measured == {layer.device_key: layer.path_table} for layer in factored(model))
    assert tuning.whole is not None
    assert tuning.whole.chosen == fastest
    # Of the margins, 10% changes nothing here and is not measured.
    assert set(tuning.whole.seconds) == {"fastest alone", "gain > 30%", "all dense"}
    assert tuning.whole.ratio == (4.0 if fastest != "all dense" else 0.5) / 0.5
    assert clock.seconds == ([2.5] if fastest == "all dense" else [2.5, 1.25])
    assert f"kept: {fastest}" in str(tuning)
    assert json.loads(tuning.to_json())["whole"]["chosen"] == fastest


def test_every_choice_runs_on_its_own_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    model = three()
    taken: list[list[str]] = []
    model.register_forward_hook(lambda ran, *_: taken.append(paths(ran)))
    set_clock(monkeypatch, CHAIN, SLIGHT, DENSE)
    clock = set_whole_clock(monkeypatch, WHOLE)
    x = seeded32(4, 16)
    before = model(x)
    tune(model, x)
    assert list(clock.outputs[0]) == ["fastest alone", "all dense", "gain > 30%"]
    assert list(clock.outputs[1]) == ["fastest alone", "all dense"]
    assert taken[-5:] == [
        ["chain", "chain", "dense"],
        ["dense", "dense", "dense"],
        ["chain", "dense", "dense"],
        # The fastest of them once more, in pairs.
        ["chain", "chain", "dense"],
        ["dense", "dense", "dense"],
    ]
    torch.testing.assert_close(model(x), before)
    # Of the dense weights none is left where the factors run.
    assert [layer.is_frozen for layer in factored(model)] == [False, False, True]


def test_a_tie_goes_to_the_factors(monkeypatch: pytest.MonkeyPatch) -> None:
    model = three()
    set_clock(monkeypatch, CHAIN)
    set_whole_clock(monkeypatch, {"fastest alone": 1.015, "all dense": 1.0})
    tuning = tune(model, seeded32(4, 16))
    assert tuning.whole is not None
    assert tuning.whole.chosen == "fastest alone"
    set_whole_clock(monkeypatch, {"fastest alone": 1.06, "all dense": 1.0})
    tuning = tune(model, seeded32(4, 16))
    assert tuning.whole is not None
    assert tuning.whole.chosen == "all dense"


def test_what_pairs_do_not_confirm_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model = three()
    set_clock(monkeypatch, CHAIN)
    lucky = {"fastest alone": 0.9, "all dense": 1.0}
    for ratio, kept in ((0.8, "fastest alone"), (1.015, "fastest alone"), (1.05, "all dense")):
        set_whole_clock(monkeypatch, lucky, {"fastest alone": ratio, "all dense": 1.0})
        tuning = tune(model, seeded32(4, 16))
        assert tuning.whole is not None
        assert tuning.whole.chosen == kept
        assert tuning.whole.pairs == ratio
        assert paths(model) == ["chain" if kept == "fastest alone" else "dense"] * 3
        assert f"{1 / ratio:.2f}x all dense in pairs" in str(tuning)
        assert json.loads(tuning.to_json())["whole"]["pairs"] == ratio


def test_latency_replaces_what_loses_in_the_whole_model(monkeypatch: pytest.MonkeyPatch) -> None:
    model = three()
    set_clock(monkeypatch, CHAIN, SLIGHT, CHAIN)
    set_whole_clock(monkeypatch, {**WHOLE, "gain > 30%": 0.5})
    tuning = tune(model, seeded32(4, 16), objective="latency")
    assert [type(layer) for layer in model] == [FactoredLinear, nn.Linear, FactoredLinear]
    assert tuning.replaced == ("1",)


def test_nothing_is_tried_where_all_are_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    model = three()
    set_clock(monkeypatch, DENSE)
    clock = set_whole_clock(monkeypatch, WHOLE)
    assert tune(model, seeded32(4, 16)).whole is None
    assert clock.outputs == []


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError("full")])
def test_an_interruption_leaves_the_model(
    error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = three().train()
    state = State(model)
    set_clock(monkeypatch, CHAIN)
    set_whole_clock(monkeypatch, error)
    with pytest.raises(type(error)):
        tune(model, seeded32(4, 16))
    assert State(model) == state


COURSES: list[tuple[int, bool]] = []


class Counting(nn.Module):
    """Takes a course by chance, and fills a list that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = linear()

    def forward(self, x: Tensor, cache: list[Tensor]) -> Tensor:
        cache.append(x)
        COURSES.append((len(cache), bool(torch.rand(()) < 0.5)))
        y: Tensor = self.layer(x)
        return y


def test_all_passes_take_the_same_course(monkeypatch: pytest.MonkeyPatch) -> None:
    COURSES.clear()
    set_clock(monkeypatch, CHAIN)
    tune(Counting(), (seeded32(4, 16), []))
    assert len(COURSES) == 7
    assert len(set(COURSES)) == 1


TIMES = st.floats(0.1, 10)


@settings(max_examples=50, deadline=None)
@given(times=st.lists(st.tuples(TIMES, TIMES, TIMES), min_size=1, max_size=4))
def test_a_greater_margin_never_takes_more_layers(times: list[tuple[float, float, float]]) -> None:
    def timing(own: float, dense: float, chain: float) -> BucketTiming:
        chosen = "chain" if chain < min(own, dense) else "dense"
        seconds = {"dense": dense, "chain": chain}
        return BucketTiming(4, 4, (4, 16), 1, seconds, own, chosen, chosen == "dense")

    alone = {linear(): [timing(*three)] for three in times}
    choices = choices_of(alone)
    assert choices["fastest alone"] == alone

    def on_factors(name: str) -> set[int]:
        return {k for k, rows in enumerate(choices[name].values()) if rows[0].chosen == "chain"}

    names = sorted(choices, key=MARGINS.__getitem__)
    for less, more in pairwise(names):
        assert on_factors(more) < on_factors(less)
    assert on_factors(names[-1]) == set()
