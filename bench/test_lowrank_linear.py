"""lowrank_linear beside the dense layer and its two products, on BERT-base layers: alone, with an
epilogue, and as a training step.

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

from tensorlrf_kernels.lowrank_linear import lowrank_linear, reference

LAYERS = {"768x768": (768, 768), "3072x768": (3072, 768), "768x3072": (768, 3072)}
ROWS = (1, 128)
RANK = 96
EPILOGUES = {"plain": None, "gelu": "gelu"}


def operands(
    out: int, inp: int, rows: int, device: torch.device, dtype: torch.dtype
) -> list[Tensor]:
    """x, right, left, bias, residual, and the dense weight."""
    g = torch.Generator().manual_seed(0)
    sizes = ((rows, inp), (RANK, inp), (out, RANK), (out,), (rows, out))
    made = [torch.randn(size, generator=g) / math.sqrt(size[-1]) for size in sizes]
    made.append(made[2] @ made[1])
    return [t.to(device, dtype) for t in made]


def ways(given: list[Tensor], activation: str | None) -> dict[str, Callable[[], Any]]:
    x, right, left, bias, residual, weight = given
    terms = (bias, residual) if activation else (None, None)

    def dense() -> Tensor:
        z = F.linear(x, weight, terms[0])
        return reference.activate(z if terms[1] is None else z + terms[1], activation)

    return {
        "dense": dense,
        "chain": lambda: reference.lowrank_linear(x, right, left, *terms, activation),
        "op": lambda: lowrank_linear(x, right, left, *terms, activation),
    }


def bench(benchmark: Any, case: str, way: str, run: Callable[[], Any], flops: int) -> None:
    on_gpu = torch.cuda.is_available() and "cuda" in case
    benchmark.group = case
    benchmark.extra_info.update(case=case, path=way, rank=RANK, flops=flops)

    def timed() -> None:
        run()
        if on_gpu:
            torch.cuda.synchronize()

    benchmark.pedantic(timed, rounds=20, iterations=1, warmup_rounds=2)


@pytest.mark.parametrize("way", ["dense", "chain", "op"])
@pytest.mark.parametrize("epilogue", EPILOGUES)
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("layer", LAYERS)
def test_forward(
    benchmark: Any,
    layer: str,
    rows: int,
    epilogue: str,
    way: str,
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    out, inp = LAYERS[layer]
    run = ways(operands(out, inp, rows, device, dtype), EPILOGUES[epilogue])[way]
    flops = 2 * rows * (out * inp if way == "dense" else RANK * (out + inp))
    with torch.inference_mode():
        bench(benchmark, f"{layer}, {rows} rows, {epilogue}, {device.type}", way, run, flops)


@pytest.mark.parametrize("way", ["dense", "chain", "op"])
@pytest.mark.parametrize("epilogue", EPILOGUES)
def test_training_step(
    benchmark: Any, epilogue: str, way: str, device: torch.device, dtype: torch.dtype
) -> None:
    out, inp, rows = 3072, 768, 256
    given = [t.requires_grad_() for t in operands(out, inp, rows, device, dtype)]
    forward = ways(given, EPILOGUES[epilogue])[way]
    sources = [given[0], *([given[5]] if way == "dense" else given[1:3])]
    dy = torch.ones(rows, out, device=device, dtype=dtype)

    def step() -> None:
        torch.autograd.grad(forward(), sources, dy)

    flops = 6 * rows * (out * inp if way == "dense" else RANK * (out + inp))
    case = f"training step 3072x768, {rows} rows, {epilogue}, {device.type}"
    bench(benchmark, case, way, step, flops)
