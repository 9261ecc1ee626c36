"""Finding the fastest launch of a kernel by measurement.

    python -m tensorlrf_kernels.tune 8192x4096x4096x64 16x4096x4096x64 --output tables
    python -m tensorlrf_kernels.tune 8192x4096x4096x64 --chip A100

The second needs no such GPU, and compiles alone. A problem is ROWSxOUTxINxRANK, for `kron_linear`
ROWSxM1xN1xM2xN2xTERMS. From the heuristic's launch the search goes to the fastest of its
neighbours, and on from there, until none is faster. Whatever spills registers or asks for more
shared memory than the chip has is compiled, but never launched.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from tensorlrf_kernels._aot import Compiled, compile_call
from tensorlrf_kernels._tables import bucket, dtype_key, remember, tuned, write_table
from tensorlrf_kernels.chips import KNOWN, Chip, chip_of, known_chip, tf32_allowed
from tensorlrf_kernels.kron_linear.launch import KronProblem
from tensorlrf_kernels.launches import LaunchConfig, Problem, Workload, launch

OPS = (
    *("lowrank_linear", "lowrank_swiglu", "tucker_conv2d", "cp_conv2d", "kron_linear"),
    *("blr_linear", "lowrank_embedding", "tt_embedding", "mttkrp", "sparse_mttkrp"),
)
_SIZES = "ROWSxOUTxINxRANK, as 8192x4096x4096x64"
DIRECTIONS = ("forward", "backward")
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
SECONDS = 20.0  # of a search inside a user's call


@dataclass(frozen=True)
class Tuned:
    """What a search found.

    times    launch -> seconds, the heuristic's first
    refused  launch -> why it was not timed
    """

    times: dict[str, float]
    refused: dict[str, str]
    best: LaunchConfig

    def __str__(self) -> str:
        first, least = next(iter(self.times.values())), min(self.times.values())
        return (
            f"{1e6 * least:.1f} us, {first / least:.2f}x over the heuristic, {len(self.times)} "
            f"launches timed, {len(self.refused)} refused: {self.best}"
        )


def search(
    op: str,
    direction: str,
    problem: Workload,
    chip: Chip,
    measure: Callable[[LaunchConfig], float],
    *,
    seconds: float = float("inf"),
    pool: Executor | None = None,
) -> Tuned | None:
    """Steepest descent over the launches of a problem; None where no kernel serves it.

    measure  launch -> seconds
    seconds  after which no further launch is tried
    pool     compiles the neighbours of a launch side by side
    """
    launches = importlib.import_module(f"tensorlrf_kernels.{op}.launch")
    best: LaunchConfig | None = getattr(launches, direction)(problem, chip)
    if best is None:
        return None
    end = time.monotonic() + seconds
    times: dict[str, float] = {}
    refused: dict[str, str] = {}
    front = [best]
    while front and time.monotonic() < end:
        verdicts = _compiled(op, direction, front, problem, chip, pool)
        for config, words in zip(front, verdicts, strict=True):
            # The heuristic's own launch is what would run otherwise: it is timed whatever it is.
            if words and times:
                refused[str(config)] = words
                continue
            try:
                times[str(config)] = measure(config)
            except RuntimeError as error:  # as of a cooperative grid that the chip cannot hold
                if not times:
                    raise
                refused[str(config)] = (str(error).splitlines() or [type(error).__name__])[0]
                continue
            if times[str(config)] < times[str(best)]:
                best = config
            if time.monotonic() > end:
                break
        around = launches.neighbours(best, problem, chip)
        front = [c for c in around if str(c) not in times and str(c) not in refused]
    return Tuned(times, refused, best)


def verdict(op: str, direction: str, config: LaunchConfig, problem: Workload, chip: Chip) -> str:
    """Why the launch should not be made on the chip, by its compiled code; empty if it may."""
    fused = importlib.import_module(f"tensorlrf_kernels.{op}.fused")
    try:
        for call in fused.trial(direction, config, problem, torch.device("cpu")):
            code: Compiled = compile_call(call, chip)
            problems = code.problems(chip)
            if problems:
                return "; ".join(problems)
    except Exception as error:  # whatever a compiler may raise refuses this launch alone
        return f"{type(error).__name__}: {(str(error).splitlines() or [''])[-1]}"
    return ""


def time_launch(
    op: str, direction: str, config: LaunchConfig, problem: Workload, device: torch.device
) -> float:
    """Median seconds of the launches on the device, its cache flushed before each."""
    from triton.testing import do_bench

    fused = importlib.import_module(f"tensorlrf_kernels.{op}.fused")
    calls = fused.trial(direction, config, problem, device)
    with torch.cuda.device(device):
        milliseconds = do_bench(lambda: launch(calls), warmup=5, rep=25, return_mode="median")
    return 1e-3 * float(milliseconds)


def tune(
    op: str,
    direction: str,
    problem: Workload,
    device: torch.device,
    *,
    seconds: float = float("inf"),
    pool: Executor | None = None,
) -> Tuned | None:
    """Search on a GPU, and use what was found from now on in this process."""
    chip = chip_of(device)

    def measure(config: LaunchConfig) -> float:
        return time_launch(op, direction, config, problem, device)

    found = search(op, direction, problem, chip, measure, seconds=seconds, pool=pool)
    if found is not None:
        remember(chip, op, direction, problem, found.best)
    return found


def tune_once(op: str, direction: str, problem: Workload, device: torch.device) -> None:
    """Tune unless the tables have the problem's bucket, or a CUDA graph is being captured."""
    if device.type != "cuda" or torch.cuda.is_current_stream_capturing():
        return
    if tuned(chip_of(device), op, direction, problem) is None:
        tune(op, direction, problem, device, seconds=SECONDS)


