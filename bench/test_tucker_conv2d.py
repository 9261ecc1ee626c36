"""tucker_conv2d beside the dense convolution and its chain: forward, and a training step, on the
3 x 3 layers of ResNet-50 in channels_last.

On a GPU the op is the fused kernel, and the whole comparison there is `make gpu-bench`; on a CPU it
runs the chain, so that the two rows say what calling it costs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bench.timed import timed
from tensorlrf_kernels.tucker_conv2d import reference, tucker_conv2d

LAYERS = {"64 at 56": (64, 56), "128 at 28": (128, 28), "256 at 14": (256, 14)}
WAYS = ("dense", "chain", "op")


def operands(layer: str, device: torch.device, dtype: torch.dtype) -> tuple[list[Tensor], Tensor]:
    """x, core, out and in factor at a quarter of the channels; and a dense kernel."""
    channels, side = LAYERS[layer]
    rank = channels // 4
    g = torch.Generator().manual_seed(0)

    def normal(*size: int) -> Tensor:
        return (torch.randn(size, generator=g) / math.sqrt(size[-1])).to(device, dtype)

    last = {"memory_format": torch.channels_last}
    x = normal(1, channels, side, side).contiguous(**last)
    core = normal(rank, rank, 3, 3).contiguous(**last)
    factors = [core, normal(channels, rank), normal(channels, rank)]
    weight = normal(channels, channels, 3, 3)
    return [x, *factors], weight.contiguous(**last)


def ways(given: list[Tensor], weight: Tensor) -> dict[str, Callable[[], Tensor]]:
    options = {"padding": (1, 1)}
    return {
        "dense": lambda: F.conv2d(given[0], weight, padding=1),
        "chain": lambda: reference.tucker_conv2d(*given, **options),
        "op": lambda: tucker_conv2d(*given, **options),
    }


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("layer", LAYERS)
def test_forward(
    benchmark: Any, layer: str, way: str, device: torch.device, dtype: torch.dtype
) -> None:
    run = ways(*operands(layer, device, dtype))[way]
    with torch.inference_mode():
        timed(benchmark, f"{layer}, {device.type}", way, run)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("layer", LAYERS)
def test_training_step(
    benchmark: Any, layer: str, way: str, device: torch.device, dtype: torch.dtype
) -> None:
    given, weight = operands(layer, device, dtype)
    leaves = [t.requires_grad_() for t in given]
    sources = [leaves[0], weight.requires_grad_()] if way == "dense" else leaves
    forward = ways(leaves, weight)[way]
    dy = torch.ones_like(forward())
    case = f"training step, {layer}, {device.type}"
    timed(benchmark, case, way, lambda: torch.autograd.grad(forward(), sources, dy))
