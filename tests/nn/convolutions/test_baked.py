"""Layers that make their weight anew in every forward become plain ones on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import tensorlrf
from tensorlrf.nn import FactoredConv2d, factorize
from tensorlrf.nn.convolutions.baked import baked, origin_of
from tests.compression.networks import UNIFORM
from tests.draws import seeded, seeded32


class StdConv2d(nn.Conv2d):
    """As timm's: every filter about its mean, over its deviation."""

    eps = 1e-6

    def forward(self, x: Tensor) -> Tensor:
        flat = self.weight.reshape(1, self.out_channels, -1)
        own = F.batch_norm(flat, None, None, training=True, momentum=0.0, eps=self.eps)
        return self._conv_forward(x, own.reshape_as(self.weight), self.bias)


class ScaledStdConv2d(nn.Conv2d):
    """As timm's: likewise, with a gain for every filter."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.gain = nn.Parameter(torch.full((self.out_channels, 1, 1, 1), 1.7))
        self.scale = self.weight[0].numel() ** -0.5

    def forward(self, x: Tensor) -> Tensor:
        flat, gain = (
            self.weight.reshape(1, self.out_channels, -1),
            (self.gain * self.scale).view(-1),
        )
        own = F.batch_norm(flat, None, None, weight=gain, training=True, momentum=0.0, eps=1e-6)
        return F.conv2d(
            x, own.reshape_as(self.weight), self.bias, self.stride, self.padding, self.dilation,
            self.groups,
        )  # fmt: skip


class Positive(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.exp(), self.bias)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from([StdConv2d, ScaledStdConv2d]),
    kernel=st.integers(2, 3),
    stride=st.integers(1, 2),
    groups=st.sampled_from([1, 2]),
    bias=st.booleans(),
)
def test_outputs_are_the_same(kind: Any, kernel: int, stride: int, groups: int, bias: bool) -> None:
    options = {"stride": stride, "padding": 1, "groups": groups, "bias": bias}
    layer = kind(4, 6, kernel, **options).double()
    before = {name: t.clone() for name, t in layer.state_dict().items()}
    made = baked(layer)
    assert type(made) is nn.Conv2d
    assert origin_of(made) is layer
    x = seeded(2, 4, 7, 6)
    torch.testing.assert_close(made(x), layer(x))
    small = factorize(layer, "svd", error=1e-9)
    assert small.stands_for == kind.__name__
    torch.testing.assert_close(small(x), layer(x), rtol=1e-6, atol=1e-6)
    assert all(torch.equal(t, before[name]) for name, t in layer.state_dict().items())


def test_it_is_told_of_any_layer_and_of_none_that_does_more() -> None:
    linear = Positive(5, 4).double()
    made = baked(linear)
    assert made is not None
    x = seeded(3, 5)
    torch.testing.assert_close(made(x), linear(x))

    class Lora(nn.Conv2d):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self.down = nn.Parameter(torch.randn(2, 4))
            self.up = nn.Parameter(torch.randn(6, 2))

        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(x, self.weight + (self.up @ self.down)[..., None, None], self.bias)

    class ByInput(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(x, self.weight * x.mean(), self.bias)

    class Averaged(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.weight * (2.0 if self.training else 1.5), self.bias)

    hooked = StdConv2d(4, 6, 3)
    hooked.register_forward_hook(lambda *_: None)
    for layer in (Lora(4, 6, 1), ByInput(4, 6, 1), Averaged(4, 6), hooked, nn.Conv2d(4, 6, 1)):
        assert baked(layer) is None


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = StdConv2d(3, 24, 3, padding=1)
        self.wide = ScaledStdConv2d(24, 32, 3, padding=1)
        self.last = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.wide(self.stem(x).relu()).relu().mean((2, 3)))  # type: ignore[no-any-return]


BATCHES = [seeded32(8, 3, 12, 12, seed=k) for k in range(8)]


@pytest.mark.parametrize("target", ["original", "independent"])
def test_a_model_of_such_is_compressed_saved_and_loaded(target: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Net().eval()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    small, report = tensorlrf.compress(
        model, keep_params=0.7, calibration=BATCHES, skip=["last", "stem"], target=target, **UNIFORM
    )
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert isinstance(small.wide, FactoredConv2d)
    assert type(small.stem) is StdConv2d
    rows = {row.name: row for row in report.layers}
    assert rows["wide"].kind == "ScaledStdConv2d, its weight baked in"
    assert rows["stem"].kind == "StdConv2d"
    assert rows["wide"].output_error is not None
    x = BATCHES[0]
    assert (small(x) - model(x)).norm() < 0.5 * model(x).norm()
    file = tmp_path / "small.safetensors"
    tensorlrf.save(small, file)
    assert torch.equal(tensorlrf.load(file, Net().eval())(x), small(x))
    with torch.device("meta"):
        blank = Net().eval()
    assert torch.equal(tensorlrf.load(file, blank)(x), small(x))
    dense: Any = tensorlrf.densify(small)
    assert type(dense.wide) is nn.Conv2d
    torch.testing.assert_close(dense(x), small(x), rtol=1e-4, atol=1e-4)


def test_in_place_layers_that_stay_are_the_same_objects() -> None:
    torch.manual_seed(0)
    model = Net().eval()
    stem = model.stem
    tensorlrf.compress_(
        model, keep_params=0.7, calibration=BATCHES, skip=["last", "stem"], **UNIFORM
    )
    assert model.stem is stem
    assert isinstance(model.wide, FactoredConv2d)


def test_the_one_of_transformers() -> None:
    bit = pytest.importorskip("transformers.models.bit.modeling_bit")
    layer = bit.WeightStandardizedConv2d(8, 6, 3).double()
    made = baked(layer)
    assert made is not None
    x = seeded(2, 8, 6, 6)
    torch.testing.assert_close(made(x), layer(x))
    # One that pads by the size of its input has no plain form.
    assert baked(bit.WeightStandardizedConv2d(8, 6, 3, stride=2)) is None
