"""Python in a process of its own, with this checkout on its path."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYTHONPATH = f"{ROOT}{os.pathsep}{ROOT / 'kernels'}"


def python(
    *given: object, cwd: Path = ROOT, said: str | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """What `python ...` printed, and how it ended.

    cwd          where
    said         what it reads
    environment  variables besides those of this process
    """
    return subprocess.run(
        [sys.executable, *map(str, given)],
        input=said,
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": PYTHONPATH, **environment},
        timeout=300,
    )


def printed(code: str) -> str:
    """What that code prints, which has to end well."""
    done = python("-c", code)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()
