"""Ten thousand damaged inputs, over every reader of bytes that others may have made.

    python bench/damaged.py --number 10000

The inputs are those of tests/abuse: small valid ones with bits, blocks, lines, files and what they
say changed, checksums that fit the lie among them. Each is read in a process that has a gigabyte
more than it began with, and is started anew where one ends it. What is counted: another exception
than ours, more than two seconds of CPU (or twenty by the clock), more than 64 MiB beyond what there
was, values other than those of the valid input where checksums cover it, a file touched that is
only read.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

from bench.report import Row, machine, write_results  # noqa: E402
from tests.abuse.law import FAULTS, OTHER, REFUSED, SAME, Outcome, Seed, outcome  # noqa: E402
from tests.abuse.readers import ALL, HEAVY, LONG  # noqa: E402

SPARE = 1 << 30
"""Bytes of addresses that a process may have beyond those that it began with."""

SILENCE = 120.0
"""Seconds without an outcome, the import of torch among them, after which a process is killed."""

SHARE, SHARE_LONG, SHARE_HEAVY = 20.0, 5.0, 1.0
"""Of inputs: those of one that runs a model take longer, and those of transformers longer still."""

NOTE = (
    "Inputs of each reader, how reading them ended, and the most that one took. Refused: by one of "
    "our errors. Other values: where a checksum that fits was written by who damaged it, or there "
    "are none (texts and files of others), which then say something else and are taken at that."
)


def worker(name: str, first: int, end: int) -> None:
    """Read the inputs of one reader, a line of JSON for each."""
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as above:
        folder = Path(above) / "f"
        seed = Seed.of(ALL[name], folder)
        size = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (size + SPARE, size + SPARE))
        for k in range(first, end):
            print(json.dumps(vars(outcome(seed, seed.case(k), folder))), flush=True)


def outcomes(name: str, number: int) -> Iterator[Outcome]:
    """Of all inputs of a reader. A process that ends before it has said how an input ended, or
    says nothing for two minutes, counts as a crash."""
    done = 0
    while done < number:
        command = [sys.executable, __file__, "--worker", name, str(done), str(number)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            end = threading.Timer(SILENCE, child.kill)
            end.start()
            for line in child.stdout:
                end.cancel()
                done += 1
                yield Outcome(**json.loads(line))
                end = threading.Timer(SILENCE, child.kill)
                end.start()
            end.cancel()
        if done < number:
            done += 1
            yield Outcome("?", "crash", f"the process ended with {child.returncode}", 0.0, 0)


def row(name: str, found: list[Outcome]) -> Row:
    ends = Counter(one.end for one in found)
    kinds = ALL[name]
    info: dict[str, Any] = {
        "inputs": len(found),
        "kinds of damage": len({one.kind for one in found}),
        "refused": ends[REFUSED],
        "as before": ends[SAME],
        "other values": ends[OTHER],
        "faults": sum(ends[end] for end in FAULTS),
        "most ms of CPU": round(1e3 * max(one.seconds for one in found)),
        "most MiB": max(one.grown for one in found) >> 20,
        "checksums": kinds.sealed,
    }
    seconds = sorted(one.seconds for one in found)
    return Row(name, "read", seconds[len(seconds) // 2], seconds[0], len(found), info)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--number", type=int, default=10_000)
    parser.add_argument("--only", default="", help="part of the names of readers")
    parser.add_argument("--results", type=Path)
    parser.add_argument("--worker", nargs=3)
    given = parser.parse_args()
    if given.worker:
        name, first, end = given.worker
        worker(name, int(first), int(end))
        return
    shares = {**dict.fromkeys(LONG, SHARE_LONG), **dict.fromkeys(HEAVY, SHARE_HEAVY)}
    each = {name: shares.get(name, SHARE) for name in ALL if given.only in name}
    total, rows, faults = sum(each.values()), [], 0
    begun = time.monotonic()
    for name, share in each.items():
        found = list(outcomes(name, -int(-given.number * share // total)))
        rows.append(row(name, found))
        print(f"{time.monotonic() - begun:6.0f} s  {name}: {rows[-1].info}", flush=True)
        for k, one in enumerate(found):
            if one.end in FAULTS:
                faults += 1
                print(f"          {k} {one.kind}: {one.end}, {one.told}", flush=True)
    inputs = sum(one.rounds for one in rows)
    print(f"{inputs:,} inputs, {faults} faults")
    if given.results:
        note = f"{NOTE} In all {inputs:,} inputs, {faults} faults."
        write_results(given.results, "damaged", rows, machine("cpu"), note)
    sys.exit(faults > 0)


if __name__ == "__main__":
    main()
