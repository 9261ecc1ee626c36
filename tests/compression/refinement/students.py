"""Small networks with blocks, compressed by weights alone, and inputs for them."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn

from tensorlrf.compression import Refinement, compress
from tests.compression.networks import set_weights
from tests.draws import seeded32


class Residual(nn.Module):
    """x + fc2 relu fc1 norm x"""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1, self.fc2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        branch: Tensor = self.fc2(torch.relu(self.fc1(self.norm(x))))
        return x + branch


class Tower(nn.Module):
    """An embedding, some blocks, a norm and a head: (batch, tokens) to (batch, tokens, classes)."""

    def __init__(self, width: int = 12, depth: int = 2, classes: int = 5) -> None:
        super().__init__()
        self.embedding = nn.Embedding(16, width)
        self.blocks = nn.ModuleList(Residual(width) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, tokens: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x))
        return logits


@cache
def _pair() -> tuple[Tower, nn.Module]:
    model = Tower()
    set_weights(model)
    return model, compress(model, keep_params=0.4, skip=["embedding", "head"])[0]


def pair() -> tuple[Tower, nn.Module]:
    """A model, and the same compressed, not to be changed."""
    return _pair()


def batches(n: int = 6, size: int = 4, tokens: int = 3) -> list[Tensor]:
    """(size, tokens) each, of the 16 words."""
    return [(seeded32(size, tokens, seed=k).abs() * 7).long().clamp(max=15) for k in range(n)]


def images(n: int = 5, size: int = 4) -> list[Tensor]:
    """(size, 3, 8, 8) each."""
    return [seeded32(size, 3, 8, 8, seed=k) for k in range(n)]


@cache
def _cnn() -> tuple[nn.Module, nn.Module]:
    def stage() -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())

    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), stage(), stage(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 4),
    )  # fmt: skip
    set_weights(model)
    return model, compress(model, keep_params=0.4, method="tucker", skip=["0", "5"])[0]


def cnn() -> tuple[nn.Module, nn.Module]:
    """A network of convolutions and batch norms, and the same in Tucker form."""
    return _cnn()


def ends(report: Refinement) -> tuple[float, float]:
    """(held-out loss before, after), which are numbers."""
    assert report.before is not None
    assert report.after is not None
    return report.before, report.after
