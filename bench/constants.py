"""The constants of a GPU that the cost model stands on, measured: `tensorlrf_kernels.chips` holds
them for known chips."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from bench.clock import Variant, clock, graphed
from tensorlrf import ops
from tensorlrf_kernels.chips import chip_of
from tensorlrf_kernels.lowrank_linear import lowrank_linear, reference

SECONDS = 0.3
LAUNCHES = 200


def measure(dtype: torch.dtype = torch.bfloat16) -> dict[str, float]:
    """Seconds and shares by the names of `Chip`'s fields, and what they were made of."""
    found = {name: run() for name, run in {**ceilings(dtype), "barrier": barrier}.items()}
    return found | shares(dtype, found)


def ceilings(dtype: torch.dtype = torch.bfloat16) -> dict[str, Callable[[], float]]:
    """What measures each constant that takes no kernel of ours."""
    return {
        "bandwidth": _bandwidth,
        "rate_half": lambda: rate(dtype),
        "rate_float32": lambda: rate(torch.float32),
        "tf32_rate": _tf32_rate,
        "launch": _launch,
        "launch_eager": _launch_eager,
    }


def _seconds(run: Callable[[], object], times: int = 1) -> float:
    return ops.time_calls({"run": run}, seconds=SECONDS, device="cuda").median("run") / times


def _bandwidth() -> float:
    source = torch.randn(2**28, device="cuda", dtype=torch.float32)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _seconds(lambda: target.copy_(source))


def rate(dtype: torch.dtype, size: int = 8192) -> float:
    """FLOP/s of a library product."""
    a, b = (torch.randn(size, size, device="cuda", dtype=dtype) for _ in range(2))
    return 2 * size**3 / _seconds(lambda: a @ b)


def _tf32_rate() -> float:
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "tf32"
    try:
        return rate(torch.float32)
    finally:
        matmul.fp32_precision = before


def _launch() -> float:
    """Of one kernel after another in a CUDA graph."""
    x = torch.zeros(32, device="cuda")

    def many() -> None:
        for _ in range(LAUNCHES):
            x.add_(1.0)

    return _seconds(graphed(many).replay, LAUNCHES)


def _launch_eager() -> float:
    x = torch.zeros(32, device="cuda")

    def many() -> None:
        for _ in range(LAUNCHES):
            x.add_(1.0)

    return _seconds(many, LAUNCHES)


def barrier() -> float:
    """Of one grid barrier, from the difference between many in a launch and one."""
    from bench.barrier import barriers

    programs = chip_of(torch.device("cuda", torch.cuda.current_device())).multiprocessors
    counter = torch.zeros(1, dtype=torch.int32, device="cuda")

    def run(times: int) -> Callable[[], object]:
        def launch() -> None:
            counter.zero_()
            barriers[(programs,)](counter, TIMES=times, launch_cooperative_grid=True)

        return launch

    runs = {str(times): run(times) for times in (1, 101)}
    timings = ops.time_calls(runs, seconds=2 * SECONDS, device="cuda")
    return (timings.median("101") - timings.median("1")) / 100


def shares(dtype: torch.dtype, found: dict[str, float]) -> dict[str, float]:
    """What two chained products in one kernel reach of the matmul rate, where arithmetic is the
    limit (rank 128, many rows); and what library products reach of their roofline."""
    M, n, rank = 16384, 4096, 128

    def operands() -> list[torch.Tensor]:
        sizes = ((M, n), (rank, n), (n, rank))
        return [torch.randn(*size, device="cuda", dtype=dtype) / 8 for size in sizes]

    def fused() -> Callable[[], object]:
        tensors = operands()
        return lambda: lowrank_linear(*tensors)

    def chain() -> Callable[[], object]:
        tensors = operands()
        return lambda: reference.lowrank_linear(*tensors)

    def dense() -> Callable[[], object]:
        x, weight = operands()[0], torch.randn(n, n, device="cuda", dtype=dtype)
        return lambda: F.linear(x, weight)

    itemsize, flops = dtype.itemsize, 4 * M * n * rank
    moved = itemsize * (2 * M * n + 2 * n * rank)
    kinds: dict[str, Any] = {"fused": fused, "chain": chain, "dense": dense}
    times = clock({k: Variant(make, moved) for k, make in kinds.items()}, seconds=SECONDS)
    steps = 2 * max(
        flops / 2 / found["rate_half"],
        itemsize * (M * n + n * rank + M * rank) / found["bandwidth"],
    )
    return {
        "chained": flops / (times["fused"].graph - found["launch"]) / found["rate_half"],
        "library": steps / (times["chain"].graph - 2 * found["launch"]),
        "library_dense": 2 * M * n * n / found["rate_half"] / times["dense"].graph,
    }
