"""Every kernel on a GPU in one run, beside dense, compiled dense, the chain and the floor.

    python -m bench.gpu --results bench/results
    python -m bench.gpu --only "batch 1" --onto bench/results/nvidia-h200/kernels.json

writes kernels.json, kernels.md and kernels.png into a folder named by the GPU. The four constants
of the cost model come first, then the cases by how much hangs on them; what the time did not
reach is listed, and can be had by further runs, which keep the cases of the file that they are put
onto. Times are of CUDA graphs, on operands that the L2 cache does not hold; the eager
ones stand beside them.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from bench import gpu_cases, kernel_cases, served
from bench.constants import measure
from bench.kernel_cases import Case, Launch
from bench.kernel_summary import summary
from bench.report import Row, machine, onto, slug, write_results
from bench.roofline import plot_measured
from tensorlrf_kernels.chips import chip_of
from tensorlrf_kernels.tune import OPS, verdict

SECONDS = 500.0  # of the whole run
CASE_SECONDS = 0.08  # of each clock of a case
SAVED_EACH = 20  # cases: a run that is cut off has not been for nothing
STEM = "kernels"
Cases = Sequence[tuple[str, Callable[[], Case]]]


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("--results", type=Path, default=Path("bench/results"))
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of the whole run")
    parser.add_argument("--only", default="", help="cases with this word in their name")
    parser.add_argument("--onto", type=Path, help="kernels.json whose other cases are kept")
    given = parser.parse_args(arguments)
    end = time.monotonic() + given.seconds
    about = machine("cuda")
    print(", ".join(f"{key} {value}" for key, value in about.items()), flush=True)
    if given.onto is not None:
        try:
            onto(given.onto, [], about)
        except ValueError as error:
            raise SystemExit(f"--onto: {error}") from None
    cases = [pair for pair in gpu_cases.all_cases() if given.only in pair[0]]
    _compile_ahead(cases)
    about["constants"] = constants = measure()
    print("\n".join(f"{name} {value:.4g}" for name, value in constants.items()), flush=True)
    target = given.results / slug(about["device"])
    rows: list[Row] = []
    failed: list[str] = []

    def save(missed: list[str]) -> list[Row]:
        whole, words = rows, about | {"not_reached": missed, "failed": failed}
        if given.onto is not None:
            whole, words = onto(given.onto, rows, words)
        write_results(target, STEM, whole, words, note=_note(missed))
        return whole

    names = [name for name, _ in cases]
    reached = 0
    for name, make in cases:
        if time.monotonic() > end:
            break
        found = _measured(name, make)
        rows += found
        if not found:
            failed.append(name)
        reached += 1
        if reached % SAVED_EACH == 0:
            save(names[reached:])
    print("\n".join(summary(save(names[reached:]))))
    _plot(target)
    return 0


def _alike(part: Any) -> Any:
    """A part of a problem as far as the compiler sees it."""
    return part % 16 == 0 if type(part) is int else part


def _launches(cases: Cases) -> Iterator[Launch]:
    """How the kernels of all cases will be launched; a case at a time, for the memory."""
    for name, make in cases:
        try:
            yield from make().launches()
        except Exception as error:  # it will fail again when it is measured, and alone
            print(f"{name}: {type(error).__name__}: {error}", flush=True)


def _compile_ahead(cases: Cases) -> None:
    """Fill Triton's cache side by side: compiling is most of the work of a first run."""
    chip = chip_of(kernel_cases.DEVICE)
    # A launch is compiled once for all sizes that are multiples of 16, or are not, alike.
    work = {
        (op, direction, str(config), *(_alike(part) for part in problem)): (
            *(op, direction, config, problem, chip),
        )
        for op, direction, config, problem in _launches(cases)
    }
    start = time.monotonic()
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        columns = zip(*work.values(), strict=True)
        found = list(pool.map(verdict, *columns, chunksize=4)) if work else []
    spilling = [each for each, words in zip(work.values(), found, strict=True) if words]
    print(f"{len(work)} launches compiled in {time.monotonic() - start:.0f} s", flush=True)
    for op, direction, config, problem, _ in spilling:
        print(f"does not fit: {op} {direction} {config} {problem}", flush=True)


def _measured(name: str, make: Callable[[], Case]) -> list[Row]:
    """The rows of a case; none where it fails, and the reason on the screen."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        served.forget()
        try:
            rows = make().measure(CASE_SECONDS)
        except Exception as error:  # whatever it is, the other cases need the GPU's time
            print(f"{name}: {type(error).__name__}: {error}", flush=True)
            rows = []
    if served.fallbacks():  # the library ran in a kernel's place
        print(f"{name}: not told as fused: {', '.join(served.fallbacks())}", flush=True)
        rows = [row for row in rows if not row.variant.startswith("fused")]
    for warning in said:
        if any(op in str(warning.message) for op in OPS):
            print(f"{name}: {warning.message}", flush=True)
    if kernel_cases.DEVICE.type == "cuda":
        torch.cuda.empty_cache()
    return rows


def _note(missed: list[str]) -> str:
    note = "Median of CUDA graph replays; every call on operands that the L2 cache does not hold."
    return note + (f" Not reached in the time: {len(missed)} cases." if missed else "")


def _plot(target: Path) -> None:
    try:
        plot_measured(json.loads((target / f"{STEM}.json").read_text()), target / f"{STEM}.png")
    except ImportError as error:
        print(f"no plot: {error}")


if __name__ == "__main__":
    sys.exit(main())
