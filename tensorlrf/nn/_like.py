"""What a factored layer takes over of the layer that it is made like."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from tensorlrf.errors import ArgumentError, ShapeError
from tensorlrf.factors import Factors
from tensorlrf.nn._layer import FactoredLayer
from tensorlrf.nn.memory_format import CHANNELS_LAST, is_channels_last

BAKED_FROM = "_baked_from"
"""Where a layer that stands for another one keeps that; see `convolutions/baked.py`."""


def origin_of(layer: nn.Module) -> nn.Module:
    """The layer that one was made from to stand for it; of others itself."""
    origin: nn.Module = vars(layer).get(BAKED_FROM, layer)
    return origin


def like_layer(factors: Factors, like: Any) -> tuple[Factors, Tensor | None]:
    """The factors in the dtype, on the device and in the memory format of the layer, and its bias.

    Raises ArgumentError where `factors` is no factors object and ShapeError where they do not
    stand for a tensor of the weight's shape.
    """
    if not isinstance(factors, Factors):
        raise ArgumentError(
            f"factors is a {type(factors).__name__}; pass a factors object, such as LowRank"
        )
    weight = like.weight
    if factors.shape != tuple(weight.shape):
        raise ShapeError(
            f"factors stand for a tensor of shape {factors.shape}, but like.weight has shape "
            f"{tuple(weight.shape)}; decompose that weight"
        )
    channels_last = is_channels_last(weight)

    def fit(t: Tensor) -> Tensor:
        t = t.detach().to(weight.device, weight.dtype)
        if channels_last and t.ndim == weight.ndim:
            return t.contiguous(memory_format=CHANNELS_LAST[t.ndim])
        return t.contiguous()

    return factors.map(fit), like.bias


def _more_tensors(layer: nn.Module) -> dict[str, tuple[int, ...]]:
    """The shapes of what a layer holds in files beside weight and bias."""
    lasting = {
        name: b
        for name, b in layer._buffers.items()
        if name not in layer._non_persistent_buffers_set
    }
    return {
        name: tuple(t.shape)
        for name, t in {**layer._parameters, **lasting}.items()
        if t is not None and name not in ("weight", "bias")
    }


def take_over(layer: FactoredLayer, like: Any) -> None:
    """The type's name, the training flag, and requires_grad of the weight and of the bias."""
    origin = origin_of(like)
    layer.stands_for = type(origin).__name__
    layer.also_held = _more_tensors(origin)
    layer.train(like.training)
    for attribute in layer._names.values():
        if attribute in layer._parameters:
            layer.get_parameter(attribute).requires_grad_(like.weight.requires_grad)
    if layer.bias is not None:
        layer.bias.requires_grad_(like.bias.requires_grad)
