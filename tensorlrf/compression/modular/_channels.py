"""A perceptron or bottleneck with fewer channels: those that stay, and layers that make good what
the others gave."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tensorlrf.compression.calibration._dense_layer import DenseLayer, dense_layer_at, module_at
from tensorlrf.compression.modular._structures import Channels
from tensorlrf.decomposition.linalg.selection.columns import interpolation
from tensorlrf.decomposition.shrinkage import ROUNDING, is_definite
from tensorlrf.nn.resized.layers import conv_sizes, linear_sizes, resize_, select_


@dataclass(frozen=True)
class Kept:
    """Of a layer that reads channels, with fewer of them.

    weight  (m, k)
    shift   of its bias, (m,); None where it has none
    error   of its outputs, relative, root mean square
    """

    weight: Tensor
    shift: Tensor | None
    error: float


def kept(gram: Tensor, mean: Tensor | None, weight: Tensor, columns: Tensor, plain: Tensor) -> Kept:
    """The layer by which E |W a - W' a_S - b|^2 is least.

    gram     (n, n) moments of the channels a in which that is counted, in float64; about the means
             where there is a bias
    mean     E[a] (n,) where the layer has a bias b, which takes its part; None without
    weight   W (m, n), in float64
    columns  S (k,)
    plain    E[a a^T], for the error that is told
    """
    new = weight @ interpolation(gram, columns)  # (m, k)
    lost = weight.clone()
    lost[:, columns] -= new
    shift = None if mean is None else lost @ mean
    energy = float((weight @ plain * weight).sum())
    left = (lost @ plain * lost).sum() - (0.0 if shift is None else shift.square().sum())
    error = max(0.0, float(left))
    return Kept(new, shift, (error / energy) ** 0.5 if energy > 0 else 0.0)


def definite(gram: Tensor) -> Tensor:
    """With so much on its diagonal that rounding leaves it definite."""
    amount = ROUNDING * max(float(gram.diagonal().mean()), 1e-30)
    # Where large moments cancel what is left may be further from positive than rounding is.
    while not is_definite(gram, amount / 2):
        amount *= 4
    raised = gram.clone()
    raised.diagonal().add_(amount)
    return raised


def narrow(
    model: nn.Module, channels: Channels, columns: Tensor, readers: Mapping[str, Kept]
) -> None:
    """Leave the model these channels, (k,) in their order, in place.

    readers  the layers that read them, as they are then
    """
    most = channels.most(model)
    for name in channels.writers:
        layer = dense_layer_at(model, name)
        rows = channels.outputs(name, columns, most).to(layer.device)
        bias = None if layer.module.bias is None else layer.module.bias.detach()[rows]
        put_values(layer, layer.weight[rows], bias)
    for name in channels.norms:
        select_(module_at(model, name), columns)
    for name, own in readers.items():
        layer = dense_layer_at(model, name)
        bias = None if layer.module.bias is None else layer.module.bias.detach()
        if bias is not None and own.shift is not None:
            bias = (bias.to(torch.float64) + own.shift.to(bias.device)).to(bias.dtype)
        put_values(layer, own.weight, bias)


def put_values(layer: DenseLayer, weight: Tensor, bias: Tensor | None) -> None:
    """Give a layer another weight (out, in, ...) and bias, of whatever sizes, in place; of a
    pointwise convolution that may be a matrix."""
    weight = weight.reshape(*weight.shape[:2], *layer.shape[2:])
    if weight.shape != layer.shape:
        inputs = len(weight) if layer.groups > 1 else weight.shape[1]
        sizes = linear_sizes if layer.taps is None else conv_sizes
        resize_(layer.module, sizes(layer.module, len(weight), inputs))
    layer.write(weight.to(layer.weight.dtype))
    if bias is not None:
        with torch.no_grad():
            layer.module.bias.copy_(bias)
