"""A TT-matrix times x: one product a core, from either end, or cut in the middle and run as the
Kronecker sum that it is there."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from tensorlrf.factors import TTMatrix
from tensorlrf.factors.algebra import product_order
from tensorlrf.ops._counter import Counter
from tensorlrf.ops.structured._form import LinearForm
from tensorlrf.ops.structured._kron import kron_cost, kron_kernel_cost
from tensorlrf_kernels.kron_linear.launch import KronProblem
from tensorlrf_kernels.kron_linear.reference import product
from tensorlrf_kernels.tt_linear import reference, tt_linear
from tensorlrf_kernels.tt_linear.launch import (
    Size,
    cheaper_cut,
    half,
    kron_problem,
    kron_work,
    served_cut,
)


def _paths(factors: TTMatrix) -> tuple[str, ...]:
    # A train of two cores is a Kronecker sum as it stands.
    return ("chain", "fold") if len(factors.cores) > 2 else ("chain",)


def _run(path: str, factors: TTMatrix, x: Tensor) -> Tensor:
    (m, n), cores = factors.shape, factors.cores
    rows, columns = math.prod(factors.row_sizes), math.prod(factors.column_sizes)
    if columns != n:
        x = F.pad(x, (0, columns - n))
    if path == "fold":
        y = product(x, *reference.halves(cores, _cut(reference.sizes_of(cores))))
    else:
        y = reference.tt_linear(x, cores)
    return y if rows == m else y[..., :m]


def _fused(factors: TTMatrix, x: Tensor, bias: Tensor | None) -> Tensor:
    (m, n), cores = factors.shape, factors.cores
    rows, columns = math.prod(factors.row_sizes), math.prod(factors.column_sizes)
    if columns != n:
        x = F.pad(x, (0, columns - n))
    if rows == m:
        return tt_linear(x, cores, bias)
    y = tt_linear(x, cores)[..., :m]
    return y if bias is None else y + bias.to(y.dtype)  # autocast has lowered y


def _problem(
    factors: TTMatrix, rows: int, dtype: torch.dtype, tf32: bool
) -> tuple[str, KronProblem] | None:
    sizes = reference.sizes_of(factors.cores)
    cut = served_cut(sizes, rows, dtype)
    return None if cut is None else ("kron_linear", kron_problem(sizes, cut, rows, dtype, tf32))


def _cut(sizes: Sequence[Size]) -> int:
    """Before which core the train is cut, so that the two halves multiply least."""
    # One row in any dtype: what is compared is the same for all.
    cuts = range(1, len(sizes))
    works = [kron_work(kron_problem(sizes, cut, 1, torch.float32)) for cut in cuts]
    return 1 + works.index(min(works))


# ---- costs --------------------------------------------------------------------------------------


def _cost(counter: Counter, path: str, factors: TTMatrix, rows: int) -> None:
    sizes = reference.sizes_of(factors.cores)
    served = served_cut(sizes, rows, factors.dtype) if path == "fused" else None
    if served is not None:
        _merge_cost(counter, sizes, served)
        kron_kernel_cost(counter, kron_problem(sizes, served, rows, factors.dtype))
        return
    cut = _cut(sizes) if path == "fold" else None
    if path == "fused":
        cut = cheaper_cut(sizes, rows, reference.work(sizes))
    if cut is not None:
        _merge_cost(counter, sizes, cut)
        kron_cost(counter, sizes[cut][0], half(sizes[:cut]), half(sizes[cut:]), rows)
        return
    for step in reference.steps(sizes):
        if step.columns == 1 or step.outer == 1:
            counter.matmul(rows * step.outer * step.columns, step.inner, step.out)
        else:
            counter.products(rows * step.outer, step.out, step.inner, step.columns)


def _merge_cost(counter: Counter, sizes: Sequence[Size], cut: int) -> None:
    """Of the cores of each half."""
    for cores in (sizes[:cut], sizes[cut:]):
        r, m, n, _ = cores[0]
        for inner, more_m, more_n, after in cores[1:]:
            counter.matmul(r * m * n, inner, more_m * more_n * after)
            m, n = m * more_m, n * more_n


def _rebuild(counter: Counter, factors: TTMatrix) -> None:
    sizes = reference.sizes_of(factors.cores)
    for rows, inner, columns in product_order([(r, m * n, q) for r, m, n, q in sizes]):
        counter.matmul(rows, inner, columns)


FORM = LinearForm[TTMatrix](_paths, _run, _cost, _rebuild, _fused, _problem)
