"""Tensors larger than memory, or in shards: memory, passes, bytes between ranks, equality.

    python bench/large.py --gigabytes 4 --limit 512MB
    python bench/large.py --shards

Makes a .npy file of low rank plus noise in a folder that goes afterwards, and takes its CP in a
process of its own. Its anonymous memory is looked at a thousand times a second, above what there is
once tensorlrf is imported. With --shards, CP and Tucker of a tensor over 2 and 4 processes of gloo
on this machine: bytes as their sockets count them, beside those of the model in docs/large.md.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

import numpy as np  # noqa: E402
import torch  # noqa: E402

import tensorlrf  # noqa: E402
from bench.anonymous import Peak  # noqa: E402
from bench.own_process import measured  # noqa: E402
from bench.report import machine  # noqa: E402
from tensorlrf import large  # noqa: E402

RANK = 8
NOISE = 0.1
"""Root mean square, beside a tensor of one."""

SMALL = 200
"""Sides of the tensor that is decomposed in memory as well."""

SHAPE, CORE, TERMS = (64, 800, 640), (6, 5, 4), 16
"""Of what lies in shards, its Tucker ranks, and the terms of its CP."""

Found = dict[str, Any]
"""A row: what was decomposed, how, and what is counted."""

LIMITS = {"cp": "512MB", "tucker": "512MB", "svd": "640MB", "tt": "700MB"}
"""The longer side of a cube of 1000 as a matrix has a million rows; an SVD and a train hold a few
times as many numbers as its rank."""

WHAT = tuple(LIMITS)
SWEEPS = 20
TIMEOUT = 600  # seconds for ranks
NOTE = (
    "A cube in float32, rank 8 planted and noise of a tenth. Memory is anonymous, above "
    "interpreter, torch and tensorlrf. `from in memory` is the largest difference of the factors "
    "from those of tensorlrf.cp of a cube of 200, of their largest entry, after twenty sweeps. "
    "Shards: `sockets` are the bytes that TCP counts on the rank that sends most, `model` those of "
    "docs/large.md, `counted` those of the library; `from one rank` is the largest difference of "
    "the factors from those of one process."
)


def make(path: Path, n: int) -> None:
    """A cube of low rank, a slab at a time."""
    draws = torch.Generator().manual_seed(0)
    a, b, c = (torch.randn(n, RANK, generator=draws) for _ in range(3))
    file = np.lib.format.open_memmap(path, "w+", np.dtype("float32"), (n, n, n))
    behind = (b[:, None] * c).reshape(n * n, RANK)
    for start in range(0, n, 8):
        slab = a[start : start + 8] @ behind.T / math.sqrt(RANK)
        slab += NOISE * torch.randn(slab.shape, generator=draws)
        file[start : start + 8] = slab.reshape(-1, n, n).numpy()
    file.flush()


def run(path: str, what: str, limit: str, sweeps: str) -> dict[str, Any]:
    """A decomposition under a limit, in a process that has nothing else."""
    calls: dict[str, Callable[[], Any]] = {
        "cp": lambda: large.fit_cp(
            path, RANK, random_state=0, n_iter_max=int(sweeps), tol=1e-4, memory_limit=limit
        ),
        "tucker": lambda: large.fit_tucker(path, RANK, memory_limit=limit),
        "tt": lambda: large.fit_tt(path, RANK, memory_limit=limit),
        "svd": lambda: large.fit_svd(path, RANK, random_state=0, memory_limit=limit),
    }
    begun = time.perf_counter()
    with Peak(every=0.001) as peak:
        fit = calls[what]()
    seconds = time.perf_counter() - begun
    return {
        "seconds": seconds, "peak": peak.n_bytes, "passes": fit.passes, "error": fit.error,
        "checkpoints": len(fit.errors), "reason": fit.reason,
    }  # fmt: skip


def difference(a: Any, b: Any) -> float:
    """The largest of all tensors, over the largest entry of each."""
    pairs = zip(a.tensors().values(), b.tensors().values(), strict=True)
    return max(float((u - v).abs().max() / v.abs().max()) for u, v in pairs)


def as_in_memory(path: Path) -> float:
    """How far factors by slabs are from those in memory."""
    options: dict[str, Any] = {"random_state": 0, "n_iter_max": SWEEPS, "tol": 0.0}
    known = tensorlrf.cp(np.load(path), RANK, **options)
    return difference(large.cp(path, RANK, memory_limit="64MB", **options), known)


def rows_of_a_file(
    gigabytes: float, limits: dict[str, str], sweeps: int, folder: Path | None
) -> Iterator[Found]:
    """One for each method, as it is done."""
    n = round((gigabytes * 1e9 / 4) ** (1 / 3))
    with tempfile.TemporaryDirectory(dir=folder) as made:
        small, path = Path(made) / "small.npy", Path(made) / "cube.npy"
        make(small, SMALL)
        near = as_in_memory(small)
        make(path, n)
        for what, limit in limits.items():
            found = measured(__file__, "run", path, what, limit, sweeps, OMP_NUM_THREADS="1")
            row = {
                "tensor": f"{gigabytes:g} GB mapped", "method": what, "limit": limit,
                "peak MB": round(found["peak"] / 1e6), "passes": found["passes"],
                "error": round(found["error"], 6), "seconds": found["seconds"],
            }  # fmt: skip
            if what == "cp":
                row["sweeps"] = found["passes"] - 1 - found["checkpoints"]
                row["from in memory"] = near
            yield row


# ---- shards ---------------------------------------------------------------------------------


def sent_by_sockets() -> int:
    """Bytes that this process has sent, as TCP counts them, over all its connections."""
    total = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            if not stat.S_ISSOCK(os.stat(int(name)).st_mode):
                continue
            with socket.socket(fileno=os.dup(int(name))) as one:
                told = one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
            total += struct.unpack_from("<Q", told, 200)[0]  # tcpi_bytes_sent, Linux 4.19
        except (OSError, struct.error):
            continue  # closed meanwhile, or no TCP
    return total


def cube() -> torch.Tensor:
    draws = torch.Generator().manual_seed(1)
    factors = tuple(torch.randn(n, r, generator=draws) for n, r in zip(SHAPE, CORE, strict=True))
    core = torch.randn(CORE, generator=draws)
    tensor = tensorlrf.TuckerFactors(core, factors).to_dense()
    tensor = tensor / tensor.square().mean().sqrt()
    return tensor + NOISE * torch.randn(SHAPE, generator=draws)


CALLS: dict[str, Callable[..., Any]] = {
    "cp": lambda t: large.fit_cp(t, TERMS, random_state=0, n_iter_max=SWEEPS, tol=0.0),
    "tucker": lambda t: large.fit_tucker(t, CORE, n_iter_max=5, tol=0.0),
}


def one_rank(store: str, rank: str, ranks: str) -> dict[str, Any]:
    """What a rank sends, and how far its factors are from those of one process."""
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=int(rank), world_size=int(ranks),
        timeout=timedelta(seconds=TIMEOUT / 4),
    )  # fmt: skip
    whole = cube()
    shards = large.Sharded(whole.tensor_split(int(ranks))[int(rank)].clone())
    told = {}
    for name, call in CALLS.items():
        call(shards)  # connections are made
        dist.barrier()
        before, begun = sent_by_sockets(), time.perf_counter()
        fit = call(shards)
        seconds, sent = time.perf_counter() - begun, sent_by_sockets() - before
        told[name] = {
            "seconds": seconds, "sockets": sent, "counted": fit.bytes_sent, "passes": fit.passes,
        }  # fmt: skip
        known = call(whole).factors if rank == "0" else fit.factors.map(torch.empty_like)
        for tensor in known.tensors().values():
            dist.broadcast(tensor, 0)
        told[name]["difference"] = difference(fit.factors, known)
    dist.destroy_process_group()
    return told


def model(name: str, ranks: int, passes: int) -> float:
    """Bytes that a rank sends by docs/large.md, of a tensor along its first mode."""
    around = 2 * (ranks - 1) / ranks
    rows = math.ceil(SHAPE[0] / ranks)
    if name == "cp":
        sweep = around * (4 * TERMS * sum(SHAPE[1:]) + 8 * TERMS**2)
        checkpoints = SWEEPS // 10
        return (
            SWEEPS * sweep
            + checkpoints * around * 8 * (2 * TERMS**2 + 1)
            + (ranks - 1) * rows * TERMS * 4
        )
    core = math.prod(CORE)
    sweeps = (passes - 5) / 2
    sweep = (
        around * 4 * (core + sum(n * core // r for n, r in zip(SHAPE[1:], CORE[1:], strict=True)))
    )
    sweep += 8 * (ranks - 1) * min(rows, core // CORE[0]) * core // CORE[0]
    wide = [2 * r for r in CORE]
    columns = math.prod(wide[1:])
    start = around * (8 * sum(n**2 for n in SHAPE[1:]) + 4 * math.prod(wide))
    start += 8 * (ranks - 1) * min(rows, columns) * columns
    return start + sweeps * sweep + (ranks - 1) * rows * CORE[0] * 4


def rows_of_shards(ranks: int) -> list[Found]:
    with tempfile.TemporaryDirectory() as made:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, __file__, "--measure", "one_rank", f"{made}/store"]
        processes = [
            subprocess.Popen(
                [*command, str(rank), str(ranks)], stdout=subprocess.PIPE, text=True,
                env=environment,
            )
            for rank in range(ranks)
        ]  # fmt: skip
        try:
            said = [process.communicate(timeout=TIMEOUT)[0] for process in processes]
        finally:
            for process in processes:
                process.kill()
    told = [json.loads(text.splitlines()[-1]) for text in said]
    rows = []
    for name in CALLS:
        found = [one[name] for one in told]
        most = max(one["sockets"] for one in found)
        planned = model(name, ranks, found[0]["passes"])
        row = {
            "tensor": f"{ranks} shards", "method": name, "sockets": most, "model": round(planned),
            "sockets / model": round(most / planned, 3),
            "counted": max(one["counted"] for one in found),
            "from one rank": max(one["difference"] for one in found),
            "seconds": max(one["seconds"] for one in found),
        }  # fmt: skip
        rows.append(row)
        print(row, flush=True)
    return rows


def write(folder: Path, stem: str, rows: list[Found], times: bool) -> None:
    """As JSON and as a table; seconds where they are asked for, on a machine with nothing else."""
    kept = [{k: v for k, v in row.items() if times or k != "seconds"} for row in rows]
    columns = list(dict.fromkeys(key for row in kept for key in row))
    about = machine("cpu") | {"threads": 1}
    lines = [
        f"# {stem}", "", ", ".join(f"{key} {value}" for key, value in about.items()), "", NOTE, "",
        f"| {' | '.join(columns)} |", f"| {' | '.join('---' for _ in columns)} |",
        *(f"| {' | '.join(cell(row.get(key, '')) for key in columns)} |" for row in kept),
    ]  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    content = {"machine": about, "note": NOTE, "rows": kept}
    (folder / f"{stem}.json").write_text(json.dumps(content, indent=1) + "\n")
    (folder / f"{stem}.md").write_text("\n".join(lines) + "\n")


def rows_but(folder: Path, methods: Sequence[str]) -> list[Found]:
    """Rows of earlier runs, but of methods that are to be measured again."""
    known = folder / "large.json"
    rows: list[Found] = json.loads(known.read_text())["rows"] if known.is_file() else []
    return [row for row in rows if row["method"] not in methods]


def cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--gigabytes", type=float, default=4.0)
    parser.add_argument("--limit", help="for all; by default what each needs, or 512MB")
    parser.add_argument("--methods", nargs="+", choices=WHAT, default=WHAT)
    parser.add_argument("--sweeps", type=int, default=40, help="of CP, at the most")
    parser.add_argument("--shards", action="store_true", help="these alone, over 2 and 4 processes")
    parser.add_argument("--times", action="store_true", help="on a machine with nothing else")
    parser.add_argument("--results", type=Path, default=ROOT / "bench/results/cpu")
    parser.add_argument("--folder", type=Path, help="with room for the file")
    parser.add_argument("--measure", nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        what, *rest = given.measure
        told = run(*rest) if what == "run" else one_rank(*rest)
        print(json.dumps(told))
        return
    if given.shards:
        rows = [*rows_of_shards(2), *rows_of_shards(4)]
        write(given.results, "large_shards", rows, given.times)
        return
    limits = {what: given.limit or LIMITS[what] for what in given.methods}
    rows = rows_but(given.results, given.methods)
    for row in rows_of_a_file(given.gigabytes, limits, given.sweeps, given.folder):
        print(row, flush=True)
        rows.append(row)
        write(given.results, "large", rows, given.times)


if __name__ == "__main__":
    main()
