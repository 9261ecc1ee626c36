"""Moments of convolutions in any number of axes, with groups and uneven padding, against patches
that torch's own convolution takes; and the memory that they need."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import tensorlrf
from tensorlrf import compress
from tensorlrf.compression.calibration._dense_layer import DenseLayer
from tensorlrf.compression.calibration._statistics import OutputError, Stream
from tensorlrf.compression.calibration.moments import _moments
from tensorlrf.compression.calibration.taps._taps import Taps
from tensorlrf.nn import Plain, register_plain
from tests.compression.calibration.unfolded import (
    CONVS,
    TRANSPOSED,
    outputs,
    patches,
    patches_of_transposed,
)
from tests.compression.networks import UNIFORM, relative, set_weights
from tests.draws import seeded32

MODES = ["zeros", "zeros", "reflect", "replicate", "circular"]


@st.composite
def convs(draw: st.DrawFn) -> Any:
    axes = draw(st.sampled_from([1, 3]) | st.integers(1, 3))
    groups = draw(st.integers(1, 3))

    def each(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(axes))

    stride = draw(st.just((1,) * axes)) if draw(st.booleans()) else each(1, 2)
    kernel = each(1, 3)
    paddings = [st.just("valid"), st.just((1,) * axes), st.just(each(0, 1))]
    if set(stride) == {1}:
        paddings.append(st.just("same"))
    mode = draw(st.sampled_from(MODES))
    # A few channels are unfolded, more are correlated: both where the axes allow it.
    channels = draw(st.sampled_from([1, 2, 9]))
    return CONVS[axes](
        groups * channels, groups * 2, kernel, stride, draw(st.one_of(paddings)), each(1, 2),
        groups, padding_mode=mode, dtype=torch.float64,
    )  # fmt: skip


# torch says once that an even kernel with padding="same" costs it a copy.
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@given(convs(), st.integers(0, 99), st.booleans())
@settings(max_examples=80, deadline=None, derandomize=True)
def test_moments_of_every_group_are_those_of_its_patches(
    conv: Any, seed: int, in_blocks: bool
) -> None:
    axes = conv.weight.ndim - 2
    sizes = [d * (k - 1) + 4 for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
    x = seeded32(2, conv.in_channels, *sizes, seed=seed).double()
    with pytest.MonkeyPatch.context() as patch:
        if in_blocks:
            patch.setattr(_moments, "PATCH_NUMBERS", 50)
        stream = Stream(DenseLayer.of(conv), lags=True)
        stream.add(x, x)
        stream.add(x[0], x[0])  # without a batch dimension
    before = x.clone()
    columns = [torch.cat([p, patches(conv, x[:1])[g]], 1) for g, p in enumerate(patches(conv, x))]
    assert torch.equal(x, before)
    statistics = stream.statistics()
    assert len(statistics) == conv.groups
    # Sums over the whole padded grid, of which strips are taken away again.
    grid = 3 * math.prod(n + 8 for n in sizes)
    bound = 8 * grid * torch.finfo(torch.float64).eps * float(x.abs().max()) ** 2
    for one, column in zip(statistics, columns, strict=True):
        assert one.count == column.shape[1]
        assert (one.gram - column @ column.T / one.count).abs().max() <= bound
        assert (one.mean - column.mean(1)).abs().max() <= bound
        assert one.lag is not None
        assert one.lag.lost == 0.0
    # And the error that follows for any other weight is the true one.
    other = seeded32(*conv.weight.shape, seed=seed + 1).double()
    wanted = outputs(conv, conv.weight.detach(), x)
    first = outputs(conv, conv.weight.detach(), x[:1])
    lost = (wanted - outputs(conv, other, x)).square().sum()
    lost = lost + (first - outputs(conv, other, x[:1])).square().sum()
    whole = wanted.square().sum() + first.square().sum()
    told = OutputError(DenseLayer.of(conv).group_weights(), statistics).of(other.chunk(conv.groups))
    assert axes == DenseLayer.of(conv).taps.axes  # type: ignore[union-attr]
    assert told == pytest.approx(float((lost / whole).sqrt()), rel=1e-9)


@st.composite
def transposed(draw: st.DrawFn) -> Any:
    axes = draw(st.integers(1, 3))
    groups = draw(st.integers(1, 2))

    def each(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(axes))

    stride, dilation, kernel = each(1, 3), each(1, 2), each(1, 3)
    more = tuple(draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True))
    channels = draw(st.sampled_from([1, 2, 9]))
    return TRANSPOSED[axes](
        groups * channels, groups * 2, kernel, stride, each(0, 2), more, groups,
        dilation=dilation, dtype=torch.float64,
    )  # fmt: skip


@given(transposed(), st.integers(0, 99))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_moments_of_a_transposed_convolution_are_those_of_what_each_output_reads(
    conv: Any, seed: int
) -> None:
    sizes = (5, 4, 3)[: conv.weight.ndim - 2]
    axes = zip(sizes, conv.kernel_size, conv.stride, conv.padding, conv.dilation, strict=True)
    assume(all((n - 1) * s - 2 * p + d * (k - 1) >= 0 for n, k, s, p, d in axes))
    x = seeded32(2, conv.in_channels, *sizes, seed=seed).double()
    layer = DenseLayer.of(conv)
    stream = Stream(layer, lags=True)
    stream.add(x, x)
    statistics = stream.statistics()
    bound = 1e-12 * x.numel() * float(x.abs().max()) ** 2
    for one, column in zip(statistics, patches_of_transposed(conv, x), strict=True):
        assert one.count == column.shape[1]
        assert (one.gram - column @ column.T / one.count).abs().max() <= bound
        assert (one.mean - column.mean(1)).abs().max() <= bound
    other = seeded32(*conv.weight.shape, seed=seed + 1).double()
    wanted = outputs(conv, conv.weight.detach(), x)
    lost = (wanted - outputs(conv, other, x)).norm() / wanted.norm()
    parts = layer.plain.outputs_first(other).chunk(conv.groups)
    told = OutputError(layer.group_weights(), statistics).of(parts)
    assert told == pytest.approx(float(lost), rel=1e-9)


class Uneven(nn.Conv2d):
    """Pads by itself, more on one side than on the other."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (0, 2, 1, 0)))


