"""blr_linear, monarch_linear and blast_linear beside the dense layer and library products: forward,
and a training step, on 1024 x 1024 layers at a quarter of the parameters.

On a GPU the ops are the grouped kernels, and the whole comparison there is `make gpu-bench`; on a
CPU they run the library products, so that the two rows say what calling them costs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bench.timed import timed
from tensorlrf_kernels.blr_linear import (
    blast_linear,
    blr_linear,
    monarch_linear,
    reference,
    words,
)
from tensorlrf_kernels.blr_linear.forms import tiling_of

N, ROWS = 1024, 128
SHAPE = (N, N)
WAYS = ("dense", "chain", "op")
EVEN = words(((128 * i, 128 * j, 128, 128, 16) for i in range(8) for j in range(8)), SHAPE)
RAGGED = words(
    ((128 * i, 128 * j, 128, 128, 1 + (5 * i + 3 * j) % 31) for i in range(8) for j in range(8)),
    SHAPE,
)
FORMS = ("even", "ragged", "monarch", "blast")


def operands(form: str, device: torch.device, dtype: torch.dtype) -> tuple[list[Tensor], Tensor]:
    """x and the panels; and a dense weight."""
    g = torch.Generator().manual_seed(0)

    def normal(*size: int) -> Tensor:
        return (torch.randn(size, generator=g) / math.sqrt(size[-1])).to(device, dtype)

    panels: list[tuple[int, ...]] = []
    if form == "monarch":
        panels = [(32, 32, 32, 4), (32, 32, 4, 32)]
    elif form == "blast":
        panels = [(8, 128, 128), (8, 128, 128), (8, 8, 128)]
    else:
        sizes = tiling_of(EVEN if form == "even" else RAGGED).sizes
        panels = [(sizes[name],) for name in ("left", "right", "dense")]
    return [normal(ROWS, N), *(normal(*size) for size in panels)], normal(N, N)


def ways(form: str, given: list[Tensor], weight: Tensor) -> dict[str, Callable[[], Tensor]]:
    extra: list[Any] = (
        [SHAPE]
        if form in ("monarch", "blast")
        else [
            EVEN if form == "even" else RAGGED,
            SHAPE,
        ]
    )
    op: dict[str, Callable[..., Tensor]] = {"monarch": monarch_linear, "blast": blast_linear}
    chain: dict[str, Callable[..., Tensor]] = {
        "monarch": reference.monarch_linear,
        "blast": reference.blast_linear,
    }
    return {
        "dense": lambda: F.linear(given[0], weight),
        "chain": lambda: chain.get(form, reference.blr_linear)(*given, *extra),
        "op": lambda: op.get(form, blr_linear)(*given, *extra),
    }


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("form", FORMS)
def test_forward(
    benchmark: Any, form: str, way: str, device: torch.device, dtype: torch.dtype
) -> None:
    run = ways(form, *operands(form, device, dtype))[way]
    with torch.inference_mode():
        timed(benchmark, f"{form}, {device.type}", way, run)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("form", FORMS)
def test_training_step(
    benchmark: Any, form: str, way: str, device: torch.device, dtype: torch.dtype
) -> None:
    given, weight = operands(form, device, dtype)
    leaves = [t.requires_grad_() for t in given if t.numel()]
    sources = [leaves[0], weight.requires_grad_()] if way == "dense" else leaves
    forward = ways(form, given, weight)[way]
    dy = torch.ones_like(forward())
    case = f"training step, {form}, {device.type}"
    timed(benchmark, case, way, lambda: torch.autograd.grad(forward(), sources, dy))
