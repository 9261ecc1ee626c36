"""Copies of models, also of those that torch's deepcopy refuses."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def computed_tensors(model: nn.Module) -> dict[int, Any]:
    """A memo for deepcopy: tensors with a graph that a hook computes anew before every forward, as
    the weights of `weight_norm` and `prune`, become copies without one."""
    return {
        id(value): value.detach().clone()
        for module in model.modules()
        if module._forward_pre_hooks
        for value in vars(module).values()
        if isinstance(value, Tensor) and not value.is_leaf
    }
