"""Re-estimate the statistics of batch normalisation on what the compressed layers deliver.

It needs no labels and no gradients. It can repair a network, or break one: it is for whoever calls
it to compare.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tensorlrf.compression.calibration._batches import Batch, call

State = list[tuple[Any, Tensor, Tensor, Tensor | None]]


def norms_of(model: nn.Module) -> list[Any]:
    """The batch normalisations that keep running statistics."""
    return [
        m
        for m in model.modules()
        if isinstance(m, _BatchNorm) and m.running_mean is not None and m.running_var is not None
    ]


def statistics_of(norms: Sequence[Any]) -> State:
    """Copies of their running statistics, for `restore`."""
    return [
        (
            m,
            m.running_mean.clone(),
            m.running_var.clone(),
            None if m.num_batches_tracked is None else m.num_batches_tracked.clone(),
        )
        for m in norms
    ]


def restore(state: State) -> None:
    """Put the statistics back."""
    with torch.no_grad():
        for m, mean, var, count in state:
            m.running_mean.copy_(mean)
            m.running_var.copy_(var)
            if count is not None:
                m.num_batches_tracked.copy_(count)


def reestimate(model: nn.Module, norms: Sequence[Any], batches: Sequence[Batch]) -> None:
    """New running statistics: the mean over the batches of each batch's mean and variance.

    The rest of the model stays in the mode that it is in. How many batches a norm has seen in
    training is left as it was, and so are the statistics of those that no batch reaches.
    """
    before = statistics_of(norms)
    momenta = [m.momentum for m in norms]
    counts = [m.num_batches_tracked for m in norms]
    try:
        for m in norms:
            m.momentum = None  # the cumulative average
            m.num_batches_tracked = torch.zeros((), dtype=torch.long, device=m.running_mean.device)
            m.reset_running_stats()
            m.training = True
        for batch in batches:
            call(model, batch)
    finally:
        restore([kept for m, kept in zip(norms, before, strict=True) if not m.num_batches_tracked])
        for m, momentum, count in zip(norms, momenta, counts, strict=True):
            m.training = False
            m.momentum = momentum
            m.num_batches_tracked = count
