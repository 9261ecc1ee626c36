"""Losses from gradients: directions are told apart, and their mixed terms left out."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tensorlrf.compression.calibration.batches import list_batches
from tensorlrf.compression.losses._bases import spectra
from tensorlrf.compression.losses._fisher import bases_of, fisher_losses
from tensorlrf.compression.losses._output_loss import OutputLoss
from tests.draws import seeded32


def found(model: nn.Module, n: int) -> tuple[list[float], list[float]]:
    """(predicted losses of the layer "0", the share of its outputs' energy beyond each rank)."""
    batches = list_batches([seeded32(n, 6, seed=1)], model)
    bases = bases_of(model, ["0"], batches, lambda: None)
    draws = torch.Generator().manual_seed(0)
    losses = fisher_losses(model, bases, batches, OutputLoss("relative"), draws, lambda: None)
    return losses["0"], list(spectra(bases)["0"])


def model() -> nn.Module:
    made = nn.Sequential(nn.Linear(6, 8))
    with torch.no_grad():
        made[0].weight.copy_(seeded32(8, 6, seed=2))
        made[0].bias.zero_()
    return made.eval()


def test_losses_of_a_last_layer_are_the_energy_that_is_cut() -> None:
    """Of the relative error, where nothing follows the layer: up to what draws add."""
    losses, energies = found(model(), 4000)
    assert losses == pytest.approx(energies, rel=0.1)


@pytest.mark.parametrize("n", [1, 3])
def test_losses_fall_with_the_rank_whatever_few_samples_say(n: int) -> None:
    losses, _ = found(model(), n)
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] == 0


def test_gradients_are_taken_where_the_user_has_none_taken() -> None:
    with torch.no_grad():
        losses, _ = found(model(), 5)
    assert losses[0] > 0
