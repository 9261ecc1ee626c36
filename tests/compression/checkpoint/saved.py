"""Models to save, and what to compare of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tensorlrf.compression.checkpoint.named_tensors import named_tensors
from tensorlrf.factors import CPFactors, LowRank
from tensorlrf.nn import FactoredConv2d, FactoredLinear


class Net(nn.Module):
    """Two convolutions, a normalisation, a head; a buffer of each kind and a plain attribute."""

    table: Tensor
    offset: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding="same", bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, stride=2, padding=1, padding_mode="reflect"),
        )
        self.hidden = nn.Linear(16, 24)
        self.again = self.hidden
        self.head = nn.Linear(24, 16)
        self.register_buffer("table", torch.arange(16.0) / 15, persistent=False)
        self.register_buffer("offset", torch.arange(16.0).cos())
        self.scale = torch.tensor(0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x).mean((2, 3)) + self.table.to(x.dtype)
        x = self.head(torch.relu(self.hidden(x))) + self.offset.to(x.dtype)
        return self.again(x) * self.scale.to(x.dtype)


def net(seed: int = 0) -> Net:
    """In eval mode, with statistics of its own in the normalisation."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Net()
        norm = model.features[1]
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.running_mean is not None
        norm.running_mean.normal_()
    return model.eval()


def compressed(seed: int = 0) -> Net:
    """`net` with three factored layers, one of them in two places; their values are random."""
    model, g = net(seed), torch.Generator().manual_seed(seed)

    def low_rank(rows: int, columns: int, rank: int) -> LowRank:
        return LowRank(
            torch.randn(rows, rank, generator=g), torch.randn(rank, columns, generator=g)
        )

    parts = tuple(torch.randn(n, 4, generator=g) for n in (16, 8, 3, 3))
    conv: Any = model.features[3]
    model.features[3] = FactoredConv2d.from_factors(CPFactors(torch.ones(4), parts), conv)
    shared: Any = FactoredLinear.from_factors(low_rank(24, 16, 3), model.hidden)
    shared.recipe = {"method": "svd", "rank": 3}
    model.hidden = model.again = shared
    head: Any = FactoredLinear.from_factors(low_rank(16, 24, 2), model.head)
    model.head = head
    return model


def blank() -> Net:
    """The architecture without values."""
    with torch.device("meta"):
        return Net().eval()


def image(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(1)).to(dtype)


def same(a: nn.Module, b: nn.Module) -> bool:
    """Whether all tensors are equal bit for bit, in dtype and under their names."""
    mine, other = ({p.name: p for p in named_tensors(m)} for m in (a, b))
    return set(mine) == set(other) and all(
        p.role == other[name].role and equal(p.tensor, other[name].tensor)
        for name, p in mine.items()
    )


def equal(a: Tensor, b: Tensor) -> bool:
    """Equal bytes: NaN equals itself, and 0.0 is not -0.0."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    x, y = (t.detach().contiguous().reshape(-1).view(torch.uint8) for t in (a, b))
    return torch.equal(x, y)
