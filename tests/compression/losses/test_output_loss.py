"""Losses of outputs beside those that are wanted."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tensorlrf.compression.calibration.batches import Batch
from tensorlrf.compression.losses import _output_loss
from tensorlrf.compression.losses._output_loss import UNITS, OutputLoss
from tests.draws import seeded32


@settings(
    derandomize=True,
    deadline=None,
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    kind=st.sampled_from(list(UNITS)),
    rows=st.integers(0, 9),
    n=st.integers(1, 6),
    at_once=st.integers(1, 30),
)
def test_rows_are_compared_a_few_at_a_time_as_all_at_once(
    kind: str, rows: int, n: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss, batch = OutputLoss(kind), Batch.of(torch.zeros(max(1, rows), 1), 0)
    wanted, got = seeded32(rows, n, seed=1), seeded32(rows, n, seed=2).requires_grad_()

    def told(numbers: int) -> tuple[torch.Tensor, float, torch.Tensor]:
        monkeypatch.setattr(_output_loss, "AT_ONCE", numbers)
        lost, whole = loss.apart([wanted], got, batch, torch.float64)
        (slope,) = torch.autograd.grad(lost, got)
        return lost.detach(), whole, slope

    (lost, whole, slope), (few, of_few, slope_of_few) = told(1 << 20), told(at_once)
    assert few.item() == pytest.approx(lost.item(), rel=1e-12, abs=1e-12)
    assert of_few == pytest.approx(whole, rel=1e-12)
    torch.testing.assert_close(slope_of_few, slope)
