"""kron_linear against its definition, and as an op of torch's dispatcher."""

from __future__ import annotations

import subprocess
import sys
from itertools import product

import pytest
import torch
from torch import Tensor

from tensorlrf_kernels._activation import ACTIVATIONS, activate
from tensorlrf_kernels._tables import bucket
from tensorlrf_kernels.chips import H200
from tensorlrf_kernels.kron_linear import kron_linear, launch, reference
from tests.kernels.drawn.kron import draw_kron, weight

ONE, OTHER = (2, 3), (4, 5)  # a and b of the gradients' tests


def leaves(*lead: int, s: int = 2) -> list[Tensor]:
    """x (*lead, 15), a (s, 2, 3), b (s, 4, 5), bias (8,), residual (*lead, 8)."""
    M = torch.Size(lead).numel()
    x, *factors, residual = draw_kron(M, ONE, OTHER, s).each()
    assert x is not None
    assert residual is not None
    given = [x.view(*lead, 15), *factors, residual.view(*lead, 8)]
    return [t.requires_grad_() for t in given if t is not None]


@pytest.mark.parametrize("call", [kron_linear, reference.kron_linear])
@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
@pytest.mark.parametrize("lead", [(), (5,), (2, 3), (0,)])
def test_follows_the_definition(call, activation: str | None, lead: tuple[int, ...]) -> None:  # type: ignore[no-untyped-def]  # either of two functions
    x, a, b, bias, residual = (t.detach() for t in leaves(*lead))
    y = call(x, a, b, bias, residual, activation)
    expected = activate(x @ weight(a, b).T + bias + residual, activation)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)


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


@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
@pytest.mark.parametrize("lead", [(), (5,), (2, 3)])
def test_gradients(activation: str | None, lead: tuple[int, ...]) -> None:
    def run(*tensors: Tensor) -> Tensor:
        return kron_linear(*tensors, activation)

    assert torch.autograd.gradcheck(run, leaves(*lead))


@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("needed", [n for n in product([True, False], repeat=5) if any(n)])
def test_only_the_gradients_that_are_needed(
    activation: str | None, needed: tuple[bool, ...]
) -> None:
    ours, theirs = leaves(2, 3), leaves(2, 3)
    for tensors, call in ((ours, kron_linear), (theirs, reference.kron_linear)):
        for t, need in zip(tensors, needed, strict=True):
            t.requires_grad_(need)
        call(*tensors, activation).square().sum().backward()
    for t, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(t.grad, expected.grad, rtol=1e-12, atol=1e-12)


def test_an_empty_batch_leaves_zero_gradients() -> None:
    x, a, b, bias, residual = leaves(0)
    kron_linear(x, a, b, bias, residual, "silu").sum().backward()
    assert x.grad is not None
    assert x.grad.shape == (0, 15)
    for t in (a, b, bias):
        assert t.grad is not None
        assert not t.grad.any()


def test_backward_keeps_its_operands_and_nothing_else() -> None:
    x, a, b, bias, residual = leaves(50, s=3)
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


@pytest.mark.parametrize("lead", [(), (5,), (2, 3), (0,)])
def test_opcheck(lead: tuple[int, ...]) -> None:
    tensors = leaves(*lead)
    torch.library.opcheck(torch.ops.tensorlrf.kron_linear, (*tensors, "gelu"))
    x, a, b, bias, residual = (t.detach() for t in tensors)
    op = torch.ops.tensorlrf.kron_linear_backward
    every, some = [True] * 5, [True, False, False, True, False]
    torch.library.opcheck(op, (residual, x, a, b, bias, residual, "silu", every))
    torch.library.opcheck(op, (residual, None, a, b, None, None, None, some))


def test_compiles_in_one_graph_with_gradients() -> None:
    def run(*tensors: Tensor) -> Tensor:
        return kron_linear(*tensors, "gelu").square()

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    for lead in ((5,), (9,), (2, 3)):
        ours, theirs = leaves(*lead), leaves(*lead)
        torch.testing.assert_close(compiled(*ours), run(*theirs))
        compiled(*ours).sum().backward()
        run(*theirs).sum().backward()
        for t, expected in zip(ours, theirs, strict=True):
            torch.testing.assert_close(t.grad, expected.grad)


def test_autocast_casts_as_for_products() -> None:
    tensors = [t.detach().float().requires_grad_() for t in leaves(5)]
    with torch.autocast("cpu", torch.bfloat16):
        y = kron_linear(*tensors, "relu")
        expected = reference.kron_linear(*(t.bfloat16() for t in tensors), "relu")
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, expected, rtol=0, atol=0)
    y.sum().backward()
    assert all(t.grad is not None and t.grad.dtype == torch.float32 for t in tensors)


def test_double_backward_is_refused_with_the_remedy() -> None:
    x, *others = leaves(5)
    (g,) = torch.autograd.grad(kron_linear(x, *others, "silu").sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match=r"second derivative.*path='chain'"):
        g.sum().backward()


def test_importing_the_op_imports_no_triton() -> None:
    code = "import sys, tensorlrf_kernels.kron_linear; print('triton' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


def test_problems_of_one_bucket_share_a_launch() -> None:
    problem = launch.KronProblem(8192, 64, 64, 128, 33, 3, torch.bfloat16)
    assert bucket(problem) == "8192x64x64x128x64x4"
    assert bucket(problem.swapped) == "8192x128x64x64x64x4"
    assert bucket(problem.turned.turned) == bucket(problem)
    inside = problem._replace(rows=5000, n1=40, terms=4)
    assert bucket(inside) == bucket(problem)
    assert launch.forward(inside, H200) == launch.forward(problem._replace(terms=4), H200)


X, A, B = torch.ones(5, 15), torch.ones(2, *ONE), torch.ones(2, *OTHER)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (
            (torch.ones(5, 14), A, B),
            r"x has shape \(5, 14\); it must be \(\.\.\., 15\), as a \(2, ",
        ),
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
    ],
)
def test_bad_input_is_named(args: tuple[object, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        kron_linear(*args)  # type: ignore[arg-type]  # the tests give what is wrong on purpose
