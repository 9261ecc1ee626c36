"""Generalised CP beside pyttb and GenTen: amino acids, counts of crimes, and a binary graph.

    PYTHONPATH=.venv/peers:.:kernels python bench/field/generalized.py --rounds 3

Ours and pyttb begin at the same factors, GenTen at its own (its Python reads factors that are given
to it in another order). All take one thread, ours in float32, the peers in float64, their own
number. Each ends by its own rule, peers on samples after five epochs at the latest. The loss is of
all entries in float64, of the factors that came back; a time counts where it is no higher than
the peer's.

Counts are those of Chicago's crimes in form (days, hours, areas, kinds of crime; FROSTT), made by a
seed: Poisson of a planted model whose columns are skew. The graph is one of communities in time,
its edges zeros and ones.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import Tensor  # noqa: E402

import tensorlrf  # noqa: E402
from bench.field_data import amino_acids, peer  # noqa: E402
from bench.report import Row, machine, write_results  # noqa: E402
from bench.turns import Turns  # noqa: E402
from tensorlrf import CPFactors, SparseTensor  # noqa: E402
from tensorlrf.decomposition.generalized._data import data_of  # noqa: E402
from tensorlrf.decomposition.generalized._losses import loss_of  # noqa: E402
from tensorlrf.decomposition.generalized._report import stack_of  # noqa: E402

NOTE = (
    "Seconds of the call, medians of rounds in turn, of sparse data one round; one thread. Over "
    "peer: how many times as long each peer took, median of rounds (goals 3 for pyttb, 1 for "
    "GenTen, at no higher loss). Loss: over all entries, float64."
)

EPOCHS = 5
"""Of a thousand steps, the most that peers make on samples: by their own rules they go on for
minutes, to losses that are higher still."""


@dataclass(frozen=True)
class Case:
    """A tensor, the loss, the factors at which all begin, and the most epochs of peers."""

    name: str
    data: Tensor | SparseTensor
    loss: str
    rank: int
    start: CPFactors
    epochs: int = EPOCHS

    @property
    def sparse(self) -> bool:
        return isinstance(self.data, SparseTensor)

    def exact(self, factors: CPFactors) -> float:
        """The loss over all entries."""
        double = self.data.to(torch.float64)
        found, loss = data_of(double, None, None, loss_of(self.loss))
        objective = found.objective(loss)
        assert objective is not None
        return objective(stack_of(factors.to(torch.float64), found.scale))[0]


def start_of(data: Tensor | SparseTensor, rank: int, mean: float) -> CPFactors:
    """Uniform factors whose model has that mean."""
    draws = torch.Generator().manual_seed(1)
    factors = [
        torch.rand(n, rank, generator=draws, dtype=torch.float64, device="cpu") for n in data.shape
    ]
    own = torch.stack([f.mean(0) for f in factors]).prod(0).sum()
    weights = torch.full((rank,), mean / float(own), dtype=torch.float64, device="cpu")
    return CPFactors(weights, tuple(factors))


def crimes(days: int, expected: float) -> SparseTensor:
    """Counts (days, 24, 77, 32), so many in all."""
    draws = torch.Generator().manual_seed(7)
    rank = 10
    factors = [
        torch.rand(n, rank, generator=draws, dtype=torch.float64, device="cpu") ** 4
        for n in (days, 24, 77, 32)
    ]
    shares = torch.stack([f.sum(0) for f in factors]).prod(0)
    count = int(torch.poisson(torch.tensor(expected), generator=draws))
    term = torch.multinomial(shares, count, replacement=True, generator=draws)
    places = torch.stack(
        [
            torch.multinomial(f.T[term], 1, generator=draws)[:, 0]
            if len(f) < 100
            else torch.cat(
                [
                    torch.multinomial(f[:, j], int((term == j).sum()), True, generator=draws)
                    for j in range(rank)
                ]
            )[term.argsort(stable=True).argsort()]
            for f in factors
        ]
    )
    ones = torch.ones(count, dtype=torch.float32, device="cpu")
    return SparseTensor.from_coordinates(places, ones, (days, 24, 77, 32), duplicates="sum")


def graph(nodes: int, times: int) -> SparseTensor:
    """Edges (nodes, nodes, times) of communities that come and go."""
    draws = torch.Generator().manual_seed(3)
    member, active = (
        torch.rand(n, 4, generator=draws, dtype=torch.float64, device="cpu") ** 6
        for n in (nodes, times)
    )
    odds = CPFactors(
        torch.full((4,), 2.0, dtype=torch.float64, device="cpu"), (member, member, active)
    ).to_dense()
    edges = torch.bernoulli(odds / (1 + odds), generator=draws)
    return SparseTensor.of(edges.float())


def cases(small: bool) -> Iterator[Case]:
    acids = amino_acids(torch.float32)
    start = start_of(acids, 3, float(acids.mean()))
    yield Case("amino acids, gaussian", acids, "gaussian", 3, start)
    counts = crimes(60, 2e4) if small else crimes(600, 1e5)
    size = np.prod(counts.shape)
    mean = float(counts.values.sum()) / size
    yield Case("crimes, poisson", counts, "poisson", 10, start_of(counts, 10, mean))
    edges = graph(60, 6) if small else graph(400, 12)
    share = edges.nnz / np.prod(edges.shape)
    yield Case(
        "graph, bernoulli odds", edges, "bernoulli_odds", 4, start_of(edges, 4, share / (1 - share))
    )


# ---- ours and theirs ----------------------------------------------------------------------------


def ours(case: Case) -> Callable[[], CPFactors]:
    return lambda: tensorlrf.generalized_cp(case.data, case.rank, case.loss, init=case.start)


def in_pyttb(case: Case, dense: bool = False) -> tuple[Any, Any]:
    """The tensor and the start as pyttb has them."""
    ttb = peer("pyttb")
    if isinstance(case.data, SparseTensor):
        found = case.data
        subs = np.ascontiguousarray(found.coordinates.T.long().numpy())
        values = found.values.double().numpy()[:, None]
        data = ttb.sptensor(subs, values, found.shape)
        data = data.full() if dense else data
    else:
        data = ttb.tensor(np.asfortranarray(case.data.double().numpy()))
    return data, ttb.ktensor(
        [np.ascontiguousarray(f.numpy()) for f in case.start.factors],
        case.start.weights.numpy().copy(),
    )


def back(model: Any) -> CPFactors:
    factors = tuple(torch.from_numpy(np.array(f)) for f in model.factor_matrices)
    return CPFactors(torch.from_numpy(np.array(model.weights)), factors)


def of_pyttb(case: Case, solver: str, dense: bool) -> Callable[[], CPFactors]:
    peer("pyttb")
    from pyttb.gcp.handles import Objectives
    from pyttb.gcp.optimizers import LBFGSB, Adam

    data, start = in_pyttb(case, dense)
    objective = {
        "gaussian": Objectives.GAUSSIAN,
        "poisson": Objectives.POISSON,
        "bernoulli_odds": Objectives.BERNOULLI_ODDS,
    }[case.loss]

    def run() -> CPFactors:
        optimizer = (
            LBFGSB(iprint=-1) if solver == "lbfgsb" else Adam(printitn=0, max_iters=case.epochs)
        )
        np.random.seed(0)  # noqa: NPY002  # what pyttb draws by
        model, *_ = peer("pyttb").gcp_opt(
            data, case.rank, objective, optimizer, init=start.copy(), printitn=0
        )
        return back(model)

    return run


def of_genten(case: Case, solver: str, dense: bool) -> Callable[[], CPFactors]:
    genten = peer("pygenten")
    data, _ = in_pyttb(case, dense)
    word = case.loss.removesuffix("_odds")  # its Bernoulli loss is that of odds
    options: dict[str, Any] = {"type": word, "printitn": 0, "rank": case.rank, "timings": False}
    if solver == "lbfgsb":
        options |= {"maxiters": 1000}
    else:
        options |= {"maxiters": case.epochs}

    def run() -> CPFactors:
        call = genten.gcp_opt if solver == "lbfgsb" else genten.gcp_sgd
        with silent():
            model, *_ = call(data, **options)
        return back(model)

    return run


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Without what a library in C++ prints."""
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


