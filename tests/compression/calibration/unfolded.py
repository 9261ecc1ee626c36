"""What a layer reads and makes, by torch's own convolution."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

CONVS: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED: dict[int, Any] = {
    1: nn.ConvTranspose1d,
    2: nn.ConvTranspose2d,
    3: nn.ConvTranspose3d,
}


def patches(conv: Any, x: Tensor) -> list[Tensor]:
    """The patches of each group as columns (n, N), by torch's convolution with one-hot kernels."""
    n = conv.weight[0].numel()
    eye = torch.eye(n, dtype=x.dtype).reshape(n, *conv.weight.shape[1:])
    axes = conv.weight.ndim - 2
    found = []
    for part in x.chunk(conv.groups, dim=1):
        probe = CONVS[axes](
            part.shape[1], n, conv.kernel_size, conv.stride, conv.padding, conv.dilation,
            bias=False, padding_mode=conv.padding_mode, dtype=x.dtype,
        )  # fmt: skip
        with torch.no_grad():
            probe.weight.copy_(eye)
            found.append(probe(part).transpose(0, 1).flatten(1))
    return found


def patches_of_transposed(conv: Any, x: Tensor) -> list[Tensor]:
    """What each output of each group reads as columns (n, N), in the order (I, *kernel)."""
    inputs, n = conv.weight.shape[0] // conv.groups, math.prod(conv.kernel_size)
    one_hot = torch.eye(inputs * n, dtype=x.dtype).reshape(-1, inputs, *conv.kernel_size)
    found = []
    for part in x.chunk(conv.groups, dim=1):
        probe = TRANSPOSED[conv.weight.ndim - 2](
            inputs, inputs * n, conv.kernel_size, conv.stride, conv.padding, conv.output_padding,
            bias=False, dilation=conv.dilation, dtype=x.dtype,
        )  # fmt: skip
        with torch.no_grad():
            probe.weight.copy_(one_hot.transpose(0, 1))
            found.append(probe(part).transpose(0, 1).flatten(1))
    return found


def outputs(layer: nn.Module, weight: Tensor, x: Tensor) -> Tensor:
    """What the layer makes of x with another weight and no bias."""
    state = {"weight": weight}
    if layer.bias is not None:
        state["bias"] = torch.zeros_like(layer.bias)
    return torch.func.functional_call(layer, state, x)
