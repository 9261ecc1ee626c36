"""What `import tensorlrf` costs beyond `import torch`, in fresh processes."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CODE = """
import time, torch
start = time.perf_counter()
import tensorlrf
print(time.perf_counter() - start)
"""


def test_import_beyond_torch(benchmark) -> None:
    paths = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    beyond: list[float] = []

    def fresh_process() -> None:
        run = subprocess.run(
            [sys.executable, "-c", CODE],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONPATH": paths},
            cwd=ROOT,
        )
        beyond.append(float(run.stdout))

    benchmark.pedantic(fresh_process, rounds=7, warmup_rounds=1)
    benchmark.extra_info.update(
        case="process that imports torch and tensorlrf",
        peer="ours",
        beyond_torch_s=statistics.median(beyond[1:]),
    )
