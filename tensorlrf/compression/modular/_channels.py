"""A perceptron with fewer channels: those that stay, and an output layer that makes good what the
others gave."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tensorlrf.compression.calibration._dense_layer import DenseLayer, dense_layer_at
from tensorlrf.compression.modular._structures import Channels
from tensorlrf.decomposition.linalg.columns import interpolation
from tensorlrf.decomposition.shrinkage import shrunk
from tensorlrf.nn.resized.layers import linear_sizes, resize_


@dataclass(frozen=True)
class Kept:
    """Of a perceptron's channels.

    columns  those that stay, (k,) in their order
    weight   of the output layer, (m, k)
    shift    of its bias, (m,); None where it has none
    error    of its outputs, relative, root mean square
    """

    columns: Tensor
    weight: Tensor
    shift: Tensor | None
    error: float


def kept(
    gram: Tensor, mean: Tensor, weight: Tensor, columns: Tensor, *, biased: bool, amount: float
) -> Kept:
    """The output layer by which E |W a - W' a_S - b|^2 is least.

    gram, mean  E[a a^T] (n, n) and E[a] (n,) of the channels a, in float64
    weight      W (m, n), in float64
    columns     S (k,)
    biased      whether the layer has a bias b, which then takes the part of the means
    amount      by which the moments are shrunk where samples are few
    """
    whole = about(gram, mean) if biased else gram
    new = weight @ interpolation(shrunk(whole, amount), columns)  # (m, k)
    lost = weight.clone()
    lost[:, columns] -= new
    shift = lost @ mean if biased else None
    energy = float((weight @ gram * weight).sum())
    error = float((lost @ whole * lost).sum().clamp(min=0))
    return Kept(columns, new, shift, (error / energy) ** 0.5 if energy > 0 else 0.0)


def about(squares: Tensor, mean: Tensor) -> Tensor:
    """Second moments (..., n, n) about their mean (..., n)."""
    return squares - mean[..., :, None] * mean[..., None, :]


def definite(gram: Tensor) -> Tensor:
    """With so much on its diagonal that rounding leaves it definite."""
    raised = gram.clone()
    raised.diagonal().add_(1e-7 * max(float(gram.diagonal().mean()), 1e-30))
    return raised


def narrow(model: nn.Module, channels: Channels, found: Kept) -> None:
    """Leave the model these channels, in place."""
    for name in channels.ups:
        layer = dense_layer_at(model, name)
        rows = found.columns.to(layer.device)
        bias = None if layer.module.bias is None else layer.module.bias.detach()[rows]
        put_values(layer, layer.weight[rows], bias)
    down = dense_layer_at(model, channels.down)
    bias = None if down.module.bias is None else down.module.bias.detach()
    if bias is not None and found.shift is not None:
        bias = (bias.to(torch.float64) + found.shift.to(bias.device)).to(bias.dtype)
    put_values(down, found.weight, bias)


def put_values(layer: DenseLayer, weight: Tensor, bias: Tensor | None) -> None:
    """Give a linear layer another weight (out, in) and bias, of whatever sizes, in place."""
    resize_(layer.module, linear_sizes(layer.module, *weight.shape))
    layer.write(weight.to(layer.weight.dtype))
    if bias is not None:
        with torch.no_grad():
            layer.module.bias.copy_(bias)
