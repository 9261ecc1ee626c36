"""The launches of `cp_conv2d`, with the tensors that they fill."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tensorlrf_kernels._tables import launch_for
from tensorlrf_kernels.cp_conv2d.launch import REGISTERS, columns_of, tile
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

OP = "cp_conv2d"
Factors = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
"""out_factor (N, R), in_factor (C, R), kh_factor (kh, R), kw_factor (kw, R), weights (R,)."""


def forward(
    x: Tensor,
    factors: Factors,
    bias: Tensor | None,
    geometry: Geometry,
    size: Pair,
    activation: str | None,
    *,
    taps_only: bool = False,
) -> tuple[Tensor, bool] | None:
    """y (B, N, *size) and True, or u (B, R, *size), the value behind the taps, and False; both in
    channels_last. None where no kernel serves. x is copied to channels_last where it is not."""
    out, inp, kh, kw, _ = factors
    if not geometry.served((kh.shape[0], kw.shape[0])):
        return None
    tf32 = precision(x.dtype) == "tf32"
    problem = problem_of(x, size, out.shape[0], inp.shape[0], inp.shape[1], tf32=tf32)
    config = launch_for(OP, "forward", problem, x.device)
    if config is None:
        return None
    if taps_only:
        config = up_to_taps(config)
    x = in_channels_last(x)

    def build(config: LaunchConfig) -> tuple[list[Call], tuple[Tensor, bool]]:
        calls, made = forward_calls(config, x, factors, bias, geometry, size, activation)
        return calls, (made, bool(config.blocks["EXPAND"]))

    made: tuple[Tensor, bool] | None
    made = execute(config, build, op=OP, device=x.device, dtype=x.dtype)
    return made


def up_to_taps(config: LaunchConfig) -> LaunchConfig:
    """The same launch without its last product."""
    blocks = {**config.blocks, "EXPAND": 0, "BR": min(config.blocks["BR"], 64)}
    return replace(config, blocks=blocks, registers=config.registers or REGISTERS)


def forward_calls(
    config: LaunchConfig,
    x: Tensor,
    factors: Factors,
    bias: Tensor | None,
    geometry: Geometry,
    size: Pair,
    activation: str | None = None,
) -> tuple[list[Call], Tensor]:
    """The launch that makes y (B, N, *size), or u (B, R, *size) with EXPAND = 0, for x (B, C, H, W)
    and factors of any strides but the weights', bias (N,)."""
    out, inp, kh, kw, weights = factors
    B, C, H, W = x.shape
    N, R = out.shape
    blocks = dict(config.blocks)
    whole = bool(blocks["EXPAND"])
    BH, BW = tile(blocks.pop("BM"), size, kw.shape[0], geometry)
    # A block of channels beyond those that there are would be loaded as zeros.
    config = replace(config, blocks={**blocks, "BH": BH, "BW": BW, "BK": min(blocks["BK"], pad(C))})
    reach = (kw.shape[0] - 1) * geometry.dilation[1]
    across = -(-size[1] // columns_of(BW, reach, geometry.stride[1]))
    down = -(-size[0] // BH)
    made = empty_image(x, N if whole else R, size)
    args: dict[str, Any] = {
        "x": x,
        "in_factor": inp,
        "kh_factor": kh,
        "kw_factor": kw,
        "weights": weights,
        "out_factor": out,
        # A tensor that is not there is an address that nothing reads.
        "bias": made if bias is None else bias,
        "y": made,
        "u": made,
        "C": C,
        "H": H,
        "W": W,
        "P": size[0],
        "Q": size[1],
        "N": N,
        "R": R,
        "DOWN": down,
        "ACROSS": across,
        **image_strides(x),
        **_steps(in_=inp, kh=kh, kw=kw, out=out),
        **geometry.arguments(),
    }
    constants = {
        "KH": kh.shape[0],
        "KW": kw.shape[0],
        "ACTIVATION": (activation if whole else None) or "none",
        "BIAS": bias is not None and whole,
        "PRECISION": precision(x.dtype),
    }
    grid = B * down * across * -(-R // blocks["BR"])
    return [Call(OP, config, grid, args, constants)], made


def taps_backward(
    t: Tensor, du: Tensor, factors: Factors, geometry: Geometry, *, want_t: bool, want_parts: bool
) -> tuple[Tensor | None, Tensor | None] | None:
    """dt (B, R, H, W), and (kh, kw, R) du * t summed over places, each where it is wanted; None
    where no kernel serves. t (B, R, H, W) and du (B, R, P, Q) in channels_last."""
    _, _, kh, kw, _ = factors
    if not geometry.served((kh.shape[0], kw.shape[0])):
        return None
    problem = problem_of(
        t, (t.shape[2], t.shape[3]), t.shape[1], t.shape[1], t.shape[1], tf32=False
    )
    config = launch_for(OP, "backward", problem, t.device)
    if config is None:
        return None

    def build(config: LaunchConfig) -> tuple[list[Call], tuple[Tensor, Tensor]]:
        return backward_calls(
            config, t, du, factors, geometry, want_t=want_t, want_parts=want_parts
        )

    made: tuple[Tensor, Tensor] | None
    made = execute(config, build, op=OP, device=t.device, dtype=t.dtype)
    if made is None:
        return None
    dt, parts = made
    summed = parts.sum(0).view(kh.shape[0], kw.shape[0], -1) if want_parts else None
    return dt if want_t else None, summed


def backward_calls(
    config: LaunchConfig,
    t: Tensor,
    du: Tensor,
    factors: Factors,
    geometry: Geometry,
    *,
    want_t: bool = True,
    want_parts: bool = True,
) -> tuple[list[Call], tuple[Tensor, Tensor]]:
    """The launch that makes dt (B, R, H, W), and parts (chunks, kh kw, R), float32, to be added."""
    _, _, kh, kw, weights = factors
    B, R, H, W = t.shape
    taps = kh.shape[0] * kw.shape[0]
    chunks = -(-B * H * W // config.blocks["CHUNK"])
    dt = empty_image(t, R, (H, W))
    parts = t.new_empty(chunks, taps, R, dtype=torch.float32)
    args: dict[str, Any] = {
        "t": t,
        "du": du,
        "kh_factor": kh,
        "kw_factor": kw,
        "weights": weights,
        "dt": dt,
        "parts": parts,
        "B": B,
        "H": H,
        "W": W,
        "P": du.shape[2],
        "Q": du.shape[3],
        "R": R,
        **_steps(kh=kh, kw=kw),
        **geometry.arguments(),
    }
    constants = {
        "KH": kh.shape[0],
        "KW": kw.shape[0],
        "WANT_T": want_t,
        "WANT_PARTS": want_parts,
        "TAPS": 1 << (taps - 1).bit_length(),
    }
    grid = chunks * -(-R // config.blocks["BR"])
    return [Call(OP, config, grid, args, constants)], (dt, parts)


def _steps(**matrices: Tensor) -> dict[str, int]:
    """Strides of matrices, by the names that they have in the kernels."""
    return {
        f"{name.rstrip('_')}_{axis}": step
        for name, matrix in matrices.items()
        for axis, step in zip(("row", "col"), matrix.stride(), strict=True)
    }


def trial(
    direction: str, config: LaunchConfig, problem: Problem, device: torch.device
) -> list[Call]:
    """The launch for a problem on operands of no account, to be compiled or timed: 3 x 3 taps,
    images of 56 columns."""
    inner = problem.inp if direction == "forward" else problem.rank
    x, size = trial_image(problem, inner, device)
    sizes = ((problem.out, problem.rank), (inner, problem.rank), *((3, problem.rank),) * 2)
    out, inp, kh, kw = (trial_tensor(problem, one, device) for one in sizes)
    factors = (out, inp, kh, kw, trial_tensor(problem, (problem.rank,), device))
    geometry = Geometry(padding=(1, 1))
    if direction == "forward":
        calls, _ = forward_calls(config, x, factors, None, geometry, size)
    else:
        calls, _ = backward_calls(config, x, x, factors, geometry)
    return in_precision_of(calls, problem)
