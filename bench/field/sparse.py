"""MTTKRP of a sparse tensor, and CP of a graph of a million edges, beside pyttb and genten.

    python bench/field/sparse.py --rounds 5

In turn, round by round, each in a process of its own with the same nonzeros: ours in float32 and in
float64, `sptensor.mttkrp` of pyttb and the MTTKRP of genten's CP-ALS as genten times it (both in
float64). Of each the mean over the modes. Nonzeros are sorted by mode beforehand (ours) as a
decomposition has them after its first sweep; that time stands apart. The floors are what no way
can do without: values and indices read once, at the speed of a copy, and the rows of two factors
gathered by torch's own index_select.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import Tensor  # noqa: E402

import tensorlrf  # noqa: E402
from bench.report import Row, machine, write_results  # noqa: E402
from tensorlrf.decomposition import fit_cp  # noqa: E402
from tensorlrf.decomposition.linalg.sparse._nonzeros import Nonzeros  # noqa: E402

OURS, WIDE, PYTTB, GENTEN = "ours, float32", "ours, float64", "pyttb", "genten"
FLOOR = "floor: bytes of nonzeros, and gathers"
RANK = 16
NOTE = (
    "Seconds of one thread, medians of rounds in turn. `x pyttb` and `x genten`: how many times as "
    "long as this way these take (goals of MTTKRP: 10 and .3). Of CP all make the same number of "
    "sweeps from random starts of their own, the true relative error beside; `peak MB` is the "
    "largest resident size of the process, `at rest` before the call."
)


# ---- the tensors --------------------------------------------------------------------------------


def uniform(size: int, nnz: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Coordinates (nnz, 3) anywhere in a cube, each once, and values."""
    draws = np.random.default_rng(0)
    flat = np.unique(draws.integers(0, size**3, nnz + nnz // 50))
    flat = np.sort(draws.permutation(flat)[:nnz])
    places = np.stack([flat // size**2, flat // size % size, flat % size], 1)
    return places.astype(np.int32), draws.random(nnz)


def graph(nodes: int, kinds: int, edges: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Edges of several kinds between nodes in 16 groups, nine of ten within a pair of groups that
    their kind has; few nodes have many edges. Values are one."""
    draws = np.random.default_rng(1)
    groups = draws.integers(0, RANK, nodes)
    members = [np.flatnonzero(groups == g) for g in range(RANK)]
    count = 2 * edges
    kind = draws.integers(0, kinds, count)

    def ends(of: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        share = draws.random(count) ** 3  # the first ones most often
        sizes = np.array([len(m) for m in members])[of]
        starts = np.concatenate([[0], np.cumsum([len(m) for m in members])])[of]
        within = np.concatenate(members)[starts + (share * sizes).astype(int)]
        return np.where(draws.random(count) < 0.95, within, draws.integers(0, nodes, count))

    heads, tails = ends(kind % RANK), ends(kind * 7 % RANK)
    places = np.unique(np.stack([heads, tails, kind], 1), axis=0)
    kept = np.sort(draws.permutation(len(places))[:edges])
    return places[kept].astype(np.int32), np.ones(len(kept))


# ---- one way, in a process of its own -----------------------------------------------------------


def resident() -> float:
    """The largest resident size so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def sparse_tensor(path: Path, dtype: torch.dtype) -> tensorlrf.SparseTensor:
    held = np.load(path)
    values = torch.from_numpy(held["values"]).to(dtype)
    places = torch.from_numpy(held["places"].T.copy())
    return tensorlrf.SparseTensor.from_coordinates(places, values, tuple(map(int, held["shape"])))


def factors_of(shape: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    draws = torch.Generator().manual_seed(0)
    return [torch.randn(n, RANK, generator=draws, dtype=torch.float64).to(dtype) for n in shape]


def our_mttkrp(path: Path, dtype: torch.dtype) -> dict[str, float]:
    tensor = sparse_tensor(path, dtype)
    begun = time.perf_counter()
    nonzeros = Nonzeros.of(tensor, dtype)
    columns = [nonzeros.picked(u, k) for k, u in enumerate(factors_of(tensor.shape, dtype))]
    for mode in range(3):
        nonzeros.sorted(mode)
    sort = time.perf_counter() - begun
    return {"seconds": over_modes(lambda k: nonzeros.mttkrp(columns, k)), "sort": sort}


def floor_mttkrp(path: Path, dtype: torch.dtype) -> dict[str, float]:
    """The nonzeros at the speed of a copy, and two gathers, a block in cache at a time."""
    tensor = sparse_tensor(path, dtype)
    columns = factors_of(tensor.shape, dtype)
    moved = torch.empty((dtype.itemsize + 8) * tensor.nnz // 8, dtype=torch.float64)
    other = torch.empty_like(moved)
    rows = [torch.empty(1 << 14, RANK, dtype=dtype) for _ in range(2)]

    def gather(mode: int) -> None:
        for begin in range(0, tensor.nnz, 1 << 14):
            for k, row in zip([k for k in range(3) if k != mode], rows, strict=True):
                at = tensor.coordinates[k, begin : begin + (1 << 14)]
                torch.index_select(columns[k], 0, at, out=row[: len(at)])

    copied = over_modes(lambda _: other.copy_(moved)) / 2  # read and written
    return {"seconds": over_modes(gather), "bytes alone": copied}


def over_modes(run: Callable[[int], object]) -> float:
    """The mean over three modes, of the better of two runs after one."""
    times = []
    for mode in range(3):
        run(mode)
        each = []
        for _ in range(2):
            begun = time.perf_counter()
            run(mode)
            each.append(time.perf_counter() - begun)
        times.append(min(each))
    return statistics.mean(times)


def pyttb_mttkrp(path: Path) -> dict[str, float]:
    pyttb = peer("pyttb")
    held = np.load(path)
    tensor = pyttb.sptensor(
        held["places"].astype(int), held["values"][:, None], tuple(map(int, held["shape"]))
    )
    columns = [u.numpy() for u in factors_of(tensor.shape, torch.float64)]
    return {"seconds": over_modes(lambda k: tensor.mttkrp(columns, k))}


def genten_cp(path: Path, sweeps: int) -> dict[str, float]:
    """CP-ALS, and what it says of its MTTKRPs."""
    genten = peer("pygenten")
    held = np.load(path)
    shape = tuple(map(int, held["shape"]))
    tensor = genten.Sptensor(shape, held["places"].astype(np.uint64), held["values"])
    rest = resident()
    begun = time.perf_counter()
    with tempfile.TemporaryFile("w+") as said:
        with outputs_in(said):
            genten.cp_als(tensor, rank=RANK, maxiters=sweeps, tol=0.0, seed=1, timings=True)
        seconds = time.perf_counter() - begun
        said.seek(0)
        lines = said.read().splitlines()
    words = {key: line for line in lines for key in ("MTTKRP total", "Final fit") if key in line}
    each = float(words["MTTKRP total"].split("average time =")[1].split()[0])
    error = 1 - float(words["Final fit"].split("=")[1])
    return {
        "seconds": each, "cp": seconds, "error": error, "peak MB": resident(), "at rest": rest,
    }  # fmt: skip


@contextmanager
def outputs_in(file: Any) -> Iterator[None]:
    """What libraries print goes to a file."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(file.fileno(), 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def our_cp(path: Path, sweeps: int) -> dict[str, float]:
    tensor = sparse_tensor(path, torch.float32)
    rest = resident()
    begun = time.perf_counter()
    fit = fit_cp(tensor, RANK, n_iter_max=sweeps, tol=0.0, random_state=0)
    seconds = time.perf_counter() - begun
    return {"cp": seconds, "error": fit.error, "peak MB": resident(), "at rest": rest}


def pyttb_cp(path: Path, sweeps: int) -> dict[str, float]:
    pyttb = peer("pyttb")
    held = np.load(path)
    tensor = pyttb.sptensor(
        held["places"].astype(int), held["values"][:, None], tuple(map(int, held["shape"]))
    )
    rest = resident()
    begun = time.perf_counter()
    with tempfile.TemporaryFile("w+") as said, outputs_in(said):
        made = pyttb.cp_als(tensor, RANK, maxiters=sweeps, stoptol=0.0, printitn=0)[2]
    seconds = time.perf_counter() - begun
    return {
        "cp": seconds, "error": 1 - float(made["fit"]), "peak MB": resident(), "at rest": rest,
    }  # fmt: skip


def peer(name: str) -> Any:
    try:
        return __import__(name)
    except ImportError:
        raise SystemExit(f"{name} is missing; make bench-peers installs it") from None


MTTKRP: dict[str, Callable[[Path], dict[str, float]]] = {
    OURS: lambda path: our_mttkrp(path, torch.float32),
    WIDE: lambda path: our_mttkrp(path, torch.float64),
    PYTTB: pyttb_mttkrp,
    GENTEN: lambda path: genten_cp(path, 2),
    FLOOR: lambda path: floor_mttkrp(path, torch.float32),
}
CP: dict[str, Callable[[Path, int], dict[str, float]]] = {
    OURS: our_cp,
    PYTTB: pyttb_cp,
    GENTEN: genten_cp,
}


# ---- all in turn --------------------------------------------------------------------------------


def measured(case: str, way: str, path: Path, sweeps: int, threads: int) -> dict[str, float]:
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "OMP_PROC_BIND": "false"}
    command = [sys.executable, __file__, "--measure", case, way, str(path), str(sweeps)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(done.stderr.strip() or done.stdout.strip())
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def rows_of(
    case: str, path: Path, ways: list[str], key: str, sweeps: int, rounds: int, threads: int
) -> list[Row]:
    told: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way in ways:
            told[way].append(measured(key, way, path, sweeps, threads))
    seconds = "cp" if key == "cp" else "seconds"
    times = {way: [one[seconds] for one in each] for way, each in told.items()}
    rows = []
    for way, own in times.items():
        info: dict[str, Any] = {}
        if way in (OURS, WIDE):
            for other in (PYTTB, GENTEN):
                pairs = zip(times[other], own, strict=True)
                info[f"x {other}"] = round(statistics.median(a / b for a, b in pairs), 2)
        skipped = {"seconds", "cp"} | ({"error", "peak MB", "at rest"} if key != "cp" else set())
        last = told[way][-1]
        info |= {name: round(v, 5) for name, v in last.items() if name not in skipped}
        rows.append(Row(case, way, statistics.median(own), min(own), rounds, info))
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--results", type=Path, default=ROOT / "bench/results/cpu")
    parser.add_argument("--only", choices=("mttkrp", "cp"), help="of both; nothing is written")
    parser.add_argument("--small", action="store_true", help="to see that it runs")
    parser.add_argument("--measure", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        case, way, path, sweeps = given.measure
        found = MTTKRP[way](Path(path)) if case == "mttkrp" else CP[way](Path(path), int(sweeps))
        print(json.dumps(found), flush=True)
        os._exit(0)  # genten's own end is a crash where torch is loaded too
    size, nnz = (100, 20_000) if given.small else (2000, 10**7)
    nodes, kinds, edges = (1000, 20, 20_000) if given.small else (100_000, 50, 10**6)
    sweeps = 5 if given.small else 50
    found = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "nonzeros.npz"
        if given.only != "cp":
            places, values = uniform(size, nnz)
            np.savez(path, places=places, values=values, shape=np.array([size] * 3))
            case = f"MTTKRP, {nnz:,} nonzeros in {size}^3, r={RANK}"
            found += rows_of(case, path, list(MTTKRP), "mttkrp", 0, given.rounds, given.threads)
        if given.only != "mttkrp":
            places, values = graph(nodes, kinds, edges)
            np.savez(path, places=places, values=values, shape=np.array([nodes, nodes, kinds]))
            size_of = f"{edges:,} edges, {nodes:,} nodes, {kinds} kinds"
            case = f"CP of {size_of}, r={RANK}, {sweeps} sweeps"
            found += rows_of(case, path, list(CP), "cp", sweeps, given.rounds, given.threads)
    if not given.small and not given.only:
        write_results(given.results, "sparse", found, machine("cpu"), NOTE)


if __name__ == "__main__":
    main()
