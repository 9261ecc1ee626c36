"""MTTKRP of sparse tensors for the GPU run, in float32: gathered rows added up by torch beside our
kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench import kernel_cases
from bench.kernel_cases import Case, Way
from tensorlrf_kernels._tables import choose
from tensorlrf_kernels.launches import Problem
from tensorlrf_kernels.sparse_mttkrp import reference, sparse_mttkrp

DTYPE = torch.float32
# Nonzeros, rows, rows of the two other factors, columns: long rows, and short ones.
SPARSE: tuple[tuple[int, int, int, int], ...] = (
    (10_000_000, 2_000, 2_000, 16),
    (10_000_000, 2_000_000, 2_000, 16),
)


def sparse_mttkrp_problem(nnz: int, rows: int, columns: int) -> Problem:
    """What the kernel is to compute."""
    return Problem(rows, columns, nnz, columns, DTYPE)


def sparse_mttkrp_case(nnz: int, rows: int, size: int, columns: int) -> Case:
    """Nonzeros anywhere, in rows of about equal length."""

    def operands() -> list[Tensor]:
        device = kernel_cases.DEVICE
        indices = torch.randint(size, (2, nnz), device=device, dtype=torch.int32)
        starts = torch.arange(rows + 1, device=device) * nnz // rows
        factors = [torch.randn(size, columns, device=device, dtype=DTYPE) for _ in range(2)]
        return [torch.randn(nnz, device=device, dtype=DTYPE), indices, starts, *factors]

    def of(run: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda values, indices, starts, *factors: run(values, indices, starts, factors)

    def exact(values: Tensor, indices: Tensor, starts: Tensor, *factors: Tensor) -> Tensor:
        wide = [f.double() for f in factors]
        return reference.in_blocks(values.double(), indices, starts, wide)

    # Values and indices once, the result once; factors lie in the L2 cache.
    moved = nnz * (DTYPE.itemsize + 2 * 4) + rows * (8 + columns * DTYPE.itemsize)
    runs = {"chain": of(reference.sparse_mttkrp), "fused": of(sparse_mttkrp)}
    ways = {name: Way(run, operands, moved) for name, run in runs.items()}
    problem = sparse_mttkrp_problem(nnz, rows, columns)
    common: dict[str, Any] = {"op": "sparse_mttkrp", "rank": columns, "layer": f"{nnz} in {rows}"}
    floor = moved / kernel_cases.profiled().bandwidth
    flops = 4 * nnz * columns
    info = {name: {**common, "flops": flops, "bytes": moved} for name in ways}
    for name in info:
        info[name]["floor_us"] = 1e6 * floor
    chosen = choose("sparse_mttkrp", "forward", problem, kernel_cases.DEVICE)
    info["fused"]["launch"] = str(chosen)
    kernels = (("sparse_mttkrp", "forward", problem),)
    name = f"sparse mttkrp {nnz} nonzeros in {rows} rows, r={columns}"
    return Case(name, ways, dict.fromkeys(ways, exact), info, kernels, peaks=True)
