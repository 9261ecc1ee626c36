"""Convolutional networks, small and random, with bottlenecks of every kind that is known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn
from torch.nn import functional as F

from tensorlrf import compress
from tests.compression.networks import set_weights


class ConvGate(nn.Module):
    """A squeeze-excite of pointwise convolutions."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(n, n // 4, 1), nn.Conv2d(n // 4, n, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.reduce(x.mean((2, 3), keepdim=True))
        return x * torch.sigmoid(self.expand(torch.relu(y)))


class LinearGate(nn.Module):
    """One of linear layers, with a normalisation between."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.reduce, self.norm = nn.Linear(n, n // 4, bias=False), nn.BatchNorm1d(n // 4)
        self.expand = nn.Linear(n // 4, n)

    def forward(self, x: Tensor) -> Tensor:
        y = F.silu(self.norm(self.reduce(x.mean((2, 3)))))
        return x * F.hardsigmoid(self.expand(y))[..., None, None]


class Block(nn.Module):
    """Expand, depthwise, project; added to what comes in where sizes allow it.

    act    between
    gate   a squeeze-excite of n channels, or nothing
    norm   of n channels
    """

    def __init__(
        self,
        inputs: int,
        n: int,
        outputs: int,
        *,
        stride: int = 1,
        kernel: int = 3,
        act: Callable[[Tensor], Tensor] = F.relu6,
        gate: Callable[[int], nn.Module] = lambda n: nn.Identity(),
        norm: Callable[[int], nn.Module] = nn.BatchNorm2d,
        multiplier: int = 1,
    ) -> None:
        super().__init__()
        m = n * multiplier
        self.expand, self.norm1 = nn.Conv2d(inputs, n, 1, bias=False), norm(n)
        self.depthwise = nn.Conv2d(n, m, kernel, stride, kernel // 2, groups=n, bias=False)
        self.norm2, self.gate = norm(m), gate(m)
        self.project, self.norm3 = nn.Conv2d(m, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        self.act, self.adds = act, inputs == outputs and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.norm1(self.expand(x)))
        y = self.gate(self.act(self.norm2(self.depthwise(y))))
        y = self.norm3(self.project(y))
        return x + y if self.adds else y


class Net(nn.Module):
    """Blocks between a stem and a head."""

    def __init__(self, n: int = 24, **options: Any) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8)
        self.blocks = nn.Sequential(
            Block(8, n, 8, **options), Block(8, n, 12, stride=2, **options),
            Block(12, n, 12, kernel=5, **options),
        )  # fmt: skip
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.blocks(torch.relu(self.norm(self.stem(x))))
        return self.head(y.mean((2, 3)))


class Fused(nn.Module):
    """One convolution in place of two before the gate; and a perceptron of pointwise ones."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.gate = nn.Conv2d(3, 24, 3, padding=1), ConvGate(24)
        self.project = nn.Conv2d(24, 8, 1)
        self.up, self.down = nn.Conv2d(8, 32, 1), nn.Conv2d(32, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.project(self.gate(F.silu(self.expand(x))))
        return x + self.down(F.gelu(self.up(x)))


def mobilenet() -> nn.Module:
    """MobileNetV2 of transformers."""
    return hf.MobileNetV2ForImageClassification(
        hf.MobileNetV2Config(depth_multiplier=0.25, image_size=32, num_labels=5, expand_ratio=3)
    )


def efficientnet() -> nn.Module:
    """EfficientNet of transformers; squeeze-excites are sized by the outer channels."""
    return hf.EfficientNetForImageClassification(
        hf.EfficientNetConfig(
            width_coefficient=0.5, depth_coefficient=1.0, image_size=32, hidden_dim=640,
            in_channels=[32, 32, 48], out_channels=[32, 48, 64], kernel_sizes=[3, 5, 3],
            depthwise_padding=[], strides=[1, 2, 2], num_block_repeats=[1, 2, 2],
            expand_ratios=[1, 2, 3], num_labels=5,
        )
    )  # fmt: skip


def convnext() -> nn.Module:
    """ConvNeXt of transformers, whose blocks have a say from the start."""
    return hf.ConvNextForImageClassification(
        hf.ConvNextConfig(
            hidden_sizes=[8, 12], depths=[2, 2], num_stages=2, num_labels=5, patch_size=2,
            layer_scale_init_value=1.0,
        )
    )  # fmt: skip


NETS: dict[str, Callable[[], nn.Module]] = {
    "plain": Net,
    "gated": lambda: Net(gate=ConvGate, act=F.silu),
    "linear_gates": lambda: Net(gate=LinearGate, act=F.hardswish),
    "fused": Fused,
    "mobilenet": mobilenet,
    "efficientnet": efficientnet,
    "convnext": convnext,
}
LARGEST = pytest.param("mobilenet", marks=pytest.mark.slow)
LARGE = pytest.param("efficientnet", marks=pytest.mark.slow)
"""Of many blocks: for some laws the default suite has the smaller nets alone."""

TRANSFORMERS = ("mobilenet", "efficientnet", "convnext")


def drawn(name: str | Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """A net with weights, and statistics as after training."""
    make = NETS[name] if isinstance(name, str) else name
    torch.manual_seed(seed)
    model = set_weights(make(), seed)
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.weight.data *= 3  # falling spectra leave little of what comes in
    images = torch.randn(32, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = None
        norm.reset_running_stats()
        norm.train()
    with torch.no_grad():
        model(images)
    for norm in norms:
        norm.momentum = 0.1
    return model.eval()


def pictures(count: int = 4, size: int = 16, seed: int = 7) -> list[Tensor]:
    """Batches for such a net."""
    draws = torch.Generator().manual_seed(seed)
    return [torch.randn(size, 3, 32, 32, generator=draws) for _ in range(count)]


def logits(model: nn.Module, x: Tensor) -> Tensor:
    """What a net gives."""
    with torch.no_grad():
        found = model(x)
    return found if isinstance(found, Tensor) else found.logits


QUIET: dict[str, Any] = {"progress": False, "skip": ["head"]}
HEADS = {"fused": [], **{key: ["classifier"] for key in TRANSFORMERS}}


def modular(model: nn.Module, keep: float = 0.6, **options: Any) -> Any:
    """The smaller model and the report."""
    options = {**QUIET, "calibration": pictures(), **options}
    return compress(model, method="modular", keep_params=keep, **options)


def of(name: str, keep: float = 0.6, **options: Any) -> Any:
    """Of a net by its name."""
    return modular(drawn(name), keep, **{"skip": HEADS.get(name, ["head"]), **options})
