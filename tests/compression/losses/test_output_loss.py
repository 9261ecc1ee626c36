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


def of_draws(loss: OutputLoss, rows: torch.Tensor, n: int) -> torch.Tensor:
    """So many cotangents at the outputs, (n, rows, classes)."""
    draws, batch = torch.Generator().manual_seed(0), Batch.of(torch.zeros(len(rows), 1), 0)
    leaf = rows.clone().requires_grad_()
    found = []
    for _ in range(n):
        total, count = loss.cotangent(leaf, batch, draws)
        assert count == len(rows)
        found.append(torch.autograd.grad(total, leaf)[0])
    return torch.stack(found)


def test_cotangents_of_logits_have_the_fisher_information_for_covariance() -> None:
    rows = 2 * seeded32(3, 5, seed=3)
    drawn = of_draws(OutputLoss("kl"), rows, 4000)
    p = rows.softmax(-1)
    fisher = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    found = torch.einsum("nri,nrj->rij", drawn, drawn) / len(drawn)
    # A mean of n squares of standard deviation sqrt(2) times the mean, five times over.
    torch.testing.assert_close(found, fisher, rtol=0, atol=5 * (2 / 4000) ** 0.5 * float(p.max()))


def test_few_draws_tell_what_a_model_loses_that_is_sure_of_its_answers() -> None:
    """Labels drawn from the model would almost all be those that it gives anyway: of 64 rows none
    may tell of a class whose odds are one in a thousand."""
    rows = torch.zeros(64, 4, dtype=torch.float32, device="cpu")
    rows[:, 0] = 7.0
    drawn = of_draws(OutputLoss("kl"), rows, 1)[0]  # (rows, classes)
    p = rows.softmax(-1)[0]
    told = drawn.square().mean(0) / (p - p.square())
    # Means of 64 squares of normal numbers, whose standard deviation is .18.
    torch.testing.assert_close(told, torch.ones_like(told), rtol=0, atol=0.9)
