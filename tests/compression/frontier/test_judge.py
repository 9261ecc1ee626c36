"""What a user's metric may return, and what is said of what it may not."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tensorlrf.compression.frontier._judge import Judge, judges_of
from tensorlrf.errors import ArgumentError
from tests.draws import seeded32

MODEL = nn.Linear(3, 3)


def test_one_number_is_taken_at_its_word() -> None:
    judge = Judge(lambda model: 0.5, MODEL)
    assert (judge.deterministic, judge.noise, judge.examples, judge.calls) == (True, 0.0, 0, 2)
    drop = Judge(Once([0.5, 0.5, 0.3]), MODEL).drop(MODEL, "it")
    assert (drop.quality, drop.mean) == (0.3, pytest.approx(0.2))
    assert drop.bound == drop.mean


@pytest.mark.parametrize(
    "returned",
    [
        [0.5, 1.0, 0.0],
        (0.5, 1.0, 0.0),
        torch.tensor([0.5, 1.0, 0.0]),
        np.array([0.5, 1.0, 0.0]),
        [torch.tensor(0.5), np.float32(1.0), 0],
    ],
)
def test_scores_come_in_many_forms(returned: Any) -> None:
    judge = Judge(lambda model: returned, MODEL)
    assert judge.examples == 3
    assert judge.dense.mean == 0.5
    assert judge.dense.n_groups == 3


def test_two_scores_are_no_scores_with_groups() -> None:
    assert Judge(lambda model: (0.5, 1.0), MODEL).examples == 2
    judge = Judge(lambda model: ([0.5, 1.0, 0.0], ["a", "b", "a"]), MODEL)
    assert (judge.examples, judge.dense.n_groups) == (3, 2)


@pytest.mark.parametrize(
    ("returned", "says"),
    [
        (None, "returns a NoneType"),
        ("0.5", "returns a str"),
        ([], "returns a list"),
        (torch.ones(2, 2), r"shape \(2, 2\)"),
        (([1.0, 2.0], ["a"]), "label of each"),
        ([1.0, "x"], "returns a list"),
        (math.nan, "returns NaN for the given model"),
        ([1.0, math.nan], "returns NaN"),
        (math.inf, "returns infinity"),
        (-math.inf, "returns infinity"),
        (torch.tensor(1j), "returns a Tensor"),
    ],
)
def test_what_is_no_metric_is_refused(returned: Any, says: str) -> None:
    with pytest.raises(ArgumentError, match=says):
        Judge(lambda model: returned, MODEL)


def test_errors_are_told_with_the_model_that_they_are_of() -> None:
    def broken(model: nn.Module) -> float:
        raise KeyError("words")

    with pytest.raises(ArgumentError, match="evaluate fails on the given model: KeyError: 'words'"):
        Judge(broken, MODEL)
    judge = Judge(Once([1.0, 1.0, math.nan]), MODEL)
    with pytest.raises(ArgumentError, match=r"NaN for the model at a share of .5; .*return -inf"):
        judge.drop(MODEL, "the model at a share of .5")
    judge = Judge(Once([1.0, 1.0, -math.inf]), MODEL)
    assert judge.drop(MODEL, "it").bound == math.inf
    judge = Judge(Once([[1.0, 2.0], [1.0, 2.0], [1.0]]), MODEL)
    with pytest.raises(ArgumentError, match="1 scores in 1 groups for it, and 2 scores"):
        judge.drop(MODEL, "it")


def test_noise_is_measured_and_in_the_bound() -> None:
    """Of two calls on one model the difference to a third is within it in 19 of 20 cases."""
    draws = np.random.default_rng(0)
    inside = 0
    for _ in range(300):
        judge = Judge(lambda model: draws.normal(0.8, 0.02), MODEL)
        assert not judge.deterministic
        inside += judge.drop(MODEL, "it").bound >= 0
    assert inside / 300 >= 0.95 - 2.3 * math.sqrt(0.95 * 0.05 / 300)


def test_scatter_of_scores_is_no_noise_of_the_whole() -> None:
    draws = np.random.default_rng(0)
    judge = Judge(lambda model: draws.normal(0.8, 0.1, 400), MODEL)
    assert not judge.deterministic
    assert judge.noise == 0.0
    common = Judge(lambda model: draws.normal(0, 1) + draws.normal(0.8, 0.1, 400), MODEL)
    assert common.noise > 0.1


def test_the_given_model_stays_as_it_is() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)).train()
    before = model[0].weight.clone()
    flags = []

    def evaluate(own: nn.Module) -> float:
        flags.append(own.training)
        own.train().half()
        own[0].weight.data.zero_()
        own[0] = nn.Identity()
        return 1.0

    Judge(evaluate, model)
    assert flags == [False, False]
    assert model.training
    assert isinstance(model[0], nn.Linear)
    assert torch.equal(model[0].weight, before)


def test_evaluate_is_a_function_or_a_pair() -> None:
    one, two = (lambda model: 1.0), (lambda model: 2.0)
    assert judges_of(one) == (one, None)
    assert judges_of((one, two)) == (one, two)
    for wrong in ("f1", (one,), (one, 3), 4.0):
        with pytest.raises(ArgumentError, match="evaluate"):
            judges_of(wrong)


class Once:
    """Returns what it was given, one after the other."""

    def __init__(self, values: list[Any]) -> None:
        self.values = list(values)

    def __call__(self, model: nn.Module) -> Any:
        return self.values.pop(0)


def agreement(model: nn.Module, n: int = 40) -> Callable[[nn.Module], Any]:
    """Cosine to the outputs of a model, of each of n inputs."""
    x = seeded32(n, 24, seed=7)
    wanted = model(x).detach()
    return lambda small: nn.functional.cosine_similarity(small(x), wanted)
