"""The kernel of tucker_conv2d compiled for chips that are not here."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tensorlrf_kernels.chips import KNOWN
from tensorlrf_kernels.geometry import Geometry, problem
from tensorlrf_kernels.lowrank_linear.launch import DTYPES
from tensorlrf_kernels.tucker_conv2d import fused
from tensorlrf_kernels.tucker_conv2d.launch import forward
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

    x = empty(B, C, side, side).contiguous(memory_format=LAST)
    core = empty(R, C, 3, 3).contiguous(memory_format=LAST)
    size = geometry.output((side, side), (3, 3))
    asked = problem(x, size, C, core[0].numel(), R, tf32=fused.precision(dtype) == "tf32")
    config = forward(asked, KNOWN[chip])
    assert config is not None
    bias = empty(C) if full else None
    activation = "gelu" if full else None
    calls, _ = fused.forward_calls(config, x, core, empty(C, R), bias, geometry, size, activation)
    assert_fits(calls, KNOWN[chip])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("chip", KNOWN)
def test_fits_the_chip(chip: str, dtype: torch.dtype) -> None:
    check(LAYERS[1], chip, dtype, full=True)


@pytest.mark.slow
@pytest.mark.parametrize("full", [False, True], ids=["bare", "full"])
@pytest.mark.parametrize("layer", LAYERS, ids=str)
@pytest.mark.parametrize("chip", KNOWN)
def test_every_layer_fits(
    chip: str, kind: tuple[torch.dtype, bool], layer: tuple[int, int, int, int], full: bool
) -> None:
    check(layer, chip, kind[0], full)
