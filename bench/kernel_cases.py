"""What a case of the GPU run is, and those of dense layers, MLPs and training steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.clock import Times, Variant, clock, error, tuned_libraries
from bench.report import Row
from bench.shapes import (
    held_out,
    kernel_ranks,
)
from tensorlrf import ops
from tensorlrf.ops.explain import sample as empty_sample
from tensorlrf_kernels._tables import choose
from tensorlrf_kernels.launches import LaunchConfig, Problem
from tensorlrf_kernels.lowrank_linear import lowrank_linear, reference
from tensorlrf_kernels.lowrank_swiglu import lowrank_swiglu
from tensorlrf_kernels.lowrank_swiglu import reference as swiglu_reference

DTYPE = torch.bfloat16
DEVICE = torch.device("cuda", 0)
PATHS = ("dense", "chain", "fused")
Launch = tuple[str, str, LaunchConfig, Problem]


@dataclass(frozen=True)
class Way:
    """One way to compute: a function of operands, how to draw them, and what it must move."""

    run: Callable[..., Any]
    operands: Callable[[], Sequence[Tensor]]
    bytes: int

    def variant(self) -> Variant:
        def make() -> Callable[[], object]:
            operands = self.operands()
            return lambda: self.run(*operands)

        return Variant(make, self.bytes)


@dataclass(frozen=True)
class Case:
    """Things to compare with each other.

    ways      by name, "dense" or "chain" first
    exact     the value in float64 of what a way returns, from its operands; None: not compared
    info      what each way's row says beside its times
    kernels   problems whose launches are compiled ahead: (op, direction, problem)
    trains    whether gradients are part of it
    peaks     whether the memory that a call takes is noted, as it is where it trains
    """

    name: str
    ways: dict[str, Way]
    exact: dict[str, Callable[..., Tensor]] = field(default_factory=dict)
    info: dict[str, dict[str, Any]] = field(default_factory=dict)
    kernels: tuple[tuple[str, str, Problem], ...] = ()
    trains: bool = False
    peaks: bool = False

    def launches(self) -> Iterator[Launch]:
        """How its kernels will be launched."""
        for op, direction, problem in self.kernels:
            config = choose(op, direction, problem, DEVICE)
            if config is not None:
                yield op, direction, config, problem

    def measure(self, seconds: float) -> list[Row]:
        """Times every way, `seconds` each on each clock."""
        with torch.inference_mode(not self.trains), tuned_libraries():
            errors = {name: self._error(name) for name in self.exact}
            times = clock(
                {name: way.variant() for name, way in self.ways.items()},
                seconds=seconds * len(self.ways),
            )
        return [self._row(name, times, errors) for name in self.ways]

    def _error(self, name: str) -> float:
        operands = self.ways[name].operands()
        return error(self.ways[name].run(*operands), self.exact[name](*operands))

    def _row(self, name: str, times: dict[str, Times], errors: dict[str, float]) -> Row:
        own = times[name]
        if self.trains or self.peaks:
            self.info[name]["peak_MiB"] = _peak(self.ways[name])
        info = {"eager_us": 1e6 * own.eager, "error": errors.get(name), **self.info.get(name, {})}
        if info.get("floor_us"):
            info["over_floor"] = 1e6 * own.graph / info["floor_us"]
        return Row(self.name, name, own.graph, own.least, 0, info)


def draw(*sizes: tuple[int, ...], grad: bool = False) -> Callable[[], list[Tensor]]:
    """A drawing of tensors of these sizes, scaled so that products of them stay near one."""

    def operands() -> list[Tensor]:
        made = []
        for size in sizes:
            t = torch.randn(size, device=DEVICE, dtype=DTYPE)
            made.append(t / math.sqrt(size[-1]) if len(made) else t)
        return [t.requires_grad_() for t in made] if grad else made

    return operands


def profiled() -> ops.DeviceProfile:
    return ops.profile_of(DEVICE)


def compiled(run: Callable[..., Any]) -> Callable[..., Any]:
    """The function by torch.compile, for one shape."""
    made: list[Any] = []

    def call(*operands: Tensor) -> Any:
        if not made:
            torch._dynamo.reset()
            made.append(torch.compile(run, dynamic=False))
        return made[0](*operands)

    return call


# ---- one layer ----------------------------------------------------------------------------------


def linear_case(network: str, out: int, inp: int, M: int) -> Case:
    """A layer on M rows: dense and compiled dense once, chain and fused at every rank."""
    itemsize = DTYPE.itemsize
    dense_bytes = itemsize * (M * inp + out * inp + M * out)
    operands = draw((M, inp), (out, inp))
    ways = {
        "dense": Way(F.linear, operands, dense_bytes),
        "compiled dense": Way(compiled(F.linear), operands, dense_bytes),
    }
    info: dict[str, dict[str, Any]] = {name: {"M": M, "layer": f"{out}x{inp}"} for name in ways}
    exact = {}
    kernels = []
    for rank in kernel_ranks(out, inp):
        factors = empty_sample("lowrank", (out, inp), rank, DTYPE)
        profile = profiled()
        floor = ops.floor_cost(factors, M)
        costs = {p: ops.path_cost(factors, p, M, rebuild=False) for p in PATHS}
        predicted = {p: profile.seconds(cost, DTYPE) for p, cost in costs.items()}
        chosen = min(PATHS, key=predicted.__getitem__)
        problem = Problem(M, out, inp, rank, DTYPE)
        served = choose("lowrank_linear", "forward", problem, DEVICE)
        for path, run in (("chain", reference.lowrank_linear), ("fused", lowrank_linear)):
            if path == "fused" and served is None:
                continue
            name = f"{path} r={rank}"
            ways[name] = Way(run, draw((M, inp), (rank, inp), (out, rank)), floor.bytes)
            exact[name] = _exact_linear
            info[name] = {
                "M": M,
                "layer": f"{out}x{inp}",
                "rank": rank,
                "path": path,
                "flops": floor.flops,
                "bytes": floor.bytes,
                "floor_us": 1e6 * profile.floor(floor, DTYPE),
                "predicted_us": 1e6 * predicted[path],
                "chosen": chosen,
                "held_out": held_out(out, inp, rank),
                "launch": str(served) if path == "fused" else None,
            }
        kernels.append(("lowrank_linear", "forward", problem))
    return Case(f"{network} {out}x{inp}, M={M}", ways, exact, info, tuple(kernels))


def _exact_linear(x: Tensor, right: Tensor, left: Tensor) -> Tensor:
    return x.double() @ right.double().T @ left.double().T


# ---- an MLP -------------------------------------------------------------------------------------


def mlp_case(M: int, rank: int, hidden: int = 14336, size: int = 4096) -> Case:
    """silu(gate) up, and down: all three projections at one rank."""
    projection = ((rank, size), (hidden, rank))
    sizes = ((M, size), *projection, *projection, (rank, hidden), (size, rank))
    dense_sizes = ((M, size), (hidden, size), (hidden, size), (size, hidden))
    moved = DTYPE.itemsize * sum(math.prod(s) for s in sizes)
    dense_moved = DTYPE.itemsize * sum(math.prod(s) for s in dense_sizes)

    def chain(x: Tensor, gr: Tensor, gl: Tensor, ur: Tensor, ul: Tensor, *down: Tensor) -> Tensor:
        h = swiglu_reference.lowrank_swiglu(x, gr, gl, ur, ul)
        return reference.lowrank_linear(h, *down)

    def fused(x: Tensor, gr: Tensor, gl: Tensor, ur: Tensor, ul: Tensor, *down: Tensor) -> Tensor:
        return lowrank_linear(lowrank_swiglu(x, gr, gl, ur, ul), *down)

    def half(x: Tensor, gr: Tensor, gl: Tensor, ur: Tensor, ul: Tensor, *down: Tensor) -> Tensor:
        return reference.lowrank_linear(lowrank_swiglu(x, gr, gl, ur, ul), *down)

    def dense(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
        return F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), down)

    operands = draw(*sizes)
    ways = {
        "chain": Way(chain, operands, moved),
        "compiled chain": Way(compiled(chain), operands, moved),
        "fused": Way(fused, operands, moved),
        "fused, down by the chain": Way(half, operands, moved),
        "dense": Way(dense, draw(*dense_sizes), dense_moved),
        "compiled dense": Way(compiled(dense), draw(*dense_sizes), dense_moved),
    }
    profile = profiled()
    # x, both factors of three layers, h written and read, y.
    floor_bytes = moved + DTYPE.itemsize * M * (2 * hidden + size)
    flops = 2 * M * rank * (3 * size + 3 * hidden)
    floor = max(floor_bytes / profile.bandwidth, flops / _rate(profile))
    common = {"M": M, "rank": rank, "layer": f"MLP {size}-{hidden}"}
    info = {name: dict(common) for name in ways}
    for name in ("chain", "compiled chain", "fused", "fused, down by the chain"):
        info[name] |= {"flops": flops, "bytes": floor_bytes, "floor_us": 1e6 * floor}
    wide = Problem(M, hidden, size, rank, DTYPE)
    return Case(
        f"llama3-8b SwiGLU MLP, M={M}, r={rank}",
        ways,
        dict.fromkeys(("chain", "fused", "fused, down by the chain"), _exact_mlp),
        info,
        (
            ("lowrank_swiglu", "forward", wide),
            ("lowrank_linear", "forward", wide._replace(out=size, inp=hidden)),
        ),
    )


def _exact_mlp(x: Tensor, *factors: Tensor) -> Tensor:
    gr, gl, ur, ul, dr, dl = (t.double() for t in factors)
    x = x.double()
    return (F.silu(x @ gr.T @ gl.T) * (x @ ur.T @ ul.T)) @ dr.T @ dl.T


def _rate(profile: ops.DeviceProfile) -> float:
    return profile.rate["matmul"] * profile.speedup[DTYPE]


# ---- a training step ----------------------------------------------------------------------------


def training_case(M: int, rank: int, size: int = 4096, activation: str | None = None) -> Case:
    """Forward and backward of one layer, with the gradients of input and factors."""

    def step(run: Callable[..., Tensor]) -> Callable[..., Any]:
        def forward_backward(x: Tensor, right: Tensor, left: Tensor, dy: Tensor) -> Any:
            y = run(x, right, left, None, None, activation)
            return torch.autograd.grad(y, (x, right, left), dy.detach())

        return forward_backward

    def dense_step(x: Tensor, weight: Tensor, dy: Tensor) -> Any:
        y = reference.activate(F.linear(x, weight), activation)
        return torch.autograd.grad(y, (x, weight), dy.detach())

    sizes = ((M, size), (rank, size), (size, rank), (M, size))
    moved = DTYPE.itemsize * sum(math.prod(s) for s in sizes)
    factored, dense = draw(*sizes, grad=True), draw((M, size), (size, size), (M, size), grad=True)
    ways = {
        "chain": Way(step(reference.lowrank_linear), factored, moved),
        "compiled chain": Way(step(compiled(reference.lowrank_linear)), factored, moved),
        "fused": Way(step(lowrank_linear), factored, moved),
        "dense": Way(dense_step, dense, moved),
    }
    info = {
        name: {
            "M": M,
            "rank": rank,
            "format": "lowrank",
            "layer": f"training {size}x{size} {activation or ''}".strip(),
        }
        for name in ways
    }
    problem = Problem(M, size, size, rank, DTYPE)
    kernels = (("lowrank_linear", "forward", problem), ("lowrank_linear", "backward", problem))
    name = f"training step {size}x{size}, M={M}, r={rank}, {activation or 'no activation'}"
    return Case(name, ways, {}, info, kernels, trains=True)


def swiglu_training_case(M: int, rank: int, hidden: int = 14336, size: int = 4096) -> Case:
    """Forward and backward of the gated half of an MLP, with the gradients of all its operands."""

    def step(run: Callable[..., Tensor]) -> Callable[..., Any]:
        def forward_backward(*operands: Tensor) -> Any:
            *leaves, dh = operands
            return torch.autograd.grad(run(*leaves), leaves, dh.detach())

        return forward_backward

    projection = ((rank, size), (hidden, rank))
    sizes = ((M, size), *projection, *projection, (M, hidden))
    moved = DTYPE.itemsize * sum(math.prod(s) for s in sizes)
    operands = draw(*sizes, grad=True)
    ways = {
        "chain": Way(step(swiglu_reference.lowrank_swiglu), operands, moved),
        "compiled chain": Way(step(compiled(swiglu_reference.lowrank_swiglu)), operands, moved),
        "fused": Way(step(lowrank_swiglu), operands, moved),
    }
    info: dict[str, dict[str, Any]] = {
        name: {"M": M, "rank": rank, "layer": f"training SwiGLU {hidden}x{size}"} for name in ways
    }
    problem = Problem(M, hidden, size, rank, DTYPE)
    kernels = (
        ("lowrank_swiglu", "forward", problem),
        ("lowrank_swiglu", "backward", problem),
        ("lowrank_linear", "backward", problem._replace(out=size, rank=2 * rank)),
    )
    name = f"SwiGLU training step {hidden}x{size}, M={M}, r={rank}"
    return Case(name, ways, {}, info, kernels, trains=True)


def _peak(way: Way) -> float:
    """Memory that a call takes beside its operands, in MiB."""
    operands = way.operands()
    way.run(*operands)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    way.run(*operands)
    torch.cuda.synchronize()
    return float(torch.cuda.max_memory_allocated() - before) / 2**20
