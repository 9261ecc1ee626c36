"""The launches of `lowrank_linear`, with the tensors that they fill."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tensorlrf_kernels._bound import NOTHING, again, binder
from tensorlrf_kernels._counters import counters
from tensorlrf_kernels._tables import launch_for
from tensorlrf_kernels.chips import tf32_allowed
from tensorlrf_kernels.launches import Call, LaunchConfig, Problem, execute

OP = "lowrank_linear"


def kept_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which t = x right^T and its gradient are stored for inputs of `dtype`.

    float16's range does not hold every t of which left t stays in range.
    """
    return torch.float32 if dtype is torch.float16 else dtype


def precision(dtype: torch.dtype) -> str:
    """How float32 products are made, by torch's switch; half precision knows one way."""
    return "tf32" if dtype is torch.float32 and tf32_allowed() else "ieee"


def problem_of(x: Tensor, right: Tensor, left: Tensor) -> Problem:
    """What is to be computed, as the launches are chosen by it."""
    (out, rank), inp = left.shape, right.shape[1]
    rows = x.shape[:-1].numel()
    tf32 = precision(x.dtype) == "tf32"
    return Problem(rows, out, inp, rank, x.dtype, tf32)


def forward(
    x: Tensor,
    right: Tensor,
    left: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str | None,
    keep: bool,
) -> tuple[Tensor, Tensor | None] | None:
    """y (M, N), and t (M, R) where it is to be kept, for x (M, K) and residual (M, N); None where
    no kernel serves."""
    given, flags = (x, right, left, bias, residual), (activation, keep)
    made: tuple[Tensor, Tensor | None] | None
    if (made := again(OP, given, flags)) is not NOTHING:
        return made
    problem = problem_of(x, right, left)
    config = launch_for(OP, "forward", problem, x.device)
    if config is None:
        return None

    def build(config: LaunchConfig) -> tuple[list[Call], tuple[Tensor, Tensor | None]]:
        calls, y, t = forward_calls(config, x, right, left, bias, residual, activation, keep=keep)
        return calls, (y, t)

    bound = binder(OP, given, flags, ("y", "t", "partials"))
    made = execute(config, build, op=OP, device=x.device, dtype=x.dtype, bound=bound)
    return made


def backward(
    dy: Tensor,
    x: Tensor | None,
    t: Tensor | None,
    right: Tensor,
    left: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str | None,
    needed: Sequence[bool],
) -> tuple[Tensor | None, ...] | None:
    """Gradients in x (M, K), right, left, bias and residual (M, N), those that are `needed`, from
    dy (M, N); None where no kernel serves."""
    problem = problem_of(dy, right, left)
    config = launch_for(OP, "backward", problem, dy.device)
    turned = launch_for(OP, "backward", problem._replace(out=problem.inp), dy.device)
    if config is None or turned is None:
        return None

    def build(config: LaunchConfig) -> tuple[list[Call], dict[str, Tensor]]:
        operands = (dy, x, t, right, left, bias, residual)
        return backward_calls(config, turned, *operands, activation, needed)

    made = execute(config, build, op=OP, device=dy.device, dtype=dy.dtype)
    return None if made is None else collect(made, dy, needed)


