"""The minutes of a lent GPU, put to use: `make gpu-harvest PYTHON=python3`.

    python -m bench.harvest --out DIR
    python -m bench.harvest --out DIR --phases time,tune --seconds 240

Ends within 525 s, whatever hangs or breaks. In DIR are rows.jsonl, a line for every result as it
comes, summary.json, and log.txt with what the processes said; `python -m bench.harvest.merge DIR`
makes result files of them. Exit code 0 if all was done, 1 if not, 2 without a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.harvest import plan
from bench.harvest.driver import Driver
from bench.harvest.journal import Journal
from bench.harvest.process import Worker

SINCE = time.monotonic()
ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 60.0  # s for the driver of the GPU to answer at all
MOST_TOLD = 60  # lines of what was not done


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.harvest", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("harvest"), help="folder of the results")
    parser.add_argument("--phases", default="", help="names divided by commas; all by default")
    parser.add_argument("--seconds", type=float, help="of the whole; the phases share it")
    given = parser.parse_args(arguments)
    try:
        phases = plan.chosen(given.phases, plan.phases(os.cpu_count() or 1))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    about = machine()
    if about is None:
        return 2
    seconds = min(plan.SECONDS, given.seconds or sum(phase.seconds for phase in phases))
    journal = Journal(given.out)
    say(", ".join(f"{key} {value}" for key, value in about.items()))
    journal.row({"phase": "", "op": "", "case": "", "kind": "machine", "machine": about})
    driver = Driver(phases, start, journal, seconds=seconds, since=SINCE, say=say)
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda number, _: driver.stop(signal.Signals(number).name))
    driver.run()
    for line in ending(driver.summary()):
        say(line)
    journal.close()
    return int(any(one["outcome"] != "done" for one in driver.outcomes))


def machine() -> dict[str, Any] | None:
    """Device, versions and commit; None, with the reason on the screen, without a GPU. It comes
    before all phases: without it no row can be told of a device."""
    asked = [sys.executable, "-m", "bench.harvest.machine"]
    try:
        done = subprocess.run(
            asked, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True, timeout=PATIENCE
        )
    except subprocess.TimeoutExpired:
        print(f"the GPU did not answer within {PATIENCE:.0f} s", file=sys.stderr)
        return None
    if done.returncode:
        return None
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def start(phase: str, op: str) -> Worker:
    """The worker of a phase."""
    command = [sys.executable, "-m", "bench.harvest.serve", phase]
    return Worker(command, environment(), str(ROOT))


def environment() -> dict[str, str]:
    """Of the workers: one cache of compiled kernels, and one thread each."""
    paths = (str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", ""))
    return {
        **os.environ,
        "TRITON_CACHE_DIR": cache(),
        "TRITON_INTERPRET": "0",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(paths),
    }


def cache() -> str:
    """Triton's cache: the one that is named, else one that further runs on this machine find."""
    named = os.environ.get("TRITON_CACHE_DIR")
    return named or str(Path(tempfile.gettempdir()) / f"tensorlrf-triton-{os.getuid()}")


def say(line: str) -> None:
    """At once, and shortened: the end of what is printed may be all that is kept."""
    print(line[:400], flush=True)


def ending(summary: dict[str, Any]) -> list[str]:
    """What was done, and what was not."""
    stopped = f", stopped by {summary['stopped']}" if summary["stopped"] else ""
    lines = [f"{summary['rows']} rows in {summary['seconds']:.0f} s{stopped}"]
    for phase, counts in summary["phases"].items():
        lines.append(f"{phase}: " + (", ".join(f"{n} {what}" for what, n in counts.items()) or "-"))
    others = summary["not_done"]
    lines += [
        f"{one['outcome']}: {one['phase']} {one['case']} {one['reason']}"[:160].rstrip()
        for one in others[:MOST_TOLD]
    ]
    if len(others) > MOST_TOLD:
        lines.append(f"and {len(others) - MOST_TOLD} more, in summary.json")
    return lines


if __name__ == "__main__":
    sys.exit(main())
