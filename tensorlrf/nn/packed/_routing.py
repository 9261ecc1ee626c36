"""What every mixture of experts does with its tokens, and the packed module that it comes from."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

ARGUMENTS = (
    ["hidden_states", "top_k_index", "top_k_weights"],
    ["hidden_states", "router_indices", "routing_weights"],
)
"""Of the forward of mixtures whose router is outside."""


def by_expert(
    x: Tensor, index: Tensor, shares: Tensor, experts: Iterable[Callable[[Tensor], Tensor]]
) -> Tensor:
    """Tokens (n, d), the experts (n, k) of each and their shares (n, k), to (n, d): each expert is
    called once, with the tokens that are its own, and one without tokens is not."""
    out = torch.zeros_like(x)
    for k, expert in enumerate(experts):
        token, choice = torch.where(index == k)
        if len(token):
            y = expert(x[token]) * shares[token, choice, None]
            out.index_add_(0, token, y.to(out.dtype))
    return out


def twin_of(module: Any, parameters: dict[str, nn.Parameter | None]) -> Any:
    """A module of the same type with the same attributes and children, on other parameters."""
    twin: Any = object.__new__(type(module))
    vars(twin).update(vars(module))
    twin._parameters = parameters
    return twin
