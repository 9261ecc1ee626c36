"""The launches that the goals are about: one of each, from the cases of the GPU run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any
from unittest import mock

import torch

from bench import gpu_cases
from bench.harvest.launches import recorded
from bench.harvest.time import narrowed
from bench.kernel_cases import Case
from tensorlrf_kernels.chips import Chip
from tensorlrf_kernels.launches import Call


@dataclass(frozen=True)
class Goal:
    """One launch.

    case, ranks  of `bench.gpu_cases`, and which of its ways
    kernel       the op and its kernel, of which the first launch is meant
    unit, of     what instructions are counted for: a pass of the loop `of`, or with `of` a number
                 a program, divided by it
    """

    name: str
    case: str
    kernel: str
    unit: str
    of: str | int
    ranks: tuple[int, ...] = ()

    @property
    def op(self) -> str:
        return self.kernel.split()[0]


@dataclass(frozen=True)
class Launch:
    """A goal's launch on a chip, and what its way must move and compute where it is all of it."""

    call: Call
    bytes: int | None
    flops: int | None


def _linear(M: int, *ranks: int) -> list[Goal]:
    kernel, loop = ("decode", "decode.k") if M <= 128 else ("prefill", "prefill.k")
    return [
        Goal(
            f"lowrank M={M} r={rank}",
            f"linear llama3-8b 4096x4096 M={M}",
            f"lowrank_linear {kernel}",
            "K step",
            loop,
            (rank,),
        )
        for rank in ranks
    ]


def _conv(channels: int, size: int, rank: int, rows: int) -> list[Goal]:
    case = f"conv resnet50 {channels}-{channels} 3x3 at {size}, batch 32"
    name = f"{size}x{size}x{channels} r={rank}"
    cp = Goal(f"cp {name}", case, "cp_conv2d forward", "output row", rows, (rank,))
    tucker = ("tucker_conv2d forward", "K step", "forward.step", (rank,))
    return [cp, Goal(f"tucker {name}", case, *tucker)]


def _kron(s: int) -> Goal:
    case = f"kron 64x64 (x) 64x64 s={s}, M=8192"
    return Goal(f"kron M=8192 s={s}", case, "kron_linear forward", "row", "forward.row")


def _mttkrp(sizes: str, left: int) -> Goal:
    case = f"mttkrp ({sizes.replace('x', ', ')}) ({left},)"
    return Goal(f"mttkrp {sizes} mode {left}", case, "mttkrp contract", "step", "contract.s")


GOALS = (
    *_linear(1, 64),
    *_linear(16, 64, 256, 512, 1024),
    *_linear(128, 256),
    *_linear(8192, 64, 128, 256),
    *map(_kron, (1, 2, 4)),
    Goal("tt 8^4 R=8", "tt 8^4 R=8, M=8192", "kron_linear forward", "term of a row", "forward.s"),
    # A program has as many rows of the output as fit 64 places.
    *_conv(64, 56, 64, 1),
    *_conv(128, 28, 64, 2),
    *_conv(256, 14, 128, 4),
    *(
        Goal(f"blr b=256 {kernel}", f"blr b=256 r=16, M={M}", f"blr_linear {kernel}", unit, loop)
        for kernel, M, unit, loop in (
            ("shrink", 8192, "K step", "shrink_tile.k"),
            ("expand", 8192, "rank step", "expand_tile.k"),
            ("decode", 16, "K step", "shrink_tile.k"),
        )
    ),
    *(_mttkrp("400x400x400", left) for left in (0, 1)),
    _mttkrp("512x512x3x3", 0),
    Goal("swiglu M=8192 r=128", "mlp M=8192", "lowrank_swiglu prefill", "K step", "prefill.k"),
    Goal("swiglu M=16 r=128", "mlp M=16", "lowrank_swiglu decode", "K step", "decode.k"),
    Goal(
        "embedding M=8192 r=256",
        "embedding M=8192 r=256",
        "lowrank_embedding forward",
        "tile of columns",
        "forward.n",
    ),
    Goal(
        "lowrank M=8192 r=64, backward",
        "training M=8192",
        "lowrank_linear backward",
        "step of a column's rows",
        "_columns_backward.m",
    ),
    Goal(
        "kron M=8192 s=2, backward",
        "training kron 64x64 (x) 64x64 s=2, M=8192",
        "kron_linear backward",
        "row",
        "backward.row",
    ),
)


def launch_of(goal: Goal, chip: Chip) -> Launch:
    """The goal's launch as it would be made on the chip; raises LookupError where there is none."""
    make = _cases()[goal.case]
    ways: list[tuple[str, list[Call], Mapping[str, Any]]] = []
    for name in _ways(make, goal, chip):
        info: dict[str, Any] = {}
        calls = recorded(lambda name=name, info=info: _run(make, goal, name, info), chip)  # type: ignore[misc]
        ways.append((name, calls, info))
    for _, calls, info in ways:
        for call in calls:
            if f"{call.op} {call.config.kernel}" == goal.kernel:
                alone = len(calls) == 1
                return Launch(call, *(info.get(k) if alone else None for k in ("bytes", "flops")))
    raise LookupError(f"{goal.name}: no launch of {goal.kernel} on {chip.name}")


@cache
def _cases() -> dict[str, Callable[[], Case]]:
    return dict(gpu_cases.all_cases())


def _ways(make: Callable[[], Case], goal: Goal, chip: Chip) -> list[str]:
    found: list[str] = []

    def work() -> None:
        found.extend(w for w in narrowed(make(), goal.ranks).ways if w.startswith("fused"))

    recorded(work, chip)
    return found


def _run(make: Callable[[], Case], goal: Goal, name: str, info: dict[str, Any]) -> None:
    case = narrowed(make(), goal.ranks)
    info |= case.info[name]
    way = case.ways[name]
    # `recorded` makes the gradients' launches itself.
    grad = mock.patch.object(torch.autograd, "grad", return_value=None)
    with grad, torch.set_grad_enabled(case.trains):
        way.run(*way.operands())
