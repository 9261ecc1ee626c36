"""What is told apart from an inverted bottleneck, what goes along with one, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tensorlrf import compress
from tensorlrf.errors import ArgumentError
from tests.compression.modular.convnets import (
    QUIET,
    Block,
    Net,
    drawn,
    logits,
    modular,
    pictures,
)
from tests.compression.networks import Snapshot

# Pictures are small, and late blocks see few positions of them.
pytestmark = pytest.mark.filterwarnings("ignore:calibration is thin")


class NormAct(nn.BatchNorm2d):
    """One that does more, so that no layer can take it in."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x))


@pytest.mark.parametrize("norm", [NormAct, lambda n: nn.BatchNorm2d(n, affine=False), nn.PReLU])
def test_what_has_numbers_of_each_channel_goes_along(norm: Callable[[int], nn.Module]) -> None:
    model = drawn(lambda: Net(norm=norm))
    small, report = modular(model, 0.5, allocation="uniform")
    assert all(block.expand.out_channels == 12 for block in small.blocks)
    kept = small.blocks[0].norm1
    assert all(t.numel() in (1, 12) for t in (*kept.parameters(), *kept.buffers()))
    assert report.model_error < 1
    assert torch.isfinite(logits(small, pictures(1)[0])).all()


# ---- what is known ----------------------------------------------------------------------------


class Shuffled(nn.Module):
    """Channels that change places between two groups."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.halves = n // 2

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x[:, self.halves :], x[:, : self.halves]], 1)


@pytest.mark.parametrize(
    "options",
    [
        {"norm": lambda n: nn.GroupNorm(4, n)},
        {"norm": lambda n: nn.GroupNorm(1, n)},
        {"act": lambda x: torch.softmax(x, 1)},
        {"gate": Shuffled},
    ],
)
def test_channels_that_are_mixed_are_none(options: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match="no perceptron, attention or bottleneck"):
        modular(drawn(lambda: Net(**options)), skip=["head", "stem", "blocks.*.gate"])


def test_several_outputs_of_a_channel_stay_and_it_is_told() -> None:
    class Two(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(
                nn.Conv2d(3, 8, 1), Block(8, 24, 8), Block(8, 24, 8, multiplier=2),
            )  # fmt: skip

    small, report = modular(drawn(Two), skip=[])
    assert "gives 2 outputs for each channel" in report.layer("2.depthwise").reason
    assert "2.depthwise" in report.layer("2.project").reason
    assert small[2].expand.out_channels == 24
    assert report.layer("1.depthwise").factored


class Residual(nn.Module):
    """A block of a ResNet, without an inverted one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, padding=1)
        self.narrow, self.middle = nn.Conv2d(32, 16, 1), nn.Conv2d(16, 16, 3, padding=1)
        self.wide, self.top, self.head = (
            nn.Conv2d(16, 32, 1),
            nn.Conv2d(32, 40, 1),
            nn.Linear(40, 5),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.wide(torch.relu(self.middle(torch.relu(self.narrow(x))))))
        return self.head(F.silu(self.top(x)).mean((2, 3)))


def test_other_blocks_are_narrower_where_pointwise_layers_read_them() -> None:
    """In front of one, or of a linear one behind a pool; not where they are added to."""
    small, report = modular(drawn(Residual), skip=[], allocation="uniform")
    assert small.middle.out_channels == small.wide.in_channels < 16
    assert small.top.out_channels == small.head.in_features < 40
    assert small.stem.out_channels == small.wide.out_channels == 32
    assert small.narrow.weight.shape[:2] == (16, 32)
    assert not report.layer("narrow").eligible


class Around(nn.Module):
    """Inner channels that are read twice."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.more = Block(3, 24, 8), nn.Conv2d(24, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self.block.norm1(self.block.expand(x)))
        z = F.relu6(self.block.norm2(self.block.depthwise(y)))
        return self.block.norm3(self.block.project(z)) + self.more(y)


def test_channels_that_others_read_stay() -> None:
    with pytest.raises(ArgumentError, match="no perceptron, attention or bottleneck"):
        modular(drawn(Around), skip=[])


@pytest.mark.parametrize(
    ("glob", "left"),
    [("blocks.0", [0]), ("*.depthwise", [0, 1, 2]), ("blocks.1.gate.reduce", [1])],
)
def test_what_is_skipped_stays_and_what_it_is_part_of(glob: str, left: list[int]) -> None:
    model = drawn("gated")
    if len(left) == 3:
        with pytest.raises(ArgumentError, match="skipped by"):
            modular(model, skip=["head", "stem", "*.gate", glob])
        return
    small, report = modular(model, allocation="uniform", skip=["head", "stem", glob])
    for k, block in enumerate(small.blocks):
        assert (block.expand.out_channels == 24) == (k in left)
        assert report.layer(f"blocks.{k}.expand").factored == (k not in left)


def test_a_normalisation_that_is_skipped_stays() -> None:
    model = drawn(lambda: Net(norm=NormAct))
    small, _ = modular(model, allocation="uniform", skip=["head", "stem", "blocks.0.norm2"])
    assert small.blocks[0].norm2.num_features == 24
    assert small.blocks[1].norm2.num_features < 24


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"calibration": None}, "give calibration="),
        ({"keep_params": 0.001}, "is the least they can do with"),
        ({"keep_params": None, "error": 0.1}, "needs keep_params"),
        ({"calibration": [torch.randn(4, 5, 32, 32)]}, "calibration: the model cannot take"),
        ({"calibration": [torch.full((4, 3, 32, 32), torch.nan)]}, "NaN"),
    ],
)
def test_what_cannot_be_is_told_and_nothing_is_changed(options: dict[str, Any], told: str) -> None:
    model = drawn("gated")
    before = Snapshot(model)
    options = {"keep_params": 0.5, "calibration": pictures(), **QUIET, **options}
    with pytest.raises(ArgumentError, match=told):
        compress(model, method="modular", **options)
    before.check()


# ---- and all else -----------------------------------------------------------------------------
