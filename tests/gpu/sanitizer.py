"""Running a piece of code under compute-sanitizer, where it is installed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SANITIZER = shutil.which("compute-sanitizer") or shutil.which(
    "compute-sanitizer", path="/usr/local/cuda/bin"
)
# A toolkit's tool, which the Python of a GPU machine need not come with.
needs_sanitizer = pytest.mark.skipif(SANITIZER is None, reason="compute-sanitizer is not installed")


def assert_sane(code: str, tool: str) -> None:
    """The code runs without an error of `tool`, memcheck or racecheck."""
    run = subprocess.run(
        [str(SANITIZER), "--tool", tool, "--error-exitcode", "9", sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        timeout=300,
    )
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-1000:]
