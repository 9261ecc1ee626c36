"""Layers with parameters in common: an embedding and the head whose weight is its table, and layers
on one right factor."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tensorlrf.nn._layer import FactoredLayer
from tensorlrf.nn.graphs import traced


def tie(layer: FactoredLayer, other: FactoredLayer, parts: Collection[str] | None = None) -> None:
    """Have a layer own the very parameters of another one on the same factors, or of the `parts`
    that both have in common.

    The two are then one in memory, in training and in files; the bias stays the layer's own.
    """
    layer.thaw()
    for part, name in layer._names.items():
        if parts is not None and part not in parts:
            continue
        if name in layer._parameters:
            layer.register_parameter(name, other.get_parameter(name))
        elif part in layer._format.index_dtypes(layer._meta):
            layer.register_buffer(name, other.get_buffer(name))


def tie_stock(layer: nn.Module, other: nn.Module, part: Tensor | None = None) -> None:
    """Have what torch layers were made of the same factors share the parameters that are the same:
    all of a dense table, and the long factor of one in two (`turn_stock` has the short one). With a
    `part` they share that alone."""
    own = [p for p in layer.parameters() if not p.is_meta]
    if part is not None:
        own = [p for p in own if p.shape == part.shape and torch.equal(p, part)]
    for module in other.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            same = (p for p in own if p.shape == parameter.shape and torch.equal(p, parameter))
            if (found := next(same, None)) is not None:
                module.register_parameter(name, found)


class _Turned(nn.Module):
    """A product with a matrix as it is, where a Linear has its transpose, times a number."""

    def __init__(self, weight: nn.Parameter, scale: float) -> None:
        super().__init__()
        self.weight, self.scale = weight, scale

    def forward(self, input: Tensor) -> Tensor:
        y = F.linear(input, self.weight.t())
        return y if self.scale == 1.0 else y * self.scale


def turn_stock(table: nn.Module, head: nn.Module, scale: float = 1.0) -> None:
    """Have what a table was made of, in torch layers, share the short factors with what a head was
    made of on the same ones.

    They lie the other way round in the Linear layers of the two. Those of the table become graphs
    that turn the head's, and multiply by the `scale`, which the table may have in one of its own.
    """
    own = [p for p in head.parameters() if p.ndim == 2 and not p.is_meta]
    for module in list(table.modules()):
        for name, child in list(module.named_children()):
            if type(child) is not nn.Linear or child.bias is not None:
                continue
            if any(child.weight is p for p in own):
                continue  # it reads the same either way
            turned = (
                (p, by) for p in own for by in (1.0, scale) if _is_turned(child.weight, p, by)
            )
            if (found := next(turned, None)) is not None:
                module.register_module(name, traced(_Turned(*found)).train(child.training))


def _is_turned(weight: Tensor, other: Tensor, by: float) -> bool:
    """Whether it is the transpose of the other one, times a number."""
    return weight.shape == other.shape[::-1] and torch.equal(weight, other.T * by)


def keep_bias(layer: nn.Module, old: nn.Module) -> None:
    """Have a layer that comes in the place of an `old` one own the very bias of this, with the
    values of its own: it may be that of other modules."""
    own, kept = (module._parameters.get("bias") for module in (layer, old))
    if own is not None and kept is not None:
        with torch.no_grad():
            kept.copy_(own)
        layer.register_parameter("bias", kept)
