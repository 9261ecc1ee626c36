"""Decompositions on a quiet machine, beside two busy processes, and beside torch at full threads.

    python bench/busy.py --results bench/results/cpu            the decompositions, some minutes
    python bench/busy.py --results bench/results/cpu --models   and two models compressed, quiet

Each case runs in turn on torch's default threads, one layer and one pass after the other, and as
this version chooses ("ours"). "over quiet" is the median over that of the same variant on the quiet
machine; a call that took longer than `PATIENCE` is not repeated. Nothing else may run meanwhile.
"peak MB" is the most resident memory while a model is compressed, above that before, the compressed
model included.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "examples")]

import tensorlrf  # noqa: E402
from bench.report import Row, machine, write_results  # noqa: E402
from bench.resident import Resident  # noqa: E402
from tensorlrf.compression.calibration import _suspended  # noqa: E402
from tensorlrf.decomposition.linalg import parallel, threads  # noqa: E402
from tensorlrf.decomposition.linalg.cores import Cores  # noqa: E402

Calls = dict[str, Callable[[], object]]

ROUNDS = 5
PATIENCE = 5.0
"""Seconds."""

SPIN = "while True: pass"
TORCH = "import torch\na = torch.randn(1500, 1500)\nwhile True: a @ a"
NEIGHBOURS = {"quiet": [], "beside two processes": [SPIN, SPIN], "beside torch": [TORCH]}


def decompositions() -> Calls:
    draws = torch.Generator().manual_seed(0)
    matrix, wide = torch.randn(512, 512, generator=draws), torch.randn(1024, 1024, generator=draws)
    cube, small = (
        torch.randn(200, 200, 200, generator=draws),
        torch.randn(64, 64, 9, generator=draws),
    )
    large = torch.randn(2048, 2048, generator=draws)
    return {
        "kron 512x512": lambda: tensorlrf.kron(matrix, 0.25),
        "tucker 200x200x200 r 20": lambda: tensorlrf.tucker(cube, 20),
        "cp 64x64x9 r 16, 10 sweeps": lambda: tensorlrf.cp(
            small, 16, n_iter_max=10, tol=0, random_state=0
        ),
        "blr 512x512 r 8": lambda: tensorlrf.blr(matrix, 8, block=64),
        "tt 200x200x200 r 10": lambda: tensorlrf.tt(cube, 10),
        "svd 1024x1024 r 64": lambda: tensorlrf.svd(wide, 64),
        "svd 2048x2048 r 64, eigh": lambda: tensorlrf.svd(large, 64, solver="eigh"),
    }


def models() -> Calls:
    import detector
    import minilm
    from common import compress

    encoder, tokenizer = minilm.load_minilm(), minilm.load_tokenizer()
    texts = minilm.calibration_batches(tokenizer)
    craft, pictures = detector.load_detector(), detector.calibration_batches()
    return {
        "compress MiniLM, .6": lambda: compress(
            encoder, 0.6, "original", texts, minilm.SKIP, progress=False
        ),
        "compress CRAFT, .5": lambda: compress(
            craft, 0.5, "original", pictures, detector.SKIP, progress=False
        ),
    }


@contextlib.contextmanager
def torchs_default() -> Iterator[None]:
    """All steps on all threads, and nothing side by side."""
    count = torch.get_num_threads()
    with (
        mock.patch.object(threads, "threads_for", lambda kind, work, most, cores: most),
        mock.patch.object(parallel, "look", return_value=Cores(1, 1)),
        mock.patch.object(_suspended, "look", return_value=Cores(count, count)),
        mock.patch.object(_suspended, "workers_for", return_value=1),
    ):
        yield


VARIANTS = {"torch's default": torchs_default, "ours": contextlib.nullcontext}


@contextlib.contextmanager
def beside(programs: list[str]) -> Iterator[None]:
    """While these run; torch at as many threads as it takes by default."""
    free = {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    running = [subprocess.Popen([sys.executable, "-c", text], env=free) for text in programs]
    try:
        if running:
            time.sleep(5)  # until they are at it
        yield
    finally:
        for one in running:
            one.kill()
            one.wait()


def timed(
    call: Callable[[], object], rounds: int, *, memory: bool
) -> tuple[dict[str, list[float]], dict[str, float | None]]:
    """Seconds by variant, in turn, and with `memory` the last peak of it in MB; one round goes
    ahead that does not count."""
    peaks: dict[str, float | None] = {}
    samples: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for k in range(rounds + 1):
        for name, variant in VARIANTS.items():
            if samples[name] and max(samples[name]) > PATIENCE and rounds > 1:
                continue
            with variant():
                resident = Resident() if memory else None
                start = time.perf_counter()
                call()
                taken = time.perf_counter() - start
                peaks[name] = None if resident is None else resident.peak_mb()
            if k or taken > PATIENCE:
                samples[name].append(taken)
    return samples, peaks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--results", type=Path, default=None, help="write busy.json and busy.md")
    parser.add_argument("--models", action="store_true", help="compress two models as well")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--only", nargs="*", default=[], help="cases whose names begin so")
    given = parser.parse_args()
    calls = decompositions() | (models() if given.models else {})
    if given.only:
        calls = {name: call for name, call in calls.items() if name.startswith(tuple(given.only))}
    rows: list[Row] = []
    quiet: dict[tuple[str, str], float] = {}
    for neighbour, programs in NEIGHBOURS.items():
        with beside(programs):
            for name, call in calls.items():
                whole = name.startswith("compress")
                if programs and whole:
                    continue
                times, peaks = timed(call, given.rounds, memory=whole)
                for variant, samples in times.items():
                    median = statistics.median(samples)
                    before = quiet.setdefault((name, variant), median)
                    info: dict[str, float | None] = {"over quiet": median / before}
                    if whole:
                        info["peak MB"] = peaks[variant]
                    case = f"{name}, {neighbour}"
                    rows.append(Row(case, variant, median, min(samples), len(samples), info))
                    print(f"{case}, {variant}: {median:.4f} s, {median / before:.2f} of quiet")
                    if given.results:
                        write_results(given.results, "busy", rows, machine("cpu"), NOTE)


NOTE = "Medians in turn; see bench/busy.py for what the variants and the neighbours are."


if __name__ == "__main__":
    main()
