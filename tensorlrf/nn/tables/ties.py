"""Layers on one table: an embedding, and the head whose weight is the same."""

from __future__ import annotations

import torch
from torch import nn

from tensorlrf.nn._layer import FactoredLayer


def tie(layer: FactoredLayer, other: FactoredLayer) -> None:
    """Have a layer own the very parameters of another one on the same factors.

    The two are then one in memory, in training and in files; the bias stays the layer's own.
    """
    layer.thaw()
    for name in layer._names.values():
        if name in layer._parameters:
            layer.register_parameter(name, other.get_parameter(name))


def tie_stock(layer: nn.Module, other: nn.Module) -> None:
    """Have what torch layers were made of the same factors share the parameters that are the same:
    all of a dense table, and the long factor of one in two, whose short one lies the other way
    round in a Linear that comes first."""
    own = [p for p in layer.parameters() if not p.is_meta]
    for module in other.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            same = (p for p in own if p.shape == parameter.shape and torch.equal(p, parameter))
            if (found := next(same, None)) is not None:
                module.register_parameter(name, found)
