"""Groups stay whole: what is held out is of other pictures than what is fitted to."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import tensorlrf
from tensorlrf.compression.calibration._layer_moments import Calibration
from tensorlrf.compression.calibration.batches import Batch
from tensorlrf.errors import ArgumentError
from tests.compression.networks import set_weights
from tests.draws import seeded32


def batches(n: int) -> list[Batch]:
    return [Batch.of(torch.zeros(1), k) for k in range(n)]


@given(st.lists(st.lists(st.integers(0, 8), min_size=1, max_size=3), min_size=2, max_size=20),
       st.floats(0.01, 0.9))  # fmt: skip
@settings(max_examples=200, deadline=None, derandomize=True)
def test_no_group_is_on_both_sides(groups: list[list[int]], share: float) -> None:
    try:
        found = Calibration.of(batches(len(groups)), share, groups)
    except ArgumentError:  # all belong together: see below
        return
    sides = [{label for k, own in enumerate(groups) if (k in found.held) == held for label in own}
             for held in (True, False)]  # fmt: skip
    assert all(sides)
    assert sides[0].isdisjoint(sides[1])


@given(st.integers(2, 30), st.floats(0.01, 0.9))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_groups_of_one_batch_are_held_out_as_without(n: int, share: float) -> None:
    plain = Calibration.of(batches(n), share)
    assert Calibration.of(batches(n), share, list(range(n))).held == plain.held
    assert Calibration.of(batches(n), share, torch.arange(n)).held == plain.held


def test_labels_are_of_any_kind() -> None:
    pictures = ["a", "a", "b", "b", "c", "c"]
    held = Calibration.of(batches(6), 0.4, pictures).held
    assert held in ({0, 1}, {2, 3}, {4, 5})
    assert Calibration.of(batches(6), 0.0, pictures).held == frozenset()


@pytest.mark.parametrize(
    ("groups", "says"),
    [
        ("abcdef", "groups is a str"),
        (3, "groups is a int"),
        ([1, 2], "groups has 2 entries for 6 batches"),
        (["a"] * 6, "all batches belong together"),
        ([[1, 2], [2, 3], [3, 4], [4, 5], [5, 6], [6, 1]], "all batches belong together"),
        ([[{}]] * 6, "hashable"),
    ],
)
def test_labels_that_do_not_fit_are_refused(groups: Any, says: str) -> None:
    with pytest.raises(ArgumentError, match=says):
        Calibration.of(batches(6), 0.2, groups)


def net() -> nn.Module:
    return set_weights(nn.Sequential(nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 24)))


def data(n: int) -> list[Tensor]:
    return [seeded32(40, 24, seed=k) for k in range(n)]


def test_the_model_error_has_an_interval() -> None:
    _, report = tensorlrf.compress(net(), keep_params=0.5, calibration=data(10), progress=False)
    low, high = report.model_error_interval
    assert low < report.model_error < high
    assert f"[{low:.3g}, {high:.3g}]" in str(report)
    assert tensorlrf.Report.from_json(report.to_json()) == report


def test_the_interval_is_wider_over_groups_than_over_what_they_repeat() -> None:
    """Ten copies of a sample tell no more than one."""
    few = [x[:1].repeat(20, 1) for x in data(20)]
    labels = [f"picture {k}" for k in range(20)]
    spans = []
    for groups in (None, labels):
        _, report = tensorlrf.compress(
            net(), keep_params=0.5, calibration=few, holdout=0.5, groups=groups, progress=False
        )
        spans.append(report.model_error_interval)
    assert spans[1][1] - spans[1][0] > 2 * (spans[0][1] - spans[0][0])


def test_few_groups_have_no_interval() -> None:
    _, report = tensorlrf.compress(
        net(), keep_params=0.5, calibration=data(6), groups=["a", "a", "b", "b", "c", "c"],
        holdout=0.4, progress=False,
    )  # fmt: skip
    assert report.model_error is not None
    assert report.model_error_interval is None
    assert report.held_out == 2
