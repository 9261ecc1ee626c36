"""A matrix as a tensor train: one product a core, from either end, or cut in the middle and run as
the Kronecker sum that it is there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tensorlrf.factors import TTMatrix
from tensorlrf.ops._counter import Counter
from tensorlrf.ops.forms._form import Form
from tensorlrf.ops.forms._kernel import Kernel
from tensorlrf.ops.forms._kron import Kronecker, count_kernel
from tensorlrf.ops.forms.shared._train_lookup import count_merges, train_lookups
from tensorlrf.ops.forms.stages import Paths, Stage, count, cut, widened
from tensorlrf_kernels.kron_linear.launch import KronProblem
from tensorlrf_kernels.tt_linear import reference, tt_linear
from tensorlrf_kernels.tt_linear.launch import (
    Size,
    cheaper_cut,
    kron_problem,
    kron_work,
    served_cut,
)

Cores = tuple[Tensor, ...]


class TTMatrixForm(Form[TTMatrix]):
    """One product a core, without a permutation between one and the next."""

    def linear(self, f: TTMatrix) -> Paths:
        (m, n), cores = f.shape, f.cores
        before = widened(n, math.prod(f.column_sizes))
        behind = cut(math.prod(f.row_sizes), m)
        products = [Core(weight, step) for step, weight in reference.products(cores)]
        paths: Paths = {"chain": (*before, *products, *behind)}
        if len(cores) > 2:  # a train of two cores is a Kronecker sum as it stands
            halves = reference.halves(cores, _cheapest_cut(reference.sizes_of(cores)))
            paths["fold"] = (*before, Kronecker(*halves), *behind)
        kernel = TrainKernel((cores,))
        if kernel.is_meant:
            paths["fused"] = (*before, kernel, *behind)
        return paths

    def transposed(self, f: TTMatrix) -> TTMatrix:
        return TTMatrix(tuple(core.transpose(1, 2) for core in f.cores), f.shape[::-1])

    def embedding(self, f: TTMatrix, padding_idx: int | None) -> Paths:
        return train_lookups(f, padding_idx)


@dataclass(frozen=True, eq=False)
class Core(Stage):
    """For each row of x `outer` times weight (out, inner) @ (inner, columns)."""

    weight: Tensor
    step: reference.Step

    def run(self, x: Tensor, bias: Tensor | None, first: Tensor) -> Tensor:
        return reference.apply(self.step, self.weight, x)

    def count(self, counter: Counter) -> None:
        _, outer, inner, out, columns = self.step
        if columns == 1 or outer == 1:
            counter.matmul(counter.rows * outer * columns, inner, out)
        else:
            counter.products(counter.rows * outer, out, inner, columns)


@dataclass(frozen=True, eq=False)
class TrainKernel(Kernel):
    """The train cut in two, each half merged, by the kernel of Kronecker sums; by library products
    where it does not serve."""

    op = tt_linear

    @property
    def sizes(self) -> list[Size]:
        return reference.sizes_of(self.operands[0])

    def problem(self, rows: int, dtype: torch.dtype, tf32: bool) -> tuple[str, KronProblem] | None:
        found = served_cut(self.sizes, rows, dtype)
        if found is None:
            return None
        return "kron_linear", kron_problem(self.sizes, found, rows, dtype, tf32)

    def serves(self, rows: int, dtype: torch.dtype) -> bool:
        return served_cut(self.sizes, rows, dtype) is not None or self._other_cut(rows) is not None

    def _other_cut(self, rows: int) -> int | None:
        """Where the op cuts the train for the library's products; None where it does not."""
        return cheaper_cut(self.sizes, rows, reference.work(self.sizes))

    def count(self, counter: Counter) -> None:
        served = served_cut(self.sizes, counter.rows, counter.dtype)
        found = self._other_cut(counter.rows) if served is None else served
        assert found is not None  # asked for nothing else
        count_merges(counter, self.sizes, found)
        if served is not None:
            count_kernel(counter, kron_problem(self.sizes, found, counter.rows, counter.dtype))
        else:
            cores = [torch.empty(size, dtype=counter.dtype, device="meta") for size in self.sizes]
            count((Kronecker(*reference.halves(cores, found)),), counter)


def _cheapest_cut(sizes: Sequence[Size]) -> int:
    """Before which core the train is cut, so that the two halves multiply least."""
    # One row in any dtype: what is compared is the same for all.
    cuts = range(1, len(sizes))
    works = [kron_work(kron_problem(sizes, k, 1, torch.float32)) for k in cuts]
    return 1 + works.index(min(works))
