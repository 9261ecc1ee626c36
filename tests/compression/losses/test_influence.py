"""The influence of blocks: 1 - cosine between what they get and what they give."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tensorlrf.compression.calibration.batches import Batch, list_batches
from tensorlrf.compression.losses._influence import influences


class Turned(nn.Module):
    """A layer that is not heard, and its input, times a number."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.linear, self.factor = nn.Linear(8, 8), factor

    def forward(self, x: Tensor, other: Tensor | None = None) -> tuple[Tensor, None]:
        return self.factor * x + 0 * self.linear(x), None


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.blocks = nn.ModuleList([Turned(2.0), Turned(-1.0)])

    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x, _ = block(x)
        return x


NAMES = ["first", "blocks.0.linear", "blocks.1.linear"]

ROUNDING = 1e-6
"""Of cosines in float32."""


def found(model: nn.Module, names: list[str], batches: list[object]) -> dict[str, float]:
    return influences(model, names, list_batches(batches, model), lambda: None)


def test_blocks_are_told_apart_by_how_they_turn_their_input() -> None:
    told = found(Model(), NAMES, [torch.randn(3, 5, 8, generator=torch.Generator())])
    assert told["blocks.0.linear"] == pytest.approx(0, abs=ROUNDING)
    assert told["blocks.1.linear"] == pytest.approx(2, abs=ROUNDING)
    assert told["first"] == pytest.approx(1, abs=ROUNDING)  # in no block: the mean


def test_padding_does_not_count() -> None:
    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList([nn.Linear(8, 8, bias=False)])

        def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
            y: Tensor = self.blocks[0](x)
            return y

    model = Shifted()
    with torch.no_grad():
        model.blocks[0].weight.copy_(torch.diag(torch.tensor([1.0] * 4 + [-1.0] * 4)))
    x = torch.zeros(1, 4, 8)
    x[:, :3, :4], x[:, 3, 4:] = 1, 1  # the last position, which is turned round, is padding
    batch = {"x": x, "attention_mask": torch.tensor([[1, 1, 1, 0]])}
    assert found(model, ["blocks.0"], [batch])["blocks.0"] == pytest.approx(0, abs=ROUNDING)


def test_channels_of_pictures_come_second() -> None:
    model = nn.Sequential(nn.Conv2d(6, 6, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.diag(torch.tensor([1.0, 1, 1, 1, -1, -1]))[:, :, None, None])
    x = torch.rand(2, 6, 3, 3, generator=torch.Generator().manual_seed(0))
    expected = 1 - nn.functional.cosine_similarity(x, model(x), dim=1).mean().item()
    assert found(model, ["0"], [x])["0"] == pytest.approx(expected, abs=ROUNDING)


def test_without_blocks_there_is_no_influence() -> None:
    narrowing = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 8))
    assert found(narrowing, ["0", "1"], [torch.rand(3, 8)]) == {}
    alone = nn.Linear(8, 8)
    assert influences(alone, ["(model)"], [Batch.of(torch.rand(3, 8))], lambda: None) == {}
