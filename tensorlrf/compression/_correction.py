"""Aim at the outputs of the given model, from the inputs that the compressed layers deliver.

With x the input that the compressed prefix delivers and x0 the one of the given model, the best
W* for the target y0 = W x0 in the least squares sense is W + E[e x^T] E[x x^T]^-1, where
e = W (x0 - x) is what the layers before have lost by the time it reaches the output. Factors of W*
in the metric of x then give part of it back (Zhang, Zou, He & Sun 2016, "Accelerating very deep
convolutional networks", section 3.3, the asymmetric reconstruction).

With few samples the inverse fits noise; a ridge draws W* towards W.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

from tensorlrf.compression._moments import pad_input, raised
from tensorlrf.ops._geometry import pair

RIDGE = 0.01
"""Of the mean eigenvalue of G: directions with less energy keep their weights."""


@dataclass(frozen=True)
class Lag:
    """What the compressed prefix makes a layer's outputs lose, in moments over N positions.

    cross   E[e x^T] (O, n), e = W (x0 - x)
    lost    E||e||^2
    """

    cross: Tensor
    lost: float


class LagMoments:
    """Streams the moments of a `Lag`, call by call, for one layer."""

    def __init__(self, layer: nn.Linear | nn.Conv2d) -> None:
        self._layer = layer
        weight = layer.weight.detach()
        self._cross = weight.new_zeros(weight.shape[0], weight[0].numel(), dtype=torch.float64)
        self._lost = weight.new_zeros((), dtype=torch.float64)
        self.count = 0

    def add(self, x: Tensor, x0: Tensor) -> None:
        """Take the inputs of one call: x of the compressed prefix, x0 of the given model."""
        layer = self._layer
        x, x0 = raised(x.detach()), raised(x0.detach())
        weight = raised(layer.weight.detach())
        if isinstance(layer, nn.Linear):
            x, x0 = x.reshape(-1, x.shape[-1]), x0.reshape(-1, x.shape[-1])
            e = F.linear(x0 - x, weight)  # (N, O)
            cross = e.T @ x
            self.count += x.shape[0]
        else:
            stride, dilation = pair("stride", layer.stride, 1), pair("dilation", layer.dilation, 1)
            x = pad_input(x, layer)
            e = F.conv2d(pad_input(x0, layer) - x, weight, stride=stride, dilation=dilation)
            # The gradient of a conv in its weight is this very sum over positions.
            cross = conv2d_weight(  # type: ignore[no-untyped-call]
                x, weight.shape, e, stride, 0, dilation
            ).flatten(1)
            self.count += e.shape[0] * e.shape[2] * e.shape[3]
        self._cross += cross
        self._lost += torch.linalg.vector_norm(e, dtype=torch.float64) ** 2

    def lag(self) -> Lag:
        n = max(1, self.count)
        return Lag(self._cross / n, float(self._lost) / n)


def corrected(weight: Tensor, gram: Tensor, lag: Lag, ridge: float = RIDGE) -> Tensor:
    """W* = W + E[e x^T] (G + ridge * mean eigenvalue * I)^-1, in the shape of the weight."""
    scale = float(gram.diagonal().mean())
    if scale == 0:
        return weight
    # The ridge bounds the condition number by n / ridge, so that Cholesky cannot fail.
    damped = gram.clone()
    damped.diagonal().add_(ridge * scale)
    factor = torch.linalg.cholesky(damped)
    step = torch.cholesky_solve(lag.cross.T, factor).T  # (O, n)
    return weight + step.reshape(weight.shape).to(weight.dtype)


def target_error(weight: Tensor, approximation: Tensor, gram: Tensor, lag: Lag) -> float:
    """Relative error sqrt(E||W x0 - A x||^2 / E||W x0||^2) of the approximation A.

    W x0 = W x + e, so with D = W - A the numerator is E||D x + e||^2 = tr(D G D^T)
    + 2 tr(D E[x e^T]) + E||e||^2, and the denominator is the same with D = W.
    """

    def energy(matrix: Tensor) -> float:
        matrix = matrix.reshape(weight.shape[0], -1).to(torch.float64)
        return max(0.0, float(((matrix @ gram + 2 * lag.cross) * matrix).sum()) + lag.lost)

    target = energy(weight)
    return math.sqrt(energy(weight - approximation) / target) if target > 0 else 0.0
