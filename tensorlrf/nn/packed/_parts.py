"""A layer of a recurrent module, dense or factored, as torch's kernel and a loop want it."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tensorlrf.factors.kinds import two_matrices
from tensorlrf.nn._layer import FactoredLayer


def is_quiet(layer: Any) -> bool:
    """Nobody listens to its calls, and it is a layer whose weight is known."""
    if layer is None:
        return True
    known = type(layer) is nn.Linear or isinstance(layer, FactoredLayer)
    hooks = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks)
    return known and not any((*hooks, layer._backward_pre_hooks))


def versions(layers: list[Any]) -> list[int]:
    """What torch has counted of changes of the parameters in place."""
    own = [p for layer in layers if layer is not None for p in layer.parameters()]
    return [0 if p.is_inference() else p._version for p in own]


def product(layer: Any) -> Any:
    """The forward of a dense layer, which no hook hears; of another one the layer."""
    if type(layer) is not nn.Linear:
        return layer  # None, or one that no calibration writes to
    return partial(F.linear, weight=layer.weight, bias=layer.bias)


def halfway(layer: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """(x', W') with W x = W' x': of a low-rank layer the product with the smaller factor."""
    if not isinstance(layer, FactoredLayer):
        return x, layer.weight
    pair = two_matrices(layer.factors)
    if pair is None or layer._path(x) == "dense":
        return x, layer._dense_weight()
    left, right = pair
    return F.linear(x, right), left


def dense(layer: Any) -> Tensor:
    weight: Tensor = layer._dense_weight() if isinstance(layer, FactoredLayer) else layer.weight
    return weight


def side_by_side(weights: list[Tensor]) -> list[Tensor]:
    """The same in one piece of memory, as cuDNN wants them."""
    flat = torch.cat([w.reshape(-1) for w in weights])
    parts = torch.split(flat, [w.numel() for w in weights])
    return [part.view(w.shape) for part, w in zip(parts, weights, strict=True)]
