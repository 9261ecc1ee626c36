"""Convolutions for the GPU run: the paths that the library has, and our kernels beside them."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bench import kernel_cases
from bench.kernel_cases import DTYPE, Case, Way
from bench.shapes import FLAGSHIPS, Conv, conv_held_out, conv_ranks, sample
from tensorlrf import ops
from tensorlrf.factors import CPFactors, Factors
from tensorlrf.ops.fused import fused_problem
from tensorlrf_kernels._tables import bucket, choose
from tensorlrf_kernels.cp_conv2d import cp_conv2d
from tensorlrf_kernels.cp_conv2d import reference as cp_reference
from tensorlrf_kernels.launches import Problem

Geometry = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]  # stride, padding, dilation


def images(case: Conv, channels: int) -> Tensor:
    """Random images in channels_last."""
    size = (case.batch, channels, case.side, case.side)
    made = torch.randn(size, device=kernel_cases.DEVICE, dtype=DTYPE)
    return made.contiguous(memory_format=torch.channels_last)


def kernel(case: Conv) -> Tensor:
    """A dense kernel in channels_last."""
    made = torch.randn(case.shape, device=kernel_cases.DEVICE, dtype=DTYPE)
    return made.contiguous(memory_format=torch.channels_last)


def conv_case(case: Conv) -> Case:
    """A convolution, channels_last: dense and compiled dense once, and at every rank the paths of
    each format, our kernel among them."""
    geometry = ((case.stride, case.stride), case.padding, (1, 1))
    moved = DTYPE.itemsize * (case.batch * case.inp * case.side**2 + case.rows * case.out)

    def image() -> list[Tensor]:
        return [images(case, case.inp)]

    def dense() -> list[Tensor]:
        return [*image(), kernel(case)]

    def conv(x: Tensor, weight: Tensor) -> Tensor:
        return F.conv2d(x, weight, None, *geometry)

    dense_bytes = moved + DTYPE.itemsize * math.prod(case.shape)
    ways = {
        "dense": Way(conv, dense, dense_bytes),
        "compiled dense": Way(kernel_cases.compiled(conv), dense, dense_bytes),
    }
    info: dict[str, dict[str, Any]] = {n: {"M": case.rows, "layer": str(case)} for n in ways}
    exact: dict[str, Callable[..., Tensor]] = {}
    kernels = []
    for format, rank in conv_formats(case):
        factors = sample(format, case.shape, rank, kernel_cases.DEVICE, DTYPE)
        found = _factored(case, format, factors)
        op, problem, held_out = conv_problem(case, format, rank)
        kernels.append((op, "forward", problem))
        launch = choose(op, "forward", problem, kernel_cases.DEVICE)
        for path, words in found.items():
            words["held_out"] = held_out
            if path == "fused":
                if launch is None:
                    continue  # the chain would run
                words |= {"op": op, "launch": str(launch)}
            name = f"{path} {format} r={rank}"
            ways[name] = Way(_by(path, factors, geometry), image, moved)
            info[name] = words
            if case.batch == 1:
                exact[name] = _exact(factors, geometry)
    return Case(str(case), ways, exact, info, tuple(kernels))


def conv_formats(case: Conv) -> list[tuple[str, int]]:
    """(format, rank) to time; a Tucker core of all the channels is the dense kernel."""
    ranks = conv_ranks(case)
    whole = min(case.out, case.inp)
    found = [(format, rank) for rank in ranks for format in ("cp", "lowrank")]
    return found + [("tucker", rank) for rank in ranks if rank < whole]


def conv_problem(case: Conv, format: str, rank: int) -> tuple[str, Problem, bool]:
    """The op, what its kernel computes, and whether tuning must not see that: as it may whatever
    shares a bucket with what the goals are about."""
    op, problem = _problem(case, format, rank)
    return op, problem, conv_held_out(case, rank) and (op, bucket(problem)) not in _goals()


def _problem(case: Conv, format: str, rank: int) -> tuple[str, Problem]:
    found = fused_problem(sample(format, case.shape, rank, "meta", DTYPE), case.rows)
    assert found is not None  # every kernel in the list has few enough taps
    return found


@cache
def _goals() -> frozenset[tuple[str, str]]:
    found = (
        _problem(conv, format, rank)
        for conv, ranks in FLAGSHIPS
        for rank in ranks
        for format, other in conv_formats(conv)
        if other == rank
    )
    return frozenset((op, bucket(problem)) for op, problem in found)


def _factored(case: Conv, format: str, factors: Factors) -> dict[str, dict[str, Any]]:
    """What the row of each path but "dense" says beside its times."""
    profile, strides = kernel_cases.profiled(), (case.stride, case.stride)
    paths = tuple(dict.fromkeys((*ops.paths_of(factors), "fused")))
    costs = {p: ops.path_cost(factors, p, case.rows, stride=strides, rebuild=False) for p in paths}
    predicted = {p: profile.seconds(cost, DTYPE) for p, cost in costs.items()}
    floor = ops.floor_cost(factors, case.rows, stride=strides)
    rank = max(factors.rank) if isinstance(factors.rank, tuple) else factors.rank
    common = {
        "M": case.rows,
        "layer": str(case),
        "rank": rank,
        "format": format,
        "flops": floor.flops,
        "bytes": floor.bytes,
        "floor_us": 1e6 * profile.floor(floor, DTYPE),
        "chosen": min(predicted, key=predicted.__getitem__),
    }
    others = [path for path in paths if path != "dense"]
    return {p: {**common, "path": p, "predicted_us": 1e6 * predicted[p]} for p in others}


def _by(path: str, factors: Factors, geometry: Geometry) -> Callable[[Tensor], Tensor]:
    return lambda x: ops.run_conv2d(path, factors, x, None, *geometry)


def _exact(factors: Factors, geometry: Geometry) -> Callable[[Tensor], Tensor]:
    return lambda x: F.conv2d(x.double(), factors.to_dense().double(), None, *geometry)


def conv_training_case(case: Conv, rank: int) -> Case:
    """Forward and backward of a CP convolution, with the gradients of x and of all factors."""
    geometry = ((1, 1), case.padding, (1, 1))

    def step(run: Callable[..., Tensor]) -> Callable[..., Any]:
        def forward_backward(*operands: Tensor) -> Any:
            *given, dy = operands
            y = run(*given, None, *geometry)
            return torch.autograd.grad(y, given, dy.detach())

        return forward_backward

    def operands() -> list[Tensor]:
        factors = sample("cp", case.shape, rank, kernel_cases.DEVICE, DTYPE)
        assert isinstance(factors, CPFactors)
        side, last = case.side, {"memory_format": torch.channels_last}
        x, dy = (
            torch.randn(
                case.batch, n, side, side, device=kernel_cases.DEVICE, dtype=DTYPE
            ).contiguous(**last)
            for n in (case.inp, case.out)
        )
        given = [x, *factors.factors, factors.weights]
        return [*(t.detach().clone().requires_grad_() for t in given), dy]

    def dense_step(x: Tensor, weight: Tensor, dy: Tensor) -> Any:
        y = F.conv2d(x, weight, None, *geometry)
        return torch.autograd.grad(y, (x, weight), dy.detach())

    def dense() -> list[Tensor]:
        x, *_, dy = operands()
        return [x, kernel(case).requires_grad_(), dy]

    moved = DTYPE.itemsize * case.rows * (case.inp + case.out)
    ways = {
        "chain": Way(step(cp_reference.cp_conv2d), operands, moved),
        "fused": Way(step(cp_conv2d), operands, moved),
        "dense": Way(dense_step, dense, moved),
    }
    layer = f"training {case}"
    info: dict[str, dict[str, Any]] = {
        name: {"M": case.rows, "rank": rank, "layer": layer} for name in ways
    }
    problem = Problem(case.rows, case.out, case.inp, rank, DTYPE)
    places = Problem(case.batch * case.side**2, rank, rank, rank, DTYPE)
    kernels = (("cp_conv2d", "forward", problem), ("cp_conv2d", "backward", places))
    return Case(f"CP training step {case}, r={rank}", ways, {}, info, kernels, trains=True)
