"""The launch of `tucker_conv2d`, with the tensors that it fills."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tensorlrf_kernels._tables import launch_for
from tensorlrf_kernels.geometry import (
    Geometry,
    Pair,
    empty_image,
    image_strides,
    in_channels_last,
    in_precision_of,
    trial_image,
    trial_tensor,
)
from tensorlrf_kernels.geometry import problem as problem_of
from tensorlrf_kernels.launches import Call, LaunchConfig, Problem, execute
from tensorlrf_kernels.lowrank_linear.fused import precision
from tensorlrf_kernels.lowrank_linear.launch import pad

OP = "tucker_conv2d"


def forward(
    x: Tensor,
    core: Tensor,
    out_factor: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
    size: Pair,
    activation: str | None,
) -> Tensor | None:
    """y (B, N, *size) in channels_last; None where no kernel serves. x is copied to channels_last
    where it is not, and the core likewise."""
    if not geometry.served((core.shape[2], core.shape[3])):
        return None
    tf32 = precision(x.dtype) == "tf32"
    problem = problem_of(
        x, size, out_factor.shape[0], core[0].numel(), out_factor.shape[1], tf32=tf32
    )
    config = launch_for(OP, "forward", problem, x.device)
    if config is None:
        return None
    x, core = in_channels_last(x), in_channels_last(core)

    def build(config: LaunchConfig) -> tuple[list[Call], Tensor]:
        return forward_calls(config, x, core, out_factor, bias, geometry, size, activation)

    made: Tensor | None = execute(config, build, op=OP, device=x.device, dtype=x.dtype)
    return made


def forward_calls(
    config: LaunchConfig,
    x: Tensor,
    core: Tensor,
    out_factor: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
    size: Pair,
    activation: str | None = None,
) -> tuple[list[Call], Tensor]:
    """The launch that makes y (B, N, *size) for x (B, C, H, W), core (R, C, kh, kw), out_factor
    (N, R), of any strides, and bias (N,)."""
    B, C, H, W = x.shape
    (N, R), (kh, kw) = out_factor.shape, core.shape[2:]
    y = empty_image(x, N, size)
    # A block of channels beyond those that there are would be loaded as zeros.
    config = replace(config, blocks={**config.blocks, "BK": min(config.blocks["BK"], pad(C))})
    core_names = ("core_rank", "core_channel", "core_row", "core_column")
    args: dict[str, Any] = {
        "x": x,
        "core": core,
        "out_factor": out_factor,
        "bias": y if bias is None else bias,  # an address that nothing reads
        "y": y,
        "B": B,
        "C": C,
        "H": H,
        "W": W,
        "P": size[0],
        "Q": size[1],
        "N": N,
        "R": R,
        **image_strides(x),
        **dict(zip(core_names, core.stride(), strict=True)),
        **dict(zip(("out_row", "out_col"), out_factor.stride(), strict=True)),
        **geometry.arguments(),
    }
    constants = {
        "KH": kh,
        "KW": kw,
        "ACTIVATION": activation or "none",
        "BIAS": bias is not None,
        "PRECISION": precision(x.dtype),
    }
    tiles = -(-B * size[0] * size[1] // config.blocks["BM"])
    return [Call(OP, config, tiles * config.blocks["SPLIT"], args, constants)], y


def trial(
    direction: str, config: LaunchConfig, problem: Problem, device: torch.device
) -> list[Call]:
    """The launch for a problem on operands of no account, to be compiled or timed: 3 x 3 taps where
    the problem's inner size allows, images of 56 columns."""
    if direction != "forward":
        return []
    k = 3 if problem.inp % 9 == 0 else 1
    x, size = trial_image(problem, problem.inp // k**2, device)
    core = trial_tensor(problem, (problem.rank, x.shape[1], k, k), device)
    out = trial_tensor(problem, (problem.out, problem.rank), device)
    geometry = Geometry(padding=(k // 2, k // 2))
    calls, _ = forward_calls(config, x, in_channels_last(core), out, None, geometry, size)
    return in_precision_of(calls, problem)
