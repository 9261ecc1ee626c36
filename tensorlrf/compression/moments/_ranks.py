"""Moments of the ranks of a process group, each of which has seen batches of its own, as one."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tensorlrf.compression.calibration.moments._moments import Moments as Accumulator
from tensorlrf.compression.moments._kept import InMemory
from tensorlrf.compression.moments._layer import CalibratedLayer, empty
from tensorlrf.compression.moments._moments import Moments
from tensorlrf.compression.moments._rows import Rows, both, by_name

Group = dist.ProcessGroup | None


def over_ranks(moments: Moments, group: Group = None) -> Moments:
    """The sum of what all ranks of a group have, on each of them: one all-reduce for each tensor of
    sums, which are the caller's no more; sketches are gathered and merged in the order of ranks.

    Every rank calls it, with moments of the same model and layers; of layers that its own batches
    have not reached a rank adds zeros. Raises ArgumentError, on all ranks alike, where they do not
    add up.
    """
    told: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(told, (moments.batches, by_name(moments.layers)), group=group)
    ranks: list[Rows] = [rows for _, rows in told]
    rows, own = reduce(both, ranks), by_name(moments.layers)
    # Of layers that were fed the same here and not elsewhere each needs a sum of its own.
    parted = {n: own[n].like for n, row in rows.items() if own[n].like and not row.like}
    sums: dict[str, tuple[Accumulator, ...]] = {}
    for name, row in rows.items():
        if not row.count or row.like:
            continue
        found = tuple(empty(row) for _ in range(row.groups))
        if own[name].count:
            alone = name not in parted and name not in parted.values()
            found = (moments.kept.read if alone else moments.kept.own)(own[name])
        counts = [rank[name].count for rank in ranks]
        sums[name] = tuple(_summed(row, one, counts, group) for one in found)
    return Moments(tuple(rows.values()), sum(n for n, _ in told), InMemory(sums))


def _summed(
    row: CalibratedLayer, own: Accumulator, counts: Sequence[int], group: Group
) -> Accumulator:
    """Of one group of a layer, in the memory of what this rank has where sums add up."""
    nccl = dist.get_backend(group) == dist.Backend.NCCL
    device = torch.device("cuda" if nccl else "cpu")
    tensors = own.tensors()
    if row.kept.kind != "sketch":
        for name, tensor in tensors.items():
            moved = tensor.to(device)
            dist.all_reduce(moved, group=group)
            tensors[name] = moved.to(tensor.device)
        own.restore(sum(counts), tensors)
        return own
    gathered = {
        name: _gathered(tensor, device, len(counts), group) for name, tensor in tensors.items()
    }
    whole = empty(row)
    for rank, count in enumerate(counts):
        one = empty(row)
        one.restore(count, {name: found[rank] for name, found in gathered.items()})
        whole.merge(one)
    return whole


def _gathered(tensor: Tensor, device: torch.device, ranks: int, group: Group) -> list[Tensor]:
    moved = tensor.to(device)
    found = [torch.empty_like(moved) for _ in range(ranks)]
    dist.all_gather(found, moved, group=group)
    return [one.to(tensor.device) for one in found]
