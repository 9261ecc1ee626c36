"""Streamed second moments equal those of the whole unfolded input."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tensorlrf.compression.calibration._dense_layer import DenseLayer
from tensorlrf.compression.calibration.moments import _moments, _sums
from tensorlrf.compression.calibration.moments._moments import (
    LinearMoments,
    PatchMoments,
    ShiftMoments,
    moments_of,
)
from tensorlrf.compression.calibration.taps._taps import Taps
from tests.compression.calibration.unfolded import patches

sides = st.integers(1, 4)
CPU = torch.device("cpu")


@st.composite
def convs(draw: st.DrawFn, *, strided: bool) -> nn.Conv2d:
    kernel = (draw(sides), draw(sides))
    dilation = (draw(st.integers(1, 2)), draw(st.integers(1, 2)))
    stride = (draw(st.integers(1, 3)), draw(st.integers(1, 3))) if strided else (1, 1)
    small = st.integers(0, 2)
    paddings = [st.just("valid"), st.tuples(small, small), st.integers(0, 3)]
    if stride == (1, 1):
        paddings.append(st.just("same"))
    mode = draw(st.sampled_from(["zeros", "zeros", "reflect", "replicate", "circular"]))
    return nn.Conv2d(
        draw(st.integers(1, 4)),
        2,
        kernel,
        stride=stride,
        padding=draw(st.one_of(paddings)),
        dilation=dilation,
        padding_mode=mode,
        dtype=torch.float64,
    )


def drawn_input(conv: nn.Conv2d, seed: int, extra: tuple[int, int]) -> Tensor:
    reach = [d * (k - 1) + 1 for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
    size = [r + e + 3 for r, e in zip(reach, extra, strict=True)]
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(2, conv.in_channels, *size, generator=rng, dtype=torch.float64)


def taps_of(conv: nn.Module) -> Taps:
    taps = DenseLayer.of(conv).taps
    assert taps is not None
    return taps


def check(moments: ShiftMoments | PatchMoments, conv: nn.Conv2d, x: Tensor) -> None:
    before = x.clone()
    (columns,) = patches(conv, x)
    moments.add(x)
    moments.add(x[:1])
    moments.add(x[1])  # without a batch dimension
    assert torch.equal(x, before)
    assert moments.count == 2 * columns.shape[1]
    gram = moments.gram()
    # Sums of at most (positions of the grid) products, corrections included.
    grid = x.shape[0] * (x.shape[2] + 8) * (x.shape[3] + 8)
    tolerance = 8 * grid * torch.finfo(torch.float64).eps * float(x.abs().max()) ** 2
    expected = columns @ columns.T / columns.shape[1]
    assert (gram - expected).abs().max() <= tolerance
    assert torch.equal(gram, gram.T)
    bound = grid * torch.finfo(torch.float64).eps * float(x.abs().max())
    assert (moments.mean() - columns.mean(1)).abs().max() <= bound


# torch says once that an even kernel with padding="same" costs it a copy.
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@given(convs(strided=False), st.integers(0, 99), st.tuples(sides, sides))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_shifted_correlations_are_the_patches_gram(
    conv: nn.Conv2d, seed: int, extra: tuple[int, int]
) -> None:
    check(ShiftMoments(taps_of(conv), CPU), conv, drawn_input(conv, seed, extra))


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@given(convs(strided=True), st.integers(0, 99), st.tuples(sides, sides))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_unfolding_in_blocks_is_the_patches_gram(
    conv: nn.Conv2d, seed: int, extra: tuple[int, int]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_moments, "PATCH_NUMBERS", 100)  # a row or two at a time
        patch.setattr(_sums, "COLUMNS", 7)
        check(PatchMoments(taps_of(conv), CPU), conv, drawn_input(conv, seed, extra))


def test_order_of_columns_is_that_of_unfold() -> None:
    conv = nn.Conv2d(9, 4, (3, 2), padding=(1, 0))
    x = torch.randn(2, 9, 6, 5, generator=torch.Generator().manual_seed(0))
    columns = F.unfold(x.double(), (3, 2), padding=(1, 0)).transpose(0, 1).flatten(1)
    moments = moments_of(DenseLayer.of(conv))
    assert isinstance(moments, ShiftMoments)
    moments.add(x)
    expected = columns @ columns.T / columns.shape[1]
    scale = expected.diagonal().max()
    # float32 products: at most N roundings of sums bounded by Cauchy-Schwarz.
    bound = columns.shape[1] * torch.finfo(torch.float32).eps * scale
    assert (moments.gram() - expected).abs().max() <= bound


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_linear_counts_all_leading_dimensions(dtype: torch.dtype) -> None:
    x = torch.randn(3, 5, 7, 6, generator=torch.Generator().manual_seed(1)).to(dtype)
    moments = moments_of(DenseLayer.of(nn.Linear(6, 2, dtype=dtype)))
    assert isinstance(moments, LinearMoments)
    moments.add(x)
    moments.add(x[0])
    moments.add(x[0, 0, 0])
    rows = torch.cat([x.reshape(-1, 6), x[0].reshape(-1, 6), x[0, 0, :1]]).double()
    assert moments.count == rows.shape[0]
    expected = rows.T @ rows / rows.shape[0]
    eps = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    bound = rows.shape[0] * eps * expected.diagonal().max()
    assert (moments.gram() - expected).abs().max() <= bound


def test_float32_sums_do_not_drift() -> None:
    # 200 batches of the same rows: a float32 accumulator would lose digits, float64 does not.
    x = torch.rand(50, 8, generator=torch.Generator().manual_seed(2))
    once, often = LinearMoments(8, x.device), LinearMoments(8, x.device)
    once.add(x)
    for _ in range(200):
        often.add(x)
    assert torch.allclose(once.gram(), often.gram(), rtol=1e-13, atol=0)


def test_few_channels_and_strides_are_unfolded() -> None:
    assert isinstance(moments_of(DenseLayer.of(nn.Conv2d(3, 8, 3))), PatchMoments)
    assert isinstance(moments_of(DenseLayer.of(nn.Conv2d(64, 8, 3, stride=2))), PatchMoments)
    assert isinstance(moments_of(DenseLayer.of(nn.Conv2d(64, 8, 3, dilation=2))), ShiftMoments)
