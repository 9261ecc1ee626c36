"""kron_linear against its definition, and as an op of torch's dispatcher."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from tensorlrf_kernels._activation import ACTIVATIONS, activate
from tensorlrf_kernels._tables import bucket
from tensorlrf_kernels.chips import H200
from tensorlrf_kernels.kron_linear import kron_linear, launch, reference
from tests.kernels.drawn.kron import draw_kron, weight
from tests.laws.kernels import KernelLaws

ONE, OTHER = (2, 3), (4, 5)  # a and b of the gradients' tests


def leaves(*lead: int, s: int = 2) -> list[Tensor]:
    """x (*lead, 15), a (s, 2, 3), b (s, 4, 5), bias (8,), residual (*lead, 8)."""
    M = torch.Size(lead).numel()
    x, *factors, residual = draw_kron(M, ONE, OTHER, s).each()
    assert x is not None
    assert residual is not None
    given = [x.view(*lead, 15), *factors, residual.view(*lead, 8)]
    return [t for t in given if t is not None]


X, A, B = torch.ones(5, 15), torch.ones(2, *ONE), torch.ones(2, *OTHER)


class TestKronLinear(KernelLaws):
    activations = (None, *ACTIVATIONS)

    def leaves(self, *lead: int) -> list[Tensor]:
        return leaves(*lead)

    def run(self, *operands: Tensor, activation: str | None = None) -> Tensor:
        return kron_linear(*operands, activation)

    def chain(self, *operands: Tensor, activation: str | None = None) -> Tensor:
        return reference.kron_linear(*operands, activation)

    def exact(self, *operands: Tensor, activation: str | None = None) -> Tensor:
        x, a, b, bias, residual = operands
        return activate(x @ weight(a, b).T + bias + residual, activation)

    def calls(self) -> Iterator[tuple[Any, tuple[Any, ...]]]:
        op = torch.ops.tensorlrf.kron_linear_backward
        every, some = [True] * 5, [True, False, False, True, False]
        for lead in self.leads:
            yield torch.ops.tensorlrf.kron_linear, (*self.drawn(*lead), "gelu")
            x, a, b, bias, residual = leaves(*lead)
            yield op, (residual, x, a, b, bias, residual, "silu", every)
            yield op, (residual, None, a, b, None, None, None, some)

    def wrong(self) -> Iterator[tuple[Callable[[], object], str]]:
        for args, words in (
            ((torch.ones(5, 14), A, B), r"x has shape \(5, 14\); it must be \(\.\.\., 15\), as a"),
            ((torch.tensor(1.0), A, B), r"x has shape \(\); it must be \(\.\.\., 15\)"),
            ((X, A[0], B), r"a has shape \(2, 3\); it must be \(s, m1, n1\)"),
            ((X, A, B[0]), r"b has shape \(4, 5\); it must be \(s, m2, n2\)"),
            ((X, A, B[:1]), r"b has 1 terms, a 2; a term is one of both"),
            ((X, A, B, torch.ones(9)), r"bias has shape \(9,\); it must be \(8\), as a"),
            ((X, A, B, None, torch.ones(5, 9)), r"residual has shape \(5, 9\).*\(\.\.\., 8\)"),
            ((X, A, B, None, torch.ones(2, 8)), r"residual has.*leading dimensions of x, \(5,\)"),
            ((X, A.double(), B), r"a has dtype torch.float64, x torch.float32; cast"),
            ((X, A, B.to("meta")), r"b is on meta, x on cpu; move"),
            ((X.long(), A.long(), B.long()), r"x has dtype torch.int64; it must be a floating"),
            ((X, A, B, None, None, "tanh"), r"'tanh'.*relu, gelu, gelu_tanh, silu"),
        ):
            yield partial(kron_linear, *args), words


@pytest.mark.parametrize("sizes", [((2, 7), (9, 3)), ((9, 3), (2, 7)), ((1, 1), (4, 5))])
def test_either_order_of_the_products(sizes: tuple[tuple[int, int], tuple[int, int]]) -> None:
    o = draw_kron(4, *sizes, 3, terms=False)
    leaves = [t.requires_grad_() for t in (o.x, o.a, o.b)]
    y = kron_linear(*leaves)
    expected = o.x @ weight(o.a, o.b).T
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(2), dtype=y.dtype)
    for got, wanted in zip(
        torch.autograd.grad(y, leaves, dy), torch.autograd.grad(expected, leaves, dy), strict=True
    ):
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


def test_backward_keeps_its_operands_and_nothing_else() -> None:
    x, a, b, bias, residual = (t.requires_grad_() for t in leaves(50, s=3))
    kept: list[int] = []

    def pack(t: Tensor) -> Tensor:
        kept.append(t.data_ptr())
        return t

    for t in (a, b):
        t.requires_grad_(False)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        kron_linear(x, a, b, bias, residual)
    assert kept == [a.data_ptr(), b.data_ptr()]  # frozen factors: not even x
    kept.clear()
    a.requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        kron_linear(x, a, b, bias, residual, "gelu")
    assert set(kept) == {t.data_ptr() for t in (x, a, b, bias, residual)}


def test_problems_of_one_bucket_share_a_launch() -> None:
    problem = launch.KronProblem(8192, 64, 64, 128, 33, 3, torch.bfloat16)
    assert bucket(problem) == "8192x64x64x128x64x4"
    assert bucket(problem.swapped) == "8192x128x64x64x64x4"
    assert bucket(problem.turned.turned) == bucket(problem)
    inside = problem._replace(rows=5000, n1=40, terms=4)
    assert bucket(inside) == bucket(problem)
    assert launch.forward(inside, H200) == launch.forward(problem._replace(terms=4), H200)