class UnevenSequence(nn.Conv1d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (2, 0)))


register_plain(Uneven, lambda c: Plain("Conv2d", c.stride, ((1, 0), (0, 2)), c.dilation, c.groups))
register_plain(UnevenSequence, lambda c: Plain("Conv1d", c.stride, ((2, 0),), c.dilation, c.groups))


def hf_conv1d() -> nn.Module:
    from transformers.pytorch_utils import Conv1D

    return Conv1D(24, 16)


LAYERS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "conv1d": (lambda: nn.Conv1d(12, 16, 5, padding="same"), (30, 12, 20)),
    "conv1d, groups": (lambda: nn.Conv1d(24, 24, 3, stride=2, groups=2), (30, 24, 21)),
    "conv2d, groups": (lambda: nn.Conv2d(24, 24, 3, padding=1, groups=2), (9, 24, 8, 8)),
    "conv3d": (lambda: nn.Conv3d(10, 12, 3, padding=1, dilation=2), (6, 10, 7, 7, 7)),
    "conv3d, reflect": (
        lambda: nn.Conv3d(10, 12, 3, stride=2, padding=1, padding_mode="reflect"), (9, 10, 8, 8, 8)
    ),
    "uneven": (lambda: Uneven(12, 12, 3, stride=2), (20, 12, 9, 9)),
    "uneven, groups": (lambda: Uneven(24, 24, 3, groups=2), (9, 24, 9, 9)),
    "uneven sequence": (lambda: UnevenSequence(12, 12, 3), (30, 12, 20)),
    "hf": (hf_conv1d, (20, 9, 16)),
    "transposed": (
        lambda: nn.ConvTranspose2d(12, 12, 3, stride=2, padding=1, output_padding=1), (9, 12, 5, 5)
    ),
    "transposed, groups": (lambda: nn.ConvTranspose1d(24, 24, 3, 2, groups=2), (30, 24, 9)),
}  # fmt: skip


