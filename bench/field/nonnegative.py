"""Non-negative decompositions beside scikit-learn and tensorly, and the amino-acid data.

    PYTHONPATH=.venv/peers:.:kernels python bench/field/nonnegative.py --rounds 5

Ours, the peer and a floor in turn, in one process, float32. The peer runs by its defaults, and its
loss is what ours has to reach: "ours" is stopped by a callback once it is no higher, "ours,
default" ends by itself. The floor is what no sweep can leave out, times the sweeps that ours made:
one product of the tensor for each factor of a matrix, two contractions for a tensor of order three.
Errors on the amino-acid data, where nothing is timed, are a result of their own (`--only amino`).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

import tensorlrf  # noqa: E402
from bench.field_data import amino_acids, peer  # noqa: E402
from bench.report import Row, machine, write_results  # noqa: E402
from bench.turns import FLOOR, Turns  # noqa: E402
from tensorlrf import decomposition as d  # noqa: E402
from tensorlrf.factors.algebra import khatri_rao  # noqa: E402

NOTE = (
    "Seconds, medians of rounds in turn, one process, float32; planted non-negative factors, a "
    "third of their entries zero, with noise. `over peer`: the peer's time over that of the row, "
    "median of rounds (goals at a loss no higher: 1.5 for NMF, 5 for CP and Tucker). `error` is "
    "relative."
)
AMINO_NOTE = (
    "Fluorescence of five mixtures of three amino acids (Bro 1997): relative errors of the best of "
    "ten starts, beside the published ones of CP, and the cosine of the loadings of samples 1 to 3 "
    "with one-hot ones, the least of three. Nothing is timed."
)
REACHED = {1: 0.59674, 2: 0.36368, 3: 0.02505}
"""Of CP on the amino-acid data, by rank."""


def planted(shape: tuple[int, ...], rank: int, noise: float, seed: int = 0) -> Tensor:
    """A non-negative tensor: a model with zeros, and noise of a share of its norm, clamped."""
    draws = torch.Generator().manual_seed(seed)
    factors = []
    for n in shape:
        u = torch.rand(n, rank, generator=draws)
        factors.append(u.where(torch.rand(n, rank, generator=draws) > 1 / 3, 0.0))
    model = tensorlrf.CPFactors(torch.ones(rank), tuple(factors)).to_dense()
    waves = torch.randn(shape, generator=draws)
    return (model + noise * model.norm() / waves.norm() * waves).clamp_min(0.0)


def rel_error(tensor: Tensor, model: Tensor) -> float:
    """Summed in float64: of 8 million squares float32 has four digits."""
    left, whole = (
        torch.linalg.vector_norm(x, dtype=torch.float64) for x in (tensor - model, tensor)
    )
    return float(left / whole)


def until(loss: float) -> Callable[[Any, float], bool]:
    """A callback that stops there."""
    return lambda factors, error: error <= loss * (1 - 1e-6)  # no higher after the last rounding


def in_turn(
    case: str,
    tensor: Tensor,
    name: str,
    peer_: Callable[[], Any],
    dense: Callable[[Any], Tensor],
    ours: Callable[..., d.Fit[Any]],
    floor: Callable[[int], Any],
    rounds: int,
    others: dict[str, Callable[[], Any]] | None = None,
) -> list[Row]:
    loss = rel_error(tensor, dense(peer_()))
    sweeps = len(ours(callback=until(loss), n_iter_max=3000, tol=0).errors) - 2
    calls = {
        "ours": lambda: ours(callback=until(loss), n_iter_max=3000, tol=0),
        "ours, default": ours,
        name: peer_,
        **(others or {}),
        FLOOR: lambda: floor(sweeps),
    }
    turns = Turns.take(calls, rounds, warmup=0)
    rows = []
    for word, times in turns.samples.items():
        info: dict[str, Any] = {}
        found = turns.results[word]
        if word != FLOOR:
            error = found.error if word.startswith("ours") else rel_error(tensor, dense(found))
            info = {"error": error, "over peer": statistics.median(turns.ratios(word, name))}
        if word.startswith("ours"):
            info["sweeps"] = len(found.errors) - 2
        rows.append(Row(case, word, statistics.median(times), min(times), rounds, info))
        print(rows[-1], flush=True)
    return rows


def products(tensor: Tensor, rank: int) -> Callable[[int], None]:
    """The contractions of so many sweeps, alone."""
    shape, flat = tensor.shape, tensor.flatten(1)
    left = torch.rand(shape[0], rank)
    right = khatri_rao(tuple(torch.rand(n, rank) for n in shape[1:]))

    def run(sweeps: int) -> None:
        for _ in range(sweeps):
            flat @ right
            flat.T @ left

    return run


def nmf_rows(rounds: int, small: bool) -> list[Row]:
    m, n, r = (60, 40, 4) if small else (2000, 1000, 32)
    x = planted((m, n), r, 0.1)
    array = x.numpy()
    sklearn = peer("sklearn.decomposition")

    def theirs() -> Any:
        model = sklearn.NMF(r, random_state=0)
        return model.fit_transform(array), model.components_

    return in_turn(
        f"nmf {m} x {n}, rank {r}", x, "scikit-learn NMF, cd", theirs,
        lambda pair: torch.from_numpy(pair[0] @ pair[1]),
        lambda **options: d.fit_nmf(x, r, random_state=0, **options),
        products(x, r), rounds,
    )  # fmt: skip


def cp_rows(rounds: int, small: bool) -> list[Row]:
    n, r = (12, 3) if small else (200, 16)
    x = planted((n, n, n), r, 0.3)
    tensorly, hals = peer("tensorly"), peer("tensorly.decomposition")
    tensorly.set_backend("pytorch")
    return in_turn(
        f"non-negative cp {n}^3, rank {r}", x, "tensorly non_negative_parafac_hals",
        lambda: hals.non_negative_parafac_hals(x, r, random_state=0), tensorly.cp_to_tensor,
        lambda **options: d.fit_nonnegative_cp(x, r, random_state=0, **options),
        products(x, r), rounds,
        {"tensorly, random start": lambda: hals.non_negative_parafac_hals(
            x, r, init="random", random_state=0)},
    )  # fmt: skip


def tucker_rows(rounds: int, small: bool) -> list[Row]:
    n, r = (12, 3) if small else (200, 10)
    x = planted((n, n, n), r, 0.3)
    tensorly, hals = peer("tensorly"), peer("tensorly.decomposition")
    tensorly.set_backend("pytorch")
    return in_turn(
        f"non-negative tucker {n}^3, ranks {r}", x, "tensorly non_negative_tucker_hals",
        lambda: hals.non_negative_tucker_hals(x, [r] * 3, random_state=0),
        tensorly.tucker_to_tensor,
        lambda **options: d.fit_nonnegative_tucker(x, r, random_state=0, **options),
        products(x, r), rounds,
    )  # fmt: skip


def one_hot(samples: Tensor) -> float:
    """Of the first three samples: how near each is to having one loading alone, the least."""
    rows = samples[:3].abs()
    return float((rows.amax(1) / torch.linalg.vector_norm(rows, dim=1)).min())


def amino_acid_rows(small: bool) -> list[Row]:
    x, rows = amino_acids(), []
    for rank, published in REACHED.items():
        for word, fit in (("cp", d.fit_cp), ("nonnegative_cp", d.fit_nonnegative_cp)):
            more = {"tol": 0.0, "n_iter_max": 20} if small else {"tol": 1e-9, "n_iter_max": 2000}
            fits = [fit(x, rank, random_state=k, **more) for k in range(2 if small else 10)]
            best = min(fits, key=lambda one: one.error)
            scaled = best.factors.factors[0] * best.factors.weights
            info = {"error": best.error, "published": published}
            info |= {"one-hot": one_hot(scaled)} if rank == 3 else {}
            rows.append(
                Row(f"amino acids, rank {rank}", f"ours, {word}", 0.0, 0.0, len(fits), info)
            )
            print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=["nmf", "cp", "tucker", "amino"], help="one of them")
    parser.add_argument("--results", type=Path, default=ROOT / "bench/results/cpu")
    parser.add_argument("--small", action="store_true", help="to see that it runs")
    given = parser.parse_args()
    warnings.simplefilter("ignore")  # of peers that did not converge
    cases: dict[str, Callable[[], list[Row]]] = {
        "nmf": lambda: nmf_rows(given.rounds, given.small),
        "cp": lambda: cp_rows(given.rounds, given.small),
        "tucker": lambda: tucker_rows(given.rounds, given.small),
        "amino": lambda: amino_acid_rows(given.small),
    }
    found = [row for word, rows in cases.items() if given.only in (None, word) for row in rows()]
    amino = [row for row in found if row.case.startswith("amino")]
    if amino and not given.small:
        write_results(given.results, "amino_acids", amino, machine("cpu"), AMINO_NOTE)
    if given.only is None:
        timed = [row for row in found if row not in amino]
        write_results(given.results, "nonnegative", timed, machine("cpu"), NOTE)


if __name__ == "__main__":
    main()
