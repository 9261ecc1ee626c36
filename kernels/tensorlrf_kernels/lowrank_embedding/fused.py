"""The launches of `lowrank_embedding`, with the tensors that they fill."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from tensorlrf_kernels._tables import launch_for
from tensorlrf_kernels.launches import Call, LaunchConfig, Problem, execute
from tensorlrf_kernels.lowrank_embedding import reference
from tensorlrf_kernels.lowrank_embedding.reference import gathered
from tensorlrf_kernels.lowrank_linear import fused as linear
from tensorlrf_kernels.lowrank_linear.fused import precision, strides

OP = "lowrank_embedding"
PARTS = 8  # of a sum that reaches over tiles, added up at a time


def traps() -> bool:
    """Whether an index out of range ends the kernel; Triton's interpreter cannot."""
    return os.environ.get("TRITON_INTERPRET") != "1"


def problem_of(indices: Tensor, left: Tensor, right: Tensor) -> Problem:
    """What is to be computed, as the launches are chosen by it."""
    rank, out = right.shape
    tf32 = precision(right.dtype) == "tf32"
    return Problem(indices.numel(), out, len(left), rank, right.dtype, tf32)


def forward(indices: Tensor, left: Tensor, right: Tensor) -> Tensor | None:
    """y (M, N) for indices (M,); None where no kernel serves."""
    config = launch_for(OP, "forward", problem_of(indices, left, right), right.device)
    if config is None:
        return None

    def build(config: LaunchConfig) -> tuple[list[Call], Tensor]:
        return forward_calls(config, indices, left, right)

    made: Tensor | None
    made = execute(config, build, op=OP, device=right.device, dtype=right.dtype)
    return made


def backward(
    dy: Tensor,
    indices: Tensor,
    left: Tensor,
    right: Tensor,
    padding_idx: int | None,
    needed: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients in left and right, those that are `needed`, from dy (M, N) and indices (M,)."""
    need_left, need_right = needed
    t = gathered(left, indices, padding_idx, right.dtype) if need_right else None
    found = _both_products(dy, t, right, need_left)
    if found is None:
        dt = dy @ right.T if need_left else None
        found = dt, None if t is None else t.T @ dy
    dt, dright = found
    if dt is None:
        return None, dright
    return segment_sums(dt, indices, len(left), padding_idx, left.dtype), dright


def _both_products(
    dy: Tensor, t: Tensor | None, right: Tensor, need_dt: bool
) -> tuple[Tensor | None, Tensor | None] | None:
    """dy right^T (M, R) and t^T dy (R, N), of t (M, R), by the kernel that makes them in one pass
    over dy for `lowrank_linear`; None where it does not serve."""
    (M, N), R = dy.shape, right.shape[0]
    problem = Problem(M, N, R, R, dy.dtype, precision(dy.dtype) == "tf32")
    config = launch_for(linear.OP, "backward", problem, dy.device)
    if config is None:
        return None

    def build(config: LaunchConfig) -> tuple[list[Call], dict[str, Tensor]]:
        needed = [False, need_dt, t is not None, False, False]
        operands = (dy, None, t, right, right.T, None, None)
        return linear.backward_calls(config, config, *operands, None, needed)

    made = execute(config, build, op=linear.OP, device=dy.device, dtype=dy.dtype)
    if made is None:
        return None
    parts = made.get("left_parts")
    dright = None if parts is None else parts.sum(0).T.to(dy.dtype).contiguous()
    return made.get("dt"), dright


def segment_sums(
    values: Tensor, indices: Tensor, rows: int, padding_idx: int | None, dtype: torch.dtype
) -> Tensor:
    """(rows, C) in `dtype`: the values (M, C) of equal indices (M,) added up, those of padding left
    out. A stable sort brings equal indices together, and their sums have a fixed order.

    Torch's own sum for embeddings runs where no kernel serves. It adds up in the dtype of its
    result, so half precision needs a table of float32 there.
    """
    M, C = values.shape
    config = launch_for(OP, "backward", Problem(M, C, rows, C, values.dtype), values.device)

    def build(config: LaunchConfig) -> tuple[list[Call], Tensor]:
        return segment_calls(config, values, indices, rows, padding_idx, dtype)

    made: Tensor | None = None
    if config is not None:
        made = execute(config, build, op=OP, device=values.device, dtype=values.dtype)
    if made is None:
        return reference.segment_sums(values, indices, rows, padding_idx, dtype)
    return made


def trial(
    direction: str, config: LaunchConfig, problem: Problem, device: torch.device
) -> list[Call]:
    """The launches for a problem on operands of no account, to be compiled or timed."""
    M, N, T, R, dtype, _ = problem

    def some(*size: int) -> Tensor:
        made = torch.empty(size, dtype=dtype, device=device)
        return made.normal_() if device.type == "cuda" else made

    indices = torch.zeros(M, dtype=torch.int64, device=device)
    if device.type == "cuda":
        indices.random_(T)
    if direction == "forward":
        calls, _ = forward_calls(config, indices, some(T, R), some(R, N))
        precision = {"PRECISION": "tf32" if problem.tf32 else "ieee"}
        return [replace(call, constants={**call.constants, **precision}) for call in calls]
    calls, _ = segment_calls(config, some(M, R), indices, T, None, dtype)
    return calls


def forward_calls(
    config: LaunchConfig, indices: Tensor, left: Tensor, right: Tensor
) -> tuple[list[Call], Tensor]:
    """The launch that makes y (M, N) for indices (M,), contiguous, left (T, R) and right (R, N)."""
    M, (T, R), N = len(indices), left.shape, right.shape[1]
    y = right.new_empty(M, N)
    args = {
        "indices": indices,
        "left": left,
        "right": right,
        "y": y,
        "M": M,
        "N": N,
        "T": T,
        "R": R,
        **strides(left=left, right=right),
    }
    constants = {
        "TRAP": traps(),
        "WHOLE": config.blocks["BK"] >= R,
        "PRECISION": precision(right.dtype),
    }
    grid = -(-M // config.blocks["BM"]) * config.blocks["SPLIT"]
    return [Call(OP, config, grid, args, constants)], y


def segment_calls(
    config: LaunchConfig,
    values: Tensor,
    indices: Tensor,
    rows: int,
    padding_idx: int | None,
    dtype: torch.dtype,
) -> tuple[list[Call], Tensor]:
    """The launches that make the sums (rows, C) of values (M, C) by indices (M,)."""
    M, C = values.shape
    keys, order = torch.sort(indices, stable=True)
    tiles = -(-M // config.blocks["BM"])
    total = values.new_zeros(rows, C, dtype=dtype)
    args = {
        "keys": keys,
        "order": order,
        "values": values.contiguous(),
        "total": total,
        "first_parts": values.new_empty(tiles, C, dtype=torch.float32),
        "last_parts": values.new_empty(tiles, C, dtype=torch.float32),
        "M": M,
        "C": C,
        "PADDING": -1 if padding_idx is None else padding_idx,
    }
    grid = tiles * -(-C // config.blocks["BC"])
    rest = {name: value for name, value in args.items() if name not in ("order", "values")}
    last = replace(config, kernel="carry")
    return [Call(OP, config, grid, args, {}), Call(OP, last, grid, rest, {"BS": PARTS})], total
