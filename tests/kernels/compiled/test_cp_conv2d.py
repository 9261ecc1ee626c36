"""The kernels of cp_conv2d compiled for chips that are not here."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tensorlrf_kernels.chips import KNOWN
from tensorlrf_kernels.cp_conv2d import fused
from tensorlrf_kernels.cp_conv2d.launch import backward, forward
from tensorlrf_kernels.geometry import Geometry, problem
from tensorlrf_kernels.lowrank_linear.launch import DTYPES
from tests.kernels.compiled.fitting import assert_fits

pytestmark = pytest.mark.aot

LAST = torch.channels_last
LAYERS = (
    (32, 64, 56, 64), (32, 128, 28, 64), (32, 256, 14, 128), (1, 512, 7, 256), (8, 96, 20, 24)
)  # fmt: skip
"""Batch, channels, side of the image and rank."""


def check(layer: tuple[int, int, int, int], chip: str, dtype: torch.dtype, full: bool) -> None:
    B, C, side, R = layer
    geometry = Geometry(padding=(1, 1)) if full else Geometry((2, 2), (1, 1), (2, 1))

    def empty(*size: int) -> Tensor:
        return torch.empty(size, dtype=dtype)

    def image(channels: int, *size: int) -> Tensor:
        return empty(B, channels, *size).contiguous(memory_format=LAST)

    x = image(C, side, side)
    factors = (empty(C, R), empty(C, R), empty(3, R), empty(3, R), empty(R))
    size = geometry.output((side, side), (3, 3))
    tf32 = fused.precision(dtype) == "tf32"
    config = forward(problem(x, size, C, C, R, tf32=tf32), KNOWN[chip])
    assert config is not None
    activation, bias = ("gelu", empty(C)) if full else (None, None)
    for one in (config, fused.up_to_taps(config)):
        calls, _ = fused.forward_calls(one, x, factors, bias, geometry, size, activation)
        assert_fits(calls, KNOWN[chip])
    t, du = image(R, side, side), image(R, *size)
    config = backward(problem(t, (side, side), R, R, R, tf32=tf32), KNOWN[chip])
    assert config is not None
    for want_t, want_parts in ((True, True), (True, False), (False, True)):
        calls, _ = fused.backward_calls(
            config, t, du, factors, geometry, want_t=want_t, want_parts=want_parts
        )
        assert_fits(calls[:1], KNOWN[chip])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("chip", KNOWN)
def test_fits_the_chip(chip: str, dtype: torch.dtype) -> None:
    check(LAYERS[0], chip, dtype, full=True)


@pytest.mark.slow
@pytest.mark.parametrize("full", [False, True], ids=["bare", "full"])
@pytest.mark.parametrize("layer", LAYERS, ids=str)
@pytest.mark.parametrize("chip", KNOWN)
def test_every_layer_fits(
    chip: str, kind: tuple[torch.dtype, bool], layer: tuple[int, int, int, int], full: bool
) -> None:
    check(layer, chip, kind[0], full)