@pytest.mark.parametrize("target", ["prefix", "original", "independent"])
@pytest.mark.parametrize("kind", LAYERS)
def test_the_reported_error_is_that_of_the_layer(kind: str, target: str) -> None:
    """Recomputed by running the dense layer and its factored form on the held-out inputs."""
    make, shape = LAYERS[kind]
    layer = set_weights(make())
    model = nn.Sequential(layer).eval()
    batches = [seeded32(*shape, seed=k) for k in range(4)]
    small, report = compress(
        model, keep_params=0.6, calibration=batches, target=target, holdout=0.25, **UNIFORM
    )
    row = report.layer("0")
    assert row.data_aware
    assert row.held_out
    assert row.output_error is not None
    with torch.no_grad():
        bias = layer.bias.reshape(-1, *[1] * (len(shape) - 2)) if kind != "hf" else layer.bias
        wanted, got = layer(batches[3]) - bias, small(batches[3]) - bias
    # Moments are float32 products; 1e-4 of an error near .2 is far above their rounding.
    assert row.output_error == pytest.approx(relative(got, wanted), rel=1e-3)
    # Data-aware factors lose no more on the inputs that they were fitted to than plain ones.
    fitted, known = compress(model, keep_params=0.6, calibration=batches, target=target, **UNIFORM)
    plain, _ = compress(model, keep_params=0.6)
    assert known.layer("0").output_error is not None
    with torch.no_grad():
        x = torch.cat(batches)
        assert relative(fitted(x), model(x)) <= relative(plain(x), model(x)) * (1 + 1e-4)


def test_a_group_whose_inputs_are_zero_has_the_plain_fit() -> None:
    conv = set_weights(nn.Conv2d(8, 8, 3, groups=2))
    x = seeded32(40, 8, 9, 9)
    x[:, :4] = 0
    for affine in (False, True):
        small, report = compress(conv, keep_params=0.7, calibration=[x], affine=affine)
        rank = report.layers[0].rank
        assert isinstance(rank, int)
        plain = tensorlrf.svd(conv.weight[:4], rank).to_dense()
        torch.testing.assert_close(small.weight[:4].detach(), plain)


def allocated(run: Any) -> int:
    """The most bytes that torch had allocated at one time while it ran, above those at its start,
    by the profiler's record of every allocation."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        run()
    now = most = 0
    for event in profile.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most


@pytest.mark.parametrize(
    ("conv", "shape"),
    [
        (nn.Conv2d(4, 8, 3, padding=1), (64, 4, 96, 96)),
        (nn.Conv2d(16, 8, 3, stride=2, padding=1), (32, 16, 64, 64)),
        (nn.Conv2d(16, 8, 3, padding=1), (32, 16, 64, 64)),
        (nn.Conv2d(64, 8, 1), (32, 64, 48, 48)),
        (nn.Conv1d(8, 8, 9, padding=4), (128, 8, 4000)),
        (nn.Conv3d(8, 8, 3, padding=1), (24, 8, 16, 16, 16)),
    ],
)
def test_memory_is_bounded_whatever_the_batch(
    conv: nn.Module, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `_moments` says. Blocks are small here, so that a copy of the batch would stand out."""
    monkeypatch.setattr(_moments, "PATCH_NUMBERS", 1 << 16)
    site = DenseLayer.of(conv)
    assert isinstance(site.taps, Taps)
    x = seeded32(*shape)
    padded = site.taps.padded(x[:1])
    images = max(padded.numel(), (1 << 16) // x[0].numel() * padded.numel())
    row = site.taps.patch * math.prod(site.taps.positions(padded)[1:])
    moments = _moments.moments_of(site)
    most = allocated(lambda: moments.add(x))
    bound = 12 * site.taps.patch**2 + 12 * images + 4 * max(1 << 16, row)
    assert 0 < most <= bound
    assert bound < 4 * x.numel()  # the batch itself is above it
