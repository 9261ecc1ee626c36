"""Two batched products, one a block-diagonal factor."""

from __future__ import annotations

import torch
from torch import Tensor

from tensorlrf.factors import MonarchFactors
from tensorlrf.ops._counter import Counter
from tensorlrf.ops.structured._block_kernel import block_cost, block_problem
from tensorlrf.ops.structured._form import LinearForm
from tensorlrf_kernels.blr_linear import monarch_linear, reference
from tensorlrf_kernels.blr_linear.forms import Form, monarch_form
from tensorlrf_kernels.launches import Problem


def _run(path: str, factors: MonarchFactors, x: Tensor) -> Tensor:
    return reference.monarch_linear(x, factors.left, factors.right, factors.shape)


def _form(factors: MonarchFactors) -> Form:
    m, n = factors.shape
    return monarch_form(tuple(factors.left.shape), tuple(factors.right.shape), (m, n))


def _fused(factors: MonarchFactors, x: Tensor, bias: Tensor | None) -> Tensor:
    return monarch_linear(x, factors.left, factors.right, factors.shape, bias)


def _problem(
    factors: MonarchFactors, rows: int, dtype: torch.dtype, tf32: bool
) -> tuple[str, Problem] | None:
    return block_problem(_form(factors), rows, dtype, tf32)


def _cost(counter: Counter, path: str, factors: MonarchFactors, rows: int) -> None:
    if path == "fused" and block_cost(counter, _form(factors), rows, factors.dtype):
        return
    Q, S, K, r = factors.left.shape
    counter.products(K, rows, factors.right.shape[3], Q * r)
    counter.merge(rows * K * Q * r)
    counter.products(Q, rows, K * r, S)
    counter.merge(rows * Q * S)


def _rebuild(counter: Counter, factors: MonarchFactors) -> None:
    Q, S, K, r = factors.left.shape
    counter.products(Q * K, S, r, factors.right.shape[3])


FORM = LinearForm[MonarchFactors](lambda _: ("chain",), _run, _cost, _rebuild, _fused, _problem)
