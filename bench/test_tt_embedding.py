"""tt_embedding beside a lookup in the dense table and its chain of gathers: forward, and a training
step, on the table of test_lowrank_embedding as a train of two cores.

On a GPU the op is the fused kernel, and the whole comparison there is `make gpu-bench`; on a CPU it
runs the chain, so that the two rows say what calling it costs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bench.test_lowrank_embedding import COLUMNS, COUNTS, ROWS, drawn
from bench.timed import timed
from tensorlrf_kernels.tt_embedding import reference, tt_embedding

CUT, RANK = (128, 256, 32, 24), 16  # n1, n2 and d1, d2 of a train of two cores
WAYS = ("dense", "chain", "op")


def ways(
    device: torch.device, dtype: torch.dtype
) -> dict[str, tuple[Callable[..., Tensor], list[Tensor]]]:
    """Name -> the lookup, and the tensors that it is made from."""
    g = torch.Generator().manual_seed(0)

    def normal(*size: int) -> Tensor:
        return (torch.randn(size, generator=g) / math.sqrt(size[-1])).to(device, dtype)

    (n1, n2, d1, d2), shape = CUT, (ROWS, COLUMNS)
    cores = [normal(n1, d1, RANK), normal(RANK, n2, d2)]
    return {
        "dense": (F.embedding, [normal(*shape)]),
        "chain": (lambda i, a, b: reference.tt_embedding(i, (a[None], b[..., None]), shape), cores),
        "op": (lambda i, a, b: tt_embedding(i, a, b, shape), cores),
    }


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("count", COUNTS)
def test_forward(
    benchmark: Any, count: int, way: str, device: torch.device, dtype: torch.dtype
) -> None:
    run, tensors = ways(device, dtype)[way]
    indices = drawn(count, device)
    with torch.inference_mode():
        timed(benchmark, f"{count} rows, {device.type}", way, lambda: run(indices, *tensors))


@pytest.mark.parametrize("way", WAYS)
def test_training_step(benchmark: Any, way: str, device: torch.device, dtype: torch.dtype) -> None:
    run, tensors = ways(device, dtype)[way]
    leaves = [t.requires_grad_() for t in tensors]
    indices = drawn(COUNTS[-1], device)
    dy = torch.ones_like(run(indices, *leaves))
    case = f"training step, {COUNTS[-1]} rows, {device.type}"
    timed(benchmark, case, way, lambda: torch.autograd.grad(run(indices, *leaves), leaves, dy))
