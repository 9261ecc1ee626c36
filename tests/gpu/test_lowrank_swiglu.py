"""lowrank_swiglu's kernels on a GPU: the laws, and what is its own.

Needs torch, Triton and pytest alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from tensorlrf_kernels.lowrank_swiglu import lowrank_swiglu, reference
from tests.kernels.drawn.lowrank import LAYOUTS, assert_within
from tests.kernels.drawn.swiglu import (
    GatedOperands,
    backward_bounds,
    draw,
    exact,
    forward_bound,
    gradients,
)
from tests.laws.device import LinearLaws, SanitizerLaws, beyond_the_result, training_bytes

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("ieee_float32", "launches_succeed")]


class TestLowrankSwiglu(LinearLaws, SanitizerLaws):
    """Sizes are M, N, K, G and U; the terms are the biases."""

    cases = (
        (1, 1, 1, 1, 1),
        (1, 14336, 4096, 128, 128),
        (16, 1000, 777, 33, 64),
        (128, 768, 3072, 300, 96),
        (129, 65, 70, 17, 5),
        (2048, 1024, 4096, 128, 64),
    )
    few = ((16, 500, 700, 64, 48), (300, 200, 150, 40, 24))
    ways = ((False, None, "rows"), (True, None, "rows"))
    traineds = ((300, 200, 150, 40, 24), (2048, 513, 129, 64, 64))
    slack = 2.0  # the kept t of half precision is rounded once more than the exact one
    empty = (0, 20, 30, 8, 8)
    sanitized = (
        "from tensorlrf_kernels.lowrank_swiglu import lowrank_swiglu as f\n"
        "for M in (16, 140):\n"
        "    sizes = ((M, 70), (20, 70), (50, 20), (30, 70), (50, 30), (50,), (50,))\n"
        "    t = [torch.randn(s, device='cuda', dtype=torch.float16) for s in sizes]\n"
        "    t = [x.requires_grad_() for x in t]\n"
        "    f(*t).sum().backward()\n"
    )

    def draw(
        self, case: Any, dtype: torch.dtype, *, terms: bool = True, layout: str = "rows"
    ) -> GatedOperands:
        biases = {"gate_bias": terms, "up_bias": terms}
        return draw(*case, dtype, **biases, layout=LAYOUTS[layout], device="cuda")

    def run(self, o: GatedOperands, activation: str | None = None) -> Tensor:
        return lowrank_swiglu(*o.each())

    def agrees(self, y: Tensor, o: GatedOperands, activation: str | None) -> None:
        assert_within(y.detach(), exact(o), forward_bound(o), "y")

    def gradients(
        self, o: GatedOperands, dy: Tensor, activation: str | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        bounds = backward_bounds(o, dy)
        return ((g, bounds[name]) for name, g in gradients(o, dy).items())


def test_neither_intermediates_nor_projections_are_in_memory() -> None:
    M, N, K, R = 8192, 4096, 2048, 64
    o = draw(M, N, K, R, R, torch.bfloat16, device="cuda")
    # One t alone would take M R values, a projection M N.
    assert beyond_the_result(lambda: lowrank_swiglu(*o.each())) < M * R * 2 // 4


def test_training_takes_less_memory_than_the_chain() -> None:
    def leaves() -> list[Tensor]:
        o = draw(8192, 2048, 2048, 64, 64, torch.bfloat16, device="cuda")
        return [t for t in o.each() if t is not None]

    ours, theirs = (training_bytes(f, leaves) for f in (lowrank_swiglu, reference.lowrank_swiglu))
    assert ours < theirs
