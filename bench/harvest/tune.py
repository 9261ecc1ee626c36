"""Fifth phase: the fastest launches of the problems that matter most."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context

from bench.harvest.plan import TUNINGS, Tuning
from bench.harvest.serve import Tell
from bench.kernel_cases import DEVICE
from bench.tune import problems
from tensorlrf_kernels._tables import bucket, dtype_key
from tensorlrf_kernels.chips import chip_of
from tensorlrf_kernels.launches import LaunchConfig, Workload
from tensorlrf_kernels.tune import search, time_launch

KEPT = 6.0  # s of a case's time that no launch may be begun in


def handle(case: str, seconds: float, skip: Sequence[str], tell: Tell) -> None:
    """A row for every launch that was timed, then one for the fastest."""
    op, problem = problem_of(next(one for one in TUNINGS if str(one) == case))
    chip, end = chip_of(DEVICE), time.monotonic() + seconds
    head = {
        "op": op,
        "direction": "forward",
        "dtype": dtype_key(problem),
        "bucket": bucket(problem),
    }

    def measure(config: LaunchConfig) -> float:
        spent = time_launch(op, "forward", config, problem, DEVICE)
        tell({"row": {"kind": "launch", **head, "launch": config.to_json(), "seconds": spent}})
        return spent

    left = end - KEPT - time.monotonic()
    found = search(op, "forward", problem, chip, measure, seconds=left, pool=compilers())
    if found is None:
        raise LookupError(f"no kernel serves {case}")
    row = {
        "kind": "tuned",
        **head,
        "launch": found.best.to_json(),
        "heuristic_s": next(iter(found.times.values())),
        "best_s": min(found.times.values()),
        "timed": len(found.times),
        "refused": found.refused,
    }
    tell({"row": {**row, "say": f"{case}: {found}"}})


def prepare() -> None:
    """Compilers, and the list of problems."""
    compilers().submit(int)
    _problems()


def problem_of(tuning: Tuning) -> tuple[str, Workload]:
    """Op and problem; raises LookupError where `bench.tune` has none of that bucket to tune."""
    for op, direction, problem in _problems():
        if (op, direction, bucket(problem)) == (tuning.op, "forward", tuning.bucket):
            return op, problem
    raise LookupError(f"no problem of {tuning}")


@cache
def _problems() -> list[tuple[str, str, Workload]]:
    return list(problems())


@cache
def compilers() -> ProcessPoolExecutor:
    """Processes that have imported what a compilation needs before the first is asked for."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["bench.harvest.launches", "tensorlrf_kernels.tune"])
    return ProcessPoolExecutor(mp_context=context)
