"""What each of several ranks does in the tests: run as a program, one process a rank.

python in_ranks.py STORE RANK RANKS OUT
"""

from __future__ import annotations

import json
import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from torch.distributed.tensor import (  # noqa: E402
    DTensor,
    Partial,
    Replicate,
    Shard,
    distribute_tensor,
    init_device_mesh,
)

import tensorlrf  # noqa: E402
from tensorlrf import large  # noqa: E402
from tests.decomposition.large.planted import of_core  # noqa: E402

SHAPE = (21, 15, 9, 10)
CALLS: dict[str, Any] = {
    "cp": lambda t, **k: large.fit_cp(t, 4, random_state=0, n_iter_max=12, tol=0.0, **k),
    "restarts": lambda t, **k: large.fit_cp(t, 2, random_state=0, n_restarts=3, n_iter_max=9, **k),
    "svd start": lambda t, **k: large.fit_cp(t, 3, init="svd", random_state=0, n_iter_max=5, **k),
    "tucker": lambda t, **k: large.fit_tucker(t, (3, 4, 2, 3), **k),
    "tucker within": lambda t, **k: large.fit_tucker(t, error=0.3, **k),
    "tt": lambda t, **k: large.fit_tt(t, (3, 7, 4), **k),
    "tt within": lambda t, **k: large.fit_tt(t, error=0.3, **k),
    "sketch": lambda t, **k: large.fit_svd(t, 5, solver="randomized", random_state=0, **k),
    "gram": lambda t, **k: large.fit_svd(t, 5, solver="gram", random_state=0, **k),
}


def difference(a: Any, b: Any) -> float:
    """The largest of all tensors, over the largest entry of each."""
    pairs = zip(a.tensors().values(), b.tensors().values(), strict=True)
    return max(float((u - v).abs().max() / v.abs().max()) for u, v in pairs)


def equalities(mesh: Any) -> dict[str, Any]:
    """Each call with a shard a rank, and with the whole."""
    told = {}
    for dtype in (torch.float64, torch.float32):
        tensor = of_core(SHAPE, (4, 5, 3, 4), noise=0.3, dtype=dtype)
        for along in (0, 2):
            shards = distribute_tensor(tensor, mesh, [Shard(along)])
            for name, call in CALLS.items():
                one, many = call(tensor, along=along), call(shards)
                told[f"{name}, {str(dtype)[6:]}, {along}"] = {
                    "difference": difference(many.factors, one.factors),
                    "errors": [many.error, one.error],
                    "passes": [many.passes, one.passes],
                    "bytes": many.bytes_sent,
                }
    return told


def refusals(mesh: Any, rank: int) -> dict[str, str]:
    """What is said of calls that cannot be served, on this rank."""
    tensor = of_core(SHAPE, (4, 5, 3, 4))
    shards = distribute_tensor(tensor, mesh, [Shard(0)])
    spoilt = tensor.clone()
    spoilt[20] = float("nan")
    own = torch.ones(3, 4 + rank, dtype=torch.float64, device="cpu")
    integers = torch.ones(3, 4, dtype=torch.int64 if rank else torch.float64, device="cpu")
    twice = init_device_mesh("cpu", (mesh.size(), 1))
    told: dict[str, Any] = {
        "rank": lambda: large.cp(shards, 4 + rank),
        "seed": lambda: large.cp(shards, 4, random_state=rank),
        "word": lambda: large.tucker(shards, 2, solver="hooi" if rank else "hosvd"),
        "init": lambda: large.cp(
            shards, 2, init=(None, [torch.full((n, 2), 1.0 + rank, dtype=torch.float64,
                                               device="cpu") for n in SHAPE])
        ),
        "limit": lambda: large.cp(large.Sharded(shards, memory_limit=10**9 + rank), 2),
        "small": lambda: large.tt(large.Sharded(shards, memory_limit="1MB"), 2),
        "nan": lambda: large.svd(distribute_tensor(spoilt, mesh, [Shard(0)]), 2),
        "whole": lambda: large.cp(distribute_tensor(tensor, mesh, [Replicate()]), 2),
        "partial": lambda: large.cp(DTensor.from_local(tensor, mesh, [Partial()]), 2),
        "twice": lambda: large.cp(distribute_tensor(tensor, twice, [Shard(0), Shard(1)]), 2),
        "in memory": lambda: tensorlrf.cp(shards, 2),
        "along": lambda: large.cp(shards, 2, along=0),
        "pieces": lambda: large.Sharded(own),
        "integers": lambda: large.Sharded(integers),
    }  # fmt: skip
    said = {}
    for name, call in told.items():
        try:
            call()
        except tensorlrf.errors.TensorlrfError as error:
            said[name] = f"{type(error).__name__}: {error}"
    return said


def others(mesh: Any, rank: int, ranks: int, folder: Path) -> dict[str, Any]:
    """A mesh of two dimensions, files of each rank, a rank without a piece, and seeds of none."""
    tensor = of_core(SHAPE, (4, 5, 3, 4), noise=0.3)
    grid = init_device_mesh("cpu", (1, ranks))
    on_grid = distribute_tensor(tensor, grid, [Replicate(), Shard(1)])
    parts = [5, 16] if ranks == 2 else [5, 8, 2, 6]
    own = tensor.split(parts)[rank]
    np.save(folder / f"{rank}.npy", own.numpy())
    from_file = large.Sharded(folder / f"{rank}.npy")
    few = distribute_tensor(tensor[:1].clone(), mesh, [Shard(0)])
    call = CALLS["tucker"]
    drawn = [large.cp(from_file, 3, n_iter_max=2).weights.tolist() for _ in range(2)]
    told: dict[str, Any] = {
        "grid": difference(call(on_grid).factors, call(tensor, along=1).factors),
        "file": difference(call(from_file).factors, call(tensor).factors),
        "shape": from_file.shape,
        "own": [from_file.own.start, from_file.own.stop],
        "drawn": drawn,
    }
    small = CALLS["cp"]
    told["few cp"] = abs(small(few).error - small(tensor[:1], along=0).error)
    told["few sketch"] = large.fit_svd(few, 1, random_state=0, solver="randomized").error
    told["few tucker"] = large.fit_tucker(few, (1, 3, 2, 3)).error
    told["few tt"] = large.fit_tt(few, (1, 7, 4)).error
    return told


def lost(rank: int) -> str:
    """A rank that goes in the middle: what the other says."""
    tensor = torch.ones(4, 5, 6, dtype=torch.float32, device="cpu")
    sharded = large.Sharded(tensor + rank)
    if rank == 1:
        dist.destroy_process_group()
        return ""
    try:
        large.cp(sharded, 2)
    except tensorlrf.errors.TensorlrfError as error:
        return str(error)
    return "nothing"


def main() -> None:
    store, rank, ranks, out = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=ranks,
        timeout=timedelta(seconds=60),
    )  # fmt: skip
    mesh = init_device_mesh("cpu", (ranks,))
    told = {
        "equal": equalities(mesh),
        "refused": refusals(mesh, rank),
        "others": others(mesh, rank, ranks, out),
        "lost": lost(rank),
    }
    (out / f"{rank}.json").write_text(json.dumps(told))
    # Threads of gloo may still wait for the rank that went: the usual end would be an abort then.
    os._exit(0)


if __name__ == "__main__":
    main()
