"""lowrank_linear against its definition, and as an op of torch's dispatcher."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tensorlrf_kernels.lowrank_linear import lowrank_linear, reference
from tests.draws import seeded
from tests.kernels.drawn.lowrank import draw

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
    return [seeded(*size, seed=k).requires_grad_() for k, size in enumerate(sizes)]


@pytest.mark.parametrize("call", [lowrank_linear, reference.lowrank_linear])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("lead", [(), (5,), (2, 3), (0,)])
def test_follows_the_definition(call, activation: str | None, lead: tuple[int, ...]) -> None:  # type: ignore[no-untyped-def]
    x, right, left, bias, residual = (t.detach() for t in leaves(*lead))
    y = call(x, right, left, bias, residual, activation)
    linear = torch.einsum("mr,rn,...n->...m", left, right, x) + bias + residual
    torch.testing.assert_close(y, ACTIVATIONS[activation](linear), rtol=1e-12, atol=1e-12)


def test_bias_and_residual_may_be_left_out() -> None:
    x, right, left, *_ = (t.detach() for t in leaves(5))
    expected = F.linear(x, left @ right)
    torch.testing.assert_close(lowrank_linear(x, right, left), expected, rtol=1e-12, atol=1e-12)


def test_rank_zero_leaves_the_other_terms() -> None:
    x, _, _, bias, residual = (t.detach() for t in leaves(5))
    y = lowrank_linear(x, x.new_empty(0, 7), x.new_empty(4, 0), bias, residual)
    torch.testing.assert_close(y, bias + residual)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("lead", [(), (5,), (2, 3)])
def test_gradients(activation: str | None, lead: tuple[int, ...]) -> None:
    def run(*tensors: Tensor) -> Tensor:
        return lowrank_linear(*tensors, activation)

    assert torch.autograd.gradcheck(run, leaves(*lead))


@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("needed", [n for n in product([True, False], repeat=5) if any(n)])
def test_only_the_gradients_that_are_needed(
    activation: str | None, needed: tuple[bool, ...]
) -> None:
    ours, theirs = leaves(2, 3), leaves(2, 3)
    for tensors, call in ((ours, lowrank_linear), (theirs, reference.lowrank_linear)):
        for t, need in zip(tensors, needed, strict=True):
            t.requires_grad_(need)
        call(*tensors, activation).square().sum().backward()
    for t, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(t.grad, expected.grad, rtol=1e-12, atol=1e-12)


def test_what_backward_does_not_need_is_not_kept() -> None:
    x, right, left, bias, residual = leaves(50)
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


@pytest.mark.parametrize("lead", [(), (5,), (2, 3), (0,)])
@pytest.mark.parametrize("keep", [True, False])
def test_opcheck(lead: tuple[int, ...], keep: bool) -> None:
    tensors = leaves(*lead)
    torch.library.opcheck(torch.ops.tensorlrf.lowrank_linear, (*tensors, "gelu", keep))
    x, right, left, bias, residual = (t.detach() for t in tensors)
    for needed in ([True] * 5, [False, True, False, True, False]):
        args = (residual, x, None, right, left, bias, residual, "silu", needed)
        torch.library.opcheck(torch.ops.tensorlrf.lowrank_linear_backward, args)


def test_float16_keeps_its_intermediate_in_float32() -> None:
    o = draw(4, 5, 6, 3, torch.float16)
    _, t = torch.ops.tensorlrf.lowrank_linear(o.x, o.right, o.left, None, None, None, True)
    assert t.dtype == torch.float32


def test_compiles_in_one_graph_with_gradients() -> None:
    def run(*tensors: Tensor) -> Tensor:
        return lowrank_linear(*tensors, "gelu").square()

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
        y = lowrank_linear(*tensors, "relu")
        expected = reference.lowrank_linear(*(t.bfloat16() for t in tensors), "relu")
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, expected, rtol=0, atol=0)
    y.sum().backward()
    assert all(t.grad is not None and t.grad.dtype == torch.float32 for t in tensors)
    with torch.autocast("cpu", torch.bfloat16):
        assert lowrank_linear(*leaves(5)).dtype == torch.float64


def test_double_backward_is_refused_with_the_remedy() -> None:
    x, *others = leaves(5)
    (g,) = torch.autograd.grad(lowrank_linear(x, *others, "silu").sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match=r"second derivative.*path='chain'"):
        g.sum().backward()


X, RIGHT, LEFT = torch.ones(5, 7), torch.ones(3, 7), torch.ones(4, 3)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ((X, torch.ones(3, 6), LEFT), r"right has shape \(3, 6\).*\(r, n\), with n = 7 as x"),
        ((X, RIGHT, torch.ones(4, 2)), r"left has shape \(4, 2\).*\(m, r\), with r = 3 as right"),
        ((X, torch.ones(7), LEFT), r"right has shape \(7,\); it must be \(r, n\)"),
        ((torch.tensor(1.0), RIGHT, LEFT), r"x has shape \(\); it must be \(\.\.\., n\)"),
        ((X, RIGHT, LEFT, torch.ones(5)), r"bias has shape \(5,\).*m = 4 as left"),
        (
            (X, RIGHT, LEFT, None, torch.ones(2, 4)),
            r"residual has shape \(2, 4\).*leading dimensions of x, \(5,\)",
        ),
        ((X, RIGHT.double(), LEFT), r"right has dtype torch.float64, x torch.float32; cast"),
        ((X, RIGHT.to("meta"), LEFT), r"right is on meta, x on cpu; move"),
        ((X.long(), RIGHT.long(), LEFT.long()), r"x has dtype torch.int64; it must be a floating"),
        ((X, RIGHT, LEFT, None, None, "tanh"), r"'tanh'.*relu, gelu, gelu_tanh, silu"),
    ],
)
def test_bad_input_is_named(args: tuple[object, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        lowrank_linear(*args)  # type: ignore[arg-type]
