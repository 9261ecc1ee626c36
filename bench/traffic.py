"""Numbers that collectives of torch.distributed exchange, counted as they are called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.distributed.tensor.debug import CommDebugMode

Words = Callable[[int, int], float]

C10D = torch.ops._c10d_functional
SENT: dict[Any, Words] = {
    C10D.all_reduce: lambda n, ranks: 2 * (ranks - 1) / ranks * n,
    C10D.all_gather_into_tensor: lambda n, ranks: (ranks - 1) * n,
    C10D.reduce_scatter_tensor: lambda n, ranks: (ranks - 1) / ranks * n,
}
"""Of n numbers that a rank puts in, what it sends by a ring (Thakur, Rabenseifner & Gropp 2005)."""


class Traffic(CommDebugMode):
    """Counts, while it is entered, what this rank sends.

    sent   numbers, in all
    calls  of collectives
    """

    def __init__(self, ranks: int) -> None:
        super().__init__()
        self.ranks = ranks
        self.sent, self.calls = 0.0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = super().__torch_dispatch__(func, types, args, kwargs)
        packet = getattr(func, "_overloadpacket", None)
        if out is not NotImplemented and packet in SENT:
            self.sent += SENT[packet](args[0].numel(), self.ranks)
            self.calls += 1
        return out

    def counted(self) -> float:
        """What was sent; raises RuntimeError where a collective went by that has no formula."""
        if self.calls != self.get_total_counts():
            raise RuntimeError(f"collectives without a formula: {self.get_comm_counts()}")
        return self.sent
