"""The kernel of mttkrp compiled for chips that are not here."""

from __future__ import annotations

import math

import pytest
import torch

from tensorlrf_kernels.chips import KNOWN, Chip
from tensorlrf_kernels.launches import Call, Problem
from tensorlrf_kernels.mttkrp import fused
from tensorlrf_kernels.mttkrp.groups import groups_of
from tensorlrf_kernels.mttkrp.launch import DTYPES, forward
from tests.kernels.compiled.fitting import assert_fits
from tests.kernels.drawn.mttkrp import others

pytestmark = pytest.mark.aot

TF32 = (torch.float32,)
"""Of which three products for one are on tensor cores."""
SHAPES = (
    ((400, 400, 400), 64),
    ((512, 512, 3, 3), 128),
    ((64, 64, 64, 64), 32),
    ((24, 24, 24, 24, 24), 32),
    ((37, 129, 53), 100),
    ((129, 37, 53), 50),
)


def calls_of(
    sizes: tuple[int, ...], modes: tuple[int, ...], columns: int, dtype: torch.dtype, chip: Chip,
    *, tf32: bool = False,
) -> list[Call]:  # fmt: skip
    """The launch for a contiguous tensor on the CPU, which nothing reads."""
    tensor = torch.empty(sizes, dtype=dtype)
    factors = [torch.empty(sizes[k], columns, dtype=dtype) for k in modes]
    groups = groups_of(tensor.shape, tensor.stride(), modes)
    assert groups is not None
    inp = math.prod(sizes[k] for k in modes)
    rows = groups.p.size * groups.q.size
    config = forward(Problem(rows, groups.inner, inp, columns, dtype, tf32), chip)
    assert config is not None
    return fused.forward_calls(config, tensor, factors, modes, groups, tf32=tf32)[0]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("chip", KNOWN)
def test_fits_the_chip(chip: str, dtype: torch.dtype) -> None:
    assert_fits(calls_of((400, 400, 400), (1, 2), 64, dtype, KNOWN[chip]), KNOWN[chip], TF32)


def test_two_rows_to_a_tile_fit_as_well() -> None:
    """Of a convolution's kernel: the widest tiles, with factor rows gathered and multiplied."""
    chip = KNOWN["NVIDIA H200"]
    calls = calls_of((512, 512, 3, 3), (0, 2, 3), 128, torch.float32, chip)
    assert calls[0].constants["LEFT"]
    assert_fits(calls, chip, TF32)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "tf32"), [*((d, False) for d in DTYPES), (*TF32, True)])
@pytest.mark.parametrize(("sizes", "columns"), SHAPES, ids=str)
@pytest.mark.parametrize("chip", KNOWN)
def test_every_heuristic_launch_fits(
    chip: str, sizes: tuple[int, ...], columns: int, dtype: torch.dtype, tf32: bool
) -> None:
    nodes = [others(len(sizes), mode) for mode in range(len(sizes))]
    for modes in (*nodes[:3], (1,), (0, 1)):
        calls = calls_of(sizes, modes, columns, dtype, KNOWN[chip], tf32=tf32)
        assert_fits(calls, KNOWN[chip], TF32)
