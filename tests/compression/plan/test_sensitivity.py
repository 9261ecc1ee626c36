"""Sensitivities as values: JSON, nonsense in it, and plans of every budget from one of them."""

from __future__ import annotations

import copy
import itertools
import json
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import tensorlrf
from tensorlrf.compression import LayerSensitivity, Sensitivity
from tensorlrf.errors import ArgumentError, FileFormatError
from tests.compression.networks import set_weights
from tests.draws import seeded32

CLOSE = 1.001
"""A loss that is proved to be near enough to the least one."""


def net() -> nn.Module:
    return set_weights(
        nn.Sequential(nn.Linear(48, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 40))
    )


MODEL = net()
FOUND = tensorlrf.sensitivity(MODEL, [seeded32(40, 48, seed=1)], rule="fisher", skip=[])

names = st.text(max_size=12)
numbers = st.floats(0, 1e9)


@st.composite
def rows(draw: st.DrawFn) -> LayerSensitivity:
    shape = tuple(draw(st.lists(st.integers(1, 99), min_size=2, max_size=4)))
    ranks = sorted(draw(st.sets(st.integers(1, 999), min_size=1, max_size=5)))
    losses = sorted(draw(st.lists(numbers, min_size=len(ranks) + 1, max_size=len(ranks) + 1)))
    return LayerSensitivity(
        draw(names), draw(names), shape, draw(st.integers(1, 4)), (0, *ranks),
        tuple(reversed(losses)),
    )  # fmt: skip


found = st.builds(Sensitivity, names, names, names, st.lists(rows(), max_size=4).map(tuple))


@given(found)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_json_both_ways(found: Sensitivity) -> None:
    text = found.to_json()
    assert Sensitivity.from_json(text) == found
    assert Sensitivity.from_json(text).to_json() == text
    assert hash(found) == hash(Sensitivity.from_json(text))
    for row in found.layers:
        losses = [row.loss_at(row.params * share) for share in (0.1, 0.3, 0.5, 0.9, 2.0)]
        assert all(b <= a * (1 + 1e-9) for a, b in itertools.pairwise(losses))
        assert all(0 <= loss <= row.losses[0] * (1 + 1e-9) for loss in losses)


@pytest.mark.parametrize(
    ("change", "value"),
    [
        ("version", 2), ("version", ...), ("version", "1"), ("architecture", 5), ("rule", None),
        ("unit", ...), ("layers", None), ("layers", [5]), ("layers.0.name", 5),
        ("layers.0.kind", ...), ("layers.0.shape", [64]), ("layers.0.shape", [64, -48]),
        ("layers.0.shape", [64, 0]), ("layers.0.shape", "big"), ("layers.0.groups", 0),
        ("layers.0.groups", True), ("layers.0.ranks", []), ("layers.0.ranks", [0]),
        ("layers.0.ranks.1", 0), ("layers.0.ranks.0", 1), ("layers.0.ranks.1", 1.5),
        ("layers.0.losses", [1.0]), ("layers.0.losses.0", -1.0), ("layers.0.losses.0", "much"),
        ("layers.0.losses.0", float("inf")), ("layers.0.losses.0", float("nan")),
        ("layers.0.losses.1", 1e9), ("layers.0.losses.1", 10**400), ("more", 1),
        ("layers.0.more", 1),
    ],
)  # fmt: skip
def test_nonsense_is_refused(change: str, value: Any) -> None:
    values = json.loads(FOUND.to_json())
    at: Any = values
    *way, last = (int(part) if part.isdigit() else part for part in change.split("."))
    for part in way:
        at = at[part]
    if value is ...:
        del at[last]
    else:
        at[last] = value
    with pytest.raises(FileFormatError, match=r"text is (no|a) sensitivity"):
        Sensitivity.from_json(json.dumps(values))


@pytest.mark.parametrize("text", ["", "[]", "null", "7", "{}", "{", "[" * 10**5, '"text"'])
def test_other_text_is_none(text: str) -> None:
    with pytest.raises(FileFormatError, match="text is no sensitivity"):
        Sensitivity.from_json(text)


def test_one_of_another_model_is_refused() -> None:
    other = copy.deepcopy(MODEL)
    other.append(nn.Linear(40, 40))
    with pytest.raises(ArgumentError, match="sensitivity is of a model of architecture"):
        tensorlrf.plan(other, keep_params=0.5, skip=[], sensitivity=FOUND)
    with pytest.raises(ArgumentError, match="sensitivity is of a model of architecture"):
        FOUND.predicted(tensorlrf.plan(other, keep_params=0.5, skip=[]))
    with pytest.raises(ArgumentError, match="sensitivity is a dict; pass what"):
        tensorlrf.plan(MODEL, keep_params=0.5, sensitivity={})  # type: ignore[arg-type]


@pytest.mark.parametrize("word", ["keep_params", "keep_bytes", "keep_flops"])
def test_one_serves_every_budget(word: str) -> None:
    """What is predicted does not rise with the budget, and is what the plan says itself."""
    losses = []
    for share in (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0):
        budget: dict[str, Any] = {word: share}
        made = tensorlrf.plan(
            MODEL, skip=[], sensitivity=FOUND, example=torch.zeros(3, 48), **budget
        )
        assert made.allotment.rule == "fisher"
        assert made.allotment.unit == FOUND.unit
        assert made.allotment.predicted_loss == pytest.approx(FOUND.predicted(made), rel=1e-9)
        losses.append(FOUND.predicted(made))
    assert all(b <= a * CLOSE for a, b in itertools.pairwise(losses))
    assert losses[0] > losses[-1] == 0


def test_a_plan_says_what_its_edits_make_of_it() -> None:
    made = tensorlrf.plan(MODEL, keep_bytes=0.5, skip=[], sensitivity=FOUND)
    edited = made.edit("0", rank=3)
    assert (edited.allotment.rule, edited.allotment.unit) == ("fisher", FOUND.unit)
    assert edited.allotment.predicted_loss is None
    assert edited.allotment.cost is None
    assert FOUND.predicted(edited) > 0
