"""Layers that make their weight anew in every forward, as weight-standardised convolutions do.

Qiao et al. 2019 divide every filter by its deviation; Brock et al. 2021 (ScaledStdConv) have a gain
for each as well. In inference that weight is always the same: it is computed once, and a plain
layer on it takes the place of the other.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from tensorlrf.nn._like import BAKED_FROM, origin_of
from tensorlrf.nn.behaviour.mismatch import mismatch, torch_layer
from tensorlrf.nn.behaviour.seen import handed, plain_of
from tensorlrf.nn.obstacles import why_not_looked_at
from tensorlrf.nn.plain import BASES, base_of, is_told

__all__ = ["baked", "is_baked", "origin_of"]


def baked(layer: Any) -> nn.Module | None:
    """The plain layer of torch that computes what `layer` does, on the weight that its forward
    hands to torch; None where that is the layer's own, or where there is no such one.

    It knows the layer that it was made from, `origin_of`, which stays as it is. Beside weight and
    bias that may hold parameters of one number, or of one an output. Its outputs are checked as
    those of any subclass are, but for a layer on the meta device.
    """
    if type(layer) in BASES.values() or base_of(layer) is None or is_told(layer):
        return None
    if why_not_looked_at(layer) or isinstance(plain_of(layer), str):
        return None
    found = handed(layer)
    if found is None or found.own or found.plain.is_uneven:
        return None
    outputs = found.plain.shape_of(found.weight)[0]
    gains = [p for name, p in layer.named_parameters() if name not in ("weight", "bias")]
    if any(p.numel() not in (1, outputs) for p in gains):
        return None  # such as an adapter
    weight, bias, flag = found.weight, found.bias, layer.weight.requires_grad
    if layer.weight.is_meta:
        weight, bias = weight.to("meta"), None if bias is None else bias.to("meta")
    elif mismatch(layer, found.plain, weight, bias):
        return None
    made = torch_layer(found.plain, _own(weight, flag), _own(bias, flag))
    vars(made)[BAKED_FROM] = layer  # no module of it: only what it was
    return made.train(layer.training)


def _own(t: Tensor | None, requires_grad: bool) -> Any:
    return None if t is None else nn.Parameter(t.detach().clone(), requires_grad=requires_grad)


def is_baked(layer: nn.Module) -> bool:
    """Whether it was made by `baked`."""
    return BAKED_FROM in vars(layer)
