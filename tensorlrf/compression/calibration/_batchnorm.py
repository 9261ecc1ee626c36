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

from tensorlrf.compression.calibration.batches import Batch, call
from tensorlrf.compression.group._group import ALONE, Alone
from tensorlrf.errors import ArgumentError
from tensorlrf.nn.copies import replica

Statistics = tuple[Tensor, Tensor]


def norms_of(model: nn.Module) -> list[Any]:
    """The batch normalisations that keep running statistics."""
    return [
        m
        for m in model.modules()
        if isinstance(m, _BatchNorm) and m.running_mean is not None and m.running_var is not None
    ]


def statistics_of(norms: Sequence[Any]) -> list[Statistics]:
    """Copies of their running means and variances."""
    return [(m.running_mean.clone(), m.running_var.clone()) for m in norms]


def set_statistics(norms: Sequence[Any], statistics: Sequence[Statistics]) -> None:
    """Write running means and variances into them."""
    with torch.no_grad():
        for m, (mean, variance) in zip(norms, statistics, strict=True):
            m.running_mean.copy_(mean)
            m.running_var.copy_(variance)


def reestimated(
    model: nn.Module, batches: Sequence[Batch], group: Alone = ALONE
) -> list[Statistics]:
    """New statistics of `norms_of(model)`: the mean over all their calls, batch by batch, of the
    mean and variance of each. Those of a norm that no batch reaches are the old ones.

    The model itself is not run; the rest of its replicas is in eval mode. Batches of all ranks of a
    group count.
    """
    before = norms_of(model)
    sums = [[torch.zeros_like(t) for t in one] for one in statistics_of(before)]
    calls = [0 for _ in before]
    failed: Exception | None = None
    for batch in batches:
        own = replica(model)
        norms = norms_of(own)
        for m in norms:
            m.momentum = None  # the average over the calls of the pass
            m.num_batches_tracked = torch.zeros((), dtype=torch.long, device=m.running_mean.device)
            m.reset_running_stats()
            m.training = True
        try:
            call(own, batch)
        except ArgumentError as error:
            failed = error
            break
        for k, m in enumerate(norms):
            n = int(m.num_batches_tracked)
            calls[k] += n
            sums[k][0] += n * m.running_mean
            sums[k][1] += n * m.running_var
    group.fail_together(failed)
    group.total([t for one in sums for t in one])
    calls = [int(n) for n in group.totals(calls)]
    return [
        (mean / n, variance / n) if n else old
        for (mean, variance), n, old in zip(sums, calls, statistics_of(before), strict=True)
    ]
