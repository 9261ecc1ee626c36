"""Memory of CP: peak anonymous resident memory of a fresh process above what it started with.

A child process imports torch, makes the tensor, warms the matrix library up on a small product and
notes its anonymous resident memory (`Anonymous` in /proc/self/smaps_rollup: neither mapped files
nor code). A thread samples it every two milliseconds while `cp` runs; the difference of the highest
sample and the first is what is reported, in MiB, beside the size of the tensor.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

CHILD = """
import json, sys, threading, time
import torch
from tensorlrf.decomposition.cp._cp import fit_cp

def anonymous():
    with open("/proc/self/smaps_rollup") as rollup:
        for line in rollup:
            if line.startswith("Anonymous:"):
                return int(line.split()[1]) / 1024

shape, rank, options = json.loads(sys.argv[1])
rng = torch.Generator().manual_seed(0)
tensor = torch.randn(shape, generator=rng)
torch.randn(64, 64) @ torch.randn(64, 64)
before = peak = anonymous()
done = False

def sample():
    global peak
    while not done:
        peak = max(peak, anonymous())
        time.sleep(0.002)

sampler = threading.Thread(target=sample)
sampler.start()
start = time.perf_counter()
fit = fit_cp(tensor, rank, n_iter_max=20, tol=0, random_state=0, **options)
seconds = time.perf_counter() - start
done = True
sampler.join()
print(json.dumps({
    "peak_mib": peak - before,
    "tensor_mib": tensor.numel() * 4 / 2**20,
    "rel_error": fit.error,
    "seconds": seconds,
}))
"""

CASES: dict[str, tuple[list[int], int, dict[str, Any]]] = {
    "12x2000x2000 r20": ([12, 2000, 2000], 20, {}),
    "12x2000x2000 r20, randomised": ([12, 2000, 2000], 20, {"solver": "cprand"}),
    "512x3x3x512 r256": ([512, 3, 3, 512], 256, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_peak_memory(benchmark: Any, case: str) -> None:
    def run() -> dict[str, float]:
        child = subprocess.run(
            [sys.executable, "-c", CHILD, json.dumps(CASES[case])],
            capture_output=True,
            text=True,
            check=True,
        )
        found: dict[str, float] = json.loads(child.stdout)
        return found

    benchmark.group = f"cp, memory, {case}"
    found = benchmark.pedantic(run, rounds=1)
    benchmark.extra_info.update(
        case=case, peer="ours", share_of_tensor=found["peak_mib"] / found["tensor_mib"], **found
    )