def _compiled(
    op: str,
    direction: str,
    configs: Sequence[LaunchConfig],
    problem: Workload,
    chip: Chip,
    pool: Executor | None,
) -> Iterable[str]:
    work = [(op, direction, config, problem, chip) for config in configs]
    if pool is None:
        return (verdict(*each) for each in work)
    return pool.map(verdict, *zip(*work, strict=True))


# ---- the command --------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tensorlrf_kernels.tune", description="Find the fastest launches."
    )
    parser.add_argument("problems", nargs="+", help=_SIZES)
    parser.add_argument("--op", choices=OPS, default=OPS[0])
    parser.add_argument("--direction", choices=DIRECTIONS, default="forward")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--seconds", type=float, default=60.0, help="of one problem, at the most")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="compile side by side")
    parser.add_argument("--output", type=Path, help="folder of the table that takes the result")
    parser.add_argument(
        "--chip", help=f"compile for {', '.join(KNOWN)} without having it; nothing is timed"
    )
    given = parser.parse_args(arguments)
    try:
        dtype = DTYPES[given.dtype]
        tf32 = dtype is torch.float32 and tf32_allowed()
        problems = [_problem(text, given.op, dtype, tf32) for text in given.problems]
        if given.chip is None and not torch.cuda.is_available():
            raise ValueError("no CUDA GPU is visible, so nothing can be timed; name a --chip")
        chip = known_chip(given.chip) if given.chip else chip_of(torch.device("cuda"))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    spawned: dict[str, Any] = {"max_workers": given.jobs, "mp_context": get_context("spawn")}
    with ProcessPoolExecutor(**spawned) as pool:
        for problem in problems:
            name = f"{given.op}.{given.direction} {given.dtype} {bucket(problem)}"
            if given.chip:
                print(f"{name}\n{_survey(given.op, given.direction, problem, chip, pool)}")
                continue
            device = torch.device("cuda")
            found = tune(
                given.op, given.direction, problem, device, seconds=given.seconds, pool=pool
            )
            print(f"{name}: {found or 'no kernel serves it'}", flush=True)
            if found is not None and given.output is not None:
                key = (given.op, given.direction, dtype_key(problem), bucket(problem))
                write_table(given.output, chip, {key: found.best})
    return 0


def _problem(text: str, op: str, dtype: torch.dtype, tf32: bool) -> Workload:
    kron = op == "kron_linear"
    words = "ROWSxM1xN1xM2xN2xTERMS, as 8192x64x64x64x64x2" if kron else _SIZES
    try:
        sizes = [int(size) for size in text.lower().split("x")]
    except ValueError:
        sizes = []
    if len(sizes) != (6 if kron else 4):
        raise ValueError(f"problem={text!r} is not {words}")
    if min(sizes) < 1:
        raise ValueError(f"problem={text!r}: every size must be 1 at least")
    kind: Callable[..., Workload] = KronProblem if kron else Problem
    return kind(*sizes, dtype, tf32)


def _survey(op: str, direction: str, problem: Workload, chip: Chip, pool: Executor) -> str:
    """The heuristic's launch and its neighbours, each with what its code says."""
    launches = importlib.import_module(f"tensorlrf_kernels.{op}.launch")
    first = getattr(launches, direction)(problem, chip)
    if first is None:
        return "  no kernel serves it"
    configs = [first, *launches.neighbours(first, problem, chip)]
    verdicts = _compiled(op, direction, configs, problem, chip, pool)
    return "\n".join(
        f"  {config}: {words or 'fits'}" for config, words in zip(configs, verdicts, strict=True)
    )


if __name__ == "__main__":
    sys.exit(main())
