"""The grouped kernels of the formats of blocks: when they serve, and what they cost."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from tensorlrf.ops._counter import Counter
from tensorlrf.ops.forms._kernel import Kernel
from tensorlrf.ops.forms.stages import Paths
from tensorlrf_kernels.blr_linear.forms import Form as Shape
from tensorlrf_kernels.blr_linear.fused import tile_work
from tensorlrf_kernels.blr_linear.launch import MOST_MASKED, forward
from tensorlrf_kernels.chips import H200
from tensorlrf_kernels.launches import Problem, Workload

CPU = torch.device("cpu")


@dataclass(frozen=True, eq=False)
class BlockKernel(Kernel):
    """Panels of blocks, grouped by their sizes, in a launch or two."""

    blocks: Shape = field(kw_only=True)

    def path(self) -> Paths:
        """The path "fused", where there is one."""
        return {"fused": (self,)} if self.is_meant else {}

    def problem(self, rows: int, dtype: torch.dtype, tf32: bool) -> tuple[str, Workload] | None:
        problem = Problem(rows, *self.blocks.shape, self.blocks.rank, dtype, tf32)
        return None if self._padding(problem) is None else ("blr_linear", problem)

    def serves(self, rows: int, dtype: torch.dtype) -> bool:
        return self.problem(rows, dtype, False) is not None

    def _padding(self, problem: Problem) -> float | None:
        """How many times as much is multiplied in whole tiles; None where no kernel serves."""
        config, useful = forward(problem, H200), self.blocks.work
        work = None if config is None else tile_work(self.blocks, config, False, CPU)
        if work is None or not useful or work > MOST_MASKED * useful:
            return None
        return work / useful

    def count(self, counter: Counter) -> None:
        blocks, rows = self.blocks, counter.rows
        problem = Problem(rows, *blocks.shape, blocks.rank, counter.dtype)
        config, padding = forward(problem, H200), self._padding(problem)
        assert config is not None  # asked for nothing else
        assert padding is not None
        into = sum(p.width * p.ranks for p in blocks.right.panels)
        out = sum(p.width * p.ranks for p in blocks.left.panels)
        dense = sum(p.width * p.ranks for p in blocks.dense)
        (m, n), weights = blocks.shape, into + out + dense
        if config.kernel == "decode" and blocks.name == "blr":
            counter.kernel(rows * weights, rows * (m + n) + weights, padding, few=True)
            return
        # What lies between the launches stays in the cache, a chunk of rows at a time.
        counter.kernel(rows * into, rows * n + into, padding)
        if blocks.name == "blast":
            counter.merge(rows * (blocks.left.slots + blocks.right.slots) // 2)
        x_again = rows * n if dense else 0
        counter.kernel(rows * (out + dense), rows * m + x_again + out + dense, padding)
