"""Rows of a table that is a product of matrices: gathered from the first, then multiplied."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from tensorlrf.ops._counter import Counter
from tensorlrf.ops.forms._kernel import Kernel
from tensorlrf.ops.forms._symbol import leaf
from tensorlrf.ops.forms.stages import NOTHING, Library, Lookup, Paths, Stage, Times
from tensorlrf_kernels.launches import Problem, Workload
from tensorlrf_kernels.lowrank_embedding import lowrank_embedding
from tensorlrf_kernels.lowrank_embedding.reference import without_gradient


@dataclass(frozen=True, eq=False)
class WithoutGradient(Stage):
    """What is looked up at `padding_idx` has no gradient."""

    padding_idx: int | None

    def run(self, x: Tensor, bias: Tensor | None, first: Tensor) -> Tensor:
        y: Tensor = leaf(without_gradient)(x, first, self.padding_idx)
        return y

    def library(self) -> Library:
        return NOTHING  # torch's Embedding sees to it


@dataclass(frozen=True, eq=False)
class FusedLookup(Kernel):
    """The gather from left (n, r) and the product with right (r, d) in one kernel."""

    op = lowrank_embedding
    adds_bias = False

    def problem(self, rows: int, dtype: torch.dtype, tf32: bool) -> tuple[str, Workload]:
        (n, rank), (_, d) = (t.shape for t in self.operands)
        return "lowrank_embedding", Problem(rows, d, n, rank, dtype)

    def count(self, counter: Counter) -> None:
        (_, rank), (_, d) = (t.shape for t in self.operands)
        rows = counter.rows
        counter.fused_gather(rows, rows * rank, rank * d, 2 * rows * rank * d, d)


def lookups(matrices: Sequence[Tensor], padding_idx: int | None) -> Paths:
    """The paths of an embedding whose table (n, d) is the product of these, the first one with its
    n rows."""
    rows, *others = matrices
    chain = (Lookup(rows), *map(Times, others), WithoutGradient(padding_idx))
    if not others:
        return {"chain": chain}
    return {
        "chain": chain,
        "fused": (FusedLookup((rows, reduce(torch.matmul, others)), (padding_idx,)),),
    }
