"""Times of calls on a GPU, by its own clock: eager, and as CUDA graphs.

Every call of a variant works on operands of its own, as many copies in turn as it takes to keep
the L2 cache from serving them: in a network the weights of a layer come from memory each time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from tensorlrf import ops
from tensorlrf_kernels.chips import chip_of

MOST_COPIES = 128
Call = Callable[[], object]


@dataclass(frozen=True)
class Variant:
    """One way to compute a case.

    make   returns a call with new operands
    bytes  that the call reads and writes, so that copies enough are made
    """

    make: Callable[[], Call]
    bytes: int


@dataclass(frozen=True)
class Times:
    """Median and least seconds of a call."""

    eager: float
    graph: float
    least: float


def clock(
    variants: Mapping[str, Variant], *, seconds: float, device: torch.device | str = "cuda"
) -> dict[str, Times]:
    """Times the variants against each other, for about `seconds` eager and as long in graphs."""
    l2 = chip_of(torch.device(device, torch.cuda.current_device())).l2
    calls = {}
    for name, variant in variants.items():
        copies = min(MOST_COPIES, max(2, math.ceil(2 * l2 / variant.bytes)))
        calls[name] = [variant.make() for _ in range(copies)]
        for call in calls[name]:
            call()
    torch.cuda.synchronize()
    eager = ops.time_calls(
        {name: _all(each) for name, each in calls.items()}, seconds=seconds, device=device
    )
    graphs = ops.time_calls(
        {name: graphed(_all(each)).replay for name, each in calls.items()},
        seconds=seconds,
        device=device,
    )
    return {
        name: Times(
            eager.median(name) / len(each),
            graphs.median(name) / len(each),
            graphs.minimum(name) / len(each),
        )
        for name, each in calls.items()
    }


@contextmanager
def tuned_libraries() -> Iterator[None]:
    """Inside, cuDNN takes the fastest of its convolutions in place of a guess, as it does for all
    who ask for it: a library that was not tuned is no peer."""
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def graphed(run: Call) -> torch.cuda.CUDAGraph:
    """The call as a CUDA graph, after a run on the capturing stream."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        run()
    return graph


def error(y: Tensor, exact: Tensor) -> float:
    """Frobenius-relative distance from the exact value."""
    return float((y.double() - exact).norm() / exact.norm())


def _all(calls: list[Call]) -> Call:
    def run() -> None:
        for call in calls:
            call()

    return run
