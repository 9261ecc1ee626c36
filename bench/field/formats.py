"""Tensor formats beside the peers that have them, in turn in one process.

    PYTHONPATH=.venv/peers:. python bench/field/formats.py --rounds 5

PARAFAC2 and coupled factorisation beside tensorly, each side stopped at the same error: the peer
runs as it is by default, and ours until its error is at most that of the peer. Beside both stands
a floor: the products that a sweep cannot do without, as many as ours made. Hierarchical Tucker
stands beside the trains of tntorch and of ours at one error, with what each stores; the
incremental SVD beside scikit-learn's IncrementalPCA, by the error of all rows in its basis.
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

from bench.report import Row, machine, write_results  # noqa: E402
from tensorlrf.decomposition import (  # noqa: E402
    IncrementalSVD,
    fit_coupled_factorization,
    fit_hierarchical_tucker,
    fit_parafac2,
    fit_tt,
    svd,
)
from tensorlrf.decomposition.linalg._gram import mode_gram  # noqa: E402

Timed = Callable[[], float]
"""Runs once and gives the relative error."""

NOTE = (
    "Medians of rounds in turn, one thread. Ours stops at the first sweep whose error is at most "
    "that of the peer at its end (error); the floor is what its sweeps multiply, and nothing else."
)


def in_turn(case: str, runs: dict[str, Timed], rounds: int) -> list[Row]:
    """Rows of one case; the first of `runs` is the peer that the others are measured by."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    errors: dict[str, float] = {}
    for _ in range(rounds):
        for name, run in runs.items():
            begun = time.perf_counter()
            errors[name] = run()
            times[name].append(time.perf_counter() - begun)
    base, rows = next(iter(runs)), []
    for name, own in times.items():
        ratio = statistics.median(a / b for a, b in zip(times[base], own, strict=True))
        info = {"error": errors[name], "over peer": round(ratio, 2)}
        rows.append(Row(case, name, statistics.median(own), min(own), rounds, info))
        print(rows[-1], flush=True)
    return rows


