"""Down by the shared right bases, across the grid for each rank, up by the shared left bases."""

from __future__ import annotations

import torch
from torch import Tensor

from tensorlrf.factors import BlastFactors
from tensorlrf.ops._counter import Counter
from tensorlrf.ops.structured._block_kernel import block_cost, block_problem
from tensorlrf.ops.structured._form import LinearForm
from tensorlrf_kernels.blr_linear import blast_linear, reference
from tensorlrf_kernels.blr_linear.forms import Form, blast_form
from tensorlrf_kernels.launches import Problem


def _run(path: str, factors: BlastFactors, x: Tensor) -> Tensor:
    tensors = factors.left, factors.right, factors.scales
    return reference.blast_linear(x, *tensors, factors.shape)


def _form(factors: BlastFactors) -> Form:
    m, n = factors.shape
    return blast_form(tuple(factors.left.shape), tuple(factors.right.shape), (m, n))


def _fused(factors: BlastFactors, x: Tensor, bias: Tensor | None) -> Tensor:
    return blast_linear(x, factors.left, factors.right, factors.scales, factors.shape, bias)


def _problem(
    factors: BlastFactors, rows: int, dtype: torch.dtype, tf32: bool
) -> tuple[str, Problem] | None:
    return block_problem(_form(factors), rows, dtype, tf32)


def _cost(counter: Counter, path: str, factors: BlastFactors, rows: int) -> None:
    if path == "fused" and block_cost(counter, _form(factors), rows, factors.dtype):
        return
    p, mb, r = factors.left.shape
    q, _, nb = factors.right.shape
    counter.products(q, rows, nb, r)
    counter.products(r, rows, q, p)
    counter.products(p, rows, r, mb)


def _rebuild(counter: Counter, factors: BlastFactors) -> None:
    p, mb, r = factors.left.shape
    q, _, nb = factors.right.shape
    counter.merge(p * q * mb * r)
    counter.products(p * q, mb, r, nb)


FORM = LinearForm[BlastFactors](lambda _: ("chain",), _run, _cost, _rebuild, _fused, _problem)
