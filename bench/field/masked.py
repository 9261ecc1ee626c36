"""Missing entries: ours beside tensorly and tntorch, on measurements and planted tensors.

Each runs by its own defaults, from the SVD where it has a choice, and ours once more until its
error is the peer's: that of the known entries, and of planted tensors that of the hidden ones too.

    python bench/field/masked.py            # a quarter of an hour
    python bench/field/masked.py --small    # to see that it runs
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench.report import Row, machine, write_results
from tensorlrf.decomposition import fit_cp, fit_tt, fit_tucker

NOTE = (
    "Errors are relative, `known` over the entries that are not hidden, `hidden` over those of "
    "planted tensors that are. "
    "`times` is the median over the rounds of the peer's seconds over ours, taken in turn."
)


@dataclass(frozen=True)
class Case:
    """data    zero where hidden
    mask    True where known
    whole   the planted tensor, where it is one
    """

    data: Tensor
    mask: Tensor
    whole: Tensor | None = None

    def errors(self, dense: Tensor) -> dict[str, float]:
        found = {"known": relative(self.data, dense, self.mask)}
        if self.whole is not None:
            found["hidden"] = relative(self.whole, dense, ~self.mask)
        return found


def relative(tensor: Tensor, dense: Tensor, mask: Tensor) -> float:
    """Over the entries of the mask."""
    return float(((tensor - dense) * mask).norm() / (tensor * mask).norm())


def planted(kind: str, n: int, r: int, share: float = 0.5) -> Case:
    """Of Gaussian factors, float32, a share of the entries known."""
    draws = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draws)

    if kind == "tt":
        whole = torch.einsum("ia,ajb,bk->ijk", normal(n, r), normal(r, n, r), normal(r, n))
    else:
        factors = [normal(n, r) for _ in range(3)]
        core = normal(r, r, r) if kind == "tucker" else torch.zeros(r, r, r)
        if kind == "cp":
            core[range(r), range(r), range(r)] = 1.0
        whole = torch.einsum("abc,ia,jb,kc->ijk", core, *factors)
    mask = torch.rand(whole.shape, generator=draws) < share
    return Case(whole * mask, mask, whole)


def il2() -> Case:
    """IL-2 signalling, 13 x 4 x 12 x 8, of which 192 entries were not measured."""
    from tensorly.datasets import load_IL2data

    data = torch.as_tensor(load_IL2data().tensor)
    return Case(data.nan_to_num(0), ~data.isnan())


def compared(
    name: str,
    case: Case,
    peer: str,
    theirs: Callable[[], Tensor],
    ours: Callable[..., Any],
    rounds: int,
) -> list[Row]:
    """The rows of a case: the peer, ours, and ours until its error is the peer's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bound = case.errors(theirs())["known"]
        calls: dict[str, Callable[[], Tensor]] = {
            peer: theirs,
            "ours": lambda: ours().factors.to_dense(),
            "ours to its error": lambda: ours(
                callback=lambda _, error: error <= bound, tol=1e-9
            ).factors.to_dense(),
        }
        seconds: dict[str, list[float]] = {key: [] for key in calls}
        dense: dict[str, Tensor] = {}
        for k in range(rounds):
            for key in list(calls)[:: 1 if k % 2 == 0 else -1]:
                start = time.perf_counter()
                dense[key] = calls[key]()
                seconds[key].append(time.perf_counter() - start)
    rows = []
    for key, taken in seconds.items():
        ratios = [a / b for a, b in zip(seconds[peer], taken, strict=True)]
        info = {**case.errors(dense[key]), "times": statistics.median(ratios)}
        rows.append(Row(name, key, statistics.median(taken), min(taken), rounds, info))
        print(name, key, f"{rows[-1].median_s:.3g} s", info, flush=True)
    return rows


def by_tensorly(case: Case, kind: str, rank: Any) -> Callable[[], Tensor]:
    import tensorly
    from tensorly.decomposition import parafac, tucker

    tensorly.set_backend("pytorch")
    mask = case.mask.to(case.data.dtype)
    if kind == "cp":
        return lambda: tensorly.cp_to_tensor(parafac(case.data.clone(), rank, mask=mask))
    return lambda: tensorly.tucker_to_tensor(tucker(case.data.clone(), rank, mask=mask))


def by_tntorch(case: Case, rank: int) -> Callable[[], Tensor]:
    try:
        import tntorch
    except ImportError:
        raise SystemExit("tntorch is not there; run it by `make bench-peers`") from None
    places, values = case.mask.nonzero(), case.data[case.mask]

    def call() -> Tensor:
        torch.manual_seed(0)
        found = tntorch.als_completion(
            places, values, ranks_tt=rank, shape=list(case.data.shape), verbose=False
        )
        return found.torch()

    return call


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=Path("bench/results/cpu"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--small", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--only", default="", help="cases whose name begins so")
    given = parser.parse_args()
    torch.set_num_threads(1)
    n, t, rounds = (20, 12, 1) if given.small else (200, 40, given.rounds)
    r = 3 if given.small else 10
    ranks = (r,) * 3
    cases: dict[str, Callable[[str], list[Row]]] = {}

    def add(name: str, case: Callable[[], Case], kind: str, rank: Any) -> None:
        def run(name: str) -> list[Row]:
            made = case()
            peer = by_tntorch(made, rank) if kind == "tt" else by_tensorly(made, kind, rank)
            fit = {"cp": fit_cp, "tucker": fit_tucker, "tt": fit_tt}[kind]
            options = {"init": "svd"} if kind == "cp" else {}
            hidden = made.data.masked_fill(~made.mask, math.nan)
            whose = "tntorch" if kind == "tt" else "tensorly"

            def ours(**more: Any) -> Any:
                return fit(hidden, rank, mask=made.mask, **options, **more)

            return compared(name, made, whose, peer, ours, rounds)

        cases[name] = run

    for rank in (2, 3, 5):
        add(f"IL2 CP {rank}", il2, "cp", rank)
        add(f"IL2 Tucker {rank}", il2, "tucker", (rank, min(rank, 4), rank, rank))
    add(f"planted CP {r} {n}^3", lambda: planted("cp", n, r), "cp", r)
    add(f"planted Tucker {r} {n}^3", lambda: planted("tucker", n, r), "tucker", ranks)
    s = 2 if given.small else 4
    add(f"planted TT {s} {t}^3", lambda: planted("tt", t, s), "tt", s)
    rows = [row for name, run in cases.items() if name.startswith(given.only) for row in run(name)]
    write_results(given.results, "masked", rows, machine("cpu"), NOTE)


if __name__ == "__main__":
    main()
