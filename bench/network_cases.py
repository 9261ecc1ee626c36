"""Whole networks for the GPU run: CRAFT and one of the shape of ResNet-50, dense and compressed.

Weights are random: times do not depend on them.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

import tensorlrf
from bench import kernel_cases
from bench.kernel_cases import DTYPE, Case, Way
from bench.shapes import rank_at, sample
from examples.craft import Craft, fold_batchnorm
from tensorlrf.nn import FactoredConv2d
from tensorlrf.ops import PathTable

SHARE = 0.25
Build = Callable[[], nn.Module]


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3, 1 x 1 with a shortcut (He et al. 2016, figure 5), batch norms folded."""

    def __init__(self, inp: int, width: int, stride: int) -> None:
        super().__init__()
        out = 4 * width
        self.reduce = nn.Conv2d(inp, width, 1)
        self.conv = nn.Conv2d(width, width, 3, stride, 1)
        self.expand = nn.Conv2d(width, out, 1)
        same = inp == out and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(inp, out, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(self.reduce(x).relu()).relu()
        return (self.expand(y) + self.shortcut(x)).relu()


class ResNet50(nn.Module):
    """Stem, 3 + 4 + 6 + 3 bottlenecks, head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 64, 7, 2, 3), nn.ReLU(), nn.MaxPool2d(3, stride=2, padding=1)
        )
        blocks, inp = [], 64
        for width, count in ((64, 3), (128, 4), (256, 6), (512, 3)):
            for k in range(count):
                blocks.append(Bottleneck(inp, width, 2 if k == 0 and width > 64 else 1))
                inp = 4 * width
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(inp, 1000)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))  # type: ignore[no-any-return]


def craft() -> nn.Module:
    """The detector, batch norms folded."""
    return fold_batchnorm(Craft().eval())


def factored(model: nn.Module, format: str, path: str | None) -> nn.Module:
    """A copy whose k x k convolutions with more than 3 channels are factored to a quarter, on
    `path` where it is given, else by the cost model."""
    small = copy.deepcopy(model)
    for name, module in list(small.named_modules()):
        if type(module) is not nn.Conv2d or max(module.kernel_size) == 1 or module.in_channels <= 3:
            continue
        shape = tuple(module.weight.shape)
        weight = module.weight
        factors = sample(format, shape, rank_at(format, shape, SHARE), weight.device, weight.dtype)
        layer = FactoredConv2d.from_factors(factors, like=module)
        if path is not None:
            layer.path_table = PathTable.single(path)
        parent, _, child = name.rpartition(".")
        setattr(small.get_submodule(parent), child, layer)
    return small


def network_case(name: str, build: Build, size: tuple[int, ...], format: str) -> Case:
    """Dense, compiled dense, the chain, what the cost model takes, and what `tune` takes."""

    def images() -> list[Tensor]:
        x = torch.randn(size, device=kernel_cases.DEVICE, dtype=DTYPE)
        return [x.contiguous(memory_format=torch.channels_last)]

    @cache
    def dense() -> nn.Module:
        model = build().eval().to(kernel_cases.DEVICE, DTYPE)
        return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]

    @cache
    def small(path: str | None) -> nn.Module:
        return factored(dense(), format, path)

    @cache
    def tuned() -> nn.Module:
        model = factored(dense(), format, None)
        tensorlrf.tune(model, images()[0], progress=False)
        return model

    ways = {
        "dense": lambda x: dense()(x),
        "compiled dense": kernel_cases.compiled(lambda x: dense()(x)),
        "chain": lambda x: small("chain")(x),
        "compressed": lambda x: small(None)(x),
        "compressed, tuned": lambda x: tuned()(x),
    }
    moved = DTYPE.itemsize * math.prod(size)
    info: dict[str, dict[str, Any]] = {way: {"layer": name, "format": format} for way in ways}
    return Case(
        f"{name} {'x'.join(map(str, size))}, {format} at {SHARE}",
        {way: Way(run, images, moved) for way, run in ways.items()},
        info=info,
        peaks=True,
    )


NETWORKS: tuple[tuple[str, Build, tuple[int, ...]], ...] = (
    ("CRAFT", craft, (1, 3, 384, 512)),
    ("CRAFT", craft, (1, 3, 960, 1280)),
    ("ResNet-50's shape", ResNet50, (32, 3, 224, 224)),
    ("ResNet-50's shape", ResNet50, (1, 3, 224, 224)),
)
