"""Two ranks of one thread beside one process: a checkpoint by layers, and calibration.

    python bench/ranks.py --gigabytes .35 --rounds 3

In turn, round by round: one process of one thread, two ranks of one thread each (torchrun), and one
process as it is by default. Times are those of the call, from when all ranks are there to when the
first has its result; starting Python and torch is not among them. The checkpoint is that of
bench/stream.py, by SVD at half of the numbers; calibration is `compress` of a perceptron with
residuals on batches that are there, half of them on each of two ranks.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

import torch  # noqa: E402
from torch import Tensor, distributed, nn  # noqa: E402

import tensorlrf  # noqa: E402
from bench import stream  # noqa: E402
from bench.report import Row, machine, onto, write_results  # noqa: E402

KEEP = 0.5
ONE, TWO, DEFAULT = "1 process of 1 thread", "2 ranks of 1 thread", "1 process, default"
NOTE = (
    "Seconds of the call, medians of rounds in turn. Over one: how many times as long as two ranks "
    "one process of one thread takes (goal 1.7 for the checkpoint, 1.6 for calibration); over "
    "default: likewise one process with torch's own number of threads (goal .95)."
)


class Block(nn.Module):
    """A perceptron beside which its input goes on."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.down(self.up(x).relu())
        return y


def checkpoint(source: Path, target: Path, small: bool) -> float:
    begun = time.perf_counter()
    tensorlrf.compress_checkpoint(source, target, keep_params=KEEP, progress=False)
    return time.perf_counter() - begun


def calibration(source: Path, target: Path, small: bool) -> float:
    width, blocks, count, rows = (32, 2, 8, 64) if small else (256, 4, 96, 1024)
    torch.manual_seed(0)
    model = nn.Sequential(*(Block(width) for _ in range(blocks)))
    draws = torch.Generator().manual_seed(0)
    batches = [torch.randn(rows, width, generator=draws) for _ in range(count)]
    there = distributed.is_initialized()
    rank, size = (distributed.get_rank(), distributed.get_world_size()) if there else (0, 1)
    own = batches[count * rank // size : count * (rank + 1) // size]
    begun = time.perf_counter()
    tensorlrf.compress(
        model, keep_params=KEEP, calibration=own, skip=[], allocation="uniform", metric="outputs",
        progress=False,
    )  # fmt: skip
    return time.perf_counter() - begun


CASES: dict[str, Callable[[Path, Path, bool], float]] = {
    "checkpoint": checkpoint,
    "calibration": calibration,
}


def measure(case: str, source: Path, target: Path, small: bool) -> None:
    """In this process, or on this rank; the first one tells."""
    several = "TORCHELASTIC_RUN_ID" in os.environ
    if several:
        distributed.init_process_group("gloo")
        distributed.barrier()
    seconds = CASES[case](source, target, small)
    if not several or not distributed.get_rank():
        print(json.dumps({"seconds": seconds}))
    if several:
        distributed.destroy_process_group()


def timed(way: str, case: str, source: Path, target: Path, small: bool) -> float:
    """In processes of their own."""
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    environment |= {} if way == DEFAULT else {"OMP_NUM_THREADS": "1"}
    start = [sys.executable]
    if way == TWO:
        start += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*start, __file__, "--measure", case, str(source), str(target)]
    command += ["--small"] if small else []
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    line = next(one for one in done.stdout.splitlines() if one.startswith('{"seconds"'))
    return float(json.loads(line)["seconds"])


def rows(cases: Iterable[str], source: Path, folder: Path, rounds: int, small: bool) -> list[Row]:
    found = []
    for case in cases:
        times: dict[str, list[float]] = {ONE: [], TWO: [], DEFAULT: []}
        for k in range(rounds):
            for n, (way, own) in enumerate(times.items()):
                own.append(timed(way, case, source, folder / f"{case}-{k}-{n}", small))
        for way, own in times.items():
            info: dict[str, Any] = {}
            if way == TWO:
                ratios = {
                    name: statistics.median(a / b for a, b in zip(times[other], own, strict=True))
                    for name, other in (("over one", ONE), ("over default", DEFAULT))
                }
                info = {name: round(ratio, 3) for name, ratio in ratios.items()}
            found.append(Row(case, way, statistics.median(own), min(own), rounds, info))
            print(found[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--gigabytes", type=float, default=0.35)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES), help="keep others")
    parser.add_argument("--results", type=Path, default=ROOT / "bench/results/cpu")
    parser.add_argument("--folder", type=Path, help="with room for it, and what comes of it")
    parser.add_argument("--small", action="store_true", help="to see that it runs")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        case, source, target = given.measure
        measure(case, Path(source), Path(target), given.small)
        return
    if given.small:
        stream.WIDTH, stream.INNER, stream.WORDS, given.gigabytes = 64, 128, 100, 5e-4
    with tempfile.TemporaryDirectory(dir=given.folder) as made:
        source = Path(made) / "in"
        source.mkdir()
        stream.make(source, stream.tensors(int(given.gigabytes * 1e9)))
        found = rows(given.only, source, Path(made), given.rounds, given.small)
    about, former = machine("cpu"), given.results / "ranks.json"
    if len(given.only) < len(CASES) and former.exists():
        found, _ = onto(former, found, about)
    write_results(given.results, "ranks", found, about, NOTE)


if __name__ == "__main__":
    main()
