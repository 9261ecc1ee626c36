"""lowrank_swiglu beside the dense gated half of an MLP and the chain of its factors: forward, and
as a training step.

On a GPU the op is the fused kernel; the whole comparison there is `make gpu-bench`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bench.test_lowrank_linear import bench
from tensorlrf_kernels.lowrank_swiglu import lowrank_swiglu, reference

OUT, INP, RANK = 2048, 768, 96
WAYS = ("dense", "chain", "op")


def ways(
    rows: int, device: torch.device, dtype: torch.dtype
) -> dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...]]]:
    """Functions, each with its operands."""
    g = torch.Generator().manual_seed(0)
    sizes = ((rows, INP), (RANK, INP), (OUT, RANK), (RANK, INP), (OUT, RANK))
    drawn = [torch.randn(size, generator=g) / math.sqrt(size[-1]) for size in sizes]
    x, gate_right, gate_left, up_right, up_left = (t.to(device, dtype) for t in drawn)
    factors = (gate_right, gate_left, up_right, up_left)
    weights = (gate_left @ gate_right, up_left @ up_right)

    def dense(x: Tensor, gate: Tensor, up: Tensor) -> Tensor:
        return F.silu(F.linear(x, gate)) * F.linear(x, up)

    return {
        "dense": (dense, (x, *weights)),
        "chain": (reference.lowrank_swiglu, (x, *factors)),
        "op": (lowrank_swiglu, (x, *factors)),
    }


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("rows", [1, 128])
def test_forward(
    benchmark: Any, rows: int, way: str, device: torch.device, dtype: torch.dtype
) -> None:
    run, operands = ways(rows, device, dtype)[way]
    flops = 4 * rows * (OUT * INP if way == "dense" else RANK * (OUT + INP))
    case = f"SwiGLU {OUT}x{INP}, {rows} rows, {device.type}"
    with torch.inference_mode():
        bench(benchmark, case, way, lambda: run(*operands), flops)


@pytest.mark.parametrize("way", WAYS)
def test_training_step(benchmark: Any, way: str, device: torch.device, dtype: torch.dtype) -> None:
    rows = 256
    run, operands = ways(rows, device, dtype)[way]
    leaves = [t.requires_grad_() for t in operands]
    dy = torch.ones(rows, OUT, device=device, dtype=dtype)
    flops = 12 * rows * (OUT * INP if way == "dense" else RANK * (OUT + INP))
    case = f"training step SwiGLU {OUT}x{INP}, {rows} rows, {device.type}"
    bench(benchmark, case, way, lambda: torch.autograd.grad(run(*leaves), leaves, dy), flops)
