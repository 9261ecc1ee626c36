"""The launches of `kron_linear`, with the tensors that they fill."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tensorlrf_kernels._bound import NOTHING, again, binder
from tensorlrf_kernels._tables import launch_for
from tensorlrf_kernels.kron_linear.launch import KronProblem
from tensorlrf_kernels.launches import Call, LaunchConfig, execute
from tensorlrf_kernels.lowrank_linear.fused import precision

OP = "kron_linear"


def problem_of(rows: int, a: Tensor, b: Tensor) -> KronProblem:
    """What is to be computed, as the launches are chosen by it."""
    terms, m1, n1 = a.shape
    _, m2, n2 = b.shape
    return KronProblem(rows, m1, n1, m2, n2, terms, a.dtype, precision(a.dtype) == "tf32")


def forward(
    x: Tensor,
    a: Tensor,
    b: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str | None = None,
) -> Tensor | None:
    """y (M, m1 m2) of x (M, n1 n2) and residual (M, m1 m2); None where no kernel serves."""
    given = (x, a, b, bias, residual)
    y: Tensor | None
    if (y := again(OP, given, activation)) is not NOTHING:
        return y
    config = launch_for(OP, "forward", problem_of(len(x), a, b), x.device)
    if config is None:
        return None

    def build(config: LaunchConfig) -> tuple[list[Call], Tensor]:
        call, y = forward_call(config, x, a, b, bias, residual, activation)
        return [call], y

    bound = binder(OP, given, activation, ("y",))
    y = execute(config, build, op=OP, device=x.device, dtype=x.dtype, bound=bound)
    return y


def backward(
    dy: Tensor,
    x: Tensor | None,
    a: Tensor,
    b: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str | None,
    needed: Sequence[bool],
) -> tuple[Tensor | None, ...] | None:
    """Gradients in x (M, n1 n2), a, b, bias and residual (M, m1 m2), those that are `needed`, from
    dy (M, m1 m2); None where no kernel serves. x is read for those in a and b, and where there is
    an activation."""
    problem = problem_of(len(dy), a, b)
    problems = (
        ("forward", problem),
        ("forward", problem.turned),
        ("backward", problem),
        ("backward", problem.swapped),
    )
    found = [launch_for(OP, direction, one, dy.device) for direction, one in problems]
    configs = [config for config in found if config is not None]
    if len(configs) < len(found):
        return None

    def build(_: LaunchConfig) -> tuple[list[Call], dict[str, Tensor]]:
        return backward_calls(configs, dy, x, a, b, bias, residual, activation, needed)

    made = execute(configs[0], build, op=OP, device=dy.device, dtype=dy.dtype)
    return None if made is None else collect(made, needed)


def collect(made: dict[str, Tensor], needed: Sequence[bool]) -> tuple[Tensor | None, ...]:
    """The gradients out of what `backward_calls` made, their parts added up in a fixed order."""
    need_x, need_a, need_b, need_bias, need_residual = needed
    dz = made["dz"]
    return (
        made["dx"] if need_x else None,
        made["a_parts"].sum(0).to(dz.dtype) if need_a else None,
        made["b_parts"].sum(0).to(dz.dtype) if need_b else None,
        dz.sum(0) if need_bias else None,
        dz if need_residual else None,
    )


def backward_calls(
    configs: Sequence[LaunchConfig],
    dy: Tensor,
    x: Tensor | None,
    a: Tensor,
    b: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str | None,
    needed: Sequence[bool],
) -> tuple[list[Call], dict[str, Tensor]]:
    """The launches that make, by name: dz (M, m1 m2), the gradient before the activation; and what
    is needed of dx (M, n1 n2), a_parts (chunks, s, m1, n1) and b_parts (chunks, s, m2, n2).

    `configs` are for the product, for that with the transposed weight, and for the gradients in a
    and in b.
    """
    of_z, of_x, of_a, of_b = configs
    need_x, need_a, need_b, *_ = needed
    made, calls = {"dz": dy}, []
    if activation is not None and x is not None:
        call, made["dz"] = forward_call(of_z, x, a, b, bias, residual, activation, dy=dy)
        calls.append(call)
    dz = made["dz"]
    if need_x:
        call, made["dx"] = forward_call(of_x, dz, a.transpose(1, 2), b.transpose(1, 2))
        calls.append(call)
    m2, n2 = b.shape[1:]
    if need_a and x is not None:
        call, made["a_parts"] = gradient_call(of_a, rows_of(dz, m2), rows_of(x, n2), b, a)
        calls.append(call)
    if need_b and x is not None:
        left, right = exchanged(rows_of(dz, m2)), exchanged(rows_of(x, n2))
        call, made["b_parts"] = gradient_call(of_b, left, right, a, b)
        calls.append(call)
    return calls, made


Rows = tuple[Tensor, tuple[int, int, int]]
"""A tensor whose rows are matrices, and the steps from row to row and along the matrix's axes."""


def rows_of(t: Tensor, columns: int) -> Rows:
    row, step = t.stride()
    return t, (row, columns * step, step)


def exchanged(rows: Rows) -> Rows:
    """The matrices transposed."""
    t, (row, one, two) = rows
    return t, (row, two, one)


