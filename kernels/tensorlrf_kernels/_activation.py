"""Activations that an epilogue may apply, by name, and their gradients."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

ACTIVATIONS = ("relu", "gelu", "gelu_tanh", "silu")


def check_activation(activation: str | None) -> None:
    """None or one of ACTIVATIONS; else ValueError."""
    if activation is not None and activation not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise ValueError(f"activation={activation!r} is unknown; choose None, {known}")


def activate(z: Tensor, activation: str | None) -> Tensor:
    """activation(z); None leaves z as it is. Raises ValueError for an unknown name."""
    check_activation(activation)
    if activation == "relu":
        return F.relu(z)
    if activation == "gelu":
        return F.gelu(z)
    if activation == "gelu_tanh":
        return F.gelu(z, approximate="tanh")
    if activation == "silu":
        return F.silu(z)
    return z


def activate_backward(dy: Tensor, z: Tensor, activation: str | None) -> Tensor:
    """dy activation'(z), the gradient in z."""
    check_activation(activation)
    aten, dz = torch.ops.aten, dy
    if activation == "relu":
        dz = aten.threshold_backward(dy, z, 0)
    elif activation == "gelu":
        dz = aten.gelu_backward(dy, z)
    elif activation == "gelu_tanh":
        dz = aten.gelu_backward(dy, z, approximate="tanh")
    elif activation == "silu":
        dz = aten.silu_backward(dy, z)
    return dz
