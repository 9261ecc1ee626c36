"""`tt_linear`: core by core on a CPU, and which trains the Kronecker kernel takes on a GPU."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from tensorlrf.factors import TTMatrix
from tensorlrf_kernels._activation import ACTIVATIONS
from tensorlrf_kernels.kron_linear import reference as kron_reference
from tensorlrf_kernels.tt_linear import reference, tt_linear
from tensorlrf_kernels.tt_linear.launch import (
    THIN,
    Size,
    cheaper_cut,
    kron_problem,
    kron_work,
    merge_work,
    served_cut,
)
from tests.laws.kernels import KernelLaws

OP = torch.ops.tensorlrf.tt_linear
Train = list[Size]


def train(rows: Sequence[int], columns: Sequence[int], ranks: Sequence[int]) -> Train:
    ends = [1, *ranks, 1]
    return list(zip(ends, rows, columns, ends[1:], strict=False))


@st.composite
def trains(draw: st.DrawFn) -> Train:
    order = draw(st.integers(1, 4))
    sizes = st.lists(st.integers(1, 5), min_size=order, max_size=order)
    ranks = st.lists(st.integers(1, 4), min_size=order - 1, max_size=order - 1)
    return train(draw(sizes), draw(sizes), draw(ranks))


def cores_of(sizes: Train) -> list[Tensor]:
    generator = torch.Generator().manual_seed(len(sizes))
    return [torch.randn(size, generator=generator, dtype=torch.float64) for size in sizes]


def inputs(sizes: Train, *lead: int) -> tuple[Tensor, Tensor, Tensor]:
    """x, bias and residual."""
    generator = torch.Generator().manual_seed(1)
    m, n = math.prod([s[1] for s in sizes]), math.prod([s[2] for s in sizes])
    made = ((*lead, n), (m,), (*lead, m))
    x, bias, residual = (torch.randn(s, generator=generator, dtype=torch.float64) for s in made)
    return x, bias, residual


def dense(cores: Sequence[Tensor]) -> Tensor:
    return TTMatrix(tuple(cores)).to_dense()


@settings(max_examples=60, deadline=None)
@given(sizes=trains(), lead=st.lists(st.integers(0, 3), max_size=2))
def test_it_is_the_dense_layer(sizes: Train, lead: list[int]) -> None:
    cores, (x, bias, residual) = cores_of(sizes), inputs(sizes, *lead)
    expected = F.gelu(F.linear(x, dense(cores), bias) + residual)
    y = tt_linear(x, cores, bias, residual, "gelu")
    assert y.is_contiguous()
    # The entries are sums of up to 5^4 products of up to four cores, in float64.
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-10)
    for cut in range(1, len(cores)):
        a, b = reference.halves(cores, cut)
        whole = torch.einsum("sij,skl->ikjl", a, b).reshape(dense(cores).shape)
        torch.testing.assert_close(whole, dense(cores), rtol=1e-10, atol=1e-10)
        by_halves = kron_reference.kron_linear(x, a, b, bias, residual, "gelu")
        torch.testing.assert_close(by_halves, expected, rtol=1e-10, atol=1e-10)


@settings(max_examples=25, deadline=None)
@given(sizes=trains(), activation=st.sampled_from([None, *ACTIVATIONS]))
def test_gradients_are_those_of_the_dense_layer(sizes: Train, activation: str | None) -> None:
    cores, given = cores_of(sizes), inputs(sizes, 3)
    leaves = [t.requires_grad_() for t in (*given, *cores)]
    x, bias, residual = given
    dy = torch.randn(residual.shape, dtype=torch.float64)
    found = torch.autograd.grad(tt_linear(x, cores, bias, residual, activation), leaves, dy)
    z = F.linear(x, dense(cores), bias) + residual
    expected = torch.autograd.grad(reference.activate(z, activation), leaves, dy)
    for got, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)  # as the values, one more


def test_what_is_not_asked_for_is_not_made() -> None:
    sizes = train((2, 3, 2), (3, 2, 2), (2, 3))
    cores, (x, bias, residual) = cores_of(sizes), inputs(sizes, 4)
    cores[1].requires_grad_()
    tt_linear(x, cores, bias, residual, "silu").square().sum().backward()
    assert cores[1].grad is not None
    assert cores[0].grad is cores[2].grad is x.grad is bias.grad is None
    x.requires_grad_()
    (dx,) = torch.autograd.grad(tt_linear(x, [c.detach() for c in cores]).sum(), x)
    torch.testing.assert_close(dx, dense(cores).detach().sum(0).expand_as(x))


BY_CORES = train((2,) * 10, (2,) * 10, (1,) * 9)  # the other one is cheaper cut in the middle
TWO = train((2, 3), (3, 2), (2,))
CUT = train((4, 4, 4, 4), (4, 4, 4, 4), (8, 2, 8))


@pytest.mark.parametrize("sizes", [BY_CORES, CUT], ids=["by cores", "cut"])
def test_backward_keeps_the_input_and_nothing_of_its_size(sizes: Train) -> None:
    """The states between the products are up to the rank times larger than the layer's output."""
    cores, (x, *_) = cores_of(sizes), inputs(sizes, 50)
    cut = cheaper_cut(sizes, 50, reference.work(sizes))
    assert (cut is None) == (sizes is BY_CORES)
    leaves = [t.requires_grad_() for t in (x, *cores)]
    kept: list[Tensor] = []

    def keep(t: Tensor) -> Tensor:
        kept.append(t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        tt_linear(x, cores)
    own = {t.data_ptr() for t in leaves}
    others = [t for t in kept if t.data_ptr() not in own]
    assert x.data_ptr() in {t.data_ptr() for t in kept}
    # Merged halves have 16 x 16 numbers a term, and the halves of the halves.
    assert sum(t.numel() for t in others) <= (0 if sizes is BY_CORES else 6 * 2 * 8 * 16**2)


class TestTTLinear(KernelLaws):
    """Of two cores, (1, 2, 3, 2) and (2, 3, 2, 1)."""

    activations = (None, *ACTIVATIONS)
    remedy = "no second derivative"

    def leaves(self, *lead: int) -> list[Tensor]:
        x, bias, residual = inputs(TWO, *lead)
        return [x, *cores_of(TWO), bias, residual]

    def run(self, *operands: Tensor, activation: str | None = None) -> Tensor:
        x, first, second, *terms = operands
        return tt_linear(x, [first, second], *terms, activation)

    def chain(self, *operands: Tensor, activation: str | None = None) -> Tensor:
        x, first, second, *terms = operands
        return reference.tt_linear(x, [first, second], *terms, activation)

    def exact(self, *operands: Tensor, activation: str | None = None) -> Tensor:
        x, first, second, bias, residual = operands
        return reference.activate(F.linear(x, dense([first, second]), bias) + residual, activation)

    def calls(self) -> Iterator[tuple[Any, tuple[Any, ...]]]:
        x, first, second, *terms = self.leaves(2, 4)
        yield OP, (x, [first, second], *terms, "gelu")

    def wrong(self) -> Iterator[tuple[Callable[[], object], str]]:
        cores, (x, bias, residual) = cores_of(TWO), inputs(TWO, 4)
        one, two = cores
        for args, words in (
            ((x, []), r"cores=\[\] is empty"),
            ((x, [one]), r"cores\[0\] has shape \(1, 2, 3, 2\); its last dimension must be 1"),
            ((x, [one, two[:1]]), r"cores\[1\] has shape.*must be \(2, m, n, r'\)"),
            ((x, [one, two.float()]), r"cores\[1\] has dtype torch.float32, x torch.float64"),
            ((x[:, :4], cores), "x has shape.*its last dimension must be 6, the product of the co"),
            ((x, cores, bias[:3]), "bias has shape.*must be 6"),
            ((x, cores, bias, residual[:2]), "residual has shape.*leading dimensions of x"),
            ((x, cores, None, None, "tanh"), "activation='tanh' is unknown"),
        ):
            yield partial(tt_linear, *args), words  # type: ignore[arg-type]  # of several types


def test_the_cheaper_cut_multiplies_less_than_the_cores_do() -> None:
    for sizes in (BY_CORES, CUT):
        chain = THIN * 50 * reference.work(sizes)
        works = [
            50 * kron_work(kron_problem(sizes, cut, 1, torch.float32)) + merge_work(sizes, cut)
            for cut in range(1, len(sizes))
        ]
        cut = cheaper_cut(sizes, 50, reference.work(sizes))
        assert cut == (1 + works.index(min(works)) if min(works) < chain else None)
        assert (cut is None) == (sizes is BY_CORES)


def test_trains_of_low_rank_are_cut_where_the_kernel_multiplies_least() -> None:
    even = train((8,) * 4, (8,) * 4, (8, 8, 8))
    assert served_cut(even, 8192, torch.bfloat16) == 2  # 64 x 64 on both sides
    assert kron_problem(even, 2, 8192, torch.bfloat16)[:6] == (8192, 64, 64, 64, 64, 8)
    # Cut before the second core the first half has too few rows for the kernel.
    uneven = train((4, 32, 32), (4, 32, 32), (4, 4))
    assert served_cut(uneven, 8192, torch.bfloat16) == 2
    assert served_cut(train((8,) * 4, (8,) * 4, (8, 17, 8)), 64, torch.bfloat16) is None
    assert served_cut(even, 8192, torch.float64) is None
    assert served_cut(even[:1], 8192, torch.bfloat16) is None
    # Of two cuts that are served the one with the smaller rank multiplies less.
    two = train((16, 4, 16), (16, 4, 16), (16, 2))
    assert served_cut(two, 8192, torch.bfloat16) == 2
