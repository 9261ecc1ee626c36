"""The launches of `lowrank_swiglu`, with the tensors that they fill."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tensorlrf_kernels._bound import NOTHING, again, binder
from tensorlrf_kernels._counters import counters
from tensorlrf_kernels._tables import launch_for
from tensorlrf_kernels.launches import Call, LaunchConfig, Problem, execute
from tensorlrf_kernels.lowrank_linear.fused import OP as LINEAR
from tensorlrf_kernels.lowrank_linear.fused import (
    columns_call,
    kept_dtype,
    precision,
    strides,
    tasks,
)
from tensorlrf_kernels.lowrank_swiglu.reference import Projection

OP = "lowrank_swiglu"


def problem_of(x: Tensor, gate: Projection, up: Projection) -> Problem:
    """What is to be computed, as the launches are chosen by it; its rank is the larger of two."""
    out, inp = gate.left.shape[0], gate.right.shape[1]
    # A rank of zero leaves nothing to multiply, whatever the other is.
    rank = max(gate.rank, up.rank) if gate.rank and up.rank else 0
    tf32 = precision(x.dtype) == "tf32"
    return Problem(x.shape[:-1].numel(), out, inp, rank, x.dtype, tf32)


def turned_problem(problem: Problem, width: int) -> Problem:
    """What lowrank_linear's columns make of x (M, K) and dt (M, width): the `right`s' gradients."""
    return problem._replace(out=problem.inp, rank=width)


def forward(
    x: Tensor, gate: Projection, up: Projection, keep: bool
) -> tuple[Tensor, Tensor | None] | None:
    """y (M, N), and t (M, G + U) where it is to be kept, for x (M, K); None where no kernel
    serves."""
    given = (x, *gate, *up)
    made: tuple[Tensor, Tensor | None] | None
    if (made := again(OP, given, keep)) is not NOTHING:
        return made
    problem = problem_of(x, gate, up)
    config = launch_for(OP, "forward", problem, x.device)
    if config is None:
        return None

    def build(config: LaunchConfig) -> tuple[list[Call], tuple[Tensor, Tensor | None]]:
        calls, y, t = forward_calls(config, x, gate, up, keep=keep)
        return calls, (y, t)

    bound = binder(OP, given, keep, ("y", "t", "partials"))
    made = execute(config, build, op=OP, device=x.device, dtype=x.dtype, bound=bound)
    return made


def backward(
    dh: Tensor,
    x: Tensor | None,
    t: Tensor,
    gate: Projection,
    up: Projection,
    needed: Sequence[bool],
) -> tuple[Tensor | None, ...] | None:
    """Gradients in x (M, K), gate_right, gate_left, up_right, up_left, gate_bias and up_bias, those
    that are `needed`, from dh (M, N); None where no kernel serves."""
    problem = problem_of(dh, gate, up)
    config = launch_for(OP, "backward", problem, dh.device)
    turned = launch_for(LINEAR, "backward", turned_problem(problem, t.shape[1]), dh.device)
    if config is None or turned is None:
        return None

    def build(config: LaunchConfig) -> tuple[list[Call], dict[str, Tensor]]:
        return backward_calls(config, turned, dh, x, t, gate, up, needed)

    made = execute(config, build, op=OP, device=dh.device, dtype=dh.dtype)
    return None if made is None else collect(made, dh.dtype, gate.rank, needed)


def collect(
    made: dict[str, Tensor], dtype: torch.dtype, G: int, needed: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """The gradients out of what `backward_calls` made, its parts added up in a fixed order.

    G is the gate's rank, before which the columns of the parts are the gate's.
    """
    parts = {name: p.sum(0).to(dtype) for name, p in made.items() if name.endswith("_parts")}
    found: dict[str, Tensor] = {}
    if "right_parts" in parts:
        right = parts["right_parts"].T  # (G + U, K)
        found |= {"gate_right": right[:G], "up_right": right[G:]}
    if "left_parts" in parts:
        left = parts["left_parts"]  # (N, G + U)
        found |= {"gate_left": left[:, :G], "up_left": left[:, G:]}
    if "bias_parts" in parts:
        found["gate_bias"], found["up_bias"] = parts["bias_parts"]
    names = ("gate_right", "gate_left", "up_right", "up_left", "gate_bias", "up_bias")
    return (
        made["dx"] if needed[0] else None,
        # One that was not asked for may have been made beside one that was.
        *(
            # A slice would hold the memory of both, or share it with the other's.
            found[name].clone(memory_format=torch.contiguous_format) if need else None
            for name, need in zip(names, needed[1:], strict=True)
        ),
    )


def trial(
    direction: str, config: LaunchConfig, problem: Problem, device: torch.device
) -> list[Call]:
    """The launches for a problem, both ranks alike, on operands of no account, to be compiled or
    timed; of the backward pass those of this op's own kernel."""
    M, N, K, R, dtype, tf32 = problem

    def some(*size: int, of: torch.dtype = dtype) -> Tensor:
        made = torch.empty(size, dtype=of, device=device)
        return made.normal_() if device.type == "cuda" else made

    gate, up = (Projection(some(R, K), some(N, R)) for _ in range(2))
    if direction == "forward":
        calls, *_ = forward_calls(config, some(M, K), gate, up)
    else:
        t, needed = some(M, 2 * R, of=kept_dtype(dtype)), [True, False, True, False, True]
        operands = (some(M, N), None, t, gate, up, [*needed, False, False])
        calls, _ = backward_calls(config, config, *operands)
    # The problem says in what float32 is multiplied, whatever the switch of this process.
    constants = {"PRECISION": "tf32" if tf32 else "ieee"}
    return [replace(call, constants={**call.constants, **constants}) for call in calls]


