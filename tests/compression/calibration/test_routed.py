"""Layers to which the compressed model sends other rows than the given one does."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tensorlrf import compress, plan
from tensorlrf.compression.calibration._reference import reference_pass
from tensorlrf.compression.calibration.batches import Batch
from tests.compression.networks import UNIFORM, Snapshot, check_report


class Routed(nn.Module):
    """Rows go through the expert that their largest logit names; one without rows is not called."""

    def __init__(self, n: int = 6) -> None:
        super().__init__()
        self.before = nn.Linear(24, 24)
        self.router = nn.Linear(24, n)
        self.experts = nn.ModuleList(nn.Linear(24, 24) for _ in range(n))
        self.after = nn.Linear(24, 24)

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        chosen = self.router(x).argmax(1)
        out = torch.zeros_like(x)
        for k, expert in enumerate(self.experts):
            rows = torch.where(chosen == k)[0]
            if len(rows):
                out = out.index_add(0, rows, expert(x[rows]))
        answer: Tensor = self.after(out)
        return answer


class Reader(nn.Module):
    """Multiplies by the weight of a layer, the other way round, that it does not call."""

    def __init__(self) -> None:
        super().__init__()
        self.read = nn.Linear(24, 24)
        self.called = nn.Linear(24, 24)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.called(x @ self.read.weight.T)
        return answer


@pytest.mark.filterwarnings("ignore:calibration")
@pytest.mark.parametrize("rerun", [False, True])
@pytest.mark.parametrize("rows", [4, 100])
def test_experts_are_fitted_to_what_reaches_them(rows: int, rerun: bool) -> None:
    model = Routed().eval()
    before = Snapshot(model)
    batches = [torch.randn(rows, 24) for _ in range(6)]
    small, report = compress(
        model, keep_params=0.5, calibration=batches, skip=["router"], rerun=rerun, **UNIFORM
    )
    before.check()
    check_report(model, small, report)
    assert report.target == "original"
    if rows == 100:
        assert all(row.data_aware for row in report.layers if row.factored)


def test_the_given_model_is_met_again_after_layers_that_only_one_of_both_calls() -> None:
    model = Routed().eval()
    with torch.no_grad():  # the given model sends all rows to expert 2
        model.router.weight.zero_()
        model.router.bias.copy_(torch.eye(6)[2])
    names = ["before", *(f"experts.{k}" for k in range(6)), "after"]
    batch = Batch.of(torch.randn(5, 24))
    calls = {"before": 1, "experts.1": 1, "after": 1}  # of a first pass, with expert 1 alone
    with reference_pass(model, names, batch, 1, calls, {}) as reference:
        assert reference is not None
        met = {name: reference.input_of(name) is not None for name in calls}
    assert met == {"before": True, "experts.1": False, "after": True}
    with reference_pass(model, names, batch, 1, calls, {}) as reference:
        assert reference is not None
        assert reference.input_of("experts.2") is not None
        assert reference.input_of("experts.3") is None
        assert reference.input_of("after") is not None
        assert reference.input_of("after") is None  # it has ended


def test_budget_is_of_the_layers_that_are_called() -> None:
    model = Reader().eval()
    batches = [torch.randn(100, 24) for _ in range(4)]
    made = plan(model, keep_params=0.5, calibration=batches)
    assert "its weight is read by" in made.layer("read").reason
    small, report = compress(model, keep_params=0.5, calibration=batches)
    check_report(model, small, report)
    assert report.eligible.share <= 0.5
    assert not report.layer("read").eligible
