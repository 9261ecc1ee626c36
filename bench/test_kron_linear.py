"""kron_linear beside the dense layer and its chain: alone, with an epilogue, and as a training
step, for sums of Kronecker products of 32 x 32.

On a GPU the op is the fused kernel, and the whole comparison there is `make gpu-bench`; on a CPU it
runs the chain, so that the two rows say what calling it costs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bench.timed import timed
from tensorlrf_kernels._activation import activate
from tensorlrf_kernels.kron_linear import kron_linear, reference

SIDE = 32  # of every factor: 1024 -> 1024
TERMS = (1, 4)
ROWS = (1, 256)
EPILOGUES = {"plain": None, "gelu": "gelu"}
WAYS = ("dense", "chain", "op")


def operands(s: int, rows: int, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    """x, a, b, bias, and the dense weight."""
    g = torch.Generator().manual_seed(0)
    sizes = ((rows, SIDE**2), (s, SIDE, SIDE), (s, SIDE, SIDE), (SIDE**2,))
    scales = (1.0, SIDE**-0.5, (s * SIDE) ** -0.5, 1.0)
    made = [
        scale * torch.randn(size, generator=g) for size, scale in zip(sizes, scales, strict=True)
    ]
    pairs = zip(made[1], made[2], strict=True)
    made.append(torch.stack([torch.kron(a, b) for a, b in pairs]).sum(0))
    return [t.to(device, dtype) for t in made]


def ways(given: list[Tensor], activation: str | None) -> dict[str, Callable[[], Tensor]]:
    x, a, b, bias, weight = given
    return {
        "dense": lambda: activate(F.linear(x, weight, bias), activation),
        "chain": lambda: reference.kron_linear(x, a, b, bias, None, activation),
        "op": lambda: kron_linear(x, a, b, bias, None, activation),
    }


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("epilogue", EPILOGUES)
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("s", TERMS)
def test_forward(
    benchmark: Any,
    s: int,
    rows: int,
    epilogue: str,
    way: str,
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    run = ways(operands(s, rows, device, dtype), EPILOGUES[epilogue])[way]
    with torch.inference_mode():
        timed(
            benchmark, f"1024x1024 s={s}, M={rows}, {epilogue}, {device.type}", way, run, rounds=20
        )


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("s", TERMS)
def test_training_step(
    benchmark: Any, s: int, way: str, device: torch.device, dtype: torch.dtype
) -> None:
    rows = ROWS[-1]
    given = [t.requires_grad_() for t in operands(s, rows, device, dtype)]
    x, a, b, bias, weight = given
    sources = [x, weight, bias] if way == "dense" else [x, a, b, bias]
    forward = ways(given, "gelu")[way]
    dy = torch.ones_like(forward())
    case = f"training step, 1024x1024 s={s}, M={rows}, {device.type}"
    timed(benchmark, case, way, lambda: torch.autograd.grad(forward(), sources, dy), rounds=20)
