"""Rows of a table that is a tensor train: the slices of its cores at the digits of an index."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tensorlrf.factors import TTMatrix
from tensorlrf.ops._counter import Counter
from tensorlrf.ops.forms._kernel import Kernel
from tensorlrf.ops.forms._symbol import leaf
from tensorlrf.ops.forms.stages import Paths, Stage
from tensorlrf_kernels.launches import Problem, Workload
from tensorlrf_kernels.tt_embedding import reference as train
from tensorlrf_kernels.tt_embedding import tt_embedding
from tensorlrf_kernels.tt_embedding.launch import MOST_RANK
from tensorlrf_kernels.tt_linear.reference import merged

Cores = tuple[Tensor, ...]


def train_lookups(f: TTMatrix, padding_idx: int | None) -> Paths:
    """The paths of an embedding whose table is a train."""
    (n, d), found = f.shape, best_cut(f)
    paths: Paths = {"chain": (TrainLookup(f.cores, (n, d), padding_idx),)}
    if found is None:
        return paths
    return {**paths, "fused": (CutTrainLookup((f.cores, (n, d), found), (padding_idx,)),)}


@dataclass(frozen=True, eq=False)
class TrainLookup(Stage):
    """The slices of every core, multiplied from the first to the last."""

    cores: Cores
    shape: tuple[int, int]
    padding_idx: int | None

    def run(self, x: Tensor, bias: Tensor | None, first: Tensor) -> Tensor:
        y: Tensor = leaf(train.tt_embedding)(x, self.cores, self.shape, self.padding_idx)
        return y

    def count(self, counter: Counter) -> None:
        rows, done = counter.rows, 1
        # The digits of the indices: a remainder and a quotient for each but the first, and the
        # check.
        for _ in range(2 * (len(self.cores) - 1) + 4):
            counter.merge(rows)
        for k, core in enumerate(self.cores):
            r, _, width, after = core.shape
            counter.gather(rows, r * width * after)
            if k:
                counter.products(rows, done, r, width * after)
            done *= width


def looked_up(
    indices: Tensor, cores: Cores, shape: tuple[int, int], where: int, padding_idx: int | None
) -> Tensor:
    """What `CutTrainLookup` runs: which way depends on the number of indices."""
    if not merges(cores, where, indices.numel(), shape[1]):
        return train.tt_embedding(indices, cores, shape, padding_idx)
    first, second = merged(cores[:where])[0], merged(cores[where:])[..., 0]
    return tt_embedding(indices, first, second, shape, padding_idx)


@dataclass(frozen=True, eq=False)
class CutTrainLookup(Kernel):
    """The train cut in two, each half merged, and both looked up and multiplied in one kernel;
    slice by slice where too few rows are looked up to merge for."""

    adds_bias: ClassVar[bool] = False
    op = looked_up

    def problem(self, rows: int, dtype: torch.dtype, tf32: bool) -> tuple[str, Workload] | None:
        cores, (n, d), where = self.operands
        if not merges(cores, where, rows, d):
            return None
        return "tt_embedding", Problem(rows, d, n, cores[where].shape[0], dtype)

    def count(self, counter: Counter) -> None:
        cores, (_, d), where = self.operands
        rows, rank = counter.rows, cores[where].shape[0]
        count_merges(counter, [tuple(core.shape) for core in cores], where)
        # Slices of the halves are read from memory once, and then from a cache.
        wide = [math.prod([c.shape[2] for c in half]) for half in (cores[:where], cores[where:])]
        whole = half_sizes(cores, where)
        gathered = sum(min(rows * k * rank, size) for k, size in zip(wide, whole, strict=True))
        counter.fused_gather(rows, gathered, 0, 2 * rows * rank * wide[0] * wide[1], d)


def best_cut(factors: TTMatrix) -> int | None:
    """Before which core the train is cut in two: where its rank is least, so that a row costs
    least; of equal ranks where the halves hold the fewest numbers. None where every rank is above
    MOST_RANK, and for a single core."""
    best, least = None, (MOST_RANK + 1, 0)
    for k in range(1, len(factors.cores)):  # torch.compile traces no min(key=...)
        size = (factors.rank[k], sum(half_sizes(factors.cores, k)))
        if size[0] <= MOST_RANK and size < least:
            best, least = k, size
    return best


def half_sizes(cores: Cores, where: int) -> tuple[int, int]:
    """Numbers in the cores before the cut, merged into one, and in those behind it."""
    halves, rank = [1, 1], cores[where].shape[0]
    for k, core in enumerate(cores):
        halves[int(k >= where)] *= core.shape[1] * core.shape[2]
    return halves[0] * rank, halves[1] * rank


def merges(cores: Cores, where: int, rows: int, d: int) -> bool:
    """Whether the halves are merged to look up so many rows of d: those of two cores are there as
    they stand, others must hold fewer numbers than what is looked up."""
    return len(cores) == 2 or sum(half_sizes(cores, where)) < rows * d


def count_merges(counter: Counter, sizes: Sequence[tuple[int, ...]], where: int) -> None:
    """What it takes to merge the cores before the cut, and those behind it."""
    for cores in (sizes[:where], sizes[where:]):
        r, m, n, _ = cores[0]
        for inner, more_m, more_n, after in cores[1:]:
            counter.matmul(r * m * n, inner, more_m * more_n * after)
            m, n = m * more_m, n * more_n
