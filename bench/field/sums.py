"""Robust PCA and low rank + sparse on planted matrices, beside a plain ADMM in numpy.

The peers are the method as Candes et al. 2011 write it (algorithm 1, a penalty that stays), and as
Lin, Chen & Ma 2010 do (a penalty that grows, by 1.5, as is usual), with an SVD of the whole in each
iteration; all stopped at the same residual, in float64, on one matrix, in turn.

    python bench/field/sums.py            # a quarter of an hour, most of it the first peer's
    python bench/field/sums.py --small    # to see that it runs
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

import tensorlrf  # noqa: E402
from bench.report import Row, machine, write_results  # noqa: E402

RESIDUAL = 1e-7
NOTE = (
    "`low` and `sparse` are the relative errors of the two planted parts (goal 1e-5), `times` and "
    "`times, growing` the seconds of the two ADMM over those of the row, medians over rounds in "
    "turn (goal 2)."
)
PLAIN, GROWING = "ADMM in numpy", "ADMM in numpy, growing penalty"


def planted(n: int, r: int, share: float) -> tuple[Tensor, Tensor]:
    """A matrix of rank r of normal factors, and a sparse one of entries of its size."""
    draws = torch.Generator().manual_seed(0)
    low = torch.randn(n, r, generator=draws, dtype=torch.float64) @ torch.randn(
        r, n, generator=draws, dtype=torch.float64
    )
    at = torch.randperm(n * n, generator=draws)[: int(share * n * n)]
    sparse = torch.zeros(n * n, dtype=torch.float64)
    sparse[at] = 5 * r**0.5 * torch.randn(len(at), generator=draws, dtype=torch.float64)
    return low, sparse.view(n, n)


def admm(w: np.ndarray[Any, Any], growth: float = 1.0, most: int = 1000) -> tuple[Any, Any]:
    """Candes et al. 2011, algorithm 1: mu = n1 n2 / (4 ‖W‖_1). With a growth above one, Lin et al.
    2010, algorithm 5: mu from 1.25 / ‖W‖ on, and multipliers W / max(‖W‖, ‖W‖_max / weight)."""
    weight = 1 / np.sqrt(max(w.shape))
    sparse, norm = np.zeros_like(w), np.linalg.norm(w)
    if growth > 1:
        largest = np.linalg.norm(w, 2)
        mu, dual = 1.25 / largest, w / max(largest, np.abs(w).max() / weight)
    else:
        mu, dual = w.size / (4 * np.abs(w).sum()), np.zeros_like(w)
    low, limit = sparse, 1e7 * mu
    for _ in range(most):
        u, s, vt = np.linalg.svd(w - sparse + dual / mu, full_matrices=False)
        low = (u * np.maximum(s - 1 / mu, 0)) @ vt
        rest = w - low + dual / mu
        sparse = np.sign(rest) * np.maximum(np.abs(rest) - weight / mu, 0)
        missed = w - low - sparse
        dual += mu * missed
        if np.linalg.norm(missed) <= RESIDUAL * norm:
            break
        mu = min(growth * mu, limit)
    return torch.from_numpy(low), torch.from_numpy(sparse)


def timed(run: Callable[[], tuple[Any, Any]]) -> tuple[float, Tensor, Tensor]:
    begun = time.perf_counter()
    low, sparse = run()
    return time.perf_counter() - begun, low, sparse


def off(found: Tensor, truth: Tensor) -> float:
    return float((found - truth).norm() / truth.norm())


def rows(n: int, r: int, share: float, rounds: int) -> list[Row]:
    low, sparse = planted(n, r, share)
    w = low + sparse

    def robust() -> tuple[Tensor, Tensor]:
        parts = tensorlrf.robust_pca(w, tol=RESIDUAL).parts
        return parts[0].to_dense(), parts[1].to_dense()

    def given() -> tuple[Tensor, Tensor]:
        found = tensorlrf.low_rank_plus_sparse(w, r, sparsity=1 - share, n_iter_max=30, tol=0.0)
        return found.parts[0].to_dense(), found.parts[1].to_dense()

    ways: dict[str, Callable[[], tuple[Any, Any]]] = {
        "robust_pca": robust,
        "low_rank_plus_sparse, rank and sparsity given": given,
        PLAIN: lambda: admm(w.numpy()),
        GROWING: lambda: admm(w.numpy(), 1.5),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    errors: dict[str, dict[str, float]] = {}
    for _ in range(rounds):
        for name, run in ways.items():
            taken, l, s = timed(run)
            seconds[name].append(taken)
            errors[name] = {"low": off(l, low), "sparse": off(s, sparse)}
    found = []
    for name, own in seconds.items():
        info = {k: float(f"{e:.2g}") for k, e in errors[name].items()}
        for column, peer in (("times", PLAIN), ("times, growing", GROWING)):
            ratios = (a / b for a, b in zip(seconds[peer], own, strict=True))
            info[column] = round(statistics.median(ratios), 2)
        case = f"{n} x {n}, rank {r}, {share:.0%} of the entries spoilt"
        found.append(Row(case, name, statistics.median(own), min(own), rounds, info))
        print(found[-1], flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--results", type=Path, default=ROOT / "bench/results/cpu")
    parser.add_argument("--small", action="store_true", help="to see that it runs")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.small:
        rows(120, 6, 0.05, 1)
        return
    found = rows(1000, 50, 0.05, given.rounds)
    write_results(given.results, "sums", found, machine("cpu"), NOTE)


if __name__ == "__main__":
    main()
