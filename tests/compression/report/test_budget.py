"""A model that keeps far more than was asked for says so."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tensorlrf import apply, compress, compress_, plan
from tensorlrf.errors import BudgetWarning
from tests.draws import seeded32


class Recurrent(nn.Module):
    """Most of it is an LSTM, which stays as it is for its hook."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.lstm, self.last = nn.LSTM(32, width), nn.Linear(width, 32)
        self.lstm.register_forward_hook(lambda *_: None)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.lstm(x)[0])
        return y


def first_lines(report: Any) -> list[str]:
    return [str(report).splitlines()[0], report.to_markdown().splitlines()[0]]


@pytest.mark.parametrize("run", ["compress", "compress_", "apply"])
def test_an_lstm_that_stays_is_told_on_the_first_line_and_in_a_warning(run: str) -> None:
    def go() -> tuple[nn.Module, Any]:
        if run == "apply":
            return apply(model, plan(model, keep_params=0.25, skip=[]))
        if run == "compress":
            return compress(model, keep_params=0.25, skip=[])
        return model, compress_(model, keep_params=0.25, skip=[])

    model = Recurrent(96)
    before = sum(p.numel() for p in model.parameters())
    message = r"keep_params=0.25 was asked .* the model keeps 9\d\.\d% .*lstm \(LSTM, 49,920\)"
    with pytest.warns(BudgetWarning, match=message) as told:
        small, report = go()
    assert [w.filename for w in told] == [__file__]
    kept = sum(p.numel() for p in small.parameters()) / before
    assert kept > 0.9
    assert report.model.share == pytest.approx(kept)
    for line in first_lines(report):
        assert f"keep_params 0.25 (the whole model keeps {kept:.1%}, its eligible weights " in line


def test_embeddings_and_heads_that_stay_are_told_on_the_first_line_alone() -> None:
    """Less than half of this model is eligible, and much of that goes."""
    model = nn.Sequential(nn.Embedding(400, 32), nn.Linear(32, 96), nn.ReLU(), nn.Linear(96, 96))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, report = compress(model, keep_params=0.25, skip=[])
        compress(model, skip=[], error=0.3)
        compress(model, skip=[], method={"3": "svd", "*": None}, keep_params=0.5)
    assert 0.5 < report.model.share < 0.8
    for line in first_lines(report):
        assert f"the whole model keeps {report.model.share:.1%}" in line


def test_a_plan_with_ranks_of_ones_own_is_no_promise() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    made = plan(model, keep_params=0.25).edit("*", rank=60)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, report = apply(model, made)
    assert report.model.share > 1


def test_an_lstm_runs_on() -> None:
    model, x = Recurrent(96).eval(), seeded32(5, 2, 32)
    with pytest.warns(BudgetWarning):
        small, _ = compress(model, keep_params=0.5, skip=[])
    with torch.no_grad():
        assert small(x).shape == model(x).shape
