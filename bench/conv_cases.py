"""Convolutions for the GPU run: the paths that the library has, and our kernels beside them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bench import kernel_cases
from bench.kernel_cases import DTYPE, Case, Way
from bench.shapes import CONV_RANK_SHARES, Conv, rank_at, sample
from tensorlrf import ops
from tensorlrf.factors import CPFactors, TuckerFactors
from tensorlrf_kernels._launch import Problem
from tensorlrf_kernels._tables import choose
from tensorlrf_kernels.cp_conv2d import cp_conv2d
from tensorlrf_kernels.cp_conv2d import reference as cp_reference
from tensorlrf_kernels.tucker_conv2d import tucker_conv2d


def images(case: Conv, channels: int) -> Tensor:
    """Random images in channels_last."""
    size = (case.batch, channels, case.side, case.side)
    made = torch.randn(size, device=kernel_cases.DEVICE, dtype=DTYPE)
    return made.contiguous(memory_format=torch.channels_last)


def kernel(case: Conv) -> Tensor:
    """A dense kernel in channels_last."""
    made = torch.randn(case.shape, device=kernel_cases.DEVICE, dtype=DTYPE)
    return made.contiguous(memory_format=torch.channels_last)


def conv_case(case: Conv, format: str, share: float) -> Case:
    """A ResNet convolution on the paths that the library has, channels_last."""
    rank = rank_at(format, case.shape, share)
    factors = sample(format, case.shape, rank, kernel_cases.DEVICE, DTYPE)
    strides = (case.stride, case.stride)

    def operands() -> list[Tensor]:
        return [images(case, case.inp)]

    def run(path: str) -> Callable[[Tensor], Tensor]:
        return lambda x: ops.run_conv2d(path, factors, x, None, strides, case.padding, (1, 1))

    def dense() -> list[Tensor]:
        return [*operands(), kernel(case)]

    profile = kernel_cases.profiled()
    costs = {
        path: ops.path_cost(factors, path, case.rows, stride=strides, rebuild=False)
        for path in ops.paths_of(factors)
    }
    predicted = {path: profile.seconds(cost, DTYPE) for path, cost in costs.items()}
    chosen = min(predicted, key=predicted.__getitem__)
    floor = 1e6 * profile.floor(ops.floor_cost(factors, case.rows, stride=strides), DTYPE)
    ways = {
        "dense": Way(
            lambda x, w: F.conv2d(x, w, None, strides, case.padding), dense, costs["dense"].bytes
        )
    }
    ways |= {p: Way(run(p), operands, costs[p].bytes) for p in costs if p != "dense"}
    info = {
        path: {
            "M": case.rows,
            "rank": rank,
            "layer": str(case),
            "path": path,
            "predicted_us": 1e6 * predicted[path],
            "chosen": chosen,
            **({"floor_us": floor} if path != "dense" else {}),
        }
        for path in ways
    }
    return Case(f"{case}, {format} {share}", ways, {}, info)


def fused_conv_case(case: Conv, format: str, rank: int) -> Case:
    """A convolution of stride one, channels_last: dense, the chain and our kernel, and beside CP
    the fold, and dense as torch.compile has it, which takes long to make."""
    factors = sample(format, case.shape, rank, kernel_cases.DEVICE, DTYPE)
    geometry = ((1, 1), case.padding, (1, 1))
    op, inner = ("cp_conv2d", case.inp) if format == "cp" else ("tucker_conv2d", rank * 9)
    inner = case.inp * 9 if format == "lowrank" else inner

    def image() -> Tensor:
        return images(case, case.inp)

    def dense() -> list[Tensor]:
        return [image(), kernel(case)]

    def conv(x: Tensor, weight: Tensor) -> Tensor:
        return F.conv2d(x, weight, None, *geometry)

    def fused(x: Tensor) -> Tensor:
        if isinstance(factors, CPFactors):
            return cp_conv2d(x, *factors.factors, factors.weights, None, *geometry)
        if isinstance(factors, TuckerFactors):
            return tucker_conv2d(x, factors.core, *factors.factors, None, *geometry)
        core = factors.right.view(rank, *case.shape[1:])  # type: ignore[attr-defined]
        return tucker_conv2d(x, core, factors.left, None, None, *geometry)  # type: ignore[attr-defined]

    def by(path: str) -> Callable[[Tensor], Tensor]:
        return lambda x: ops.run_conv2d(path, factors, x, None, *geometry)

    profile = kernel_cases.profiled()
    floor = ops.floor_cost(factors, case.rows)
    dense_bytes = DTYPE.itemsize * (math.prod(case.shape) + case.rows * (case.inp + case.out))
    ways = {
        "dense": Way(conv, dense, dense_bytes),
        "chain": Way(by("chain"), lambda: [image()], floor.bytes),
        "fused": Way(fused, lambda: [image()], floor.bytes),
    }
    if format == "cp":
        ways["fold"] = Way(by("fold"), lambda: [image()], floor.bytes)
        ways["compiled dense"] = Way(kernel_cases.compiled(conv), dense, dense_bytes)
    weight = factors.to_dense().double()
    factored = [name for name in ways if "dense" not in name]

    def convolved(x: Tensor) -> Tensor:
        return F.conv2d(x.double(), weight, None, *geometry)

    exact = dict.fromkeys(factored if case.batch == 1 else (), convolved)
    paths = ("dense", "chain", "fused", *(("fold",) if format == "cp" else ()))
    costs = {p: ops.path_cost(factors, p, case.rows, stride=(1, 1), rebuild=False) for p in paths}
    predicted = {p: profile.seconds(cost, DTYPE) for p, cost in costs.items()}
    chosen = min(predicted, key=predicted.__getitem__)
    common = {"M": case.rows, "layer": str(case), "rank": rank, "format": format}
    info: dict[str, dict[str, Any]] = {name: {**common, "path": name} for name in ways}
    for name in factored:
        info[name] |= {"flops": floor.flops, "bytes": floor.bytes, "chosen": chosen}
        info[name]["predicted_us"] = 1e6 * predicted[name]
        info[name]["floor_us"] = 1e6 * profile.floor(floor, DTYPE)
    problem = Problem(case.rows, case.out, inner, rank, DTYPE)
    info["fused"] |= {"op": op, "launch": str(choose(op, "forward", problem, kernel_cases.DEVICE))}
    kernels = ((op, "forward", problem),)
    return Case(f"{case}, {format} r={rank}", ways, exact, info, kernels)


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


def fused_conv_ranks(case: Conv) -> list[int]:
    """The ranks to time: shares of the channels, 16 at least."""
    return [max(16, round(share * min(case.out, case.inp))) for share in CONV_RANK_SHARES]
