"""Activations that an epilogue may apply, by name."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

ACTIVATIONS = ("relu", "gelu", "gelu_tanh", "silu")


def activate(y: Tensor, activation: str | None) -> Tensor:
    """activation(y); None leaves y as it is. Raises ValueError for an unknown name."""
    if activation is None:
        return y
    if activation == "relu":
        return F.relu(y)
    if activation == "gelu":
        return F.gelu(y)
    if activation == "gelu_tanh":
        return F.gelu(y, approximate="tanh")
    if activation == "silu":
        return F.silu(y)
    raise ValueError(f"activation={activation!r} is unknown; choose None, {', '.join(ACTIVATIONS)}")
