"""lowrank_embedding beside a lookup in the dense table and its chain: forward, and a training step.

On a GPU the op is the fused kernel, and the whole comparison there is `make gpu-bench`; on a CPU it
runs the chain, so that the two rows say what calling it costs. No path on factors is faster than
the lookup in a table that is kept: what they win is its memory.
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
from tensorlrf_kernels.lowrank_embedding import lowrank_embedding, reference

ROWS, COLUMNS, RANK = 30522, 768, 96  # of BERT-base (Devlin et al. 2019), an eighth of the width
COUNTS = (1, 64, 1024)
WAYS = ("dense", "chain", "op")


def operands(device: torch.device, dtype: torch.dtype) -> dict[str, list[Tensor]]:
    """The table, and both factors."""
    g = torch.Generator().manual_seed(0)

    def normal(*size: int) -> Tensor:
        return (torch.randn(size, generator=g) / math.sqrt(size[-1])).to(device, dtype)

    return {
        "dense": [normal(ROWS, COLUMNS)],
        "factors": [normal(ROWS, RANK), normal(RANK, COLUMNS)],
    }


def ways(given: dict[str, list[Tensor]]) -> dict[str, tuple[Callable[..., Tensor], list[Tensor]]]:
    """Name -> the lookup, and the tensors that it is made from."""
    return {
        "dense": (F.embedding, given["dense"]),
        "chain": (reference.lowrank_embedding, given["factors"]),
        "op": (lowrank_embedding, given["factors"]),
    }


def drawn(count: int, device: torch.device) -> Tensor:
    return torch.randint(0, ROWS, (count,), generator=torch.Generator().manual_seed(1)).to(device)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("count", COUNTS)
def test_forward(
    benchmark: Any, count: int, way: str, device: torch.device, dtype: torch.dtype
) -> None:
    run, tensors = ways(operands(device, dtype))[way]
    indices = drawn(count, device)
    with torch.inference_mode():
        timed(benchmark, f"{count} rows, {device.type}", way, lambda: run(indices, *tensors))


@pytest.mark.parametrize("way", WAYS)
def test_training_step(benchmark: Any, way: str, device: torch.device, dtype: torch.dtype) -> None:
    run, tensors = ways(operands(device, dtype))[way]
    leaves = [t.requires_grad_() for t in tensors]
    indices = drawn(COUNTS[-1], device)
    dy = torch.ones_like(run(indices, *leaves))
    timed(
        benchmark,
        f"training step, {COUNTS[-1]} rows, {device.type}",
        way,
        lambda: torch.autograd.grad(run(indices, *leaves), leaves, dy),
    )