def collect(
    made: dict[str, Tensor], dy: Tensor, needed: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """The gradients out of what `backward_calls` made, its parts added up in a fixed order."""
    need_x, need_right, need_left, need_bias, need_residual = needed
    parts = {name: t.sum(0).to(dy.dtype) for name, t in made.items() if name.endswith("_parts")}
    if need_bias and "bias_parts" not in parts:
        parts["bias_parts"] = made["dz"].sum(0)
    return (
        made["dx"] if need_x else None,
        parts["right_parts"].T.contiguous() if need_right else None,
        parts["left_parts"] if need_left else None,
        parts["bias_parts"] if need_bias else None,
        made["dz"] if need_residual else None,
    )


def trial(
    direction: str, config: LaunchConfig, problem: Problem, device: torch.device
) -> list[Call]:
    """The launches for a problem on operands of no account, to be compiled or timed."""
    M, N, K, R, dtype, _ = problem

    def some(*size: int, of: torch.dtype = dtype) -> Tensor:
        made = torch.empty(size, dtype=of, device=device)
        return made.normal_() if device.type == "cuda" else made

    x, right, left = some(M, K), some(R, K), some(N, R)
    if direction == "forward":
        calls, *_ = forward_calls(config, x, right, left)
    else:
        t, needed = some(M, R, of=kept_dtype(dtype)), [True, True, True, False, False]
        operands = (some(M, N), x, t, right, left, None, None)
        calls, _ = backward_calls(config, config, *operands, None, needed)
    # The problem says in what float32 is multiplied, whatever the switch of this process.
    precision = {"PRECISION": "tf32" if problem.tf32 else "ieee"}
    return [replace(call, constants={**call.constants, **precision}) for call in calls]


def forward_calls(
    config: LaunchConfig,
    x: Tensor,
    right: Tensor,
    left: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str | None = None,
    *,
    keep: bool = False,
) -> tuple[list[Call], Tensor, Tensor | None]:
    """The launches that make y (M, N), and t (M, R) where it is kept.

    x (M, K), right (R, K), left (N, R), bias (N,), residual (M, N), of any strides but the bias's.
    """
    (M, K), (N, R) = x.shape, left.shape
    y = x.new_empty(M, N)
    constants: dict[str, Any] = {
        "ACTIVATION": activation or "none",
        "BIAS": bias is not None,
        "RESIDUAL": residual is not None,
        "PRECISION": precision(x.dtype),
    }
    # A tensor that is not there is an address that nothing reads.
    args: dict[str, Any] = {
        "x": x,
        "right": right,
        "left": left,
        "bias": y if bias is None else bias,
        "residual": y if residual is None else residual,
        "y": y,
        "t": y,
        "M": M,
        "N": N,
        "K": K,
        "R": R,
        **strides(x=x, right=right, left=left, residual=residual),
    }
    t: Tensor | None = None
    if config.kernel == "prefill":
        if keep:
            args["t"] = t = x.new_empty(M, R, dtype=kept_dtype(x.dtype))
        grid = -(-M // config.blocks["BM"]) * config.blocks["SPLIT"]
        return [Call(OP, config, grid, args, {**constants, "KEEP": keep})], y, t
    args["t"] = t = x.new_empty(M, R, dtype=kept_dtype(x.dtype))
    blocks, splits = -(-R // config.blocks["BR"]), -(-K // config.blocks["CHUNK"])
    args["partials"] = x.new_empty(splits, M, R, dtype=torch.float32)
    args["counters"] = counters(x.device)
    constants["WHOLE"] = int(config.blocks["BE"] >= R)
    if config.cooperative:
        phases = {0: config.programs}
    else:
        phases = {1: blocks * splits, 2: -(-N // config.blocks["BN"])}
    calls = [Call(OP, config, n, args, {**constants, "PHASE": k}) for k, n in phases.items()]
    return calls, y, t if keep else None


def backward_calls(
    config: LaunchConfig,
    turned: LaunchConfig,
    dy: Tensor,
    x: Tensor | None,
    t: Tensor | None,
    right: Tensor,
    left: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str | None,
    needed: Sequence[bool],
) -> tuple[list[Call], dict[str, Tensor]]:
    """The launches that make, by name, what is needed of: dx (M, K), dz (M, N), and in parts to be
    added up over the first dimension left_parts (chunks, N, R), bias_parts (chunks, N) and
    right_parts (chunks, K, R). dz is the gradient before the activation, and so the residual's.

    `config` is for dy (M, N), `turned` for x (M, K) in its place.
    """
    (M, N), (R, K) = dy.shape, right.shape
    want_x, want_right, want_left, need_bias, need_residual = needed
    by_columns, want_bias = want_left, need_bias and want_left
    want_z = need_residual or (need_bias and not want_left)
    made: dict[str, Tensor] = {}
    if want_z and activation is None:
        made["dz"], want_z = dy, False
    by_rows = want_x or want_right or want_z
    if by_rows:
        made["dt"] = dy.new_empty(M, R, dtype=kept_dtype(dy.dtype))
    if want_x:
        made["dx"] = dy.new_empty(M, K)
    if want_z:
        made["dz"] = dy.new_empty(M, N)
    chunks = -(-M // config.blocks["CHUNK"])
    if want_left:
        made["left_parts"] = dy.new_empty(chunks, N, R, dtype=torch.float32)
    if want_bias:
        made["bias_parts"] = dy.new_empty(chunks, N, dtype=torch.float32)
    constants: dict[str, Any] = {"PRECISION": precision(dy.dtype)}
    calls = []
    if by_rows or by_columns:
        args = {
            "dy": dy,
            "t": dy if t is None else t,
            "right": right,
            "left": left,
            "bias": dy if bias is None else bias,
            "residual": dy if residual is None else residual,
            **{name: made.get(name, dy) for name in _MADE},
            "M": M,
            "N": N,
            "K": K,
            "R": R,
            **strides(dy=dy, right=right, left=left, residual=residual),
        }
        flags = {
            "ACTIVATION": activation or "none",
            "BIAS": bias is not None,
            "RESIDUAL": residual is not None,
            "BY_ROWS": by_rows,
            "WANT_X": want_x,
            "BY_COLUMNS": by_columns,
            "WANT_BIAS": want_bias,
            "WANT_Z": want_z,
        }
        programs = chunks * tasks(config, N, by_rows, by_columns)
        calls.append(Call(OP, config, programs, args, {**constants, **flags}))
    if want_right and x is not None:
        call, made["right_parts"] = columns_call(turned, x, made["dt"])
        calls.append(call)
    return calls, made


def columns_call(config: LaunchConfig, x: Tensor, dt: Tensor) -> tuple[Call, Tensor]:
    """The launch that makes x^T dt, and the parts (chunks, K, R) of it: what `backward`'s columns
    make of dy^T t, with x (M, K) for dy and dt (M, R) for t."""
    (M, K), R = x.shape, dt.shape[1]
    chunks = -(-M // config.blocks["CHUNK"])
    parts = x.new_empty(chunks, K, R, dtype=torch.float32)
    args = {
        "dy": x,
        "t": dt,
        **dict.fromkeys(("right", "left", "bias", "residual", *_MADE), x),
        "left_parts": parts,
        "M": M,
        "N": K,
        "K": K,
        "R": R,
        **strides(dy=x, right=None, left=None, residual=None),
    }
    flags: dict[str, Any] = dict.fromkeys(
        ("BIAS", "RESIDUAL", "BY_ROWS", "WANT_X", "WANT_BIAS", "WANT_Z"), False
    )
    flags |= {"ACTIVATION": "none", "BY_COLUMNS": True, "PRECISION": precision(x.dtype)}
    return Call(OP, config, chunks * tasks(config, K, False, True), args, flags), parts


_MADE = ("dt", "dx", "dz", "left_parts", "bias_parts")


def tasks(config: LaunchConfig, columns: int, by_rows: bool, by_columns: bool) -> int:
    """Programs of one chunk of rows."""
    rows = config.blocks["CHUNK"] // config.blocks["BM"] if by_rows else 0
    return rows + (-(-columns // config.blocks["BC"]) if by_columns else 0)


def strides(**tensors: Tensor | None) -> dict[str, int]:
    """Of matrices by name, as kernels are given them; zero for those that are not there."""
    found: dict[str, int] = {}
    for name, tensor in tensors.items():
        rows, columns = (0, 0) if tensor is None else tensor.stride()
        found |= {f"{name}_row": rows, f"{name}_col": columns}
    return found