def forward_call(
    config: LaunchConfig,
    x: Tensor,
    a: Tensor,
    b: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str | None = None,
    *,
    dy: Tensor | None = None,
) -> tuple[Call, Tensor]:
    """The launch that makes y (M, m1 m2), or with dy the gradient before the activation.

    x (M, n1 n2), a (s, m1, n1), b (s, m2, n2), bias (m1 m2,), residual and dy (M, m1 m2), of any
    strides but the bias's.
    """
    M, m1, m2, n2 = len(x), a.shape[1], *b.shape[1:]
    if dy is not None:
        config = _narrow(config)
    y = x.new_empty(M, m1 * m2)
    # A tensor that is not there is an address that nothing reads.
    given = {
        "x": rows_of(x, n2),
        "residual": rows_of(y if residual is None else residual, m2),
        "dy": rows_of(y if dy is None else dy, m2),
        "y": rows_of(y, m2),
    }
    if config.blocks["SWAP"]:
        a, b = b, a
        given = {name: exchanged(rows) for name, rows in given.items()}
    hold, tiles = config.blocks["HOLD"], _count(config, BM1=a.shape[1], BM2=b.shape[1])
    args: dict[str, Any] = {
        "a": a,
        "b": b,
        "bias": y if bias is None else bias,
        "ROWS": M,
        "S": len(a),
    }
    for name, (tensor, steps) in given.items():
        args[name] = tensor
        args |= zip((f"{name}_row", f"{name}_one", f"{name}_two"), steps, strict=True)
    for name, factor in (("a", a), ("b", b)):
        names = (f"{name}_term", f"{name}_row", f"{name}_col")
        args |= zip(names, factor.stride(), strict=True)
    del args["y_row"]
    constants = {
        "M1": a.shape[1],
        "N1": a.shape[2],
        "M2": b.shape[1],
        "N2": b.shape[2],
        "TERMS": len(a) if hold else 0,
        "ACTIVATION": activation or "none",
        "BIAS": bias is not None,
        "RESIDUAL": residual is not None,
        "SLOPE": dy is not None,
        "PRECISION": precision(x.dtype),
    }
    grid = tiles * max(1, min(M, config.programs // tiles))
    return Call(OP, _without_swap(config), grid, args, constants), y


def gradient_call(
    config: LaunchConfig, dy: Rows, x: Rows, factor: Tensor, wanted: Tensor
) -> tuple[Call, Tensor]:
    """The launch that makes the parts (chunks, s, m, n), float32, of the gradient in `wanted`:
    sums over rows of dy_row factor_s x_row^T.

    A row of dy is a matrix (m, k), one of x a matrix (n, l), factor is (s, k, l), and `wanted`
    (s, m, n).
    """
    terms, m, n = wanted.shape
    chunks = -(-len(dy[0]) // config.blocks["CHUNK"])
    parts = factor.new_empty(chunks, terms, m, n, dtype=torch.float32)
    place = (n, 1)
    if config.blocks["SWAP"]:  # the transpose, x_row factor_s^T dy_row^T
        dy, x, factor, place, m, n = x, dy, factor.transpose(1, 2), (1, n), n, m
    right, right_steps = exchanged(x)
    args = {
        "left": dy[0],
        "factor": factor,
        "right": right,
        "parts": parts,
        "ROWS": len(dy[0]),
        "TERMS": terms,
        **dict(zip(("left_row", "left_one", "left_two"), dy[1], strict=True)),
        **dict(zip(("factor_term", "factor_row", "factor_col"), factor.stride(), strict=True)),
        **dict(zip(("right_row", "right_one", "right_two"), right_steps, strict=True)),
        **dict(zip(("part_one", "part_two"), place, strict=True)),
    }
    constants = {
        "M": m,
        "K": factor.shape[1],
        "L": factor.shape[2],
        "N": n,
        "PRECISION": precision(dy[0].dtype),
    }
    grid = chunks * terms * _count(config, BM=m, BN=n)
    return Call(OP, _without_swap(config), grid, args, constants), parts


def _count(config: LaunchConfig, **sizes: int) -> int:
    """Tiles of a matrix."""
    counts = [-(-size // config.blocks[name]) for name, size in sizes.items()]
    return counts[0] * counts[1]


def _narrow(config: LaunchConfig) -> LaunchConfig:
    """The same with half the widest tile: an activation's slope takes registers."""
    blocks = {**config.blocks, "BM2": min(config.blocks["BM2"], 64)}
    return replace(config, blocks=blocks)


def _without_swap(config: LaunchConfig) -> LaunchConfig:
    """The kernels know strides alone."""
    blocks = {name: size for name, size in config.blocks.items() if name != "SWAP"}
    return replace(config, blocks=blocks)


def trial(
    direction: str, config: LaunchConfig, problem: KronProblem, device: torch.device
) -> list[Call]:
    """The launches for a problem on operands of no account, to be compiled or timed."""

    def some(*size: int) -> Tensor:
        made = torch.empty(size, dtype=problem.dtype, device=device)
        return made.normal_() if device.type == "cuda" else made

    rows, m1, n1, m2, n2, terms, *_ = problem
    x, a, b = some(rows, n1 * n2), some(terms, m1, n1), some(terms, m2, n2)
    if direction == "forward":
        call, _ = forward_call(config, x, a, b)
    else:
        call, _ = gradient_call(config, rows_of(some(rows, m1 * m2), m2), rows_of(x, n2), b, a)
    # The problem says in what float32 is multiplied, whatever the switch of this process.
    constants = {**call.constants, "PRECISION": "tf32" if problem.tf32 else "ieee"}
    return [replace(call, constants=constants)]
