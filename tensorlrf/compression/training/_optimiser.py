"""An optimiser that is told of parameters which have become others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tensorlrf.errors import ArgumentError

SQUARES = ("exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum")
"""Of what torch's optimisers keep: running squares of gradients, never negative."""


@dataclass(frozen=True)
class Change:
    """A parameter that has become another one, or two, and how gradients of the old one give those
    of the new: as matrices, left G right; None is the identity.

    shape  of the old one as a matrix
    """

    new: nn.Parameter
    shape: tuple[int, int]
    left: Tensor | None = None
    right: Tensor | None = None

    def carried(self, state: Any, squares: bool) -> Tensor:
        """What an optimiser keeps of the old one as it is of the new: first moments go the way of
        gradients, which is linear; second ones as if entries of gradients were independent."""
        matrix: Tensor = state.reshape(self.shape)
        for side, before in ((self.left, True), (self.right, False)):
            if side is not None:
                by = side.to(matrix.dtype)
                by = by.square() if squares else by
                matrix = by @ matrix if before else matrix @ by
        return matrix.reshape(self.new.shape).contiguous()


@torch.no_grad()
def tell(optimizer: Optimizer, old: nn.Parameter, changes: Sequence[Change]) -> None:
    """Put the new parameters in the place of the old one: in its group, with its state where that
    is of its shape (moments) or of one number (steps)."""
    for group in optimizer.param_groups:
        at = next((k for k, p in enumerate(group["params"]) if p is old), None)
        if at is None:
            continue
        group["params"][at : at + 1] = [change.new for change in changes]
        state = optimizer.state.pop(old, {})
        for change in changes:
            known = _state(state, old, change)
            if known:
                optimizer.state[change.new] = known


def _state(state: dict[str, Any], old: nn.Parameter, change: Change) -> dict[str, Any]:
    """Empty where something is kept that is neither: the optimiser begins anew there."""
    carried: dict[str, Any] = {}
    for key, value in state.items():
        if isinstance(value, Tensor) and value.shape == old.shape and value.ndim > 0:
            carried[key] = change.carried(value, key in SQUARES)
        elif not isinstance(value, Tensor) or value.numel() == 1:
            carried[key] = value.clone() if isinstance(value, Tensor) else value
        else:
            return {}
    return carried


def rate_of(optimizer: Optimizer, parameter: nn.Parameter) -> float:
    """Its learning rate; 0 where the optimiser does not have it."""
    for group in optimizer.param_groups:
        if any(p is parameter for p in group["params"]):
            return float(group["lr"])
    return 0.0


def check_optimizer(optimizer: Any) -> Optimizer:
    """Raise ArgumentError for what is no optimiser of torch."""
    if not isinstance(optimizer, Optimizer):
        raise ArgumentError(
            f"optimizer is a {type(optimizer).__name__}; pass the torch.optim.Optimizer of the "
            "parameters, which is told of those that become others"
        )
    return optimizer
