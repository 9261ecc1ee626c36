"""Host time of a call of the kernels' ops, with a driver that launches nothing.

    python -m bench.host_path

Needs no GPU: on a GPU the launch itself comes on top, some 4 us. Each line is the median of calls
one by one: torch's own dispatch of an op that does nothing but make the output, the op as it is,
and with every call chosen and built anew. Timings of the machine that it runs on, and of no other.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

import tensorlrf_kernels.kron_linear
import tensorlrf_kernels.lowrank_linear
import tensorlrf_kernels.lowrank_swiglu  # noqa: F401  its op is registered
from bench.fake_driver import fake_driver
from tensorlrf_kernels import _bound
from tensorlrf_kernels._library import on_gpu

CALLS = 3000
OPS = ("lowrank_linear", "kron_linear", "lowrank_swiglu")
DTYPE = torch.bfloat16


def cases() -> dict[str, Callable[[], object]]:
    """Calls of what the dispatcher calls on a GPU."""

    def some(*size: int) -> torch.Tensor:
        return torch.empty(size, dtype=DTYPE)

    linear, swiglu, kron = (
        on_gpu[op] for op in ("lowrank_linear", "lowrank_swiglu", "kron_linear")
    )
    x, right, left = some(16, 1024), some(64, 1024), some(1024, 64)
    up = some(64, 1024), some(1024, 64)
    rows, a, b = some(200, 4096), some(2, 64, 64), some(2, 64, 64)
    many = some(256, 1024)
    return {
        "lowrank_linear decode": lambda: linear(x, right, left, None, None, None, False),
        "lowrank_linear prefill": lambda: linear(many, right, left, None, None, None, False),
        "lowrank_swiglu decode": lambda: swiglu(x, right, left, *up, None, None, False),
        "kron_linear": lambda: kron(rows, a, b, None, None, None),
    }


def median(run: Callable[[], object]) -> float:
    """us of a call."""
    times = []
    for _ in range(CALLS):
        start = time.perf_counter_ns()
        run()
        times.append(time.perf_counter_ns() - start)
    return statistics.median(times) / 1e3


def main() -> None:
    """Print a line for each op."""
    out = torch.empty(16, 1024, dtype=DTYPE)
    print(f"torch.empty_like: {median(lambda: torch.empty_like(out)):.1f} us")
    with fake_driver(keep=False):
        for name, run in cases().items():
            run()  # compiles
            bound = median(run)
            _bound.pause(True)
            anew = median(run)
            _bound.pause(False)
            print(f"{name}: {bound:.1f} us, anew {anew:.1f} us")


if __name__ == "__main__":
    main()