def parafac2(rounds: int, small: bool) -> list[Row]:
    from tensorly.decomposition import parafac2 as theirs

    count, rows, columns, rank = (6, 8, 10, 2) if small else (60, 80, 100, 6)
    draws = np.random.RandomState(0)
    a, b, c = 0.2 + draws.rand(count, rank), draws.rand(rank, rank), draws.rand(columns, rank)
    slices = []
    for k in range(count):
        basis = np.linalg.qr(draws.standard_normal((rows + draws.randint(rows // 2), rank)))[0]
        slices.append((basis @ b * a[k]) @ c.T)
    size = np.sqrt(sum(np.square(x).mean() for x in slices) / count)
    slices = [(x + 0.1 * size * draws.standard_normal(x.shape)).astype(np.float32) for x in slices]
    reached: list[float] = [0.0, 0.0]  # the peer's error, and our sweeps

    def peer() -> float:
        _, errors = theirs(slices, rank, init="svd", n_iter_max=200, return_errors=True)
        reached[0] = float(errors[-1])
        return reached[0]

    def ours() -> float:
        fit = fit_parafac2(slices, rank, callback=lambda _, error: error <= reached[0])
        reached[1] = len(fit.errors) - 2
        return fit.error

    stack = torch.zeros(count, max(x.shape[0] for x in slices), columns, dtype=torch.float64)
    for own, x in zip(stack, slices, strict=True):
        own[: len(x)] = torch.from_numpy(x)
    p, right = stack.new_ones(count, stack.shape[1], rank), stack.new_ones(columns, rank)

    def floor() -> float:
        for _ in range(int(reached[1])):
            torch.linalg.vector_norm(stack @ right)
            torch.linalg.vector_norm(p.mT @ stack)
        return float("nan")

    runs = {"tensorly": peer, "ours": ours, "floor": floor}
    return in_turn(f"parafac2 {count} slices x{columns} r {rank}", runs, rounds)


def coupled(rounds: int, small: bool) -> list[Row]:
    from tensorly.decomposition._cmtf_als import coupled_matrix_tensor_3d_factorization as theirs

    sizes, rank = ((8, 7, 6, 5), 2) if small else ((120, 80, 60, 100), 8)
    draws = np.random.RandomState(0)
    a, b, c, v = (draws.rand(n, rank) for n in sizes)
    x, y = np.einsum("ir,jr,kr->ijk", a, b, c), a @ v.T
    x = (x + 0.1 * x.std() * draws.standard_normal(x.shape)).astype(np.float32)
    y = (y + 0.1 * y.std() * draws.standard_normal(y.shape)).astype(np.float32)
    whole = float(np.square(x).sum() + np.square(y).sum())
    reached: list[float] = [0.0, 0.0]

    def peer() -> float:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that its sweeps ran out
            _, _, errors = theirs(x, y, rank)
        reached[0] = float(np.sqrt(float(errors[-1]) / whole))
        return reached[0]

    def ours() -> float:
        stop: Any = lambda _, error: error <= reached[0]  # noqa: E731  # a callback, as it is read
        fit = fit_coupled_factorization([x, y], rank, callback=stop)
        reached[1] = len(fit.errors) - 2
        return fit.error

    wide = torch.from_numpy(x).double()
    flat, thin = wide.reshape(sizes[0], -1), torch.ones(sizes[1] * sizes[2], rank).double()

    def floor() -> float:
        for _ in range(3 * int(reached[1])):
            torch.linalg.vector_norm(flat @ thin)
        return float("nan")

    name = f"coupled {'x'.join(map(str, sizes[:3]))} and {sizes[0]}x{sizes[3]} r {rank}"
    return in_turn(name, {"tensorly": peer, "ours": ours, "floor": floor}, rounds)


def smooth(sizes: tuple[int, ...]) -> torch.Tensor:
    """1 / (1 + x + y + ...) on a grid with a little noise, float32: ranks fall fast."""
    total = torch.zeros((), dtype=torch.float64)
    for n in sizes:
        total = total[..., None] + torch.linspace(0, 2, n, dtype=torch.float64)
    draws = torch.Generator().manual_seed(0)
    noise = 1e-5 * torch.randn(sizes, generator=draws, dtype=torch.float64)
    return (1 / (1 + total) + noise).float()


def trees(rounds: int, small: bool) -> list[Row]:
    """Hierarchical Tucker beside tntorch's Tucker of a train, and the SVDs that none does without;
    all to one relative error, with the numbers that each stores."""
    import tntorch

    error = 1e-3
    tensor = smooth((4, 5, 4, 5) if small else (24, 20, 24, 20, 16))
    stored: dict[str, int] = {}

    def of(tree: str) -> Timed:
        def run() -> float:
            fit = fit_hierarchical_tucker(tensor, error=error, tree=tree)
            stored[f"ours, {tree}"] = fit.factors.n_params
            return fit.error

        return run

    def ours_tt() -> float:
        fit = fit_tt(tensor, error=error)
        stored["ours, tt"] = fit.factors.n_params
        return fit.error

    def peer() -> float:
        found = tntorch.Tensor(tensor, ranks_tt=None, eps=error)
        stored["tntorch, tt"] = found.numcoef()
        return float((found.torch() - tensor).norm() / tensor.norm())

    def floor() -> float:
        for k in range(tensor.ndim):
            mode_gram(tensor, k)
        return float("nan")

    runs = {
        "tntorch, tt": peer,
        "ours, balanced": of("balanced"),
        "ours, train": of("train"),
        "ours, tt": ours_tt,
        "floor": floor,
    }
    rows = in_turn(f"hierarchical tucker {'x'.join(map(str, tensor.shape))}", runs, rounds)
    for row in rows:
        if row.variant in stored:
            row.info["numbers"] = stored[row.variant]
    return rows


def stream(rounds: int, small: bool) -> list[Row]:
    """Rows in batches; what scikit-learn is given has a mean of zero, which it subtracts."""
    from sklearn.decomposition import IncrementalPCA

    rows, width, batch, rank = (60, 12, 20, 3) if small else (20000, 512, 500, 20)
    draws = torch.Generator().manual_seed(0)
    spread = 0.9 ** torch.arange(width)
    matrix = torch.randn(rows, width, generator=draws) * spread
    matrix -= matrix.reshape(-1, batch, width).mean(1).repeat_interleave(batch, 0)
    array = matrix.numpy()

    def peer() -> float:
        found = IncrementalPCA(n_components=rank, batch_size=batch).fit(array)
        basis = torch.from_numpy(found.components_).to(matrix)
        return float((matrix - matrix @ basis.T @ basis).norm() / matrix.norm())

    def ours() -> float:
        found = IncrementalSVD(rank)
        for part in matrix.split(batch):
            found.update(part)
        basis = torch.nn.functional.normalize(found.factors.right)
        return float((matrix - matrix @ basis.T @ basis).norm() / matrix.norm())

    def batch_svd() -> float:
        return svd(matrix, rank).rel_error(matrix)

    runs = {"scikit-learn": peer, "ours": ours, "ours, all at once": batch_svd}
    return in_turn(f"incremental svd {rows}x{width} r {rank}, batches of {batch}", runs, rounds)


CASES = {"parafac2": parafac2, "coupled": coupled, "trees": trees, "stream": stream}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--results", type=Path, default=ROOT / "bench/results/cpu")
    parser.add_argument("--small", action="store_true", help="to see that it runs")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = [row for name in given.cases for row in CASES[name](given.rounds, given.small)]
    write_results(given.results, "field_formats", rows, machine("cpu"), NOTE)


if __name__ == "__main__":
    main()
