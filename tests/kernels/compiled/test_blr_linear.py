"""The kernels of blr_linear compiled for chips that are not here."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tensorlrf_kernels._aot import compile_call
from tensorlrf_kernels.blr_linear import fused
from tensorlrf_kernels.blr_linear.launch import backward, forward
from tensorlrf_kernels.chips import KNOWN, Chip
from tensorlrf_kernels.launches import Call, Problem
from tensorlrf_kernels.lowrank_linear.launch import DTYPES
from tests.kernels.compiled.fitting import assert_fits
from tests.kernels.drawn.blr import BlockOperands, draw_blast, draw_monarch, draw_tiling, grid

pytestmark = pytest.mark.aot

SIDE = (1024, 1024)
FORMS: dict[str, Callable[[int], BlockOperands]] = {
    "even": lambda M: draw_tiling(M, grid([256] * 4, [256] * 4, lambda i, j: 64), SIDE),
    "ragged": lambda M: draw_tiling(
        M, grid([256] * 4, [256] * 4, lambda i, j: None if i == j else 17 + 3 * i + j), SIDE
    ),
    "odd": lambda M: draw_tiling(M, grid([33, 70], [41, 50], lambda i, j: 9 + i), (103, 91)),
    "monarch": lambda M: draw_monarch(M, (64, 64), 1, SIDE),
    "monarch of rank 8": lambda M: draw_monarch(M, (32, 32), 8, SIDE),
    "blast": lambda M: draw_blast(M, (4, 4), 128, SIDE),
}


def calls_of(
    o: BlockOperands,
    direction: str,
    rows: int,
    chip: Chip,
    *,
    tf32: bool = False,
    full: bool = True,
) -> list[Call]:
    """The launches that `rows` rows of a large layer get, on a few; with bias and activation, and
    all gradients, or with none of them."""
    choose = forward if direction == "forward" else backward
    config = choose(Problem(rows, 4096, 4096, 256, o.x.dtype, tf32), chip)
    assert config is not None
    bias, activation = (o.bias, "gelu") if full else (None, None)
    if direction == "forward":
        return fused.forward_calls(config, o.form, o.x, o.panels, bias, activation)[0]
    dy = o.x.new_empty(len(o.x), o.form.shape[0])
    needed = [True, True, True, o.third is not None, full]
    given = (config, o.form, dy, o.x, o.panels, bias, activation, needed)
    return fused.backward_calls(*given)[0]


@pytest.mark.parametrize("rows", [16, 8192])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("chip", KNOWN)
def test_fits_the_chip(chip: str, dtype: torch.dtype, rows: int) -> None:
    o = FORMS["even"](min(rows, 256)).map(lambda t: t.to(dtype))
    assert_fits(calls_of(o, "forward", rows, KNOWN[chip], full=False), KNOWN[chip])


def test_gradients_of_panels_fit_the_chip() -> None:
    chip = KNOWN["NVIDIA H200"]
    o = FORMS["even"](256).map(torch.Tensor.bfloat16)
    calls = calls_of(o, "backward", 8192, chip, full=False)
    assert_fits([call for call in calls if call.config.kernel == "panels"], chip)


def test_odd_sizes_compile() -> None:
    """Nothing is a multiple of anything there."""
    chip = KNOWN["NVIDIA H200"]
    o = FORMS["odd"](150).map(torch.Tensor.half)
    for call in calls_of(o, "forward", 150, chip):
        assert compile_call(call, chip).shared_memory <= chip.shared_memory


@pytest.mark.slow
@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("rows", [128, 8192])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("chip", KNOWN)
def test_every_heuristic_launch_fits(
    chip: str, kind: tuple[torch.dtype, bool], form: str, rows: int, direction: str
) -> None:
    dtype, tf32 = kind
    if direction == "backward" and rows < 512:
        return  # the same launch as for 512 rows
    o = FORMS[form](min(rows, 512)).map(lambda t: t.to(dtype))
    calls = calls_of(o, direction, rows, KNOWN[chip], tf32=tf32)
    assert_fits(calls, KNOWN[chip])
