"""The launch of `tt_embedding`, with the tensor that it fills."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from tensorlrf_kernels._tables import launch_for
from tensorlrf_kernels.launches import Call, LaunchConfig, Problem, execute
from tensorlrf_kernels.lowrank_embedding.fused import traps
from tensorlrf_kernels.lowrank_linear.fused import precision
from tensorlrf_kernels.lowrank_linear.launch import pad

OP = "tt_embedding"


def problem_of(indices: Tensor, first: Tensor, shape: tuple[int, int]) -> Problem:
    """What is to be computed, as the launch is chosen by it."""
    tf32 = precision(first.dtype) == "tf32"
    return Problem(indices.numel(), shape[1], shape[0], first.shape[2], first.dtype, tf32)


def forward(
    indices: Tensor, first: Tensor, second: Tensor, shape: tuple[int, int]
) -> Tensor | None:
    """y (M, d) for indices (M,) and a table (n, d) = `shape`; None where no kernel serves."""
    config = launch_for(OP, "forward", problem_of(indices, first, shape), first.device)
    if config is None:
        return None

    def build(config: LaunchConfig) -> tuple[list[Call], Tensor]:
        return forward_calls(config, indices, first, second, shape)

    made: Tensor | None
    made = execute(config, build, op=OP, device=first.device, dtype=first.dtype)
    return made


def trial(
    direction: str, config: LaunchConfig, problem: Problem, device: torch.device
) -> list[Call]:
    """The launch for a problem on operands of no account, rows and columns cut near their roots."""
    M, N, T, R, dtype, _ = problem
    d1, n1 = (1 << (math.isqrt(size).bit_length() - 1) for size in (N, T))

    def some(*size: int) -> Tensor:
        made = torch.empty(size, dtype=dtype, device=device)
        return made.normal_() if device.type == "cuda" else made

    indices = torch.zeros(M, dtype=torch.int64, device=device)
    if device.type == "cuda":
        indices.random_(T)
    operands = (indices, some(n1, d1, R), some(R, -(-T // n1), -(-N // d1)), (T, N))
    calls, _ = forward_calls(config, *operands)
    precision = {"PRECISION": "tf32" if problem.tf32 else "ieee"}
    return [replace(call, constants={**call.constants, **precision}) for call in calls]


def forward_calls(
    config: LaunchConfig, indices: Tensor, first: Tensor, second: Tensor, shape: tuple[int, int]
) -> tuple[list[Call], Tensor]:
    """The launch that makes y (M, N) for indices (M,), contiguous, first (n1, D1, R) and second
    (R, N2, D2) of any strides, and the table (T, N) = `shape`."""
    M, (T, N) = len(indices), shape
    (_, D1, R), (_, N2, D2) = first.shape, second.shape
    y = first.new_empty(M, N)
    blocks = dict(config.blocks)
    blocks["BA"], blocks["BB"] = min(blocks["BA"], pad(D1)), min(blocks["BB"], pad(D2))
    names = ("first_row", "first_col", "first_rank", "second_rank", "second_row", "second_col")
    args = {
        "indices": indices,
        "first": first,
        "second": second,
        "y": y,
        "M": M,
        "N": N,
        "T": T,
        "N2": N2,
        "D1": D1,
        "D2": D2,
        "R": R,
        **dict(zip(names, (*first.stride(), *second.stride()), strict=True)),
    }
    grid = -(-M // blocks["EACH"]) * -(-D1 // blocks["BA"]) * -(-D2 // blocks["BB"])
    constants = {"TRAP": traps(), "PRECISION": precision(first.dtype)}
    return [Call(OP, replace(config, blocks=blocks), grid, args, constants)], y
