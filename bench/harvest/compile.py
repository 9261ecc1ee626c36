"""Second phase: the exact launches of what follows, compiled on all cores.

    python -m bench.harvest.compile --chip H200           counts them; needs no GPU
    python -m bench.harvest.compile --chip H200 --keep    and fills Triton's cache

All processes of a harvest share one cache. What is not compiled here in time is where it is first
launched, one after the other.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from unittest import mock

import torch

from bench.harvest import check, plan, tune
from bench.harvest import time as timing
from bench.harvest.launches import compiled, recorded, seen
from bench.harvest.serve import Tell
from bench.kernel_cases import DEVICE
from tensorlrf_kernels.chips import Chip, chip_of, known_chip
from tensorlrf_kernels.launches import Call, kernels_of

KEPT = 3.0  # s of the phase, for the list of what was skipped
FAILED = "does not compile"
Listed = tuple[str, Call, str]  # where it is needed, the launch, and what the compiler sees of it


def handle(case: str, seconds: float, skip: Sequence[str], tell: Tell) -> None:
    """A row for every distinct launch: compiled, in so many seconds, or skipped."""
    run(chip_of(DEVICE), tell, time.monotonic() + seconds - KEPT)


def prepare() -> None:
    """The lists of cases and of problems, and what compiles."""
    timing.cases()
    tune.prepare()
    for op in plan.OPS:
        if find_spec(f"tensorlrf_kernels.{op}.kernel"):
            kernels_of(op)


def run(chip: Chip, tell: Tell, end: float, most: int = plan.MOST_COMPILED) -> None:
    """Compile until `end`, as of time.monotonic(), the first launches first."""
    counts: Counter[str] = Counter()
    waiting: dict[Future[tuple[float, str]], str] = {}

    def outcome(name: str, how: str, **more: object) -> None:
        counts[how] += 1
        row = {"kind": "launch compiled", "launch": name, "outcome": how, **more}
        if how == FAILED:
            row["say"] = f"{how}: {name} {more['reason']}"
        tell({"row": row})

    def gather(seconds: float) -> None:
        done, _ = wait(waiting, max(0.0, seconds), FIRST_COMPLETED)
        for future in done:
            name = waiting.pop(future)
            spent, reason = future.result()
            how = FAILED if reason else "compiled"
            outcome(name, how, seconds=round(spent, 2), **({"reason": reason} if reason else {}))

    pool = tune.compilers()
    try:
        for name, call, _ in listed(chip, tell, counts):
            if time.monotonic() > end:
                outcome(_words(name, call), "skipped", reason="no time")
                break  # nor to list what else there is
            if counts["distinct"] > most:
                outcome(_words(name, call), "skipped", reason="beyond the most")
            else:
                waiting[pool.submit(compiled, call, chip)] = _words(name, call)
                gather(0.0)
        while waiting and time.monotonic() < end:
            gather(end - time.monotonic())
        for name in waiting.values():
            outcome(name, "skipped", reason="no time")
        said = ", ".join(f"{n} {what}" for what, n in counts.items())
        tell({"row": {"kind": "launches", **counts, "say": f"launches: {said}"}})
    finally:
        tune.compilers.cache_clear()
        processes = list((pool._processes or {}).values())
        pool.shutdown(wait=False, cancel_futures=True)
        for process in processes if waiting else ():
            process.kill()


def _words(name: str, call: Call) -> str:
    return f"{name}: {call.op} {call.config}"


def listed(chip: Chip, tell: Tell, counts: Counter[str]) -> Iterator[Listed]:
    """The distinct launches of all phases, in the order in which they are needed; of several that
    are the same to the compiler the first. What comes to grief is told, and fails again later."""
    found: set[str] = set()
    for name, work in needed(chip):
        try:
            calls = work()
        except Exception as error:  # the others are needed all the same
            tell({"row": {"kind": "not listed", "name": name, "say": f"not listed: {name}: "
                          f"{type(error).__name__}: {error}"[:300]}})  # fmt: skip
            continue
        for call in calls:
            counts["launches"] += 1
            key = seen(call, chip)
            if key not in found:
                found.add(key)
                counts["distinct"] += 1
                yield name, call, key


def needed(chip: Chip) -> Iterator[tuple[str, Callable[[], list[Call]]]]:
    """What launches something, and how it is found out; by how much hangs on it."""
    timing.cases()  # their lists are drawn, which nothing fake can be
    half = len(plan.TIMINGS) // 2
    for timed in plan.TIMINGS[:half]:
        yield timed.case, partial(recorded, partial(_time, timed.case), chip)
    for name in sorted(check.CHECKS, key=lambda name: plan.SHAPES.index(name[1])):
        yield " ".join(name), partial(_check, " ".join(name), chip)
    for timed in plan.TIMINGS[half:]:
        yield timed.case, partial(recorded, partial(_time, timed.case), chip)
    for tuning in plan.TUNINGS:
        yield f"tuning {tuning}", partial(_tune, tuning, chip)


def _time(name: str) -> None:
    """The fused ways of a case."""
    case = timing.case_of(name)
    # `recorded` makes the gradients' launches itself.
    with mock.patch.object(torch.autograd, "grad", return_value=None):
        for variant, way in case.ways.items():
            if variant.startswith("fused"):
                with torch.set_grad_enabled(case.trains):
                    way.run(*way.operands())


def _check(name: str, chip: Chip) -> list[Call]:
    one = check.check_of(name)

    def work() -> None:
        with torch.no_grad():
            one.run(*one.operands())
        one.run(*one.leaves())

    return recorded(work, chip)


def _tune(tuning: plan.Tuning, chip: Chip) -> list[Call]:
    """The heuristic's launch and its neighbours, which the search begins with."""
    op, problem = tune.problem_of(tuning)
    launches = import_module(f"tensorlrf_kernels.{op}.launch")
    fused = import_module(f"tensorlrf_kernels.{op}.fused")
    first = launches.forward(problem, chip)
    configs = [first, *launches.neighbours(first, problem, chip)]
    cpu = torch.device("cpu")
    return [call for config in configs for call in fused.trial("forward", config, problem, cpu)]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.harvest.compile", description=__doc__)
    parser.add_argument("--chip", required=True, help="compile for it, whether it is here or not")
    parser.add_argument("--keep", action="store_true", help="compile, into TRITON_CACHE_DIR")
    parser.add_argument("--seconds", type=float, default=float("inf"))
    given = parser.parse_args(arguments)
    chip = known_chip(given.chip)
    if given.keep:
        run(chip, _print, time.monotonic() + given.seconds)
        return 0
    counts: Counter[str] = Counter()
    for name, call, _ in listed(chip, _print, counts):
        print(_words(name, call))
    print(", ".join(f"{n} {what}" for what, n in counts.items()))
    return 0


def _print(line: dict[str, dict[str, str]]) -> None:
    if line["row"].get("say"):
        print(line["row"]["say"], flush=True)


if __name__ == "__main__":
    sys.exit(main())
