"""Layers with parameters in common: an embedding and the head whose weight is its table, and layers
on one right factor."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn

from tensorlrf.nn._layer import FactoredLayer


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
        elif part in layer._format.indices:
            layer.register_buffer(name, other.get_buffer(name))


def tie_stock(layer: nn.Module, other: nn.Module, part: Tensor | None = None) -> None:
    """Have what torch layers were made of the same factors share the parameters that are the same:
    all of a dense table, and the long factor of one in two, whose short one lies the other way
    round in a Linear that comes first. With a `part` they share that alone."""
    own = [p for p in layer.parameters() if not p.is_meta]
    if part is not None:
        own = [p for p in own if p.shape == part.shape and torch.equal(p, part)]
    for module in other.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            same = (p for p in own if p.shape == parameter.shape and torch.equal(p, parameter))
            if (found := next(same, None)) is not None:
                module.register_parameter(name, found)


def keep_bias(layer: nn.Module, old: nn.Module) -> None:
    """Have a layer that comes in the place of an `old` one own the very bias of this, with the
    values of its own: it may be that of other modules."""
    own, kept = (module._parameters.get("bias") for module in (layer, old))
    if own is not None and kept is not None:
        with torch.no_grad():
            kept.copy_(own)
        layer.register_parameter("bias", kept)
