"""Models of which moments are collected, and what tests ask of these."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tensorlrf.compression import Moments
from tensorlrf.compression.calibration._dense_layer import DenseLayer
from tensorlrf.compression.calibration._memory import Gathered
from tensorlrf.compression.calibration.moments._form import Form


class Attention(nn.Module):
    """Three layers are fed the very same."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(n, n) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        weights = torch.softmax(self.q(x) @ self.k(x).mT, -1)
        y: Tensor = x + self.o(weights @ self.v(x))
        return y


class Routed(nn.Module):
    """Rows of positive sum go one way, the others another; `also` is fed what `gate` is where any
    go the first way, and something else where none do."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.gate, self.also, self.left, self.right = (nn.Linear(n, n) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        up = x[x.sum(-1) > 0]
        y: Tensor = self.gate(x) + self.also(x if len(up) else 2 * x)
        down = x[x.sum(-1) <= 0]
        left = self.left(up).sum() if len(up) else 0
        right = self.right(down).sum() if len(down) else 0
        return y + left + right


def attention(n: int = 12, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(Attention(n), nn.Linear(n, 2 * n), nn.ReLU(), nn.Linear(2 * n, n)).eval()


def convolutions(seed: int = 0) -> nn.Module:
    """By correlations, unfolded, in groups, of one pixel, transposed, and a linear layer."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(),
        nn.Conv2d(16, 16, 3, stride=2, groups=2), nn.ReLU(),
        nn.Conv2d(16, 24, 1), nn.ReLU(),
        nn.ConvTranspose2d(24, 16, 4, stride=2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 16),
    ).eval()  # fmt: skip


def blocks(n: int = 12) -> nn.Module:
    """Three of two layers."""
    torch.manual_seed(0)
    own = (nn.Sequential(nn.Linear(n, 2 * n), nn.ReLU(), nn.Linear(2 * n, n)) for _ in range(3))
    return nn.Sequential(*own).eval()


def routed() -> nn.Module:
    torch.manual_seed(0)
    return Routed(12).eval()


def wide(seed: int = 0) -> nn.Module:
    """A layer that may be sketched."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(256, 256)).eval()


def narrow(seed: int = 0) -> nn.Module:
    """A layer whose few outputs make the sketch."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(256, 8)).eval()


def limit_for(model: nn.Module, form: Form) -> int:
    """That of memory at which the first layer has just room for moments in a form."""
    layer = DenseLayer.of(model[0])  # type: ignore[index]  # a Sequential
    return Gathered(lags=False, held=False, plain=True).need(layer, form).whole


def sketched(model: nn.Module) -> int:
    """The limit at which its first layer has a sketch of 16 rows."""
    return limit_for(model, Form("sketch", 16))


def one_way(way: int) -> list[Tensor]:
    """Batches of `routed` whose rows all go one way."""
    some = (x.flatten(0, 1).abs() for x in rows(12, 2, seed=way))
    return [x if way == 0 else -3 * x for x in some]


def rows(n: int, batches: int, seed: int = 1) -> list[Tensor]:
    """Inputs with a falling spectrum, of another number of rows in each batch."""
    draws = torch.Generator().manual_seed(seed)
    scale = torch.linspace(2, 0.1, n)
    return [torch.randn(3, 5 + k % 3, n, generator=draws) * scale for k in range(batches)]


def images(batches: int, seed: int = 1) -> list[Tensor]:
    draws = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 3, 9 + k % 2, 8, generator=draws) for k in range(batches)]


def sums(moments: Moments) -> dict[str, Tensor]:
    """All that is in them, of symmetric matrices the upper triangle."""
    found = {}
    for row in moments.layers:
        for k, one in enumerate(moments.kept.read(row) if row.count else ()):
            for name, tensor in one.tensors().items():
                square = name == "products"
                found[f"{row.name}/{k}/{name}"] = tensor.triu() if square else tensor.clone()
    return found


def assert_same(one: Moments, other: Moments, rtol: float = 0.0) -> None:
    """Of the same layers and counts, with sums that are equal, by default to the bit."""
    assert [(r.name, r.count, r.form) for r in one.layers] == [
        (r.name, r.count, r.form) for r in other.layers
    ]
    a, b = sums(one), sums(other)
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        atol = rtol * float(tensor.abs().max())
        torch.testing.assert_close(b[name], tensor, rtol=rtol, atol=atol, msg=name)