def calls_of(case: Case) -> dict[str, Callable[[], CPFactors]]:
    calls = {"ours": ours(case)}
    for name, of in (("pyttb", of_pyttb), ("genten", of_genten)):
        if case.sparse:
            calls[f"{name}, adam"] = of(case, "adam", False)
        if not case.sparse or np.prod(case.data.shape) < 1e7:
            calls[f"{name}, lbfgsb"] = of(case, "lbfgsb", True)
    return calls


def rows(small: bool, rounds: int, only: str) -> list[Row]:
    found = []
    for case in cases(small):
        if only not in case.name:
            continue
        case = replace(case, epochs=1) if small else case
        rounds = 1 if case.sparse else rounds  # minutes each
        turns = Turns.take(calls_of(case), rounds, warmup=1 if rounds > 1 else 0)
        for name, result in turns.results.items():
            info: dict[str, Any] = {"loss": f"{case.exact(result):.7g}"}
            if name != "ours":
                info["over peer"] = round(statistics.median(turns.ratios("ours", name)), 2)
            samples = turns.samples[name]
            found.append(
                Row(case.name, name, statistics.median(samples), min(samples), rounds, info)
            )
            print(found[-1], flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--small", action="store_true", help="to see that it runs")
    parser.add_argument("--only", default="", help="part of the name of a case")
    parser.add_argument("--results", type=Path, default=ROOT / "bench/results/cpu")
    given = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)  # pyttb tells of copies
    found = rows(given.small, 1 if given.small else given.rounds, given.only)
    if not given.only:
        write_results(given.results, "field_generalized", found, machine("cpu"), NOTE)


if __name__ == "__main__":
    main()
