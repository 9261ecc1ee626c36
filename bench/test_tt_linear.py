"""tt_linear beside the dense layer, one product a core, and the halves as a Kronecker sum: forward,
and a training step with the memory that it keeps, on a 4096 x 4096 layer of four cores.

On a GPU the op is the Kronecker kernel, and the whole comparison there is `make gpu-bench`; on a
CPU it takes the way that multiplies less, and keeps less for the gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bench.timed import timed
from tensorlrf_kernels.kron_linear import reference as kron_reference
from tensorlrf_kernels.tt_linear import reference, tt_linear

SIDE = 8  # of a core
RANKS = (4, 8)
ROWS = 64
WAYS = ("dense", "chain", "fold", "op")


def operands(rank: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
    """x, and the cores."""
    g = torch.Generator().manual_seed(0)
    ends = (1, rank, rank, rank, 1)
    cores = [
        torch.randn(ends[k], SIDE, SIDE, ends[k + 1], generator=g) / math.sqrt(SIDE * ends[k])
        for k in range(4)
    ]
    x = torch.randn(ROWS, SIDE**4, generator=g)
    return x.to(device, dtype), [core.to(device, dtype) for core in cores]


def run(way: str, x: Tensor, given: Sequence[Tensor]) -> Tensor:
    if way == "dense":
        return F.linear(x, given[0])
    if way == "chain":
        return reference.tt_linear(x, given)
    if way == "fold":
        return kron_reference.kron_linear(x, *reference.halves(given, 2))
    return tt_linear(x, given)


def sources(way: str, rank: int, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    """x and what the way multiplies it by."""
    x, cores = operands(rank, device, dtype)
    if way != "dense":
        return [x, *cores]
    return [x, torch.randn(x.shape[1], x.shape[1], device=device, dtype=dtype) / 64]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("rank", RANKS)
def test_forward(
    benchmark: Any, rank: int, way: str, device: torch.device, dtype: torch.dtype
) -> None:
    x, *given = sources(way, rank, device, dtype)
    with torch.inference_mode():
        timed(benchmark, f"rank {rank}, {device.type}", way, lambda: run(way, x, given))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("rank", RANKS)
def test_training_step(
    benchmark: Any, rank: int, way: str, device: torch.device, dtype: torch.dtype
) -> None:
    leaves = [t.requires_grad_() for t in sources(way, rank, device, dtype)]
    x, *given = leaves
    kept = bytes_kept(lambda: run(way, x, given), leaves)
    dy = torch.ones_like(x)

    def step() -> None:
        torch.autograd.grad(run(way, x, given), leaves, dy)

    case = f"training step, rank {rank}, {device.type}"
    timed(benchmark, case, way, step, kept_MiB=round(kept / 2**20, 2))


def bytes_kept(forward: Callable[[], Tensor], leaves: Sequence[Tensor]) -> int:
    """What is held for the gradient, beside the leaves themselves and once what shares memory."""
    own = {t.untyped_storage().data_ptr() for t in leaves}
    found: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = forward()
    del y
    return sum(found.values())