def forward_calls(
    config: LaunchConfig,
    x: Tensor,
    gate: Projection,
    up: Projection,
    *,
    keep: bool = False,
) -> tuple[list[Call], Tensor, Tensor | None]:
    """The launches that make y (M, N), and t (M, G + U) where it is kept.

    x (M, K), rights (G, K) and (U, K), lefts (N, G) and (N, U), of any strides; biases (N,).
    """
    (M, K), N, G, U = x.shape, gate.left.shape[0], gate.rank, up.rank
    y = x.new_empty(M, N)
    # A tensor that is not there is an address that nothing reads.
    args: dict[str, Any] = {
        "x": x,
        **_factors(gate, up, nothing=y),
        "y": y,
        "t": y,
        "M": M,
        "N": N,
        "K": K,
        "G": G,
        "U": U,
        **strides(x=x),
        **_factor_strides(gate, up),
    }
    constants = _constants(x.dtype, gate, up)
    t: Tensor | None = None
    if config.kernel == "prefill":
        if keep:
            args["t"] = t = x.new_empty(M, G + U, dtype=kept_dtype(x.dtype))
        grid = -(-M // config.blocks["BM"]) * config.blocks["SPLIT"]
        return [Call(OP, config, grid, args, {**constants, "KEEP": keep})], y, t
    BR = config.blocks["BR"]
    blocks, splits = -(-G // BR) + -(-U // BR), -(-K // config.blocks["CHUNK"])
    args["t"] = t = x.new_empty(M, G + U, dtype=kept_dtype(x.dtype))
    args["partials"] = x.new_empty(splits, M, G + U, dtype=torch.float32)
    args["counters"] = counters(x.device)
    constants["WHOLE"] = int(max(G, U) <= config.blocks["BE"])
    if config.cooperative:
        phases = {0: config.programs}
    else:
        phases = {1: blocks * splits, 2: -(-N // config.blocks["BN"])}
    calls = [Call(OP, config, n, args, {**constants, "PHASE": k}) for k, n in phases.items()]
    return calls, y, t if keep else None


def backward_calls(
    config: LaunchConfig,
    turned: LaunchConfig,
    dh: Tensor,
    x: Tensor | None,
    t: Tensor,
    gate: Projection,
    up: Projection,
    needed: Sequence[bool],
) -> tuple[list[Call], dict[str, Tensor]]:
    """The launches that make, by name, what is needed of: dx (M, K), and in parts to be added up
    over the first dimension left_parts (chunks, N, G + U), bias_parts (chunks, 2, N) and
    right_parts (chunks, K, G + U); dt (M, G + U) on the way.

    `config` is for dh (M, N), `turned` for lowrank_linear's columns of x (M, K) and dt.
    """
    (M, N), K, G, U = dh.shape, gate.right.shape[1], gate.rank, up.rank
    want_x, gate_right, gate_left, up_right, up_left, gate_bias, up_bias = needed
    want_right, want_left = gate_right or up_right, gate_left or up_left
    want_bias = gate_bias or up_bias
    by_rows, by_columns = want_x or want_right, want_left or want_bias
    chunks = -(-M // config.blocks["CHUNK"])
    made: dict[str, Tensor] = {}
    if by_rows:
        made["dt"] = dh.new_empty(M, G + U, dtype=kept_dtype(dh.dtype))
    if want_x:
        made["dx"] = dh.new_empty(M, K)
    if want_left:
        made["left_parts"] = dh.new_empty(chunks, N, G + U, dtype=torch.float32)
    if want_bias:
        made["bias_parts"] = dh.new_empty(chunks, 2, N, dtype=torch.float32)
    calls = []
    if by_rows or by_columns:
        args = {
            "dh": dh,
            "t": t,
            **_factors(gate, up, nothing=dh),
            **{name: made.get(name, dh) for name in ("dt", "dx", "left_parts", "bias_parts")},
            "M": M,
            "N": N,
            "K": K,
            "G": G,
            "U": U,
            **strides(dh=dh),
            **_factor_strides(gate, up),
        }
        flags = {
            "BY_ROWS": by_rows,
            "WANT_X": want_x,
            "BY_COLUMNS": by_columns,
            "WANT_LEFT": want_left,
            "WANT_BIAS": want_bias,
        }
        constants = {**_constants(dh.dtype, gate, up), **flags}
        programs = chunks * tasks(config, N, by_rows, by_columns)
        calls.append(Call(OP, config, programs, args, constants))
    if want_right and x is not None:
        call, made["right_parts"] = columns_call(turned, x, made["dt"])
        calls.append(call)
    return calls, made


def _factors(gate: Projection, up: Projection, nothing: Tensor) -> dict[str, Tensor]:
    return {
        "gate_right": gate.right,
        "gate_left": gate.left,
        "up_right": up.right,
        "up_left": up.left,
        "gate_bias": nothing if gate.bias is None else gate.bias.contiguous(),
        "up_bias": nothing if up.bias is None else up.bias.contiguous(),
    }


def _factor_strides(gate: Projection, up: Projection) -> dict[str, int]:
    return strides(gate_right=gate.right, gate_left=gate.left, up_right=up.right, up_left=up.left)


def _constants(dtype: torch.dtype, gate: Projection, up: Projection) -> dict[str, Any]:
    return {
        "GATE_BIAS": gate.bias is not None,
        "UP_BIAS": up.bias is not None,
        "PRECISION": precision(dtype),
    }
