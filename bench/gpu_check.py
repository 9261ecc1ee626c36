"""The tests of the kernels on a GPU, in as many processes as there are cores for.

    python -m bench.gpu_check --logs gpu-check-logs

Nearly all of their time is the compiler's, so one process would take far longer. What failed is
printed with its reason, shortened; the whole of it is in the logs. Exit code 1 if anything failed,
and 5 if nothing ran.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from tempfile import mkdtemp

ROOT = Path(__file__).resolve().parents[1]
MOST_PROCESSES = 12
MOST_PRINTED = 700  # characters of one failure
# Plugins of a GPU machine's Python are none of ours, so that their warnings stay warnings.
PYTEST = (
    "-m",
    "pytest",
    "-q",
    "-p",
    "no:cacheprovider",
    "-o",
    "filterwarnings=default",
    "-m",
    "gpu",
)
NOTHING_RAN = 5  # of pytest
BEHIND_FAILURES = re.compile(r"\n=+ (?:warnings summary|short test summary info)\b")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_check", description=__doc__)
    parser.add_argument("tests", nargs="*", default=["tests/gpu"], help="files or folders")
    parser.add_argument("--processes", type=int, default=_processes())
    parser.add_argument("--logs", type=Path, help="folder of what the processes said")
    given = parser.parse_args(arguments)
    logs = given.logs or Path(mkdtemp(prefix="gpu-check-"))
    logs.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    running = [_start(k, given.processes, given.tests, logs) for k in range(given.processes)]
    codes = [process.wait() for process in running]
    said = [_log(logs, k).read_text() for k in range(given.processes)]
    counts = sum((counted(text) for text in said), Counter())
    for k, (code, text) in enumerate(zip(codes, said, strict=True)):
        if code not in (0, NOTHING_RAN):
            print(f"---- {_log(logs, k)}\n{failures(text)}", flush=True)
    words = ", ".join(f"{n} {what}" for what, n in sorted(counts.items())) or "nothing ran"
    print(
        f"{words} in {time.monotonic() - start:.0f} s, {given.processes} processes, logs in {logs}"
    )
    if any(code not in (0, NOTHING_RAN) for code in codes):
        return 1
    return 0 if counts["passed"] else NOTHING_RAN


def _processes() -> int:
    return max(1, min(MOST_PROCESSES, (os.cpu_count() or 1) - 2))


def _log(logs: Path, k: int) -> Path:
    return logs / f"{k}.txt"


def _start(k: int, of: int, tests: Sequence[str], logs: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "TENSORLRF_SHARD": f"{k}/{of}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *PYTEST, "--tb=short", *tests]
    with _log(logs, k).open("wb") as log:
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT
        )


def counted(text: str) -> Counter[str]:
    """Outcome -> tests, from the last line that pytest printed."""
    last = text.strip().rpartition("\n")[2]
    found = re.findall(r"(\d+) (passed|failed|errors?|skipped|xfailed)", last)
    return Counter({what.removesuffix("s"): int(n) for n, what in found})


def failures(text: str) -> str:
    """Each failure, shortened to its end, where the reason is; all of a run that broke off."""
    _, _, rest = text.partition("= FAILURES =")
    if not rest:
        return text[-4 * MOST_PRINTED :]
    parts = re.split(r"\n(?=_{3,} .+ _{3,}\n)", BEHIND_FAILURES.split(rest)[0])
    return "\n".join(
        f"{part.strip().splitlines()[0]}\n{part.strip()[-MOST_PRINTED:]}" for part in parts[1:]
    )


if __name__ == "__main__":
    sys.exit(main())
