"""Terms of CP of ten conv kernels of the CRAFT detector, large by ALS and made small.

    python bench/field/stable_cp.py --threads 1

The ten are those of at most 256 channels, at half as many terms as outputs. At one error: plain ALS
of 100 sweeps, then `stabilize_cp` with its error for bound.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "examples")]

import torch  # noqa: E402
from detector import load_detector  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from bench.report import Row, machine, write_results  # noqa: E402
from tensorlrf.decomposition import fit_cp, fit_stabilize_cp  # noqa: E402
from tensorlrf.factors import CPFactors  # noqa: E402

WIDEST = 256
NOTE = (
    "Size: the squared norms of the rank-one terms as a share of that of the kernel (goal below 5 "
    "at no larger error)."
)


def kernels() -> list[tuple[str, Tensor]]:
    found = [
        (name, conv.weight.detach())
        for name, conv in load_detector().named_modules()
        if isinstance(conv, nn.Conv2d) and conv.kernel_size[0] > 1
    ]
    return [(n, w) for n, w in found if max(w.shape) <= WIDEST and w.shape[1] > 3][:10]


def size(factors: CPFactors, kernel: Tensor) -> float:
    return float(factors.weights.double().square().sum() / kernel.double().square().sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--results", type=Path, default=ROOT / "bench/results/cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--small", action="store_true", help="two kernels, few terms")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    rows = []
    for name, kernel in kernels()[-2:] if options.small else kernels():
        rank = 8 if options.small else kernel.shape[0] // 2
        case = f"{name} {'x'.join(map(str, kernel.shape))} r {rank}"
        begun = time.perf_counter()
        plain = fit_cp(kernel, rank, solver="als", init="random", tol=0, random_state=0)
        between = time.perf_counter()
        stable = fit_stabilize_cp(plain.factors, kernel)
        ended = time.perf_counter()
        for variant, fit, seconds in (
            ("ALS", plain, between - begun),
            ("and stabilize_cp", stable, ended - between),
        ):
            info = {"rel_error": fit.error, "size": round(size(fit.factors, kernel), 2)}
            rows.append(Row(case, variant, seconds, seconds, 1, info))
            print(case, variant, info, f"{seconds:.2f} s", flush=True)
    write_results(options.results, "field_stable_cp", rows, machine("cpu"), NOTE)


if __name__ == "__main__":
    main()
