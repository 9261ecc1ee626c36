"""CP by its defaults beside tensorly's on four public tensors: error and time, seed by seed.

    PYTHONPATH=.venv/peers:.:kernels python bench/field/defaults.py --threads 1

COVID-19 serology, IL2, kinetic and Indian pines of `tensorly.datasets`, ranks 3, 5 and 8, float32
and float64, five seeds. IL2 has 192 entries that are missing, all of two ligands: it is taken
without these two, 11 x 4 x 12 x 8. Both have their defaults: tensorly an SVD start, of which a seed
draws the columns beyond a mode's size, 100 sweeps and tol 1e-8. Ours and theirs in turn.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

import numpy as np  # noqa: E402
import torch  # noqa: E402

from bench.field_data import peer  # noqa: E402
from bench.report import Row, machine, write_results  # noqa: E402
from tensorlrf.decomposition import fit_cp  # noqa: E402

RANKS = (3, 5, 8)
NOTE = (
    "Times are medians over the seeds. Worst: the largest relative difference of our error to "
    "tensorly's for the same seed (goal: at most +0.005). Speedup: the median over the seeds (goal "
    "2). Size: the squared norms of the terms as a share of that of the tensor, median."
)
Array = np.ndarray[Any, Any]


def tensors() -> dict[str, Array]:
    data = peer("tensorly.datasets")
    il2 = np.asarray(data.load_IL2data().tensor)
    whole = ~np.isnan(il2).any(axis=(1, 2, 3))
    return {
        "COVID": np.asarray(data.load_covid19_serology().tensor),
        "IL2": np.ascontiguousarray(il2[whole]),
        "kinetic": np.asarray(data.load_kinetic().tensor),
        "Indian pines": np.asarray(data.load_indian_pines().tensor),
    }


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    begun = time.perf_counter()
    found = call()
    return time.perf_counter() - begun, found


def measure(name: str, tensor: Array, rank: int, seeds: int) -> list[Row]:
    decomposition, cp_tensor = peer("tensorly.decomposition"), peer("tensorly.cp_tensor")
    ours, theirs, apart, sizes = [], [], [], []
    wide, norm = tensor.astype(np.float64), float(np.linalg.norm(tensor.astype(np.float64)))
    given = torch.from_numpy(tensor)
    errors: dict[str, list[float]] = {"ours": [], "tensorly": []}
    for seed in range(seeds):
        seconds, fit = timed(lambda seed=seed: fit_cp(given, rank, random_state=seed))
        ours.append(seconds)
        seconds, found = timed(
            lambda seed=seed: decomposition.parafac(tensor, rank, random_state=seed)
        )
        theirs.append(seconds)
        model = cp_tensor.cp_to_tensor((found[0], [f.astype(np.float64) for f in found[1]]))
        errors["ours"].append(fit.error)
        errors["tensorly"].append(float(np.linalg.norm(wide - model)) / norm)
        apart.append(errors["ours"][-1] / errors["tensorly"][-1] - 1)
        sizes.append(float(fit.factors.weights.double().square().sum()) / norm**2)
    case = f"{name} {'x'.join(map(str, tensor.shape))} r {rank} {tensor.dtype}"
    speedups = [b / a for a, b in zip(ours, theirs, strict=True)]
    told = {
        "rel_error": round(statistics.median(errors["ours"]), 5),
        "worst": round(max(apart), 4),
        "speedup": round(statistics.median(speedups), 2),
        "size": round(statistics.median(sizes), 2),
    }
    base = {"rel_error": round(statistics.median(errors["tensorly"]), 5), "speedup": 1.0}
    return [
        Row(case, "ours", statistics.median(ours), min(ours), seeds, told),
        Row(case, "tensorly", statistics.median(theirs), min(theirs), seeds, base),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--results", type=Path, default=ROOT / "bench/results/cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--small", action="store_true", help="two tensors, one rank and two seeds")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    names = ("COVID", "IL2") if options.small else ("COVID", "IL2", "kinetic", "Indian pines")
    known, rows = tensors(), []
    fit_cp(torch.from_numpy(known["IL2"]), 2, random_state=0)  # what a first call alone takes
    for name in names:
        for rank in RANKS[:1] if options.small else RANKS:
            for dtype in (np.float32, np.float64):
                seeds = 2 if options.small else options.seeds
                rows += measure(name, known[name].astype(dtype), rank, seeds)
                print(rows[-2].case, rows[-2].info, flush=True)
    write_results(options.results, "field_defaults", rows, machine("cpu"), NOTE)


if __name__ == "__main__":
    main()
