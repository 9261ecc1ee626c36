"""lowrank_linear against its definition."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tensorlrf_kernels.lowrank_linear import lowrank_linear

ACTIVATIONS = {
    None: lambda y: y,
    "relu": lambda y: y.clamp(min=0),
    "gelu": lambda y: y * 0.5 * (1 + torch.erf(y / 2**0.5)),
    "gelu_tanh": lambda y: (
        0.5 * y * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (y + 0.044715 * y**3)))
    ),
    "silu": lambda y: y / (1 + torch.exp(-y)),
}


def normal(*size: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*size, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("lead", [(), (5,), (2, 3), (0,)])
def test_follows_the_definition(activation: str | None, lead: tuple[int, ...]) -> None:
    x, right, left = normal(*lead, 7, seed=0), normal(3, 7, seed=1), normal(4, 3, seed=2)
    bias, residual = normal(4, seed=3), normal(*lead, 4, seed=4)
    y = lowrank_linear(x, right, left, bias, residual, activation)
    linear = torch.einsum("mr,rn,...n->...m", left, right, x) + bias + residual
    torch.testing.assert_close(y, ACTIVATIONS[activation](linear), rtol=1e-12, atol=1e-12)


def test_bias_and_residual_may_be_left_out() -> None:
    x, right, left = normal(5, 7, seed=0), normal(3, 7, seed=1), normal(4, 3, seed=2)
    expected = F.linear(x, left @ right)
    torch.testing.assert_close(lowrank_linear(x, right, left), expected, rtol=1e-12, atol=1e-12)


def test_gradients() -> None:
    tensors = [
        normal(*size, seed=k).requires_grad_()
        for k, size in enumerate([(5, 7), (3, 7), (4, 3), (4,), (5, 4)])
    ]
    assert torch.autograd.gradcheck(lambda *t: lowrank_linear(*t, "silu"), tensors)


def test_an_unknown_activation_is_named_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'tanh'.*relu, gelu, gelu_tanh, silu"):
        lowrank_linear(torch.ones(1, 2), torch.ones(1, 2), torch.ones(2, 1), activation="tanh")
