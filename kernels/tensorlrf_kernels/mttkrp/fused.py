"""The launch of `mttkrp`, with the tensors that it fills."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tensorlrf_kernels._tables import launch_for
from tensorlrf_kernels.chips import tf32_allowed
from tensorlrf_kernels.launches import Call, LaunchConfig, Problem, execute
from tensorlrf_kernels.mttkrp.groups import Group, Groups, groups_of
from tensorlrf_kernels.mttkrp.launch import unit_of
from tensorlrf_kernels.mttkrp.reference import khatri_rao

OP = "mttkrp"


def precision(dtype: torch.dtype, tf32: bool) -> str:
    """How products are made: float32 as three of TF32, by which it loses little, or as one."""
    if dtype is torch.float32:
        return "tf32" if tf32 else "tf32x3"
    return "ieee"


def problem_of(tensor: Tensor, modes: Sequence[int], columns: int, groups: Groups) -> Problem:
    """What is to be computed, as the launch is chosen by it."""
    tf32 = tensor.dtype is torch.float32 and tf32_allowed()
    inp = math.prod(tensor.shape[k] for k in modes)
    rows = groups.p.size * groups.q.size
    return Problem(rows, groups.inner, inp, columns, tensor.dtype, tf32)


def forward(tensor: Tensor, factors: Sequence[Tensor], modes: Sequence[int]) -> Tensor | None:
    """The contraction of `modes` with their factors (n, c): (prod of the other sizes, c); None
    where no kernel serves. A tensor whose strides are no three runs of modes is copied."""
    groups = groups_of(tensor.shape, tensor.stride(), modes)
    if groups is None:
        tensor = tensor.contiguous()
        groups = groups_of(tensor.shape, tensor.stride(), modes)
        if groups is None:
            return None  # more than three runs of contracted modes between free ones
    view = groups
    problem = problem_of(tensor, modes, factors[0].shape[1], view)
    config = launch_for(OP, "forward", problem, tensor.device)
    if config is None:
        return None

    def build(config: LaunchConfig) -> tuple[list[Call], Tensor]:
        return forward_calls(config, tensor, factors, modes, view, tf32=problem.tf32)

    parts: Tensor | None
    parts = execute(config, build, op=OP, device=tensor.device, dtype=tensor.dtype)
    return None if parts is None else collect(parts)


def collect(parts: Tensor) -> Tensor:
    """The parts (parts, rows, c) added up in a fixed order."""
    return parts[0] if len(parts) == 1 else parts.sum(0)


def forward_calls(
    config: LaunchConfig,
    tensor: Tensor,
    factors: Sequence[Tensor],
    modes: Sequence[int],
    groups: Groups,
    *,
    tf32: bool = False,
) -> tuple[list[Call], Tensor]:
    """The launch that makes the parts (parts, rows, c) of the sum; factors of any strides. Groups
    of several modes take a Khatri-Rao product of their factors, made here."""
    columns = factors[0].shape[1]
    of_mode = dict(zip(modes, factors, strict=True))
    # Modes of size one are in no group; their rows scale what the last group brings.
    scales = [of_mode[k] for k in modes if tensor.shape[k] == 1]

    def matrix(group: Group) -> Tensor | None:
        if not group.modes:
            return None
        made = khatri_rao([of_mode[k] for k in group.modes])
        # The kernel's offsets into a factor have 32 bits.
        reach = sum((n - 1) * step for n, step in zip(made.shape, made.stride(), strict=True))
        return made if reach < 2**31 else made.contiguous()

    outer, left, right = (matrix(group) for group in (groups.o, groups.a, groups.b))
    for row in scales:
        right = row if right is None else right * row
    if right is None:
        right = tensor.new_ones(1, columns)
    P, Q, O, A, B = (group.size for group in groups)
    steps_of = _steps(outer=outer, left=left, right=right)
    if left is not None or not _in_vectors(
        (*(g.stride for g in groups), *steps_of.values()), right
    ):
        # Copies of single entries, and rows gathered, take an address in registers for each.
        shallow = {**config.blocks, "BK": min(config.blocks["BK"], 16)}
        config = replace(config, blocks=shallow, registers=255)
    BM, splits = config.blocks["BM"], config.blocks["SPLITS"]
    chunks, steps = unit_of(A * B, O, config)
    units = O * chunks
    share = -(-units // min(splits, units))
    count = -(-units // share)
    parts = tensor.new_empty(count, P * Q, columns)
    args: dict[str, Any] = {
        "tensor": tensor,
        # A factor that is not there is an address that nothing reads.
        "outer": right if outer is None else outer,
        "left": right if left is None else left,
        "right": right,
        "y": parts,
        "P": P,
        "Q": Q,
        "K": A * B,
        "B": B,
        "R": columns,
        "TILES": -(-Q // BM),
        "UNITS": units,
        "SHARE": share,
        "CHUNKS": chunks,
        "STEPS": steps,
        "p_step": groups.p.stride,
        "q_step": groups.q.stride,
        "o_step": groups.o.stride,
        "a_step": groups.a.stride,
        "b_step": groups.b.stride,
        **steps_of,
    }
    constants = {
        "OUTER": outer is not None,
        "LEFT": left is not None,
        "MERGED": left is None or groups.a.stride == B * groups.b.stride,
        "PRECISION": precision(tensor.dtype, tf32),
    }
    grid = P * -(-Q // BM) * -(-columns // config.blocks["BR"]) * count
    tiles = {name: config.blocks[name] for name in ("BM", "BK", "BR")}
    return [Call(OP, replace(config, blocks=tiles), grid, args, constants)], parts


def _in_vectors(strides: Sequence[int], like: Tensor) -> bool:
    """Whether 16 bytes at a time are aligned, whatever else of these strides is taken."""
    return all(step == 1 or step * like.itemsize % 16 == 0 for step in strides)


def _steps(**matrices: Tensor | None) -> dict[str, int]:
    """Strides of matrices, by the names that they have in the kernel; zero without one."""
    return {
        f"{name}_{axis}": step
        for name, matrix in matrices.items()
        for axis, step in zip(
            ("row", "col"), (0, 0) if matrix is None else matrix.stride(), strict=True
        )
    }


def trial(
    direction: str, config: LaunchConfig, problem: Problem, device: torch.device
) -> list[Call]:
    """The launch for a problem on operands of no account, to be compiled or timed: a contiguous
    tensor (rows, outer, inner)."""
    rows, inner, inp, rank, dtype, tf32 = problem

    def some(*size: int) -> Tensor:
        made = torch.empty(size, dtype=dtype, device=device)
        return made.normal_() if device.type == "cuda" else made

    tensor = some(rows, -(-inp // inner), inner)
    factors = [some(n, rank) for n in tensor.shape[1:]]
    o, b = (Group((k,), tensor.shape[k], tensor.stride(k)) for k in (1, 2))
    if o.size == 1:
        o = Group((), 1, 0)
    none = Group((), 1, 0)
    groups = Groups(none, Group((0,), rows, tensor.stride(0)), o, none, b)
    calls, _ = forward_calls(config, tensor, factors, (1, 2), groups, tf32=tf32)
    return calls
