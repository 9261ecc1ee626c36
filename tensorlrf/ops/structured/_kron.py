"""(sum of kron(a_s, b_s)) x = sum of a_s X b_s^T for x as the matrix X (n1, n2): two products, the
terms s stacked in the one or in the other, and no permutation between them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tensorlrf.factors import KroneckerSum
from tensorlrf.ops._counter import Counter
from tensorlrf.ops.structured._form import LinearForm
from tensorlrf_kernels.chips import H200
from tensorlrf_kernels.kron_linear import kron_linear, reference
from tensorlrf_kernels.kron_linear.launch import KronProblem, forward
from tensorlrf_kernels.launches import power_above


def kron_cost(
    counter: Counter, s: int, one: tuple[int, int], other: tuple[int, int], rows: int
) -> None:
    """Of the two library products."""
    (m1, n1), (m2, n2) = one, other
    if reference.b_first(one, other):
        counter.matmul(rows * n1, n2, s * m2)
        counter.products(rows, m1, n1 * s, m2)
    else:
        counter.products(rows, m1 * s, n1, n2)
        counter.matmul(rows * m1, s * n2, m2)


def kron_kernel_cost(counter: Counter, problem: KronProblem) -> None:
    """Of `kron_linear` where its kernel serves."""
    config = forward(problem, H200)
    assert config is not None  # asked for nothing else
    rows, m1, n1, m2, n2, s, *_ = problem.swapped if config.blocks["SWAP"] else problem
    widths = [power_above(n) for n in (m1, n1, m2, n2)]
    multiply_adds = m1 * n2 * (n1 + m2)
    padded = widths[0] * widths[3] * (widths[1] + widths[2])
    elements = rows * (n1 * n2 + m1 * m2) + s * (m1 * n1 + m2 * n2)
    counter.kernel(rows * s * multiply_adds, elements, padded / multiply_adds, rows)


def _fused(factors: KroneckerSum, x: Tensor, bias: Tensor | None) -> Tensor:
    return kron_linear(x, factors.a, factors.b, bias)


def _problem(
    factors: KroneckerSum, rows: int, dtype: torch.dtype, tf32: bool
) -> tuple[str, KronProblem] | None:
    s, m1, n1 = factors.a.shape
    _, m2, n2 = factors.b.shape
    problem = KronProblem(rows, m1, n1, m2, n2, s, dtype, tf32)
    return ("kron_linear", problem) if problem.served else None


def _run(path: str, factors: KroneckerSum, x: Tensor) -> Tensor:
    return reference.product(x, factors.a, factors.b)


def _cost(counter: Counter, path: str, factors: KroneckerSum, rows: int) -> None:
    s, m1, n1 = factors.a.shape
    _, m2, n2 = factors.b.shape
    found = _problem(factors, rows, factors.dtype, False) if path == "fused" else None
    if found is not None:
        kron_kernel_cost(counter, found[1])
    else:
        kron_cost(counter, s, (m1, n1), (m2, n2), rows)


def _rebuild(counter: Counter, factors: KroneckerSum) -> None:
    s, *one = factors.a.shape
    counter.matmul(math.prod(one), s, math.prod(factors.b.shape[1:]))


FORM = LinearForm[KroneckerSum](lambda _: ("chain",), _run, _cost, _rebuild, _fused, _problem)
