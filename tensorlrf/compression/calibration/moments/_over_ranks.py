"""Moments of the inputs of one layer over ranks, each of which has seen inputs of its own."""

from __future__ import annotations

import copy

from tensorlrf.compression.calibration.moments._moments import Moments
from tensorlrf.compression.group._group import Alone


def add_up(own: Moments, group: Alone) -> None:
    """Have it hold what those of all ranks hold together: one all-reduce, of sums in place;
    sketches, which are none, are gathered and merged in the order of ranks."""
    if group.size == 1:
        return
    counts = group.gathered(own.count)
    tensors = own.tensors()
    if "filled" not in tensors:
        group.total(list(tensors.values()))
        own.restore(sum(counts), tensors)
        return
    gathered = [group.of(rank, tensors) for rank in range(group.size)]
    devices = {name: tensor.device for name, tensor in tensors.items()}
    for rank, (count, told) in enumerate(zip(counts, gathered, strict=True)):
        one = own if not rank else copy.deepcopy(own)
        one.restore(count, {name: t.to(devices[name], copy=True) for name, t in told.items()})
        if rank:
            own.merge(one)
