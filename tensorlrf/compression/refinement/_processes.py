"""One process, or several that train the same student, each on batches of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tensorlrf.compression._paired import Floats


@dataclass(frozen=True)
class Processes:
    """group  of torch.distributed; None for this process alone"""

    group: Any = None

    @classmethod
    def of(cls, model: Any) -> tuple[nn.Module, Processes]:
        """(the model without DistributedDataParallel, the processes that it was in)."""
        if isinstance(model, nn.parallel.DistributedDataParallel):
            return model.module, cls(model.process_group)
        return model, cls()

    @property
    def is_first(self) -> bool:
        """Whether this one writes for all."""
        return self.group is None or torch.distributed.get_rank(self.group) == 0

    def average(self, parameters: Sequence[nn.Parameter]) -> None:
        """Gradients become their means over the processes. One that is missing counts as zeros,
        unless it is missing in all."""
        if self.group is None:
            return
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        there = grads[0].new_tensor([p.grad is not None for p in parameters])
        told = torch.cat([*(grad.reshape(-1) for grad in grads), there])  # one message for all
        torch.distributed.all_reduce(told, group=self.group)
        sizes = [*(p.numel() for p in parameters), len(parameters)]
        *parts, counts = torch.split(told, sizes)
        size = torch.distributed.get_world_size(self.group)
        for p, part, count in zip(parameters, parts, counts.tolist(), strict=True):
            p.grad = (part / size).reshape(p.shape).to(p.dtype) if count > 0 else None

    def summed(self, values: Sequence[float], like: Tensor) -> list[float]:
        """Each value summed over the processes; `like` is on the device where they meet."""
        if self.group is None:
            return list(values)
        told = torch.tensor(values, dtype=torch.float64, device=like.device)
        torch.distributed.all_reduce(told, group=self.group)
        return told.tolist()

    def gathered(self, columns: Floats, like: Tensor) -> Floats:
        """(rows, n) of all processes beside one another, each with an n of its own."""
        if self.group is None:
            return columns
        own = torch.from_numpy(columns).to(like.device)
        n = own.new_tensor([own.shape[1]])
        sizes = [torch.empty_like(n) for _ in range(torch.distributed.get_world_size(self.group))]
        torch.distributed.all_gather(sizes, n, group=self.group)
        counts = [int(size) for size in sizes]
        padded = own.new_zeros(len(own), max(counts))
        padded[:, : own.shape[1]] = own
        found = [torch.empty_like(padded) for _ in counts]
        torch.distributed.all_gather(found, padded, group=self.group)
        parts = [one[:, :count] for one, count in zip(found, counts, strict=True)]
        return np.asarray(torch.cat(parts, 1).cpu().numpy())

    def agreed(self, value: float, like: Tensor) -> float:
        """The value that the first process has."""
        if self.group is None:
            return value
        told = torch.tensor([value], dtype=torch.float64, device=like.device)
        first = torch.distributed.get_global_rank(self.group, 0)
        torch.distributed.broadcast(told, first, group=self.group)
        return float(told)
