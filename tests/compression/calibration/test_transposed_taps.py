"""Moments of transposed convolutions, phase by phase: those of what every output reads, in any form
and for the smallest inputs; and what they take does not grow with the stride."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tensorlrf.compression.calibration._correction import OutputLags
from tensorlrf.compression.calibration._dense_layer import DenseLayer
from tensorlrf.compression.calibration.moments._form import FULL, Form
from tensorlrf.compression.calibration.moments._moments import ShiftMoments, moments_of
from tensorlrf.compression.calibration.taps._transposed import TransposedTaps
from tensorlrf.decomposition.linalg.compact import dense
from tests.compression.calibration.test_taps import allocated
from tests.compression.calibration.unfolded import TRANSPOSED, outputs, patches_of_transposed
from tests.draws import seeded32


@st.composite
def layers(draw: st.DrawFn) -> tuple[Any, Tensor]:
    """A transposed convolution of one group, and an input that may be a single pixel."""
    axes = draw(st.integers(1, 3))

    def each(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(axes))

    stride, dilation, kernel = each(1, 4), each(1, 3), each(1, 4 if axes < 3 else 3)
    more = tuple(draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True))
    channels = draw(st.sampled_from([1, 2, 9]))
    layer = TRANSPOSED[axes](
        channels, 2, kernel, stride, each(0, 2), more, dilation=dilation, dtype=torch.float64
    )
    x = seeded32(2, channels, *each(1, 3), seed=draw(st.integers(0, 99))).double()
    return layer, x


def columns_of(layer: Any, x: Tensor) -> Tensor | None:
    """What each output reads, (n, N); None where there is no output."""
    try:
        (columns,) = patches_of_transposed(layer, x)
    except RuntimeError:
        return None
    return columns if columns.numel() else None


@given(layers(), st.sampled_from(["full", "sketch", "blocks"]))
@settings(max_examples=150, deadline=None, derandomize=True)
def test_moments_are_those_of_what_each_output_reads(given: tuple[Any, Tensor], kind: str) -> None:
    layer, x = given
    columns = columns_of(layer, x)
    if columns is None:
        return
    n = columns.shape[0]
    # So many rows of a sketch, and a block so wide, have all of them.
    moments = moments_of(DenseLayer.of(layer), FULL if kind == "full" else Form(kind, n + 2))
    moments.add(x)
    moments.add(x[0])
    # An image has outputs where a batch of it has, so these are never None.
    columns = torch.cat([columns, columns_of(layer, x[:1])], dim=1)  # type: ignore[list-item]
    count = columns.shape[1]
    assert moments.count == count
    # Sums of at most a few hundred products in float64; a sketch goes through eigenvectors.
    bound = (1e-12 if kind != "sketch" else 1e-9) * count * float(x.abs().max()) ** 2
    assert (dense(moments.gram()) - columns @ columns.T / count).abs().max() <= bound
    assert (moments.mean() - columns.mean(1)).abs().max() <= bound
    squares = columns.square().sum(0)
    torch.testing.assert_close(moments.lengths.fourth, squares.square().sum())
    torch.testing.assert_close(moments.lengths.cubes, (columns * squares).sum(1))


@given(layers())
@settings(max_examples=80, deadline=None, derandomize=True)
def test_lags_are_those_of_the_outputs(given: tuple[Any, Tensor]) -> None:
    layer, x = given
    columns = columns_of(layer, x)
    if columns is None:
        return
    site, x0 = DenseLayer.of(layer), x + seeded32(*x.shape, seed=100).double()
    lags = OutputLags(site.weight, site.taps)
    lags.add(x, x0)
    lag, e = lags.lag(), outputs(layer, layer.weight.detach(), x0 - x)
    e = e.transpose(0, 1).flatten(1)  # (O, N)
    torch.testing.assert_close(lag.cross, e @ columns.T / columns.shape[1])
    torch.testing.assert_close(lag.mean, e.mean(1))
    assert lag.lost == pytest.approx(float(e.square().sum()) / columns.shape[1])


def test_taps_of_two_phases_meet_in_no_output() -> None:
    layer = nn.ConvTranspose2d(9, 4, 4, stride=2, padding=1)
    taps = DenseLayer.of(layer).taps
    assert isinstance(taps, TransposedTaps)
    phases = list(taps.phases((5, 6)))
    assert [phase.taps.kernel for phase in phases] == [(2, 2)] * 4  # ceil(k / s) along an axis
    seen = torch.cat([phase.columns for phase in phases if phase.columns is not None])
    assert sorted(seen.tolist()) == list(range(taps.patch))
    moments = moments_of(DenseLayer.of(layer))
    moments.add(seeded32(3, 9, 5, 6))
    gram = moments.gram()
    assert isinstance(gram, Tensor)
    own = torch.zeros_like(gram, dtype=torch.bool)
    for phase in phases:
        assert phase.columns is not None
        own[phase.columns[:, None], phase.columns] = True
    assert not gram[~own].any()


def taken(stride: int, shape: tuple[int, ...], kernel: int) -> tuple[int, int]:
    """FLOPs, and bytes at one time, of the moments of an input."""
    layer = DenseLayer.of(TRANSPOSED[len(shape) - 2](shape[1], 4, kernel, stride))
    moments, x = moments_of(layer), seeded32(*shape)
    with FlopCounterMode(display=False) as counter:
        moments.add(x)
    more = moments_of(layer)
    return counter.get_total_flops(), allocated(lambda: more.add(x))


@pytest.mark.parametrize("shape", [(2, 16, 9, 9), (2, 4, 9, 9), (2, 9, 5, 5, 5), (2, 16, 30)])
def test_what_they_take_does_not_grow_with_the_stride(shape: tuple[int, ...]) -> None:
    """A kernel of the same size has fewer taps for each output, and of these fewer that meet."""
    flops, bytes_ = zip(*(taken(stride, shape, 4) for stride in (1, 2, 4)), strict=True)
    assert flops[0] > flops[1] > flops[2]
    assert bytes_[0] >= bytes_[1] >= bytes_[2]


def test_taps_that_do_not_overlap_take_one_product_of_the_input() -> None:
    """A kernel as large as its stride reads one pixel for each output: one product for all."""
    channels, pixels = 16, 2 * 6 * 7
    for stride in (1, 2, 5):
        layer = DenseLayer.of(nn.ConvTranspose2d(channels, 4, stride, stride))
        moments = moments_of(layer)
        assert stride == 1 or isinstance(moments, ShiftMoments)
        with FlopCounterMode(display=False) as counter:
            moments.add(seeded32(2, channels, 6, 7))
        lengths = 2 * pixels * channels * stride**2  # |x|^2 x, for each tap
        assert counter.get_total_flops() <= 2 * pixels * channels**2 + lengths
    assert math.prod(layer.shape[1:]) == 25 * channels
