"""Interpolative decompositions and CUR beside scipy's, on a decaying matrix.

    python bench/field/skeletons.py

scipy.linalg.interpolative picks columns by pivots of a subsampled random transform at a given rank.
Ours is as it is by default, exact where the rank is large. CUR is told by pivots, its default, with
as many rows as columns and with half as many again, by DEIM and as a cross.
In turn, one thread. The floor is one product of W with as many vectors as the rank has.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

import torch  # noqa: E402
from scipy.linalg import interpolative as scipys  # noqa: E402
from torch import Tensor  # noqa: E402

import tensorlrf  # noqa: E402
from bench.report import Row, machine, write_results  # noqa: E402
from bench.turns import FLOOR, Turns  # noqa: E402

NOTE = (
    "Seconds of a call, medians of rounds in turn; float64, one thread. Over scipy: how many times "
    "as long scipy takes, round by round (goal 2). Beside: the relative Frobenius error, and over "
    "that of scipy (goal 1.1 at most), and the numbers stored over those of an interpolative one."
)
RANKS = (32, 100, 200, 400)


def decaying(m: int, n: int) -> Tensor:
    """Singular values from 1 down to 1e-6."""
    draws = torch.Generator().manual_seed(0)
    left, right = (
        torch.linalg.qr(torch.randn(size, n, dtype=torch.float64, generator=draws))[0]
        for size in (m, n)
    )
    return left * torch.logspace(0, -6, n, dtype=torch.float64) @ right.T


def by_scipy(matrix: Any, rank: int) -> tuple[Any, Any]:
    """Picked columns and coefficients, as ours gives them."""
    order, rest = scipys.interp_decomp(matrix, rank, rand=True)
    columns = scipys.reconstruct_skel_matrix(matrix, rank, order)
    return columns, scipys.reconstruct_interp_matrix(order, rest)


def rows_of(matrix: Tensor, rank: int, rounds: int) -> list[Row]:
    m, n = matrix.shape
    vectors = torch.ones(n, rank, dtype=matrix.dtype)
    calls: dict[str, Callable[[], Any]] = {
        "scipy": lambda: by_scipy(matrix.numpy(), rank),
        "interpolative": lambda: tensorlrf.interpolative(matrix, rank),
        "interpolative, exact": lambda: tensorlrf.interpolative(matrix, rank, solver="exact"),
        "cur": lambda: tensorlrf.cur(matrix, rank),
        "cur, half as many rows again": lambda: tensorlrf.cur(matrix, (rank, rank * 3 // 2)),
        "cur, deim": lambda: tensorlrf.cur(matrix, rank, sampling="deim"),
        "cur, cross": lambda: tensorlrf.cur(matrix, rank, sampling="cross"),
        FLOOR: lambda: matrix @ vectors,
    }
    turns = Turns.take(calls, rounds)
    columns, coefficients = turns.results["scipy"]
    theirs = float(torch.dist(torch.from_numpy(columns @ coefficients), matrix) / matrix.norm())
    found = []
    for name, samples in turns.samples.items():
        ratio = statistics.median(turns.ratios(name, "scipy"))
        info: dict[str, Any] = {"over scipy": round(ratio, 2)}
        if name != FLOOR:
            own = theirs if name == "scipy" else turns.results[name].rel_error(matrix)
            info |= {"error": f"{own:.4g}", "over its error": round(own / theirs, 4)}
            if name != "scipy":
                info["stored"] = round(turns.results[name].n_params / (rank * (m + n + 1)), 3)
        case = f"{m}x{n}, rank {rank}"
        found.append(Row(case, name, statistics.median(samples), min(samples), rounds, info))
        print(found[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--results", type=Path, default=ROOT / "bench/results/cpu")
    parser.add_argument("--small", action="store_true", help="to see that it runs")
    given = parser.parse_args()
    torch.set_num_threads(1)
    matrix, ranks = (decaying(96, 64), (8,)) if given.small else (decaying(4096, 1024), RANKS)
    found = [row for rank in ranks for row in rows_of(matrix, rank, given.rounds)]
    write_results(given.results, "skeletons", found, machine("cpu"), NOTE)


if __name__ == "__main__":
    main()
