"""lowrank_linear against its definition, and as an op of torch's dispatcher."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tensorlrf_kernels.lowrank_linear import lowrank_linear, reference
from tests.draws import seeded
from tests.kernels.drawn.lowrank import draw
from tests.laws.kernels import KernelLaws

ACTIVATIONS = {
    None: lambda y: y,
    "relu": lambda y: y.clamp(min=0),
    "gelu": lambda y: y * 0.5 * (1 + torch.erf(y / 2**0.5)),
    "gelu_tanh": lambda y: (
        0.5 * y * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (y + 0.044715 * y**3)))
    ),
    "silu": lambda y: y / (1 + torch.exp(-y)),
}


def leaves(*lead: int) -> list[Tensor]:
    """x (*lead, 7), right (3, 7), left (4, 3), bias (4,), residual (*lead, 4)."""
    sizes = ((*lead, 7), (3, 7), (4, 3), (4,), (*lead, 4))
    return [seeded(*size, seed=k) for k, size in enumerate(sizes)]


X, RIGHT, LEFT = torch.ones(5, 7), torch.ones(3, 7), torch.ones(4, 3)


class TestLowrankLinear(KernelLaws):
    activations = tuple(ACTIVATIONS)

    def leaves(self, *lead: int) -> list[Tensor]:
        return leaves(*lead)

    def run(self, *operands: Tensor, activation: str | None = None) -> Tensor:
        return lowrank_linear(*operands, activation)

    def chain(self, *operands: Tensor, activation: str | None = None) -> Tensor:
        return reference.lowrank_linear(*operands, activation)

    def exact(self, *operands: Tensor, activation: str | None = None) -> Tensor:
        x, right, left, bias, residual = operands
        linear = torch.einsum("mr,rn,...n->...m", left, right, x) + bias + residual
        return ACTIVATIONS[activation](linear)

    def calls(self) -> Iterator[tuple[Any, tuple[Any, ...]]]:
        for lead, keep in product(self.leads, (True, False)):
            yield torch.ops.tensorlrf.lowrank_linear, (*self.drawn(*lead), "gelu", keep)
            x, right, left, bias, residual = leaves(*lead)
            for needed in ([True] * 5, [False, True, False, True, False]):
                args = (residual, x, None, right, left, bias, residual, "silu", needed)
                yield torch.ops.tensorlrf.lowrank_linear_backward, args

    def wrong(self) -> Iterator[tuple[Callable[[], object], str]]:
        for args, words in (
            ((X, torch.ones(3, 6), LEFT), r"right has shape \(3, 6\).*\(r, n\), with n = 7 as x"),
            ((X, RIGHT, torch.ones(4, 2)), r"left has shape \(4, 2\).*\(m, r\), with r = 3 as r"),
            ((X, torch.ones(7), LEFT), r"right has shape \(7,\); it must be \(r, n\)"),
            ((torch.tensor(1.0), RIGHT, LEFT), r"x has shape \(\); it must be \(\.\.\., n\)"),
            ((X, RIGHT, LEFT, torch.ones(5)), r"bias has shape \(5,\).*m = 4 as left"),
            ((X, RIGHT, LEFT, None, torch.ones(2, 4)), r"residual has shape \(2, 4\).*x, \(5,\)"),
            ((X, RIGHT.double(), LEFT), r"right has dtype torch.float64, x torch.float32; cast"),
            ((X, RIGHT.to("meta"), LEFT), r"right is on meta, x on cpu; move"),
            ((X.long(), RIGHT.long(), LEFT.long()), r"x has dtype torch.int64; it must be a fl"),
            ((X, RIGHT, LEFT, None, None, "tanh"), r"'tanh'.*relu, gelu, gelu_tanh, silu"),
        ):
            yield partial(lowrank_linear, *args), words


def test_bias_and_residual_may_be_left_out() -> None:
    x, right, left, *_ = leaves(5)
    expected = F.linear(x, left @ right)
    torch.testing.assert_close(lowrank_linear(x, right, left), expected, rtol=1e-12, atol=1e-12)


def test_rank_zero_leaves_the_other_terms() -> None:
    x, _, _, bias, residual = leaves(5)
    y = lowrank_linear(x, x.new_empty(0, 7), x.new_empty(4, 0), bias, residual)
    torch.testing.assert_close(y, bias + residual)


def test_what_backward_does_not_need_is_not_kept() -> None:
    x, right, left, bias, residual = leaves(50)
    x.requires_grad_()
    sizes: list[int] = []

    def pack(t: Tensor) -> Tensor:
        sizes.append(t.numel())
        return t

    for t in (right, left, bias, residual):
        t.requires_grad_(False)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        lowrank_linear(x, right, left, bias, residual)
    assert max(sizes) == right.numel()  # frozen factors: neither x nor t
    sizes.clear()
    left.requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        lowrank_linear(x, right, left, bias, residual)
    assert max(sizes) == 50 * 3  # t, but not x


def test_float16_keeps_its_intermediate_in_float32() -> None:
    o = draw(4, 5, 6, 3, torch.float16)
    _, t = torch.ops.tensorlrf.lowrank_linear(o.x, o.right, o.left, None, None, None, True)
    assert t.dtype == torch.float32
